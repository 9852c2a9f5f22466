"""Transformer parts: attention over SDPA, a block, a stack.

Shape legend: B rows, L queries, S keys, H heads, D width, M width of the memory attended to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Below this many scores a head, plain matrix products beat the fused kernel's backward on CPU in bfloat16.
_SHORT = 128 * 128


@dataclass
class Cache:
    """What one attention of a decoder has computed of the positions before: keys and values [B, H, S, d]."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def extended(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all positions so far, these last."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        self.keys, self.values = keys, values
        return keys, values

    def select(self, rows: Tensor) -> None:
        """Keeps the given rows (int64 [R])."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class TanhGELU(nn.GELU):
    """GELU by its tanh approximation (SigLIP)."""

    def __init__(self):
        super().__init__(approximate="tanh")


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": TanhGELU,
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
}


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, fused: bool
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention: [B, H, L, d] from queries [B, H, L, d], keys and values [B, H, S, d].

    mask: bool, broadcastable to [B, H, L, S], True where a key may be attended to.
    fused: take torch's fused kernel, which keeps no weights; otherwise plain products, which return them.
    """
    if fused:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout), None
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    return F.dropout(weights, dropout).to(v.dtype) @ v, weights


class Attention(nn.Module):
    """Multi-head attention, of a sequence over itself or, with `memory_width`, over a memory.

    inner: width of queries, keys and values over a memory; None: the sequence's.
    recorder: given queries, keys and attention of every call while `tuwen.nn.relations.recorded` looks into it.
    """

    recorder: Callable[[Tensor, Tensor, Tensor], None] | None = None

    def __init__(
        self,
        width: int,
        heads: int,
        memory_width: int | None = None,
        dropout: float = 0.0,
        inner: int | None = None,
    ):
        super().__init__()
        inner = width if inner is None else inner
        assert inner % heads == 0, f"width {inner} does not divide by {heads} heads"
        self.heads, self.dropout, self.cross = heads, dropout, memory_width is not None
        if memory_width is None:
            self.query_key_value = nn.Linear(width, 3 * width)
        else:
            self.query = nn.Linear(width, inner)
            self.key_value = nn.Linear(memory_width, 2 * inner)
        self.out = nn.Linear(inner, width)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
        only: Tensor | None = None,
    ) -> Tensor:
        """[B, L, D] from x [B, L, D] over itself or over memory [B, S, M].

        mask: [B, S] bool, True on real keys; None: all are real.
        causal: query l sees keys 0..l only.
        cache: of the positions before x, which it then holds too (S counts all of them), or of the memory, which is
            then read once.
        only: [B] int64, of self-attention: the one query a row that is asked for; gives [B, 1, D].
        """
        q, k, v = self._projected(x, memory, cache, only)
        allowed = None if mask is None else mask[:, None, None, :]
        if causal and only is not None:
            seen = (torch.arange(k.shape[2], device=x.device) <= only[:, None])[:, None, None, :]
            allowed = seen if allowed is None else allowed & seen
        elif causal and q.shape[2] > 1:
            past = k.shape[2] - q.shape[2]
            order = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=x.device).tril(past)
            allowed = order if allowed is None else allowed & order
        fused = self.recorder is None and not _short_bf16_on_cpu(q, k)
        out, weights = attend(q, k, v, allowed, self.dropout if self.training else 0.0, fused)
        if self.recorder is not None:
            assert weights is not None
            self.recorder(q, k, weights)
        return self.out(out.transpose(1, 2).flatten(2))

    def _projected(
        self, x: Tensor, memory: Tensor | None, cache: Cache | None, only: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, L, d], keys and values [B, H, S, d]."""
        if only is not None:
            parts = self.query_key_value
            (w_query, w_rest), (b_query, b_rest) = (y.tensor_split([x.shape[-1]]) for y in (parts.weight, parts.bias))
            k, v = (self._by_head(y) for y in F.linear(x, w_rest, b_rest).chunk(2, -1))
            return self._by_head(F.linear(picked(x, only), w_query, b_query)), k, v
        if not self.cross:
            q, k, v = (self._by_head(y) for y in self.query_key_value(x).chunk(3, -1))
            return (q, k, v) if cache is None else (q, *cache.extended(k, v))
        if cache is not None and cache.keys is not None and cache.values is not None:
            return self._by_head(self.query(x)), cache.keys, cache.values
        assert memory is not None
        k, v = (self._by_head(y) for y in self.key_value(memory).chunk(2, -1))
        if cache is not None:
            cache.extended(k, v)
        return self._by_head(self.query(x)), k, v

    def _by_head(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def picked(x: Tensor, only: Tensor) -> Tensor:
    """[B, 1, D]: of each row of x [B, L, D] the position that `only` [B] names."""
    return x[torch.arange(x.shape[0], device=x.device), only][:, None]


def _short_bf16_on_cpu(q: Tensor, k: Tensor) -> bool:
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] * k.shape[2] <= _SHORT


class Block(nn.Module):
    """Self-attention, cross-attention where there is a memory, feed-forward; each with a residual.

    norm: "pre" (x + f(norm(x)), ViT and CLIP) or "post" (norm(x + f(x)), BERT).
    hidden: width inside the feed-forward; None: four times the width.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        norm: str = "pre",
        activation: str = "gelu",
        eps: float = 1e-6,
        dropout: float = 0.0,
        memory_width: int | None = None,
        hidden: int | None = None,
    ):
        super().__init__()
        hidden = hidden or 4 * width
        self.post = norm == "post"
        self.attention = Attention(width, heads, None, dropout)
        self.attention_norm = nn.LayerNorm(width, eps)
        if memory_width is not None:
            self.cross = Attention(width, heads, memory_width, dropout)
            self.cross_norm = nn.LayerNorm(width, eps)
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), ACTIVATIONS[activation](), nn.Linear(hidden, width))
        self.feed_forward_norm = nn.LayerNorm(width, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        causal: bool = False,
        caches: tuple[Cache, Cache] | None = None,
        only: Tensor | None = None,
    ) -> Tensor:
        """[B, L, D] from x [B, L, D], mask [B, L], memory [B, S, M], memory_mask [B, S].

        caches: of self-attention and of cross-attention, see `Attention.forward`.
        only: [B] int64, the one position a row whose output is asked for; gives [B, 1, D].
        """
        return self.fed(self.attended(x, mask, memory, memory_mask, causal, caches, only))

    def attended(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        causal: bool = False,
        caches: tuple[Cache, Cache] | None = None,
        only: Tensor | None = None,
    ) -> Tensor:
        """`forward` without its feed-forward."""
        own, other = caches or (None, None)
        x = self._residual(x, self.attention_norm, lambda y: self.attention(y, None, mask, causal, own, only), only)
        if memory is not None:
            x = self._residual(x, self.cross_norm, lambda y: self.cross(y, memory, memory_mask, False, other))
        return x

    def fed(self, x: Tensor) -> Tensor:
        """The feed-forward alone, with its residual."""
        return self._residual(x, self.feed_forward_norm, self.feed_forward)

    def _residual(self, x: Tensor, norm: nn.LayerNorm, function, only: Tensor | None = None) -> Tensor:
        own = x if only is None else picked(x, only)
        if self.post:
            return norm(own + self.dropout(function(x)))
        return own + self.dropout(function(norm(x)))


