"""What the routes share: the searcher with its queues, the keys, the limits."""

import asyncio
import contextlib
import math
import time
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from torch import Tensor

from tuwen.data.corpus import BrokenImage, normalise
from tuwen.data.images import decode
from tuwen.data.jpeg import is_jpeg2000
from tuwen.explain import word_maps
from tuwen.search.filters import Filters, sql
from tuwen.search.query import Query, SearchAnswer, Searcher
from tuwen.search.record import Busy
from tuwen.search.service import log, messages
from tuwen.search.service.keys import ApiKeys
from tuwen.search.service.metrics import ServiceMetrics
from tuwen.search.service.settings import Settings
from tuwen.search.service.work import Work

_SPACES = frozenset("\t\n\r")


class Service:
    """One searcher behind HTTP.

    keys: None only on loopback. searches, pictures, changes: each a queue before a thread of its own, so that adding
    pictures or reading a large one keeps no search waiting. draining: told to stop, and finishing what is in hand.
    """

    def __init__(self, searcher: Searcher, settings: Settings, keys: ApiKeys | None):
        self.searcher, self.settings, self.keys = searcher, settings, keys
        self.metrics = ServiceMetrics()
        self.draining = False
        self._columns: tuple[int, dict[str, dict[str, Any]]] = (-1, {})
        self.searches = Work("searches", settings.queue, settings.batch, self.metrics.batches.observe)
        self.pictures = Work("pictures", settings.queue)
        self.changes = Work("changes", settings.queue)
        for work, name in ((self.searches, "searches"), (self.pictures, "pictures"), (self.changes, "changes")):
            self.metrics.gauge(f"tuwen_waiting_{name}", f"Jobs that wait: {name}", work.__len__)
        self.metrics.gauge("tuwen_pictures", "Pictures in the index", lambda: len(searcher.index))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While it lasts, jobs are done and the index is kept fresh; at its end what waits is done still."""
        async with self.searches, self.pictures, self.changes:
            fresh = asyncio.create_task(self._keep_fresh())
            yield
            fresh.cancel()

    def admit(self, request: Request, scope: str) -> None:
        """Lets a request through, before anything of its body is read.

        Raises:
            HTTPException: 401 without a key that is known, 403 for one that may not.
        """
        if self.keys is None:
            return
        kind, _, presented = request.headers.get("authorization", "").partition(" ")
        key = self.keys.find(presented.strip()) if kind.lower() == "bearer" else None
        if key is None:
            detail = "give a key: Authorization: Bearer KEY" if not presented else "there is no such key"
            raise HTTPException(401, detail, {"WWW-Authenticate": "Bearer"})
        note(request, key=key.name)
        if not key.may(scope):
            raise HTTPException(403, f"the key {key.name} may {key.scope}, not {scope}")

    async def search(self, request: Request, query: Query, asked: Mapping[str, Any]) -> messages.Found:
        """The answer to a search, done together with others that wait and ask for the same."""
        start, settings = time.monotonic(), self.settings
        top = asked["top"] or settings.top
        candidates = settings.candidates if asked["candidates"] is None else asked["candidates"]
        budget, filters = asked["budget_ms"] or settings.budget_ms, asked["filters"]
        condition = sql(filters, self.searcher.index.columns())  # a wrong filter is refused before it waits

        def run(items: Sequence[tuple[Query, float]]) -> list[SearchAnswer]:
            waited = 1000 * (time.monotonic() - min(since for _, since in items))
            left = None if budget is None else max(1.0, budget - waited)
            return self.searcher.search([item for item, _ in items], top, candidates, left, filters)

        answer = await self.searches.together((top, candidates, budget, condition), run, (query, start))
        if not answer.complete:
            self.metrics.incomplete.inc()
        return self.answer(request, answer, start)

    async def similar(self, request: Request, id: str, top: int | None, filters: Filters) -> messages.Found:
        start = time.monotonic()
        sql(filters, self.searcher.index.columns())  # a wrong filter is refused before it waits
        with _known():
            answer = await self.searches.alone(self.searcher.similar, id, top or self.settings.top, filters)
        return self.answer(request, answer, start)

    async def browse(self, request: Request, top: int | None, filters: Filters) -> messages.Found:
        start = time.monotonic()
        answer = await self.searches.alone(self.searcher.browse, top or self.settings.top, filters)
        return self.answer(request, answer, start)

    def answer(self, request: Request, answer: SearchAnswer, start: float) -> messages.Found:
        """What was found. Where on this machine a picture came from is not told."""
        note(request, results=len(answer.results), complete=answer.complete)
        results = [
            messages.FoundPicture(
                id=result.id,
                texts=result.texts,
                columns=result.columns,
                first=_finite(result.first),
                score=_finite(result.score),
                thumbnail=f"pictures/thumbnail?id={quote(result.id, safe='')}",
            )
            for result in answer.results
        ]
        ms = round(1000 * (time.monotonic() - start), 1)
        return messages.Found(
            results=results, reranked=answer.reranked, complete=answer.complete, unknown=answer.unknown, ms=ms
        )

    async def explain(self, id: str, text: str) -> messages.Explained:
        """Where each word matched."""

        with _known():
            picture = await self.pictures.alone(self.searcher.index.picture, id)
        words, maps, part = await self.searches.alone(word_maps, self.searcher.predictor, picture, text)
        rounded = [[[round(value, 3) for value in row] for row in grid] for grid in maps.float().tolist()]
        pairs = zip(words, rounded, strict=True)
        return messages.Explained(words=[messages.WordMap(word=word, map=grid) for word, grid in pairs], part=part)

    def thumbnail(self, id: str) -> bytes:
        with _known():
            return self.searcher.index.thumbnail(id)

    def columns(self) -> dict[str, dict[str, Any]]:
        """What can be filtered by, looked up once for each version of the index."""
        index = self.searcher.index
        version = index.snapshot.version
        if self._columns[0] != version:
            columns: dict[str, dict[str, Any]] = {}
            for name, kind in index.columns().items():
                values = index.values(name)
                kind = "date" if kind == "text" and isinstance(values, dict) else kind
                columns[name] = {"kind": kind} | (values if isinstance(values, dict) else {"values": values})
            self._columns = (version, columns)
        return self._columns[1]

    async def change(self, function: Callable[[Any], Any], what: Any) -> Any:
        """`Index.add` or `remove`, after the changes that wait.

        Raises:
            HTTPException: 409 while another process is writing.
        """
        try:
            return await self.changes.alone(function, what)
        except Busy:
            raise HTTPException(409, "the index is being written elsewhere; try again") from None

    async def _keep_fresh(self) -> None:
        """Sees from time to time what other processes changed in the index."""
        while True:
            await asyncio.sleep(self.settings.refresh_seconds)
            try:
                await self.changes.alone(self.searcher.index.refresh)
            except Exception as error:  # the version at hand serves on
                log.note_error("not refreshed", error)

    def text(self, request: Request, text: str, where: str = "text") -> str:
        """The text, if it can be one of a query or of a picture.

        Raises:
            HTTPException: 422 too long, empty, or with control characters.
        """
        most = self.settings.limits.text
        if len(text) > most:
            raise HTTPException(422, f"{where}: at most {most:,} characters, not {len(text):,}")
        for character in text:
            if unicodedata.category(character) in ("Cc", "Cs") and character not in _SPACES:
                raise HTTPException(422, f"{where}: has the control character U+{ord(character):04X}")
        if not normalise(text):
            raise HTTPException(422, f"{where}: is empty")
        fields = {"text": text} if self.settings.log_queries else {}
        note(request, characters=len(text), **fields)
        return text

    async def picture(self, data: bytes, fitted: bool = False, where: str = "picture") -> Tensor:
        """[3, H, W] uint8 of the bytes of a picture; fitted: [3, side, side], what the tower reads of it.

        Raises:
            HTTPException: 413 too many pixels, 422 none that can be read.
        """

        limits = self.settings.limits

        def read() -> Tensor:
            image = decode(data, min(limits.pixels, limits.slow_pixels) if is_jpeg2000(data) else limits.pixels)
            return self.searcher.predictor.pixels(image) if fitted else image

        try:
            return await self.pictures.alone(read)
        except BrokenImage as error:
            raise HTTPException(413 if error.reason == "too large" else 422, f"{where}: {error}") from None


def note(request: Request, **fields: Any) -> None:
    """Fields for the request's line in the log."""
    if not hasattr(request.state, "noted"):
        request.state.noted = {}
    request.state.noted |= fields


@contextlib.contextmanager
def _known() -> Iterator[None]:
    """Turns the index's error of an unknown picture into 404."""
    try:
        yield
    except KeyError:
        raise HTTPException(404, "no such picture") from None


def _finite(score: float) -> float | None:
    return score if math.isfinite(score) else None
