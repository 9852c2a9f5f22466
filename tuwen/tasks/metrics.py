"""Retrieval metrics as pure functions of scores and truth; no model inside.

Any-hit recall with several right answers either way (zero-benchmark card, section 6): a query counts as found at K
when at least one of its relevant items is among the K best. A rank is 0 for the best item and is
(items scoring strictly greater) + (items scoring equal with an earlier index), so ties go to the earlier index.

Shape legend: Q queries, N items, M relevant pairs of a block.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from tuwen.data.corpus import Relevance
from tuwen.errors import UserError

CUTOFFS = (1, 5, 10)
DIRECTIONS = ("image_to_text", "text_to_image")
NO_ANSWER = -1  # rank of a query that has no relevant item: left out
MISSED = int(np.iinfo(np.int64).max)  # rank of a query whose relevant items were all shut out of re-ranking
BUDGET = 1 << 24  # scores held at once: 64 MiB of float32

Rows = Callable[[int, int], Tensor]  # scores of queries start..stop-1 against every item, [stop - start, N]


def blocks(queries: int, items: int, budget: int = BUDGET) -> Iterator[tuple[int, int]]:
    """(start, stop) of blocks of queries whose scores against all items stay within `budget` elements."""
    size = max(1, budget // max(1, items))
    return ((start, min(start + size, queries)) for start in range(0, queries, size))


def best_ranks(rows: Rows, truth: Relevance, budget: int = BUDGET) -> np.ndarray:
    """[Q] int64 rank of each query's best relevant item, block by block; NO_ANSWER where there is none.

    rows: gives the scores of a range of queries. truth: relevant items of each query.
    Never more than `budget` scores (and at least one query's) are asked for at once; the size of the blocks
    changes nothing.
    """
    out = np.empty(len(truth), dtype=np.int64)
    for start, stop in blocks(len(truth), truth.image_count, budget):
        scores = rows(start, stop)
        out[start:stop] = block_ranks(scores, *pairs(truth, start, stop, scores.device)).cpu().numpy()
    return out


def pairs(truth: Relevance, start: int, stop: int, device=None) -> tuple[Tensor, Tensor]:
    """(query, item), [M] int64 each, of the relevant pairs of queries start..stop-1; queries count from 0."""
    counts = np.diff(truth.start[start : stop + 1])
    query = np.repeat(np.arange(stop - start), counts)
    item = truth.images[truth.start[start] : truth.start[stop]]
    return torch.from_numpy(query).to(device), torch.from_numpy(np.ascontiguousarray(item)).to(device)


def block_ranks(scores: Tensor, query: Tensor, item: Tensor) -> Tensor:
    """[Q] int64 rank of the best of each query's relevant items (highest score, then earlier index).

    scores: [Q, N]. query, item: [M] int64, the relevant pairs. Queries without a pair get NO_ANSWER.

    Raises:
        UserError: if a score is not a number, since comparisons with it would count as hits.
    """
    if scores.numel() and torch.isnan(scores.amax()):
        where = int(torch.isnan(scores).any(1).nonzero()[0])
        raise UserError(f"scores are not numbers (NaN), first at query {where} of a block: the weights are broken")
    queries, items = scores.shape
    value = scores[query, item]
    best = scores.new_full((queries,), -torch.inf).scatter_reduce(0, query, value, "amax")
    place = torch.where(value == best[query], item, items)
    first = item.new_full((queries,), items).scatter_reduce(0, query, place, "amin")
    index = torch.arange(items, device=scores.device)
    ahead = (scores > best[:, None]) | ((scores == best[:, None]) & (index < first[:, None]))
    return torch.where(first < items, ahead.sum(1), NO_ANSWER)


def top(scores: Tensor, count: int) -> Tensor:
    """[Q, min(count, N)] int64 items of the highest scores, best first, equal scores by earlier index."""
    count = min(count, scores.shape[1])
    if count == 0:
        return torch.empty((len(scores), 0), dtype=torch.int64, device=scores.device)
    last = scores.topk(count, dim=1).values[:, -1:]
    above, equal = scores > last, scores == last
    chosen = above | (equal & (equal.cumsum(1) <= count - above.sum(1, keepdim=True)))
    items = chosen.nonzero()[:, 1].view(len(scores), count)  # ascending, so a stable sort keeps ties by index
    order = scores.gather(1, items).sort(dim=1, descending=True, stable=True).indices
    return items.gather(1, order)


def recalls(rank: np.ndarray) -> dict[str, float]:
    """{"r1", "r5", "r10"}: percent of the queries that have an answer found among the best K; 0 if none has one."""
    asked = rank[rank != NO_ANSWER]
    return {f"r{k}": 100.0 * float((asked < k).mean()) if len(asked) else 0.0 for k in CUTOFFS}


def mean_recall(directions: Mapping[str, Mapping[str, float]]) -> float:
    """Mean of the recalls at 1, 5, 10 of the directions measured: of six, or of three (MUGE) for one direction."""
    return float(np.mean([directions[name][f"r{k}"] for name in directions for k in CUTOFFS]))


def chance(truth: Relevance) -> dict[str, float]:
    """Expected recalls, in percent, of a ranking drawn uniformly, exactly.

    A query with m relevant of N items is missed at K with the hypergeometric chance C(N - m, K) / C(N, K).
    """
    items = truth.image_count
    relevant = np.diff(truth.start)
    relevant = relevant[relevant > 0].astype(np.float64)
    missed = np.ones_like(relevant)
    out = {}
    for drawn in range(max(CUTOFFS)):
        if drawn < items:
            missed *= np.maximum(items - drawn - relevant, 0) / (items - drawn)
        if drawn + 1 in CUTOFFS:
            out[f"r{drawn + 1}"] = 100.0 * float((1 - missed).mean()) if len(relevant) else 0.0
    return out
