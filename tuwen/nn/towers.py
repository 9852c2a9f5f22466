"""Image and text towers, and the pair of them with projections into one space.

Shape legend: B rows, N image tokens, L text tokens, W a tower's width, P width of its pooled vector, D shared width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuwen.data.batch import Images
from tuwen.data.text import Vocabulary
from tuwen.errors import UserError
from tuwen.nn.backbones import ImageBackbone, TextBackbone, normalised, pool_kind, pool_text
from tuwen.nn.encoded import Encoded
from tuwen.nn.locked import Lockable
from tuwen.nn.sizes import CLIP_MEAN, CLIP_STD, ImageTowerConfig, TextTowerConfig
from tuwen.nn.transformer import ACTIVATIONS, Attention, Stack

__all__ = ["CLIP_MEAN", "CLIP_STD", "DualEncoder", "ImageTower", "TextTower", "image_tower", "text_tower", "unit"]


class ImageTower(Lockable):
    """A ViT (Dosovitskiy et al. 2021): patches, positions, pre-norm blocks. The class token, if any, comes first."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ImageTowerConfig):
        super().__init__(config.locked)
        self.config = config
        self.pooled_width = config.width
        grid = config.side // config.patch
        classed = config.pool == "class"
        self.first = (1 if classed else 0) + config.registers  # tokens before the patches
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1))
        self.patches = nn.Conv2d(3, config.width, config.patch, config.patch, bias=config.patch_bias)
        self.class_token = nn.Parameter(torch.zeros(config.width)) if classed else None
        if config.registers:
            self.register_tokens = nn.Parameter(torch.zeros(config.registers, config.width))
        self.positions = nn.Parameter(torch.zeros(grid * grid + self.first, config.width))
        self.pre_norm = nn.LayerNorm(config.width, config.eps) if config.pre_norm else nn.Identity()
        self.stack = Stack.of(config, "pre", final_norm=config.final_norm)
        self.map = MapHead(config) if config.pool == "map" else None
        self.pooler = nn.Linear(config.width, config.width) if config.pooler else None
        self.lock()

    def run(
        self,
        pixels: Tensor,
        layers=None,
        only: Tensor | None = None,
        hidden: tuple[Tensor, Tensor] | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """[B, N, W] tokens from pixels [B, 3, H, W], uint8 (normalised here) or float (taken as normalised).

        H and W must be multiples of the patch; positions are interpolated when the grid is another one.
        only: [B] int64, the one token a row that is asked for; gives [B, 1, W].
        hidden: (which patches are hidden [B, h, w] bool, the token [W] in their place).
        kept: [B, K] int64, the patches of each row that are encoded, by number, row by row over the grid; each has the
            position of its place in the picture. Class token and registers stay. None: all of them.
        """
        return self.stack(self.embedded(pixels, hidden, kept), layers=layers, only=only)

    def embedded(
        self, pixels: Tensor, hidden: tuple[Tensor, Tensor] | None = None, kept: Tensor | None = None
    ) -> Tensor:
        """[B, N, W] what the blocks read, positions included; arguments as in `run`."""
        x = self.patches(normalised(pixels, self.mean, self.std))
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        if hidden is not None:
            x = torch.where(hidden[0].flatten(1)[:, :, None], hidden[1].to(x.dtype), x)
        if self.config.registers:
            x = torch.cat([self.register_tokens.to(x.dtype).expand(x.shape[0], -1, -1), x], 1)
        if self.class_token is not None:
            x = torch.cat([self.class_token.to(x.dtype).expand(x.shape[0], 1, -1), x], 1)
        x = x + self._positions(grid)
        if kept is not None:
            patches = self.grid(x).gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))
            x = torch.cat([x[:, : self.first], patches], 1)
        return self.pre_norm(x)

    def alone(self, pixels: Tensor) -> Tensor | None:
        if self.class_token is None or self.locked:
            return None
        return torch.zeros(pixels.shape[0], dtype=torch.int64, device=pixels.device)

    def grid(self, tokens: Tensor) -> Tensor:
        """[B, N, W]: the patches alone, row by row, without class token and registers."""
        return tokens[:, self.first :]

    def pool(self, tokens: Tensor) -> Tensor:
        """[B, W]: the class token, or the mean or greatest of the patches, as `pool` says ("map": the mean)."""
        if self.class_token is not None:
            return tokens[:, 0]
        return tokens.amax(1) if self.config.pool == "max" else tokens.mean(1)

    def pooled(self, tokens: Tensor) -> Tensor:
        """[B, P]: what is projected into the shared space."""
        x = self.pool(tokens) if self.map is None else self.map(tokens)
        return x if self.pooler is None else self.pooler(x).tanh()

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        side = self.config.side // self.config.patch
        if grid == (side, side):
            return self.positions
        patches = self.positions[self.first :].float().T.reshape(1, -1, side, side)
        patches = F.interpolate(patches, grid, mode="bicubic", align_corners=False)
        return torch.cat([self.positions[: self.first], patches.flatten(2)[0].T.to(self.positions.dtype)])


