"""Boxes learned without gold: progressive regression towards boxes a teacher's heat maps give, and repulsion (SLAN).

Reconstructed (card section 4). Shape legend: R rows, N boxes, M references a row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tuwen.nn.boxes import generalized_overlap, overlap


def progressive_targets(start: Tensor, end: Tensor, steps: int) -> list[Tensor]:
    """start + l / steps (end - start) for l = 1..steps, no gradient. start, end: [..., 4]."""
    start, end = start.detach(), end.detach()
    return [start + (step / steps) * (end - start) for step in range(1, steps + 1)]


def assign(boxes: Tensor, references: Tensor, real: Tensor, least: float = 0.3) -> tuple[Tensor, Tensor]:
    """(reference [R, N, 4] that each box overlaps most, has one [R, N]) among references [R, M, 4], real [R, M].

    A box that overlaps none by `least` has none.
    """
    shared = overlap(boxes.detach()[:, :, None], references[:, None]).masked_fill(~real[:, None], -1.0)  # [R, N, M]
    best, which = shared.max(2)
    return references.gather(1, which[..., None].expand(-1, -1, 4)), best >= least


def progressive_regression(steps: Sequence[Tensor], references: Tensor, real: Tensor) -> Tensor:
    """Mean over steps l and boxes that have a reference of 5 |b_l - b*_l|_1 + 2 (1 - GIoU(b_l, b*_l)).

    steps: L + 1 boxes [R, N, 4], before and after each step. references [R, N, 4], real [R, N]. 0 where there are none.
    """
    targets = progressive_targets(steps[0], references, len(steps) - 1)
    total = steps[0].new_zeros(())
    for boxes, target in zip(steps[1:], targets, strict=True):
        apart = 5 * (boxes - target).abs().sum(-1) + 2 * (1 - generalized_overlap(boxes, target))
        total = total + torch.where(real, apart, 0.0).sum()
    return total / (len(steps) - 1) / real.sum().clamp(min=1)


def repulsion(boxes: Tensor, limit: float = 0.7) -> Tensor:
    """Mean over pairs of a row's boxes [R, N, 4] of how far their overlap passes `limit`."""
    shared = overlap(boxes[:, :, None], boxes[:, None])
    apart = ~torch.eye(boxes.shape[1], dtype=torch.bool, device=boxes.device)
    return (shared - limit).clamp(min=0)[:, apart].mean() if boxes.shape[1] > 1 else boxes.new_zeros(())
