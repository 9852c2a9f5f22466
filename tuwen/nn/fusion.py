"""Where picture and text meet: cross encoders and the heads on top of them."""

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
        self.stack = Stack(
            config.width,
            config.layers,
            config.heads,
            "post",
            config.activation,
            config.eps,
            config.dropout,
            memory_width,
            hidden=config.hidden,
        )

    def forward(
        self, x: Tensor, mask: Tensor | None, memory: Tensor, memory_mask: Tensor | None, record=None
    ) -> Tensor:
        """[B, L, W] from x [B, L, W], mask [B, L], memory [B, S, M], memory_mask [B, S] (masks True on real tokens)."""
        return self.stack(x, mask, memory, memory_mask, record)

    def first(self, x: Tensor, mask: Tensor | None, memory: Tensor, memory_mask: Tensor | None) -> Tensor:
        """[B, W]: the first position of `forward`, for which the last layer works alone."""
        place = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return self.stack(x, mask, memory, memory_mask, only=place)[:, 0]


class WordHead(nn.Module):
    """BERT's masked-language head: dense, GELU, norm, then the word embeddings as decoder plus a bias."""

    def __init__(self, width: int, vocabulary_size: int, eps: float = 1e-12):
        super().__init__()
        self.dense, self.activation, self.norm = nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """[K, V] logits from states x [K, W] and the word embeddings [V, W] it is tied to."""
        return self.norm(self.activation(self.dense(x))) @ words.T + self.bias
