"""Gathering rows from all processes, with gradient: the one place a loss's inputs cross processes."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from tuwen.nn.encoded import Encoded


class _Gather(torch.autograd.Function):
    """all_gather whose backward sums every process's gradient of this process's rows.

    With data-parallel training averaging gradients over processes, a loss that each process means over its own
    rows then has exactly the gradient of the one-process loss over the whole batch.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # it may be shared with another branch
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather(x: Tensor) -> Tensor:
    """[W * B, ...] rows of all W processes in rank order from this one's [B, ...]; x itself in a single process.

    Rows have the same shape everywhere (pad first).
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    if x.dtype == torch.bool:
        return gather(x.to(torch.uint8)).bool()
    return _Gather.apply(x)


def gather_padded(x: Tensor) -> Tensor:
    """`gather` for [B, L, ...] where L differs between processes: padded with zeros to the longest first."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    longest = torch.tensor(x.shape[1], device=x.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    padding = x.new_zeros(x.shape[0], int(longest) - x.shape[1], *x.shape[2:])
    return gather(torch.cat([x, padding], 1))


def first_row(rows: int) -> int:
    """Where this process's rows start among the gathered ones."""
    return dist.get_rank() * rows if dist.is_available() and dist.is_initialized() else 0


def gather_tokens(encoded: Encoded) -> Encoded:
    """Vectors and tokens of the rows of all processes; `encoded` itself in a single process."""
    pooled = None if encoded.pooled is None else gather(encoded.pooled)
    tokens, mask = (None if x is None else gather_padded(x) for x in (encoded.tokens, encoded.token_mask))
    alone = pooled is encoded.pooled and tokens is encoded.tokens
    return encoded if alone else Encoded(pooled, tokens, mask)


def against_all(
    images: Encoded, texts: Encoded, score: Callable[[Encoded, Encoded], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """i2t [B, N] of this process's pictures with the texts of all, t2i [B, N] of its texts with the pictures of all.

    score: (S_i2t, S_t2i), each [I, T], of pictures with texts.
    """
    all_images, all_texts = gather_tokens(images), gather_tokens(texts)
    if all_images is images:
        to_text, to_image = score(images, texts)
        return to_text, to_image.T
    return score(images, all_texts)[0], score(all_images, texts)[1].T
