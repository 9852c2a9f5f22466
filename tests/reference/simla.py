"""SIMLA's keywords and their loss, slowly: one number at a time, from its card's section 4.4."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.scalars import mean


def keywords(attention: Sequence[Sequence[float]], allowed: Sequence[bool], votes: int, most: int) -> set[int]:
    """Places of one text: attention of each head [L]; a head votes for its greatest, the most voted are chosen."""
    places = [place for place, free in enumerate(allowed) if free]
    ballots: dict[int, int] = {}
    for head in attention:
        for place in sorted(places, key=lambda p: (-head[p], p))[:votes]:
            ballots[place] = ballots.get(place, 0) + 1
    overall = {place: sum(head[place] for head in attention) for place in ballots}
    return set(sorted(ballots, key=lambda p: (-ballots[p], -overall[p], p))[:most])


def binary(logit: Tensor, target: float) -> Tensor:
    """-t log sigmoid(x) - (1 - t) log(1 - sigmoid(x)) = log(1 + e^x) - t x."""
    x = float(logit.detach())
    softplus = torch.log1p(torch.exp(-abs(logit))) + (logit if x > 0 else logit * 0)
    return softplus - target * logit


def keyword_loss(logits: Tensor, labels: Sequence[Sequence[float]], taught: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) BCE(x, y) + alpha BCE(x, sigmoid of the teacher's), mean over pictures and words."""
    terms = []
    for row in range(len(logits)):
        for word in range(logits.shape[1]):
            x = logits[row, word]
            soft = 1 / (1 + math.exp(-float(taught[row, word])))
            terms.append((1 - alpha) * binary(x, labels[row][word]) + alpha * binary(x, soft))
    return mean(terms)
