"""Queries against an index: a shortlist by vector, re-ranked by the cross encoder from cached picture tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuwen.data.batch import Images
from tuwen.data.corpus import BrokenImage, normalise
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.predictor import Picture, vectors
from tuwen.search import nearest
from tuwen.search.filters import Filters, sql
from tuwen.search.index import Index
from tuwen.search.record import Snapshot, check_text
from tuwen.search.within import Box, cropped

PAIRS = {"cpu": 8, "cuda": 128}  # matched at once; always so many, so that a score never depends on its neighbours
WAVE = 256  # pairs whose picture tokens are in memory at once


@dataclass(frozen=True)
class Query:
    """A text, a picture (bytes, path, Pillow image, [3, H, W] uint8), or both.

    pixels: in place of the picture, what `Predictor.pixels` made of it. box: the part of the picture that is meant,
    (x0, y0, x1, y1) as shares of width and height (`tuwen.search.within`).
    """

    text: str | None = None
    image: Picture | None = None
    pixels: Tensor | None = None
    box: Box | None = None


@dataclass(frozen=True)
class Result:
    """A picture found. image: where it came from, "" if unknown. texts: by language.

    first: score of the first stage, a cosine where the system has one vector a picture. score: the final score; where
    the picture was not re-ranked, `first` again.
    """

    id: str
    image: str
    texts: dict[str, list[str]]
    first: float
    score: float
    columns: dict[str, Any]


@dataclass(frozen=True)
class SearchAnswer:
    """results: best first. reranked: how many of them, the first ones, have the cross encoder's score; all others
    follow in the order of the first stage. complete: whether all candidates were re-ranked within the budget. ms: the
    whole call's time, which concurrent queries share. unknown: words of the query that the model never reads, because
    its vocabulary does not have them.
    """

    results: list[Result]
    reranked: int
    complete: bool
    ms: float
    unknown: list[str] = field(default_factory=list)


@dataclass
class _Asked:
    """A query under way. near, first: [K] positions and first-stage scores; final: [K], NaN where not re-ranked."""

    text: Encoded | None
    vector: Tensor | None
    near: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    first: Tensor = field(default_factory=lambda: torch.empty(0))
    final: Tensor = field(default_factory=lambda: torch.empty(0))
    depth: int = 0


class Searcher:
    """Answers queries about an index; safe to use from several threads.

    Scores are the same whatever is asked together: texts are encoded one by one, first-stage scores are summed in
    float64, and matching runs on a fixed number of pairs of texts of equal length.
    """

    def __init__(self, index: Index):
        self.index, self.predictor = index, index.predictor
        self.system = self.predictor.system
        self.pairs = PAIRS.get(self.predictor.device.type, 128)
        self._chunk_seconds = 0.0  # of the last chunk matched: what the next will take

    @property
    def reranks(self) -> bool:
        """Whether final scores read the match; where not, the first stage is all there is."""
        return self.system.matches() and (self.predictor.weight != 0 or not self.index.about["width"])

    @torch.no_grad()
    def search(
        self,
        queries: Sequence[Query],
        top: int = 10,
        candidates: int = 64,
        budget_ms: float | None = None,
        filters: Filters | None = None,
    ) -> list[SearchAnswer]:
        """The best pictures for each query.

        The first stage takes the nearest `candidates` by vector (at least `top`): of a text, of a picture, or by the
        mean of both scores. Systems that score by more than one vector (`System.scores` of their own) re-score these.
        Then texts are matched with each candidate by the cross encoder, where the system has one; a query of a picture
        alone ends with the first stage. A system without vectors is matched with every picture.

        top: most results. candidates: how many are re-ranked; 0: first stage alone. budget_ms: for all queries of the
        call together; the first stage always runs to its end, re-ranking stops in time, the best candidates first.
        filters: metadata column -> value, list of values, or {"min": a, "max": b}; results meet all.

        Raises:
            UserError: an empty query, one not UTF-8, a picture that cannot be read, a wrong filter, numbers below 1.
        """
        began = monotonic()
        if top < 1 or candidates < 0 or (budget_ms is not None and not budget_ms > 0):
            raise UserError(f"top={top}, candidates={candidates}, budget_ms={budget_ms}: positive numbers, please")
        if not queries:
            return []
        sql(filters, self.index.columns())  # told of before any work
        asked = [self._encode(query) for query in queries]

        def answer(snapshot: Snapshot) -> list[tuple[list[Result], int, bool]]:
            self._first_stage(snapshot, asked, max(top, candidates), filters)
            if candidates and self.reranks:
                self._rerank(snapshot, asked, candidates, None if budget_ms is None else began + budget_ms / 1000)
            return [self._found(snapshot, pending, top) for pending in asked]

        answers = self.index.read(answer)
        unknown = [
            [] if query.text is None else self.predictor.tokenizer.unknown_words(query.text) for query in queries
        ]
        ms = (monotonic() - began) * 1000
        return [SearchAnswer(*answer, ms=ms, unknown=words) for answer, words in zip(answers, unknown, strict=True)]

    @torch.no_grad()
    def similar(self, id: str, top: int = 10, filters: Filters | None = None) -> SearchAnswer:
        """The pictures most like one of the index, by vector, without itself.

        Raises:
            KeyError: no such picture.
            UserError: a wrong filter, or a system without vectors.
        """
        began = monotonic()
        if not self.index.about["width"]:
            raise self.system.lacks("compare pictures", "it has no first-stage vectors")

        def answer(snapshot: Snapshot) -> list[Result]:
            place = snapshot.find(id)
            pending = _Asked(None, self.index.vectors(snapshot, np.array([place]))[0])
            self._nearest(snapshot, [pending], top + 1, filters)
            own = pending.near != place
            pending.near, pending.first = pending.near[own][:top], pending.first[torch.from_numpy(own)][:top]
            return self._found(snapshot, pending, top)[0]

        return SearchAnswer(self.index.read(answer), 0, True, (monotonic() - began) * 1000)

    def browse(self, top: int = 10, filters: Filters | None = None) -> SearchAnswer:
        """Pictures as they were put in, without scores.

        Raises:
            UserError: a filter that cannot be.
        """
        began, condition = monotonic(), sql(filters, self.index.columns())

        def answer(snapshot: Snapshot) -> list[Result]:
            every = np.arange(len(snapshot)) if condition is None else np.sort(snapshot.where(condition))
            rows = self.index.describe_at(snapshot, every[:top])
            return [Result(**row, first=float("nan"), score=float("nan")) for row in rows]

        return SearchAnswer(self.index.read(answer), 0, True, (monotonic() - began) * 1000)

    @torch.no_grad()
    def scores(self, text: str) -> tuple[Tensor, Tensor]:
        """([N] first-stage, [N] final) float32 scores of every picture for one text, by position in the snapshot.

        The exact full re-ranking that a search with few candidates is measured against; it takes its time. Final
        scores are the first stage's where the system has no second.
        """
        snapshot, pending = self.index.snapshot, self._encode(Query(text))
        self._first_stage(snapshot, [pending], len(snapshot), None)
        self._rerank(snapshot, [pending], len(snapshot) if self.reranks else 0, None)
        back = torch.from_numpy(np.argsort(pending.near))
        return pending.first[back], (pending.final if self.reranks else pending.first)[back]

    # ---- queries

    def _encode(self, query: Query) -> _Asked:
        text = picture = None
        if query.text is not None:
            if not normalise(check_text(query.text)):
                raise UserError("an empty query; write what the picture shows")
            text = self.predictor.texts([query.text])
        if query.image is not None or query.pixels is not None:
            picture = self._picture(query)
        if text is None and picture is None:
            raise UserError("a query needs a text, a picture, or both")
        both = (None if text is None else vectors(text), picture)
        rows = [vector[0] for vector in both if vector is not None]
        return _Asked(text, torch.stack(rows).mean(0) if rows else None)

    def _picture(self, query: Query) -> Tensor:
        """[1, D] the vector of the picture asked about."""
        pixels = query.pixels
        if query.image is not None:
            try:
                pixels = self.predictor.pixels(query.image if query.box is None else cropped(query.image, query.box))
            except BrokenImage as error:
                raise UserError(f"the picture asked about: {error}") from None
        assert pixels is not None
        vector = vectors(self.predictor.pictures([Images(pixels[None])]))
        if vector is None:
            raise self.system.lacks("search by picture", "it has no first-stage vectors")
        return vector

    # ---- first stage

    def _first_stage(self, snapshot: Snapshot, asked: list[_Asked], k: int, filters: Filters | None) -> None:
        if not self.index.about["width"]:
            condition = sql(filters, self.index.columns())
            every = np.arange(len(snapshot)) if condition is None else np.sort(snapshot.where(condition))
            for pending in asked:
                pending.near, pending.first = every, torch.zeros(len(every))
            return
        self._nearest(snapshot, asked, k, filters)
        if self.system.can("scores"):
            for pending in asked:
                if pending.text is not None and len(pending.near):
                    self._rescore(snapshot, pending, pending.text)

    def _nearest(self, snapshot: Snapshot, asked: list[_Asked], k: int, filters: Filters | None) -> None:
        """Sets `near` and `first` by the vectors: exactly in memory, by codes, by Lance's index, or by Milvus."""
        condition = sql(filters, self.index.columns())
        queries = torch.stack([pending.vector for pending in asked if pending.vector is not None])
        if self.index.milvus is not None:
            shortlists = self.index.milvus.nearest(snapshot, queries, k, filters, self.index.columns())
        elif snapshot.vectors is None and snapshot.codes is None:
            probes = self.index.about["lance"]["probes"]
            shortlists = [nearest.approximate(snapshot, query, k, probes, condition) for query in queries]
        else:
            allowed = None
            if condition is not None:
                allowed = np.zeros(len(snapshot), dtype=bool)
                allowed[snapshot.where(condition)] = True
            if snapshot.vectors is None:
                shortlists = nearest.by_codes(snapshot, queries, k, self.index.depth, allowed)
            else:
                shortlists = list(zip(*nearest.exact(snapshot.vectors, queries, k, allowed), strict=True))
        for pending, (near, first) in zip(asked, shortlists, strict=True):
            pending.near, pending.first = near.numpy(), first

    def _rescore(self, snapshot: Snapshot, pending: _Asked, text: Encoded) -> None:
        """Token-wise (or whatever) scores of the shortlist, by which it is sorted anew."""
        parts = []
        for near in np.array_split(pending.near, len(pending.near) // WAVE + 1):
            parts.append(self.predictor.first(self.index.encoded(snapshot, near), text).t2i[:, 0])
        first = torch.cat(parts)
        order = torch.from_numpy(np.lexsort((pending.near, -first.numpy())))
        pending.near, pending.first = pending.near[order.numpy()], first[order]

    # ---- second stage

    def _rerank(self, snapshot: Snapshot, asked: list[_Asked], candidates: int, limit: float | None) -> None:
        """Final scores of every text's best candidates, in chunks of equal text length, the best candidates first."""
        pairs = []
        for number, pending in enumerate(asked):
            pending.final = torch.full((len(pending.near),), torch.nan)
            if pending.text is not None:
                pending.depth = min(candidates, len(pending.near)) if self.index.about["width"] else len(pending.near)
                pairs += [(rank, number) for rank in range(pending.depth)]
        chunks = self._chunks(pairs, asked)
        wave = self.pairs if self.index.keeps_pixels else max(WAVE, self.pairs)
        for start in range(0, len(chunks), max(1, wave // self.pairs)):
            together = chunks[start : start + max(1, wave // self.pairs)]
            if limit is not None and monotonic() + self._chunk_seconds > limit:
                return
            positions = np.unique([asked[number].near[rank] for chunk in together for rank, number in chunk])
            pictures = self.index.encoded(snapshot, positions)
            for chunk in together:
                clock = monotonic()
                if limit is not None and clock + self._chunk_seconds > limit:
                    return
                self._match(chunk, asked, positions, pictures)
                self._chunk_seconds = monotonic() - clock

    def _chunks(self, pairs: list[tuple[int, int]], asked: list[_Asked]) -> list[list[tuple[int, int]]]:
        """(rank, query) pairs in runs of at most `self.pairs`, each of texts of one length, low ranks first."""
        by_length: dict[int, list[tuple[int, int]]] = {}
        for rank, number in sorted(pairs):
            by_length.setdefault(_length(asked[number].text), []).append((rank, number))
        step = self.pairs
        chunks = [own[k : k + step] for own in by_length.values() for k in range(0, len(own), step)]
        return sorted(chunks, key=lambda chunk: chunk[0])

    def _match(self, chunk: list[tuple[int, int]], asked: list[_Asked], positions: np.ndarray, pictures: Encoded):
        full = [*chunk, *[chunk[-1]] * (self.pairs - len(chunk))]  # always as many
        rows = torch.from_numpy(np.searchsorted(positions, [asked[number].near[rank] for rank, number in full]))
        texts = Encoded.cat([text for _, number in full if (text := asked[number].text) is not None])
        first = torch.stack([asked[number].first[rank] for rank, number in full])
        final = self.predictor.final(pictures.select(rows), texts, first)
        for (rank, number), score in zip(chunk, final, strict=False):
            asked[number].final[rank] = score

    # ---- answers

    def _found(self, snapshot: Snapshot, pending: _Asked, top: int) -> tuple[list[Result], int, bool]:
        """(results, reranked, complete)."""
        final = pending.final.numpy() if len(pending.final) else np.full(len(pending.near), np.nan)
        done = ~np.isnan(final)
        order = np.lexsort((pending.near, -np.where(done, final, pending.first.numpy()), ~done))[:top]
        rows = self.index.describe_at(snapshot, pending.near[order])
        results = [
            Result(**row, first=float(pending.first[k]), score=float(final[k] if done[k] else pending.first[k]))
            for k, row in zip(order.tolist(), rows, strict=True)
        ]
        return results, int(done[order].sum()), int(done.sum()) == pending.depth


def _length(text: Encoded | None) -> int:
    """Tokens of a text's states."""
    if text is None:
        return 0
    return max([state.shape[1] for state in text.states.values() if state.dim() > 2], default=0)
