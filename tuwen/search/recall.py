"""What two stages lose: how much of an exact full re-ranking remains of a shortlist that is re-ranked."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tuwen.data import draws
from tuwen.data.corpus import text_id
from tuwen.search.query import Searcher

TOPS = (1, 5, 10)
CANDIDATES = (4, 8, 16, 32, 64, 128, 256)


def two_stage_recall(
    searcher: Searcher,
    texts: Sequence[str],
    right: Sequence[Sequence[int]],
    candidates: Sequence[int] = CANDIDATES,
    track: Callable[[Iterable], Iterable] = iter,
    exact: Searcher | None = None,
) -> dict[str, Any]:
    """How much of an exact full re-ranking remains when the first stage leaves only k candidates to it.

    right: for each text, the positions of the pictures it is right for. exact: another index of the same pictures in
    the same order, whose full re-ranking is the measure, as of tokens that were not pooled (default: this one's own).

    {"queries", "full": {"r1", "r5", "r10"},
    "two_stage": {k: {"r1", "r5", "r10", "kept1", "kept5", "kept10"}}}, in percent: r is the share of texts with a right
    picture among the first results; kept the share of the full re-ranking's first results that are among two stages'.
    Every picture is matched with every text: scores do not depend on what is matched beside, so all k follow from it.
    """
    hits: dict[int | None, list[list[bool]]] = {k: [] for k in (None, *candidates)}
    overlaps: dict[int, list[list[float]]] = {k: [] for k in candidates}
    for text, own in zip(track(texts), right, strict=True):
        first, final = (scores.numpy() for scores in searcher.scores(text))
        whole = final if exact is None else exact.scores(text)[1].numpy()
        near = np.argsort(-first, kind="stable")
        best = np.argsort(-whole, kind="stable")[: max(TOPS)]
        hits[None].append([bool(np.isin(best[:top], own).any()) for top in TOPS])
        for k in candidates:
            short = np.sort(near[:k])
            ranked = short[np.argsort(-final[short], kind="stable")][: max(TOPS)]
            hits[k].append([bool(np.isin(ranked[:top], own).any()) for top in TOPS])
            overlaps[k].append([float(np.isin(best[:top], ranked[:top]).mean()) for top in TOPS])
    percent = {k: 100 * np.mean(rows, axis=0) for k, rows in hits.items()}
    recalls = {k: {f"r{top}": float(share) for top, share in zip(TOPS, percent[k], strict=True)} for k in percent}
    shares = {k: 100 * np.mean(rows, axis=0) for k, rows in overlaps.items()}
    two = {
        str(k): recalls[k] | {f"kept{top}": float(share) for top, share in zip(TOPS, shares[k], strict=True)}
        for k in candidates
    }
    return {"queries": len(texts), "full": recalls[None], "two_stage": two}


def own_texts(searcher: Searcher, count: int) -> tuple[list[str], list[list[int]]]:
    """Texts of the index's own pictures, drawn from it, and the positions of the pictures that each belongs to."""
    snapshot = searcher.index.snapshot
    owners: dict[int, list[int]] = {}
    texts_by_id: dict[int, str] = {}
    for start in range(0, len(snapshot), 10_000):
        positions = np.arange(start, min(start + 10_000, len(snapshot)))
        for place, row in zip(positions.tolist(), searcher.index.describe_at(snapshot, positions), strict=True):
            for text in (text for texts in row["texts"].values() for text in texts):
                owners.setdefault(text_id(text), []).append(place)
                texts_by_id.setdefault(text_id(text), text)
    every = list(texts_by_id)
    keys = [every[k] for k in draws.sample(len(every), count, "asked")]
    return [texts_by_id[key] for key in keys], [owners[key] for key in keys]