class MapHead(nn.Module):
    """Attention of one learned query over the tokens, then a feed-forward with residual (SigLIP's pooling head)."""

    def __init__(self, config: ImageTowerConfig):
        super().__init__()
        hidden = config.hidden or 4 * config.width
        self.probe = nn.Parameter(torch.zeros(config.width))
        self.attention = Attention(config.width, config.heads, config.width)
        self.norm = nn.LayerNorm(config.width, config.eps)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.width, hidden), ACTIVATIONS[config.activation](), nn.Linear(hidden, config.width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, W] from tokens [B, N, W]."""
        x = self.attention(self.probe.to(tokens.dtype).expand(tokens.shape[0], 1, -1), tokens)[:, 0]
        return x + self.feed_forward(self.norm(x))


class TextTower(Lockable):
    """A text encoder: BERT-like (bidirectional, post-norm), CLIP-like (causal, pre-norm), SigLIP's or FLAVA's."""

    def __init__(self, config: TextTowerConfig, vocabulary: Vocabulary):
        super().__init__(config.locked)
        self.config, self.pad_id = config, vocabulary.pad
        self.pooled_width = config.transform or config.width
        bert = config.kind == "bert"
        normed = bert or config.kind == "flava"
        self.words = nn.Embedding(vocabulary.size, config.width)
        self.positions = nn.Parameter(torch.zeros(config.length, config.width))
        self.embedding_norm = nn.LayerNorm(config.width, config.eps) if normed else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.stack = Stack.of(config, "post" if bert else "pre", causal=config.kind == "clip")
        self.pooler = nn.Linear(config.width, config.width) if config.pooler else None
        if config.transform:
            norm = nn.LayerNorm(config.width, config.eps)
            self.transform = nn.Sequential(norm, nn.Linear(config.width, config.transform))
        self.lock()

    def run(
        self,
        ids: Tensor,
        mask: Tensor,
        layers=None,
        places: Tensor | None = None,
        only: Tensor | None = None,
    ) -> Tensor:
        """[B, L, W] states from ids [B, L] int64 and mask [B, L] bool (True on real tokens).

        places: [L] int64, the position of each token where it is not its place in the row (two texts, one row).
        only: [B] int64, the one token a row that is asked for; gives [B, 1, W].
        """
        x = self.words(ids) + (self.positions[: ids.shape[1]] if places is None else self.positions[places])
        return self.read(x, mask, layers, only)

    def read(self, x: Tensor, mask: Tensor, layers=None, only: Tensor | None = None) -> Tensor:
        """[B, L, W] states from embeddings x [B, L, W], positions included."""
        return self.stack(self.dropout(self.embedding_norm(x)), mask, layers=layers, only=only)

    def alone(self, ids: Tensor, mask: Tensor) -> Tensor | None:
        pool = pool_kind(self.config)
        if self.locked or pool == "mean":
            return None
        last = mask.sum(1) - 1
        return torch.zeros_like(last) if pool == "first" else last

    def padded(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and mask as this tower reads them: SigLIP's takes padding up to its length for text."""
        if self.config.kind != "siglip":
            return ids, mask
        ids = F.pad(ids.masked_fill(~mask, self.pad_id), (0, self.config.length - ids.shape[1]), value=self.pad_id)
        return ids, torch.ones_like(ids, dtype=torch.bool)

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """[B, W]: the first token (BERT's [CLS]), the last real one (CLIP's end token), or the mean of real ones."""
        return pool_text(states, mask, self.config)

    def pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        """[B, P]: what is projected into the shared space."""
        x = self.pool(states, mask)
        if self.pooler is not None:
            x = self.pooler(x).tanh()
        return self.transform(x) if self.config.transform else x


