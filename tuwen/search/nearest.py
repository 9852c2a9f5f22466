"""The first stage: the nearest pictures by vector, exact over vectors in memory, by codes, or by Lance's own index."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuwen.search.codes import Code, code_scores, ranks, shortlists
from tuwen.search.columns import as_matrix
from tuwen.search.record import IndexRecord, Snapshot

CHUNK = 65536  # vectors scored at once
MARGIN = 32  # further ones kept, from which those of exactly equal rounding are told apart
REFINE = 4  # times k candidates of an index, or of codes, whose true scores are looked at
DEPTHS = (256, 512, 1024, 2048, 4096)  # candidates by code whose true scores are looked at, whatever k is
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


def streamed(dataset: Any, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(positions [Q, <= k], scores float32) of the best of all vectors of a Lance dataset, best first.

    The vectors are read once and never held together.
    """
    places, best = torch.empty(len(queries), 0, dtype=torch.int64), torch.empty(len(queries), 0)
    begin = 0
    for batch in dataset.scanner(columns=["vector"], batch_size=CHUNK).to_batches():
        block = queries.float() @ as_matrix(batch["vector"]).T
        number = torch.arange(begin, begin + len(batch)).expand(len(queries), -1)
        joined = torch.cat([best, block], 1)
        top = joined.topk(min(k, joined.shape[1]), dim=1)
        places, best = torch.cat([places, number], 1).gather(1, top.indices), top.values
        begin += len(batch)
    return places, best


def from_record(snapshot: Snapshot, queries: Tensor, near: Sequence[np.ndarray]) -> list[tuple[Tensor, Tensor]]:
    """(positions, scores) for each query [Q, D] of the positions near it, best first, ties by position.

    Scores are those of `exact`; the vectors are read from the record, once for all queries.

    near: for each query positions, ascending.
    """
    every = np.unique(np.concatenate(near)) if len(near) else np.empty(0, dtype=np.int64)
    if not len(every):
        return [(torch.empty(0, dtype=torch.int64), torch.empty(0)) for _ in near]
    vectors = as_matrix(snapshot.dataset.take(every.tolist(), columns=["vector"])["vector"])
    ranked = []
    for query, own in zip(queries, near, strict=True):
        rows = torch.from_numpy(np.searchsorted(every, own))
        places, scores = _sorted(vectors, query[None], rows[None], len(rows))
        ranked.append((torch.from_numpy(every)[places[0]], scores[0]))
    return ranked


def by_codes(
    snapshot: Snapshot, queries: Tensor, k: int, depth: int, allowed: np.ndarray | None = None
) -> list[tuple[Tensor, Tensor]]:
    """(positions [<= k], scores) for each query [Q, D], best first: the nearest by code, sorted by whole vectors.

    Scores are true ones, but some of the k may be missed.

    depth: least number of candidates by code whose vectors are read. allowed: [N] bool; None: all.
    """
    assert snapshot.codes is not None
    code = Code.in_schema(snapshot.dataset.schema)
    assert code is not None
    near = shortlists(snapshot.codes, code.pack(queries), max(depth, REFINE * k), allowed)
    return [(places[:k], scores[:k]) for places, scores in from_record(snapshot, queries, near)]


def measured_depth(snapshot: Snapshot, encode: Callable[[Sequence[str]], Tensor]) -> dict[str, Any]:
    """How many candidates by code are looked at: {"depth", "recall", "by", "rows"}.

    The least of `DEPTHS` that holds, on average, `RECALL` of the ten nearest by whole vectors, else the greatest;
    "recall" is what was reached, "by" whether for the pictures' own "texts" or, where few have any, for "pictures" with
    noise.

    encode: [T, D] vectors of texts.
    """
    assert snapshot.codes is not None
    code = Code.in_schema(snapshot.dataset.schema)
    assert code is not None
    queries, by = _own_queries(snapshot, encode)
    truth = streamed(snapshot.dataset, queries, 10)[0].numpy()
    codes = code.pack(queries)
    places = np.array(
        [ranks(code_scores(snapshot.codes, asked[None])[0], own) for asked, own in zip(codes, truth, strict=True)]
    )
    recalls = {depth: float((places < depth).mean()) for depth in DEPTHS}
    depth = next((depth for depth, recall in recalls.items() if recall >= RECALL), DEPTHS[-1])
    return {"depth": depth, "recall": recalls[depth], "by": by, "rows": len(snapshot)}


def _own_queries(snapshot: Snapshot, encode: Callable[[Sequence[str]], Tensor]) -> tuple[Tensor, str]:
    """([SAMPLE, D] vectors to ask with, what they are of)."""
    places = np.linspace(0, len(snapshot) - 1, min(len(snapshot), 4 * SAMPLE)).round().astype(np.int64)
    rows = [json.loads(texts) for texts in snapshot.rows(places, ["texts"])["texts"]]
    texts = [text for own in rows for text in [t for several in own.values() for t in several][:1]]
    if len(texts) < SAMPLE // 2:
        return _noised(snapshot), "pictures"
    spread = np.linspace(0, len(texts) - 1, min(len(texts), SAMPLE)).round().astype(int)
    return encode([texts[k] for k in spread]), "texts"


def _noised(snapshot: Snapshot) -> Tensor:
    """[SAMPLE, D] unit vectors drawn from those of the record, with noise."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(snapshot), (SAMPLE,), generator=generator).numpy()
    queries = torch.tensor(np.array(snapshot.rows(chosen, ["vector"])["vector"], dtype=np.float32))
    noise = torch.randn(queries.shape, generator=generator) / queries.shape[1] ** 0.5
    return torch.nn.functional.normalize(queries + noise / 2, dim=1)


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
    queries = _noised(snapshot)
    truth = streamed(snapshot.dataset, queries, 10)[1]
    probes = 4
    while True:
        reached = [approximate(snapshot, query, 10, probes, None)[1] for query in queries]
        pairs = zip(reached, truth, strict=True)
        hits = [(scores >= best[-1] - ROUNDING).float().sum() / len(best) for scores, best in pairs]
        recall = float(torch.stack(hits).mean())
        if recall >= RECALL or probes >= partitions:
            return {"probes": probes, "recall": recall, "rows": rows, "seconds": built}
        probes *= 2
