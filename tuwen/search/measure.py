"""What speed costs: how far scores from kept parts are off, and how much of a full re-ranking two stages keep."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tuwen.data.corpus import text_id
from tuwen.nn.encoded import Encoded
from tuwen.predictor import Predictor
from tuwen.search.parts import Layout
from tuwen.search.pictures import Picture

if TYPE_CHECKING:
    from tuwen.search.index import Index
    from tuwen.search.query import Searcher

TOPS = (1, 5, 10)
CANDIDATES = (4, 8, 16, 32, 64, 128, 256)
SAMPLE = 32  # pictures compared
TEXTS = 16
SECONDS = 15.0  # most time a comparison takes


class LossProbe:
    """Looks at the first pictures of a build, whole, and then compares scores with what the record keeps of them."""

    def __init__(self, predictor: Predictor, layout: Layout):
        self.predictor, self.layout = predictor, layout
        self.pictures: dict[str, Encoded] = {}  # by the id of the entry
        self.texts: list[str] = []
        self.found: dict[str, float] = {}

    def watch(self, ids: Sequence[str], pictures: Sequence[Picture], encoded: Encoded) -> None:
        """Called with every batch of a build."""
        system = self.predictor.system
        again = self.layout.budget == 0 and (system.can("match") or system.can("scores"))
        if not self.layout.parts and not again:
            return
        for row, (name, picture) in enumerate(zip(ids, pictures, strict=True)):
            if name in self.pictures or len(self.pictures) < SAMPLE:  # an id given twice is what it was last
                self.pictures[name] = encoded.select(torch.tensor([row]))
                texts = [text for own in picture.texts.values() for text in list(own)[:1]]
                self.texts += texts[: TEXTS - len(self.texts)]

    def result(self, index: "Index") -> dict[str, float]:
        """Differences of final scores ("pairs", "mean", "largest"), and the share of texts with the same best picture
        ("best_kept"); empty where there was too little to compare."""
        places = index.snapshot.among(list(self.pictures))
        if not self.texts or len(places) < SAMPLE // 2:
            return {}
        exact = Encoded.cat([self.pictures[name] for name in places])
        positions = np.array(list(places.values()))
        kept = index.encoded(index.snapshot, positions)
        if kept.pooled is not None and not self.predictor.system.can(
            "scores"
        ):  # the first stage's score is the record's
            kept = replace(kept, pooled=index.vectors(index.snapshot, positions))
        differences, same = [], []
        began = time.monotonic()
        for text in self.texts:
            if time.monotonic() - began > SECONDS:
                break
            one, two = (self._scores(pictures, text) for pictures in (exact, kept))
            differences.append((one - two).abs())
            same.append(bool(one.argmax() == two.argmax()))
        off = torch.cat(differences)
        self.found = {"pairs": len(off), "mean": float(off.mean()), "largest": float(off.max())}
        self.found["best_kept"] = sum(same) / len(same)
        return self.found

    def line(self) -> str:
        """The result for people."""
        layout, found = self.layout, self.found
        kept = layout.precision + (f", {layout.budget} tokens" if layout.budget else "")
        kept = "a JPEG, encoded again" if layout.budget == 0 else kept
        return (
            f"kept as {kept}: final scores of {found['pairs']:,} pairs are off by {found['mean']:.2g} on average, "
            f"{found['largest']:.2g} at most; {found['best_kept']:.0%} of texts keep their best picture"
        )

    def _scores(self, pictures: Encoded, text: str) -> Tensor:
        """[I] final scores of the pictures."""
        asked = self.predictor.texts([text])
        first = self.predictor.first(pictures, asked).t2i[:, 0]
        return self.predictor.final(pictures, asked.select(torch.zeros(len(pictures), dtype=torch.int64)), first)


def two_stage_recall(
    searcher: "Searcher",
    texts: Sequence[str],
    right: Sequence[Sequence[int]],
    candidates: Sequence[int] = CANDIDATES,
    track: Callable[[Iterable], Iterable] = iter,
    exact: "Searcher | None" = None,
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
    kept: dict[int, list[list[float]]] = {k: [] for k in candidates}
    for text, own in zip(track(texts), right, strict=True):
        first, final = (scores.numpy() for scores in searcher.scores(text))
        whole = final if exact is None else exact.scores(text)[1].numpy()
        near = np.argsort(-first, kind="stable")
        best = np.argsort(-whole, kind="stable")[: max(TOPS)]
        hits[None].append([bool(np.isin(best[:top], own).any()) for top in TOPS])
        for k in candidates:
            short = np.sort(near[:k])
            found = short[np.argsort(-final[short], kind="stable")][: max(TOPS)]
            hits[k].append([bool(np.isin(found[:top], own).any()) for top in TOPS])
            kept[k].append([float(np.isin(best[:top], found[:top]).mean()) for top in TOPS])
    percent = {k: 100 * np.mean(rows, axis=0) for k, rows in hits.items()}
    recalls = {k: {f"r{top}": float(share) for top, share in zip(TOPS, percent[k], strict=True)} for k in percent}
    shares = {k: 100 * np.mean(rows, axis=0) for k, rows in kept.items()}
    two = {
        str(k): recalls[k] | {f"kept{top}": float(share) for top, share in zip(TOPS, shares[k], strict=True)}
        for k in candidates
    }
    return {"queries": len(texts), "full": recalls[None], "two_stage": two}


def own_texts(searcher: "Searcher", count: int) -> tuple[list[str], list[list[int]]]:
    """Texts of the index's own pictures, spread over it, and the positions of the pictures that each belongs to."""
    snapshot = searcher.index.snapshot
    owners: dict[int, list[int]] = {}
    said: dict[int, str] = {}
    for start in range(0, len(snapshot), 10_000):
        positions = np.arange(start, min(start + 10_000, len(snapshot)))
        for place, told in zip(positions.tolist(), searcher.index.told(snapshot, positions), strict=True):
            for text in (text for texts in told["texts"].values() for text in texts):
                owners.setdefault(text_id(text), []).append(place)
                said.setdefault(text_id(text), text)
    chosen = np.linspace(0, len(said) - 1, min(count, len(said))).round().astype(int)
    keys = [list(said)[k] for k in chosen]
    return [said[key] for key in keys], [owners[key] for key in keys]
