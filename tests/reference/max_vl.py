"""MAX-VL's own terms, slowly, from the equations of its card (section 4): sentences, and which reports are one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.scalars import belong, cross_entropy, dot, mean, uniform_over


def within(rows: Tensor, keys: Sequence[Tensor], right: Sequence[Sequence[bool]], temperature: Tensor) -> Tensor:
    """Mean over rows of the cross entropy with the right keys of the teacher's, of this very side."""
    return mean(
        [
            cross_entropy([dot(row, key.detach()) / temperature for key in keys], uniform_over(of_row))
            for row, of_row in zip(rows, right, strict=True)
        ]
    )


def sentences(
    images: Tensor,
    spoken: Sequence[Sequence[tuple[tuple[int, ...], Tensor]]],
    image_ids: Sequence[int],
    text_ids: Sequence[int],
    temperature: Tensor,
) -> Tensor:
    """spoken: of every row its sentences as (tokens, vector)."""
    rows = []
    for b, image in enumerate(images):
        mine = {words for words, _ in spoken[b]}
        others = [
            vector
            for c, row in enumerate(spoken)
            for words, vector in row
            if not belong(image_ids[b], text_ids[b], image_ids[c], text_ids[c]) and words not in mine
        ]
        wrong = sum(torch.exp(dot(vector.detach(), image) / temperature) for vector in others)
        terms = []
        for _, vector in spoken[b]:
            right = torch.exp(dot(vector.detach(), image) / temperature)
            terms.append(-torch.log(right / (right + wrong)))
        rows.append(mean(terms))
    return mean(rows)


def near_identical(states: Sequence[Tensor], limit: float, centred: bool) -> list[list[bool]]:
    """Which two rows' states have a cosine of at least `limit`, less their mean where centred."""
    middle = mean(list(states)) if centred else torch.zeros_like(states[0])
    moved = [state - middle for state in states]
    units = [state / dot(state, state) ** 0.5 for state in moved]
    return [[float(dot(a, b)) >= limit for b in units] for a in units]
