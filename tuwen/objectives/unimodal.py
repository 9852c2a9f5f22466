"""Contrast within one modality: two views of a picture, or two texts of one meaning, find each other; or within both.

Shape legend: R rows (queries), N columns, D width.
"""

import torch
from torch import Tensor

from tuwen.objectives.contrastive import logits_of, targets_of


def view_contrastive(
    rows: Tensor, columns: Tensor, positive: Tensor, itself: Tensor, temperature: Tensor | float
) -> Tensor:
    """NT-Xent (SimCLR, Chen et al. 2020, equation 1) over identities: every positive of a row counts alike.

    rows [R, D], columns [N, D]: unit vectors. positive, itself [R, N]: bool; a row is not compared with itself.
    Mean over rows of -log softmax over the others, of the positives.
    """
    targets = targets_of((positive & ~itself).to(rows.dtype))
    logits = logits_of(rows, columns, temperature).masked_fill(itself, float("-inf"))
    return -(targets * logits.log_softmax(1).masked_fill(itself, 0)).sum(1).mean()


def two_sided_contrastive(
    sides: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor],
    same: Tensor,
    real: Tensor,
    real_columns: Tensor,
    temperature: Tensor | float,
) -> Tensor:
    """SimCLR's loss over the 2 B vectors of two modalities: each finds its partner among all others of both sides.

    sides: [B, D] unit vectors each, row b of one belonging to row b of the other; columns: [N, D] those of all
    processes. same: [B, N] bool, of one picture or text: partners across the sides, and left out within a side. real:
    [B] and real_columns [N] bool, False on rows that have no second side: they take no part. (CAPTURE and EGE-CMP's
    card, section 4.3; with distinct rows exactly its.)
    """
    if not bool(real_columns.any()):
        return (sides[0].sum() + sides[1].sum()) * 0
    none, gone = torch.zeros_like(same), ~real_columns
    positive = torch.cat([torch.cat([none, same], 1), torch.cat([same, none], 1)]) & real_columns.repeat(2)
    ignored = torch.cat([torch.cat([same, none], 1), torch.cat([none, same], 1)]) | gone.repeat(2)
    positive = positive & real.repeat(2)[:, None]
    whole = view_contrastive(torch.cat(sides), torch.cat(columns), positive, ignored, temperature)
    return whole * len(real) / real.sum().clamp(min=1)
