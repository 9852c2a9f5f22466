"""Metrics of instance-level retrieval (Product1M), as its evaluator has them (EGE-CMP's card, section 6).

A query shows several products, perhaps one of them twice; an item of the gallery shows one. Pure functions of rankings.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

CUTOFFS = (1, 5, 10, 50, 100)
NAMES = ("map", "mar", "prec")


def average_precision_at(right: Sequence[bool], positives: int, cutoff: int) -> float:
    """Mean, over the hits among the first k, of the share of hits down to each; 0 without a hit.

    right: whether each item of the ranking shows a product of the query. positives: items that show each product the
    query names, those of one named twice counted twice. k = min(cutoff, positives, length of the ranking). The
    denominator is the hits that were found, not those there are.
    """
    hits = np.flatnonzero(right[: _depth(right, positives, cutoff)])
    return float(np.mean(np.arange(1, len(hits) + 1) / (hits + 1))) if len(hits) else 0.0


def precision_at(right: Sequence[bool], positives: int, cutoff: int) -> float:
    """Share of hits among the first k, k as in `average_precision_at`."""
    depth = _depth(right, positives, cutoff)
    return float(np.mean(right[:depth])) if depth else 0.0


def average_recall_at(ranked: Sequence[str], products: Sequence[str], counts: Mapping[str, int], cutoff: int) -> float:
    """Mean over the distinct products of how much of its quota is among the first `cutoff`.

    ranked: the product of each item of the ranking. products: of the query. counts: items of each product in the
    gallery. A product's quota is floor(cutoff / number of products) each time it is named, at most its count; one
    without a quota (more products than places) is left out.
    """
    share, first = cutoff // len(products), Counter(ranked[:cutoff])
    quotas = {name: min(times * share, counts[name]) for name, times in Counter(products).items()}
    parts = [min(first[name], quota) / quota for name, quota in quotas.items() if quota]
    return float(np.mean(parts)) if parts else 0.0


def instance_marks(
    rankings: Sequence[Sequence[int]], products: Sequence[Sequence[str]], gallery: Sequence[str]
) -> dict[str, float]:
    """{"map10", "mar10", "prec10", ...} in percent, at every cutoff, means over all queries.

    rankings: positions in the gallery, best first. products: of every query. gallery: the product of every item. A
    query that names a product the gallery does not have counts, with 0, as in the evaluator.
    """
    counts = Counter(gallery)
    marks = {f"{name}{cutoff}": 0.0 for cutoff in CUTOFFS for name in NAMES}
    for ranking, named in zip(rankings, products, strict=True):
        if not named or any(name not in counts for name in named):
            continue
        ranked = [gallery[item] for item in ranking]
        right, positives = [name in set(named) for name in ranked], sum(counts[name] for name in named)
        for cutoff in CUTOFFS:
            marks[f"map{cutoff}"] += average_precision_at(right, positives, cutoff)
            marks[f"prec{cutoff}"] += precision_at(right, positives, cutoff)
            marks[f"mar{cutoff}"] += average_recall_at(ranked, named, counts, cutoff)
    return {name: 100 * value / max(len(rankings), 1) for name, value in marks.items()}


def average_precisions(
    rankings: Sequence[Sequence[int]], products: Sequence[Sequence[str]], gallery: Sequence[str], cutoff: int
) -> list[float]:
    """[Q] percent, of every query; their mean is `instance_marks`'s "mapCUTOFF"."""
    counts, values = Counter(gallery), []
    for ranking, named in zip(rankings, products, strict=True):
        there = bool(named) and all(name in counts for name in named)
        right = [gallery[item] in set(named) for item in ranking[:cutoff]]
        positives = sum(counts[name] for name in named)
        values.append(100 * average_precision_at(right, positives, cutoff) if there else 0.0)
    return values


def _depth(right: Sequence[bool], positives: int, cutoff: int) -> int:
    return min(cutoff, positives, len(right))
