"""EGE-CMP's contrast over both sides and its graph, number by number (card, sections 4.3 to 4.6)."""

import math

from torch import Tensor

from tests.reference.scalars import dot


def contrast_of_both(first: Tensor, second: Tensor, ids: list[int], real: list[bool], temperature: float):
    """Each of the 2 B unit vectors finds its partners of the other side among all but those of its own identity."""
    rows = [(0, k) for k in range(len(ids))] + [(1, k) for k in range(len(ids))]
    vectors = (first, second)
    total, count = 0.0, 0
    for side, k in rows:
        if not real[k]:
            continue
        others = [(s, j) for s, j in rows if real[j] and not (s == side and ids[j] == ids[k])]
        logits = [dot(vectors[side][k], vectors[s][j]) / temperature for s, j in others]
        right = [logits[n] for n, (s, j) in enumerate(others) if s != side and ids[j] == ids[k]]
        total = total + log_sum(logits) - sum(right) / len(right)
        count += 1
    return total / max(count, 1)


def log_sum(values):
    top = max(float(value.detach()) for value in values)
    return top + sum((value - top).exp() for value in values).log()


def cosine(a: Tensor, b: Tensor):
    return dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt())


def allowed(likeness: list[list[float]], row: int, like: bool, itself: bool) -> list[int]:
    """Entities above 0.85, or below 0.5, in order."""
    every = range(len(likeness))
    if like:
        return [j for j in every if likeness[row][j] > 0.85 and (itself or j != row)]
    return [j for j in every if likeness[row][j] < 0.5]


def chosen(options: list[int], draw: float, count: int) -> list[int]:
    begin = math.floor(draw * len(options))
    return [options[(begin + k) % len(options)] for k in range(min(count, len(options)))]


def node_ranking(features: Tensor, likeness: list[list[float]], draws: list[list[float]], margin: float):
    total, count = 0.0, 0
    for row in range(len(likeness)):
        near, far = allowed(likeness, row, True, False), allowed(likeness, row, False, False)
        if near and far:
            p, n = chosen(near, draws[row][0], 1)[0], chosen(far, draws[row][1], 1)[0]
            gap = margin - cosine(features[row], features[p]) + cosine(features[row], features[n])
            total, count = total + gap.clamp(min=0), count + 1
    return total / max(count, 1)


def subgraph_ranking(features: Tensor, likeness: list[list[float]], draws: list[list[float]], margin: float):
    total, count = 0.0, 0
    for row in range(len(likeness)):
        near, far = allowed(likeness, row, True, True), allowed(likeness, row, False, False)
        size = min(5 if len(options) > 5 else min(3, len(options)) for options in (near, far))
        if size < 2:
            continue
        p, n = chosen(near, draws[row][0], size), chosen(far, draws[row][1], size)
        each = 0.0
        for g in range(size):
            near_sum = sum(cosine(features[p[g]], features[other]) for other in p)
            far_sum = sum(cosine(features[n[g]], features[other]) for other in n)
            each = each + (margin + far_sum - near_sum).clamp(min=0)
        total, count = total + each / size, count + 1
    return total / max(count, 1)


def can_rows(features: list[list[float]], k: int) -> list[list[float]]:
    """P of CAN, dense, from the formula; a node is its own nearest."""
    n = len(features)
    k = min(k, n - 1)
    rows = []
    for i in range(n):
        distance = [sum((a - b) ** 2 for a, b in zip(features[i], features[j], strict=True)) for j in range(n)]
        order = sorted(distance)
        bound, total = order[k], sum(order[:k])
        rows.append([max(0.0, bound - d) / (k * bound - total) for d in distance])
    return rows


def similarity(p: list[list[float]]) -> list[list[float]]:
    """The cosine of the rows of (P + P^T) / 2."""
    n = len(p)
    w = [[(p[i][j] + p[j][i]) / 2 for j in range(n)] for i in range(n)]
    length = [math.sqrt(sum(x * x for x in row)) for row in w]
    return [
        [sum(a * b for a, b in zip(w[i], w[j], strict=True)) / (length[i] * length[j]) for j in range(n)]
        for i in range(n)
    ]
