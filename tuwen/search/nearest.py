"""The first stage: the nearest pictures by vector, exact over vectors in memory, or by Lance's own index."""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuwen.search.record import IndexRecord, Snapshot, as_matrix

CHUNK = 65536  # vectors scored at once
MARGIN = 32  # further ones kept, from which those of exactly equal rounding are told apart
REFINE = 4  # times k candidates of the index whose true scores are looked at
RECALL = 0.95  # what an index is asked to reach
SAMPLE = 100  # queries its recall is measured with
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


def streamed(dataset: Any, queries: Tensor, k: int) -> Tensor:
    """[Q, <= k] float32 the best scores of all vectors of a Lance dataset, read once and never held together."""
    best = torch.empty(len(queries), 0)
    for batch in dataset.scanner(columns=["vector"], batch_size=CHUNK).to_batches():
        block = queries.float() @ as_matrix(batch["vector"]).T
        joined = torch.cat([best, block], 1)
        best = joined.topk(min(k, joined.shape[1]), dim=1).values
    return best


def approximate(snapshot: Snapshot, query: Tensor, k: int, probes: int, condition: str | None) -> tuple[Tensor, Tensor]:
    """(positions [<= k], scores) for one query [D], best first, by the index that Lance keeps in its files.

    Scores are true ones, but some of the k may be missed.

    probes: partitions looked into. condition: SQL that rows must meet.
    """
    nearest: dict[str, Any] = {"column": "vector", "q": query.float().numpy(), "k": k, "metric": "dot"}
    nearest |= {"nprobes": probes, "refine_factor": REFINE}
    table = snapshot.dataset.to_table(
        columns=["vector"],
        nearest=nearest,
        filter=condition,
        prefilter=condition is not None,
        with_row_id=True,
        disable_scoring_autoprojection=True,  # or Lance warns in each search that it adds its own scores
    )
    near = torch.from_numpy(snapshot.positions(table["_rowid"].to_numpy()))
    if not len(near):
        return torch.empty(0, dtype=torch.int64), torch.empty(0)
    scores = (as_matrix(table["vector"].combine_chunks()).double() @ query.double()).float()
    order = np.lexsort((near.numpy(), -scores.numpy()))[:k]
    return near[order], scores[order]


def make_lance_index(record: IndexRecord) -> dict[str, float]:
    """Lance's index over a record's vectors, with its measured recall: {"probes", "recall", "rows", "seconds"}.

    Probes are doubled until, of the ten nearest by exact search, `RECALL` are found on average for stored vectors with
    noise; "recall" is what was reached.
    """
    began = time.monotonic()
    dataset = record.dataset()
    rows = dataset.count_rows()
    partitions = max(1, min(4096, round(rows**0.5)))
    dataset.create_index("vector", "IVF_HNSW_SQ", metric="dot", num_partitions=max(1, partitions // 16), replace=True)
    record.index_ids()
    built = time.monotonic() - began
    snapshot = record.snapshot(vectors=False)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(rows, (SAMPLE,), generator=generator).numpy()
    queries = torch.tensor(np.array(snapshot.rows(chosen, ["vector"])["vector"], dtype=np.float32))
    noise = torch.randn(queries.shape, generator=generator) / queries.shape[1] ** 0.5
    queries = torch.nn.functional.normalize(queries + noise / 2, dim=1)
    truth = streamed(snapshot.dataset, queries, 10)
    probes = 4
    while True:
        reached = [approximate(snapshot, query, 10, probes, None)[1] for query in queries]
        pairs = zip(reached, truth, strict=True)
        hits = [(scores >= best[-1] - ROUNDING).float().sum() / len(best) for scores, best in pairs]
        recall = float(torch.stack(hits).mean())
        if recall >= RECALL or probes >= partitions:
            return {"probes": probes, "recall": recall, "rows": rows, "seconds": built}
        probes *= 2
