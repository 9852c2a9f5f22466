"""Where picture and text meet: cross encoders and the heads on top of them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tuwen.nn.sizes import CrossEncoderConfig
from tuwen.nn.transformer import Stack


class CrossEncoder(nn.Module):
    """Post-norm layers of self-attention, cross-attention over a memory, feed-forward (BERT with cross-attention).

    Its input states are taken as they are: no embedding layer, no positions of its own.
    """

    def __init__(self, config: CrossEncoderConfig, memory_width: int):
        super().__init__()
        self.stack = Stack.of(config, "post", memory_width)

    def forward(self, x: Tensor, mask: Tensor | None, memory: Tensor, memory_mask: Tensor | None) -> Tensor:
        """[B, L, W] from x [B, L, W], mask [B, L], memory [B, S, M], memory_mask [B, S] (masks True on real tokens)."""
        return self.stack(x, mask, memory, memory_mask)

    def first(self, x: Tensor, mask: Tensor | None, memory: Tensor, memory_mask: Tensor | None) -> Tensor:
        """[B, W]: the first position of `forward`, for which the last layer works alone."""
        place = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        return self.stack(x, mask, memory, memory_mask, only=place)[:, 0]


class BridgedEncoder(nn.Module):
    """Two streams of co-attention, each layer fed by one more layer of its tower through a bridge (BridgeTower).

    Stream by stream and layer by layer: x_1 = norm(t_1), x_l = norm(t_l + z_{l-1}), z_l = layer(x_l, the other x_l), t
    being the tower's states, projected, with a type added. Both streams are updated from the same states. Without
    bridges x_1 = norm(t_L) and x_l = norm(z_{l-1}): METER, with the very same parameters.
    """

    def __init__(self, config: CrossEncoderConfig, image_width: int, text_width: int, bridges: bool = True):
        super().__init__()
        width, self.bridges = config.width, bridges
        self.text_transform, self.image_transform = nn.Linear(text_width, width), nn.Linear(image_width, width)
        self.types = nn.Embedding(3, width)  # text, picture, second picture
        self.text_norms, self.image_norms = (
            nn.ModuleList(nn.LayerNorm(width, config.eps) for _ in range(config.layers)) for _ in range(2)
        )
        self.text_layers, self.image_layers = (Stack.of(config, "post", width).blocks for _ in range(2))

    def forward(
        self, images: Sequence[Tensor], texts: Sequence[Tensor], mask: Tensor | None, kind: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Last states (text [N, L, W], image [N, I, W]) from as many layers of both towers as there are layers here.

        mask: [N, L] of the texts; kind: row of `types` of the picture.
        """
        seen = [self.image_transform(x) + self.types.weight[kind] for x in images]
        read = [self.text_transform(x) + self.types.weight[0] for x in texts]
        words, patches = torch.zeros_like(read[0]), torch.zeros_like(seen[0])
        for level in range(len(self.text_layers)):
            if self.bridges:
                words, patches = words + read[level], patches + seen[level]
            elif level == 0:
                words, patches = read[-1], seen[-1]
            x, y = self.text_norms[level](words), self.image_norms[level](patches)
            words = self.text_layers[level](x, mask, y, None)
            patches = self.image_layers[level](y, None, x, mask)
        return words, patches


class WordHead(nn.Module):
    """BERT's masked-language head: dense, GELU, norm, then the word embeddings as decoder plus a bias."""

    def __init__(self, width: int, vocabulary_size: int, eps: float = 1e-12):
        super().__init__()
        self.dense, self.activation, self.norm = nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """[K, V] logits from states x [K, W] and the word embeddings [V, W] it is tied to."""
        return self.norm(self.activation(self.dense(x))) @ words.T + self.bias


class MatchHead(nn.Linear):
    """[..., width] to the two logits of whether a pair belongs together. Measured pairs have the same bits wherever in
    a batch they stand: BLAS sums products with so few columns in an order that changes from row to row."""

    def __init__(self, width: int):
        super().__init__(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else (x[..., None, :] * self.weight).sum(-1) + self.bias
