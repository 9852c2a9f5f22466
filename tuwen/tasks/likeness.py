"""Retrieval of like things, as pure functions of scores and truth: pictures like a picture, texts like a text.

Shape legend: Q queries, N items. A query may itself stand among the items; it is never an answer to itself.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from tuwen.data.corpus import Relevance
from tuwen.tasks import metrics
from tuwen.tasks.text_metrics import caption_words

COLUMNS = ("r1", "r5", "r10", "map")
HEADINGS = ("by", "R@1", "R@5", "R@10", "mAP")


def measure_likeness(
    rows: metrics.Rows,
    truth: Relevance,
    alone: bool,
    budget: int = metrics.BUDGET,
    tell: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> dict[str, float]:
    """{"r1", "r5", "r10", "map"} in percent; queries without an answer are left out.

    rows: gives the scores of a range of queries. truth: relevant items of each query. alone: whether the items are the
    queries, so that a query is not searched among them. tell: is given the queries that have an answer and each's
    average precision in percent.
    """
    ranks, precisions = [], []
    for start, stop in metrics.blocks(len(truth), truth.image_count, budget):
        scores = rows(start, stop)
        if alone:
            scores = scores.scatter(1, torch.arange(start, stop)[:, None], -torch.inf)
        query, item = metrics.pairs(truth, start, stop)
        ranks.append(metrics.block_ranks(scores, query, item).numpy())
        right = torch.zeros(scores.shape, dtype=torch.bool)
        right[query, item] = True
        precisions.append(average_precision(scores, right))
    rank = np.concatenate(ranks)
    asked = torch.from_numpy(rank != metrics.NO_ANSWER)
    precision = 100 * torch.cat(precisions)[asked]
    if tell is not None:
        tell(np.flatnonzero(asked.numpy()), precision.numpy())
    return {**metrics.recalls(rank), "map": float(precision.mean())}


def average_precision(scores: Tensor, right: Tensor) -> Tensor:
    """[Q] float64: mean over a query's right items of the share of right ones down to each; 0 where it has none.

    scores: [Q, N]; equal ones are ranked by index. right: [Q, N] bool.
    """
    order = scores.sort(dim=1, descending=True, stable=True).indices
    hits = right.gather(1, order).double()
    share = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)
    return (share * hits).sum(1) / hits.sum(1).clamp(min=1)


def chance_of(truth: Relevance, alone: bool) -> dict[str, float]:
    """What a ranking drawn uniformly gets, exactly. alone: whether the query itself is one of the items.

    A right item at rank k of n, of which r are right, finds on average 1 + (k - 1)(r - 1) / (n - 1) right ones to k.
    """
    n = truth.image_count - alone
    right = np.diff(truth.start)
    right = right[right > 0].astype(np.float64)[:, None]
    rank = np.arange(1, n + 1)
    expected = ((1 + (rank - 1) * (right - 1) / max(n - 1, 1)) / rank).mean(1)
    return {**metrics.chance(replace(truth, image_count=n)), "map": 100 * float(expected.mean())}


def sharing(groups: Sequence[Sequence[int]], others: Sequence[Sequence[int]] | None = None) -> Relevance:
    """Right items of each query: those that are in a group with it. groups: of each query; others: of each item.

    Without others the items are the queries, and none is its own answer.
    """
    members: dict[int, list[int]] = {}
    for item, its in enumerate(groups if others is None else others):
        for group in its:
            members.setdefault(group, []).append(item)
    right = []
    for query, its in enumerate(groups):
        every = set(itertools.chain.from_iterable(members.get(group, ()) for group in its))
        right.append(sorted(every - {query} if others is None else every))
    return Relevance.of(len(groups if others is None else others), right)


def cosines(queries: Tensor, items: Tensor) -> metrics.Rows:
    """Scores of vectors [Q, D] with vectors [N, D], of any length."""
    asked, known = F.normalize(queries.float(), dim=1), F.normalize(items.float(), dim=1)
    return lambda start, stop: asked[start:stop] @ known.T


def words_alone(queries: Sequence[str], items: Sequence[str]) -> metrics.Rows:
    """Cosines of TF-IDF of words, Chinese and Japanese by character; the items say how rare a word is."""
    counter = TfidfVectorizer(analyzer=caption_words)
    try:
        known = counter.fit_transform(items)
    except ValueError:  # no item has a word
        return lambda start, stop: torch.zeros(stop - start, len(items))
    asked = counter.transform(queries)
    return lambda start, stop: torch.from_numpy((asked[start:stop] @ known.T).toarray()).float()


def rows_of_likeness(system: str, marks: Mapping[str, Mapping[str, float]]) -> list[tuple[str, ...]]:
    """Rows of a table: what is compared, and its R@1, R@5, R@10 and mAP."""
    names = {"vectors": system, "words": "words alone", "colours": "colours alone", "chance": "chance"}
    return [(name, *(f"{marks[key][column]:.1f}" for column in COLUMNS)) for key, name in names.items() if key in marks]
