"""Image and text towers, and the pair of them with projections into one space.

Shape legend: B rows, N image tokens, L text tokens, W a tower's width, D shared embedding width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuwen.data.text import Vocabulary
from tuwen.nn.encoded import Encoded
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig
from tuwen.nn.transformer import Stack

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ImageTower(nn.Module):
    """A ViT (Dosovitskiy et al. 2021): patches, positions, pre-norm blocks. The class token, if any, comes first."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ImageTowerConfig):
        super().__init__()
        self.config = config
        grid = config.side // config.patch
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1))
        self.patches = nn.Conv2d(3, config.width, config.patch, config.patch)
        self.class_token = nn.Parameter(torch.zeros(config.width)) if config.pool == "class" else None
        self.positions = nn.Parameter(torch.zeros(grid * grid + (config.pool == "class"), config.width))
        self.pre_norm = nn.LayerNorm(config.width, config.eps) if config.pre_norm else nn.Identity()
        self.stack = Stack(
            config.width,
            config.layers,
            config.heads,
            "pre",
            config.activation,
            config.eps,
            config.dropout,
            final_norm=config.final_norm,
        )

    def forward(self, pixels: Tensor, record=None, layers=None) -> Tensor:
        """[B, N, W] tokens from pixels [B, 3, H, W], uint8 (normalised here) or float (taken as normalised).

        H and W must be multiples of the patch; positions are interpolated when the grid is another one.
        """
        if pixels.dtype == torch.uint8:
            pixels = (pixels.float() / 255 - self.mean) / self.std
        x = self.patches(pixels)
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        if self.class_token is not None:
            x = torch.cat([self.class_token.to(x.dtype).expand(len(x), 1, -1), x], 1)
        x = self.pre_norm(x + self._positions(grid))
        return self.stack(x, record=record, layers=layers)

    def pool(self, tokens: Tensor) -> Tensor:
        """[B, W]: the class token, or the mean or greatest of the patches, as `pool` says."""
        if self.class_token is not None:
            return tokens[:, 0]
        return tokens.amax(1) if self.config.pool == "max" else tokens.mean(1)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        side = self.config.side // self.config.patch
        if grid == (side, side):
            return self.positions
        extra = 0 if self.class_token is None else 1
        patches = self.positions[extra:].float().T.reshape(1, -1, side, side)
        patches = F.interpolate(patches, grid, mode="bicubic", align_corners=False)
        return torch.cat([self.positions[:extra], patches.flatten(2)[0].T.to(self.positions.dtype)])


class TextTower(nn.Module):
    """A text encoder: BERT-like (bidirectional, post-norm) or CLIP-like (causal, pre-norm)."""

    def __init__(self, config: TextTowerConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config = config
        bert = config.kind == "bert"
        self.words = nn.Embedding(vocabulary.size, config.width)
        self.positions = nn.Parameter(torch.zeros(config.length, config.width))
        self.embedding_norm = nn.LayerNorm(config.width, config.eps) if bert else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.stack = Stack(
            config.width,
            config.layers,
            config.heads,
            "post" if bert else "pre",
            config.activation,
            config.eps,
            config.dropout,
            causal=not bert,
        )

    def forward(self, ids: Tensor, mask: Tensor, record=None, layers=None, places: Tensor | None = None) -> Tensor:
        """[B, L, W] states from ids [B, L] int64 and mask [B, L] bool (True on real tokens).

        places: [L] int64, the position of each token where it is not its place in the row (two texts, one row).
        """
        x = self.words(ids) + (self.positions[: ids.shape[1]] if places is None else self.positions[places])
        x = self.dropout(self.embedding_norm(x))
        return self.stack(x, mask, record=record, layers=layers)

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """[B, W]: the first token (BERT's [CLS]), or the last real one (CLIP's end token)."""
        if self.config.kind == "bert":
            return states[:, 0]
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]


class DualEncoder(nn.Module):
    """Both towers and their projections into one space of unit vectors."""

    def __init__(self, image: ImageTowerConfig, text: TextTowerConfig, embed: int, vocabulary: Vocabulary):
        super().__init__()
        self.image, self.text = ImageTower(image), TextTower(text, vocabulary)
        self.image_projection = nn.Linear(image.width, embed)
        self.text_projection = nn.Linear(text.width, embed)

    def encode_images(self, pixels: Tensor) -> Encoded:
        """pooled [B, D], states "last" [B, N, W]."""
        tokens = self.image(pixels)
        return Encoded(unit(self.image_projection(self.image.pool(tokens))), states={"last": tokens})

    def encode_texts(self, ids: Tensor, mask: Tensor) -> Encoded:
        """pooled [B, D], states "last" [B, L, W] with their mask."""
        states = self.text(ids, mask)
        pooled = unit(self.text_projection(self.text.pool(states, mask)))
        return Encoded(pooled, states={"last": states}, state_mask=mask)


def unit(x: Tensor) -> Tensor:
    """Rows scaled to length 1, in float32 at least: scores are never computed in less."""
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)
