"""DiDE's distillation of attention, slowly: one row, head, query and key at a time, from its card's section 4."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.scalars import dot, mean, softmax


def distribution(query: Tensor, keys: Tensor, real: Sequence[bool]) -> list[Tensor]:
    """The softmax of a query [d] over the real ones of keys [S, d] alone."""
    return softmax([dot(query, key) / len(query) ** 0.5 for key, there in zip(keys, real, strict=True) if there])


def divergence(taught: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
    """KL(teacher || student)."""
    return sum(t * (torch.log(t) - torch.log(s)) for t, s in zip(taught, own, strict=True))


def direction(
    own: tuple[Tensor, Tensor],
    taught: tuple[Tensor, Tensor],
    asks: Sequence[Sequence[bool]],
    answers: Sequence[Sequence[bool]],
) -> Tensor:
    """Mean over rows, heads and real queries of (queries, keys), each [B, H, ., d]; which queries and keys are real."""
    terms = []
    for row in range(len(asks)):
        for head in range(own[0].shape[1]):
            for query in [place for place, there in enumerate(asks[row]) if there]:
                looks = [distribution(q[row, head, query], k[row, head], answers[row]) for q, k in (taught, own)]
                terms.append(divergence(*looks))
    return mean(terms)


def attention(student: Sequence[Tensor], teacher: Sequence[Tensor], words: Sequence[Sequence[bool]]) -> Tensor:
    """Both directions of (word queries, patch keys, patch queries, word keys)."""
    patches = [[True] * student[1].shape[2]] * len(words)
    there = direction((student[0], student[1]), (teacher[0], teacher[1]), words, patches)
    return there + direction((student[2], student[3]), (teacher[2], teacher[3]), patches, words)
