"""Phrases grounded without boxes: a text's phrases lie nearer to its own picture's regions than to another's.

Shape legend: B rows, P phrases, N regions, D width.
"""

import torch
from torch import Tensor

NEAREST = 3  # regions one is drawn from (MVPTR's code)


def grounding_scores(phrases: Tensor, regions: Tensor, mask: Tensor, draws: Tensor | None = None) -> Tensor:
    """[B] mean over a row's phrases of their cosine with a region; 0 where a row has no phrase.

    phrases [B, P, D], regions [B, N, D]: unit vectors. mask: [B, P] bool, True on real phrases.
    draws: [B, P] in [0, 1): which of a phrase's three nearest regions (of all, where there are fewer) is taken;
        None: the nearest.
    """
    cosine = phrases @ regions.transpose(1, 2)
    nearest = cosine.topk(min(NEAREST, cosine.shape[2]), dim=2).values
    if draws is None:
        taken = nearest[..., 0]
    else:
        taken = nearest.gather(2, (draws * nearest.shape[2]).long()[..., None])[..., 0]
    return (taken * mask).sum(1) / mask.sum(1).clamp(min=1)


def weakly_supervised_grounding(own: Tensor, other: Tensor, counts: Tensor, margin: float = 0.2) -> Tensor:
    """Mean over the rows that count of max(0, margin + other - own); 0, with gradient, where none does.

    own, other: [B] `grounding_scores` with the own and with another picture's regions. counts: [B] bool.
    """
    loss = torch.relu(margin + other - own)
    return (loss * counts).sum() / counts.sum().clamp(min=1)
