"""The first stage: the nearest pictures by vector, exact over vectors in memory, or by Lance's own index."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuwen.search.record import Snapshot

CHUNK = 65536  # vectors scored at once
MARGIN = 32  # further ones kept, from which those of exactly equal rounding are told apart
ROUNDING = 4e-6  # how far a float32 product of unit vectors may be from the exact one


def exact(vectors: Tensor, queries: Tensor, k: int, allowed: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """(positions [Q, k] int64, scores [Q, k] float32) of the k nearest by inner product, best first.

    A score is summed in float64 and rounded once, and equal ones keep the vectors' order: neither how many queries are
    asked together nor how the vectors are chunked changes anything. Fewer than k come back where fewer are allowed.

    vectors: [N, D] float32. queries: [Q, D]. allowed: [N] bool; None: all.
    """
    k = min(k, len(vectors) if allowed is None else int(allowed.sum()))
    if not k:
        return torch.empty(len(queries), 0, dtype=torch.int64), torch.empty(len(queries), 0)
    margin = MARGIN
    while True:
        near, scores = _nearest(vectors, queries, k + margin, allowed)
        enough = near.shape[1] < k + margin or bool((scores[:, -1] < scores[:, k - 1] - 2 * ROUNDING).all())
        if enough:
            return _sorted(vectors, queries, near, k)
        margin *= 8  # many vectors as good as equal: all of them are looked at


def _nearest(vectors: Tensor, queries: Tensor, k: int, allowed: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """The k best by float32 products, chunk by chunk."""
    places, scores = [], []
    for begin in range(0, len(vectors), CHUNK):
        block = queries.float() @ vectors[begin : begin + CHUNK].T
        if allowed is not None:
            own = torch.from_numpy(allowed[begin : begin + CHUNK])
            block = block[:, own]
            number = torch.from_numpy(np.flatnonzero(allowed[begin : begin + CHUNK]))
        best = block.topk(min(k, block.shape[1]), dim=1)
        places.append((best.indices if allowed is None else number[best.indices]) + begin)
        scores.append(best.values)
    joined = torch.cat(scores, 1)
    best = joined.topk(min(k, joined.shape[1]), dim=1)
    return torch.cat(places, 1).gather(1, best.indices), best.values


def _sorted(vectors: Tensor, queries: Tensor, near: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of the candidates by exact scores, ties by position."""
    near = near.sort(1).values
    exactly = torch.stack([vectors[row].double() @ query for row, query in zip(near, queries.double(), strict=True)])
    scores, order = exactly.float().sort(dim=1, descending=True, stable=True)
    return near.gather(1, order)[:, :k], scores[:, :k]


def approximate(snapshot: Snapshot, query: Tensor, k: int, probes: int, condition: str | None) -> tuple[Tensor, Tensor]:
    """As `exact` for one query [D], by the index that Lance keeps in its files; true scores, but some may be missed.

    probes: partitions looked into. condition: SQL that rows must meet.
    """
    nearest: dict[str, Any] = {"column": "vector", "q": query.float().numpy(), "k": k, "metric": "dot"}
    nearest |= {"nprobes": probes, "refine_factor": 4}
    found = snapshot.dataset.to_table(
        columns=["vector"], nearest=nearest, filter=condition, prefilter=condition is not None, with_row_id=True
    )
    near = torch.from_numpy(np.sort(snapshot.positions(found["_rowid"].to_numpy())))[None]
    if not near.shape[1]:
        return near, torch.empty(1, 0)
    rows = snapshot.rows(near[0].numpy(), ["vector"])["vector"]
    vectors = torch.tensor(np.array(rows, dtype=np.float32))
    scores, order = (vectors.double() @ query.double()).float().sort(descending=True, stable=True)
    return near[:, order][:, :k], scores[None, :k]
