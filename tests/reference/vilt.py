"""ViLT's word-patch alignment, slowly: the loops of its code's `ipot`, a number at a time, for one row."""

import math
from collections.abc import Sequence


def plan(cost: Sequence[Sequence[float]], beta: float = 0.5, rounds: int = 50) -> list[list[float]]:
    """What is moved from each of L words to each of N patches, all of them real."""
    words, patches = len(cost), len(cost[0])
    moved = [[1.0] * patches for _ in range(words)]
    sigma = [1 / words] * words
    for _ in range(rounds):
        weighed = [[math.exp(-cost[i][j] / beta) * moved[i][j] for j in range(patches)] for i in range(words)]
        delta = [1 / (patches * sum(weighed[i][j] * sigma[i] for i in range(words))) for j in range(patches)]
        sigma = [1 / (words * sum(weighed[i][j] * delta[j] for j in range(patches))) for i in range(words)]
        moved = [[delta[j] * weighed[i][j] * sigma[i] for j in range(patches)] for i in range(words)]
    return moved


def cosine_costs(words: Sequence[Sequence[float]], patches: Sequence[Sequence[float]]) -> list[list[float]]:
    def cosine(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    return [[1 - cosine(word, patch) for patch in patches] for word in words]


def transport(words: Sequence[Sequence[float]], patches: Sequence[Sequence[float]]) -> float:
    costs = cosine_costs(words, patches)
    moved = plan(costs)
    return sum(c * t for cs, ts in zip(costs, moved, strict=True) for c, t in zip(cs, ts, strict=True))
