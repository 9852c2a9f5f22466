"""Rows of all processes, with gradient: the one place where what a loss reads crosses processes."""

import torch
import torch.distributed as dist
from torch import Tensor


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
