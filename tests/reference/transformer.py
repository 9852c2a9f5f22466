"""A transformer, slowly: attention one query at a time, with no library function but exp, tanh and erf.

Shape legend: B rows, H heads, L queries, S keys, W width, d = W / H.
"""

import math

import torch
from torch import Tensor

from tests.reference.scalars import dot, mean, softmax


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """softmax(q . k / sqrt(d)) v over the keys a query may see; q [B, H, L, d], k and v [B, H, S, d], mask [B, S]."""
    batch, heads, length, width = q.shape
    out = []
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                seen = [j for j in range(k.shape[2]) if (mask is None or bool(mask[b, j])) and not (causal and j > i)]
                weights = softmax([dot(q[b, h, i], k[b, h, j]) / math.sqrt(width) for j in seen])
                out.append(sum(p * v[b, h, j] for p, j in zip(weights, seen, strict=True)))
    return torch.stack(out).reshape(batch, heads, length, v.shape[-1])


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[B, L, W] to [B, H, L, d]: head h takes entries h d .. (h + 1) d - 1."""
    width = x.shape[-1] // heads
    return torch.stack([x[:, :, h * width : (h + 1) * width] for h in range(heads)], dim=1)


def joined(x: Tensor) -> Tensor:
    """The way back: [B, H, L, d] to [B, L, W]."""
    return torch.cat([x[:, h] for h in range(x.shape[1])], dim=-1)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    flat = [((row - mean(list(row))), row) for row in x.reshape(-1, x.shape[-1])]
    rows = [centred / torch.sqrt(dot(centred, centred) / len(row) + eps) for centred, row in flat]
    return torch.stack(rows).reshape(x.shape) * weight + bias


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's: x sigmoid(1.702 x)."""
    return x / (1 + torch.exp(-1.702 * x))
