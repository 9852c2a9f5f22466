"""Contrast within one modality: two views of a picture, or two texts of one meaning, find each other.

Shape legend: R rows (queries), N columns, D width.
"""

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