class StackConfig(Protocol):
    """What a config says of its layers; those of towers, cross encoders and decoders (`tuwen.nn.sizes`) all do."""

    @property
    def width(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def activation(self) -> str: ...
    @property
    def eps(self) -> float: ...
    @property
    def dropout(self) -> float: ...
    @property
    def hidden(self) -> int | None: ...


class Stack(nn.Module):
    """Blocks one after the other; pre-norm stacks end with a norm unless `final_norm` is False."""

    @classmethod
    def of(
        cls,
        config: StackConfig,
        norm: str,
        memory_width: int | None = None,
        causal: bool = False,
        final_norm: bool = True,
    ) -> "Stack":
        """The stack a config describes: every field of it counts."""
        shape = config.width, config.layers, config.heads
        inside = config.activation, config.eps, config.dropout
        return cls(*shape, norm, *inside, memory_width, causal, final_norm, config.hidden)

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        norm: str = "pre",
        activation: str = "gelu",
        eps: float = 1e-6,
        dropout: float = 0.0,
        memory_width: int | None = None,
        causal: bool = False,
        final_norm: bool = True,
        hidden: int | None = None,
    ):
        super().__init__()
        self.causal = causal
        self.blocks = nn.ModuleList(
            Block(width, heads, norm, activation, eps, dropout, memory_width, hidden) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, eps) if norm == "pre" and final_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        layers: list[Tensor] | None = None,
        caches: Sequence[tuple[Cache, Cache]] | None = None,
        only: Tensor | None = None,
    ) -> Tensor:
        """[B, L, D]; `layers`, a list, receives the output of every block (before the final norm).

        caches: of every block, see `Block.forward`; mask then covers the positions before x too.
        only: [B] int64, the one position a row that is asked for; gives [B, 1, D], for which the last block's
            queries and feed-forward run on that position alone. The numbers are those of the whole stack.
        """
        for number, block in enumerate(self.blocks):
            positions = only if number == len(self.blocks) - 1 else None
            cache = None if caches is None else caches[number]
            x = block(x, mask, memory, memory_mask, self.causal, cache, positions)
            if layers is not None:
                layers.append(x)
        return self.norm(x)
