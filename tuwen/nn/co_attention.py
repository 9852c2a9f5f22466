"""Co-attention: two streams, each with the other's keys and values (ViLBERT, Lu et al. 2019, section 3.1).

Shape legend: B rows, L tokens of the first stream, S of the second, W width of both.
"""

from torch import Tensor, nn

from tuwen.nn.sizes import CrossEncoderConfig
from tuwen.nn.transformer import ACTIVATIONS, Attention


class CoAttention(nn.Module):
    """Post-norm layers of attention to the other stream and feed-forward, each stream with weights of its own.

    inner: width inside the attention (`bi_hidden`); None: the streams' width.
    """

    def __init__(self, config: CrossEncoderConfig, layers: int, inner: int | None = None):
        super().__init__()
        self.first, self.second = (
            nn.ModuleList(CoAttentionSide(config, inner) for _ in range(layers)) for _ in range(2)
        )

    def forward(
        self, first: Tensor, first_mask: Tensor | None, second: Tensor, second_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Both streams [B, L, W] and [B, S, W]; masks True on real tokens. Each layer reads the states before it."""
        for own, other in zip(self.first, self.second, strict=True):
            first, second = own(first, second, second_mask), other(second, first, first_mask)
        return first, second


class CoAttentionSide(nn.Module):
    """One stream of a layer."""

    def __init__(self, config: CrossEncoderConfig, inner: int | None):
        super().__init__()
        width, hidden = config.width, config.hidden or 4 * config.width
        self.attention = Attention(width, config.heads, width, config.dropout, inner)
        self.attention_norm, self.feed_forward_norm = (nn.LayerNorm(width, config.eps) for _ in range(2))
        activation = ACTIVATIONS[config.activation]()
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), activation, nn.Linear(hidden, width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, other: Tensor, mask: Tensor | None) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, other, mask)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
