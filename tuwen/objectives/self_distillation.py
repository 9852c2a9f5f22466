"""Pictures taught by themselves: views of one picture agree on prototypes (DINO, Caron et al. 2021, algorithm 1).

Shape legend: V views the student reads, G of them the teacher reads too (the first G), B pictures, K prototypes.
"""

import torch
from torch import Tensor


def view_targets(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """[G, B, K]: softmax((logits - centre) / temperature) of the teacher, without gradient."""
    return ((logits.detach() - centre) / temperature).softmax(-1)


def self_distillation(student: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Mean over pictures and over pairs (teacher's view g, student's view v, g != v) of the cross entropy.

    student: [V, B, K] logits; targets: [G, B, K], the teacher's of the first G of these views.
    """
    log_p = (student / temperature).log_softmax(-1)
    cross = -torch.einsum("gbk,vbk->gv", targets.to(log_p.dtype), log_p)
    pairs = targets.shape[0] * (student.shape[0] - 1)
    return (cross.sum() - cross.diagonal().sum()) / (pairs * student.shape[1])