def image_tower(config: ImageTowerConfig) -> "ImageTower | ImageBackbone":
    """The tower a config describes: a ViT, or the backbone it names."""
    return ImageTower(config) if config.backbone is None else ImageBackbone(config)


def text_tower(config: TextTowerConfig, vocabulary: Vocabulary) -> "TextTower | TextBackbone":
    """The tower a config describes."""
    return TextTower(config, vocabulary) if config.backbone is None else TextBackbone(config, vocabulary)


class DualEncoder(nn.Module):
    """Both towers and their projections into one space of unit vectors.

    Raises:
        UserError: if a tower's backbone needs a package that is not there, or a tower without projection has another
            width than the shared space.
    """

    def __init__(self, image: ImageTowerConfig, text: TextTowerConfig, embed: int, vocabulary: Vocabulary):
        super().__init__()
        self.image, self.text = image_tower(image), text_tower(text, vocabulary)
        # of a locked tower nothing is left out inside, so it is done to what is projected
        self.image_dropout = nn.Dropout(image.dropout if image.locked else 0.0)
        self.text_dropout = nn.Dropout(text.dropout if text.locked else 0.0)
        self.image_projection = _projection(self.image.pooled_width, embed, image.projection, "image")
        self.text_projection = _projection(self.text.pooled_width, embed, text.projection, "text")

    def encode_images(self, images: Images, states: bool = True, kept: Tensor | None = None) -> Encoded:
        """pooled [P, D], states "last" [P, N, W].

        states: False gives the vectors alone, for which a tower's last block need not work on every token.
        kept: [B, K] int64, the patches that alone are encoded (VLMAE, NLIP, ARL, FLIP), see `ImageTower.run`.

        Raises:
            UserError: `kept` of a backbone, or of a locked tower's cached tokens.
        """
        only = None if states or images.pixels is None else self.image.alone(images.pixels)
        tokens = self.image.tokens(images, only=only, kept=kept)
        return Encoded(self._image_vector(tokens), states={"last": tokens} if states else {})

    def encode_texts(self, ids: Tensor, mask: Tensor, states: bool = True) -> Encoded:
        """pooled [B, D], states "last" [B, L, W] with their mask, unless the vectors alone are wanted."""
        ids, mask = self.text.padded(ids, mask)
        only = None if states else self.text.alone(ids, mask)
        if only is None:
            last = self.text(ids, mask)
            pooled = unit(self.text_projection(self.text_dropout(self.text.pooled(last, mask))))
            return Encoded(pooled, states={"last": last}, state_mask=mask) if states else Encoded(pooled)
        last = self.text(ids, mask, only=only)
        return Encoded(unit(self.text_projection(self.text.pooled(last, torch.ones_like(mask[:, :1])))))

    def _image_vector(self, tokens: Tensor) -> Tensor:
        return unit(self.image_projection(self.image_dropout(self.image.pooled(tokens))))


def _projection(width: int, embed: int, kind: str, tower: str) -> nn.Module:
    if kind != "none":
        return nn.Linear(width, embed, bias=kind == "linear")
    if width != embed:
        raise UserError(f"model.{tower}.projection is none, so model.embed must be the tower's {width}, not {embed}")
    return nn.Identity()


def unit(x: Tensor) -> Tensor:
    """Rows scaled to length 1, in float32 at least: scores are never computed in less."""
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)


def fitted_positions(old: Tensor, new: Tensor, module: nn.Module) -> Tensor:
    """Positions of another size: an image's interpolated over its grid, a text's cut or lengthened with new ones."""
    if old.shape == new.shape or old.shape[1:] != new.shape[1:]:
        return old
    if not isinstance(module, ImageTower):
        rows = min(len(old), len(new))
        return torch.cat([old[:rows], new[rows:].to(old)])
    extra = module.first
    before, after = (round((len(positions) - extra) ** 0.5) for positions in (old, new))
    grid = old[extra:].T.reshape(1, -1, before, before)
    grid = F.interpolate(grid, (after, after), mode="bicubic", align_corners=False)
    return torch.cat([old[:extra], grid.flatten(2)[0].T])
