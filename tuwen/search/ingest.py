"""Pictures into a record: read, told apart by content, embedded in batches, committed.

What is embedded together is decided by the order of the pictures alone, and commits end with a batch: a run that was
killed and started again makes the same vectors as one that was not.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from tuwen.data.batch import Images
from tuwen.data.corpus import BrokenImage, normalise
from tuwen.data.fit import Fit
from tuwen.data.images import encode_jpeg, load, shrink
from tuwen.errors import UserError, quoted
from tuwen.nn.encoded import Encoded
from tuwen.predictor import Predictor, vectors
from tuwen.search.codes import CODE
from tuwen.search.columns import KINDS, field_of, metadata_columns, vector_column
from tuwen.search.parts import Layout
from tuwen.search.pictures import (
    Content,
    Picture,
    Unreadable,
    as_number,
    check_id,
    column_kind,
    column_value,
    metadata_digest,
    plain,
)
from tuwen.search.record import IndexRecord

BY = ("picture", "title", "both")  # what entries are found by; an entry without texts is by its picture
BAD_ROW = "bad row"  # the reason of what is left out for an id or a value, not for its picture
WINDOW = 64  # pictures read ahead
SHORTEST = 1.0  # seconds between commits; a fiftieth of the time so far where that is more
COMMIT_BYTES = 1 << 28  # most bytes of a commit
THUMBNAIL = 256  # shorter side of a thumbnail in pixels
FIT = "fit"  # the column of an index that is being refitted
PIXELS_QUALITY = 95  # of the JPEG kept where pictures are encoded again on demand


@dataclass(frozen=True)
class Outcome:
    """What became of a picture. id: of the entry it now is.

    state: "added"; "replaced" (its id stood for other content); "refitted" (embedded again by another fit);
        "updated" (texts, metadata or source alone); "unchanged"; "duplicate" (the same content is there under the
        `id` given here); "broken" (left out: `reason`).
    """

    id: str
    state: str
    reason: str = ""


@dataclass(frozen=True)
class Built:
    """What a build did.

    counts: pictures by what became of them (`Outcome.state`, and "removed"). broken: {"id", "reason"} of those left
    out, id being a file or its line where a corpus has no usable row; skipped: how many rows these are, by reason.
    pictures: in the index now. bytes: on disk, None at a URL. seconds: of this run. loss: what keeping the parts as
    they are costs, as `tuwen.search.loss` says it.
    """

    counts: dict[str, int]
    broken: list[dict[str, str]]
    skipped: dict[str, int]
    pictures: int
    bytes: int | None
    seconds: float
    loss: dict[str, float] = field(default_factory=dict)


@dataclass
class _Row:
    """A picture that has to be embedded, or (pixels None) whose surroundings have changed."""

    id: str
    state: str
    content: Content
    beside: dict[str, Any]  # image, texts, digest, metadata by kind
    pixels: Tensor | None = None  # [3, side, side] uint8
    thumbnail: bytes = b""


@dataclass
class _Pending:
    """What the next commit holds."""

    rows: list[_Row] = field(default_factory=list)
    vectors: list[Tensor] = field(default_factory=list)
    parts: dict[str, list[bytes]] = field(default_factory=dict)
    updates: list[_Row] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    bytes: int = 0


def part_field(name: str) -> str:
    """The table's name of a kept part."""
    return "part_" + name.replace(".", "_")


def schema_of(layout: Layout, width: int, keep_pixels: bool) -> pa.Schema:
    """Columns of the table of pictures, before any metadata. width: of vectors; 0: the system has none."""
    fields = [(name, pa.string()) for name in ("id", "hash", "image", "texts", "digest")]
    fields += [("thumbnail", pa.binary())]
    fields += [("vector", pa.list_(pa.float32(), width))] if width else []
    fields += [("pixels", pa.binary())] if keep_pixels else []
    return pa.schema(fields + [(part_field(part.name), pa.binary()) for part in layout.parts])


class Ingest:
    """One run of adding pictures. The caller holds `IndexRecord.writing`.

    load: gives the predictor, whose fit is `fit`; asked only where a picture has to be embedded.
    watch: called with (ids, pictures, encoded) of every batch, before anything is cut or rounded.
    """

    def __init__(
        self,
        record: IndexRecord,
        load: Callable[[], Predictor],
        fit: Fit,
        layout: Layout,
        batch_size: int,
        watch: Callable[[list[str], list[Picture], Encoded], None] | None = None,
    ):
        self.record, self.load, self.layout, self.batch_size = record, load, layout, batch_size
        self.watch = watch
        self.fit, self.side = str(fit), fit.side
        self.by = record.about.get("by", BY[0])
        self.keep_pixels = "pixels" in record.table.schema.names
        self.kinds = metadata_columns(record.table.schema)
        self.no_columns: set[str] = set()
        known = record.dataset().to_table(columns=["id", "hash", "digest", *self._marks()]).to_pydict()
        self.known = dict(zip(known["id"], zip(known["hash"], known["digest"], strict=True), strict=True))
        # ids that are embedded by another fit still
        self.stale = {name for name, fit in zip(known["id"], known.get(FIT, ()), strict=False) if fit != self.fit}
        self.owner = {content: name for name, (content, _) in self.known.items()}
        self.stored = set(self.known)  # ids that a commit has already
        self.seen: set[str] = set()  # ids of entries that this run's pictures are
        self.gone: list[str] = []  # ids that were there and are no more
        self.alias: dict[str, str] = {}  # entry -> another id that this run gave the same content
        self.pending = _Pending()
        self.waiting: list[tuple[_Row, Picture]] = []
        self.outcomes: list[Outcome] = []

    def run(self, pictures: Iterable[Picture | Unreadable]) -> Iterator[list[Outcome]]:
        """Takes the pictures in; gives what became of them, once it is committed."""
        began = committed = time.monotonic()
        source = iter(pictures)
        with ThreadPoolExecutor(4) as pool:
            ahead = pool.submit(lambda: list(islice(source, WINDOW)))
            while window := ahead.result():
                ahead = pool.submit(lambda: list(islice(source, WINDOW)))
                for picture, content in zip(window, pool.map(_content, window), strict=True):
                    self._tell_apart(picture, content)
                while len(self.waiting) >= self.batch_size:
                    self._embed(pool, self.batch_size)
                    elapsed = time.monotonic() - committed
                    longest = min(60.0, max(SHORTEST, (time.monotonic() - began) / 50))
                    if elapsed > longest or self.pending.bytes > COMMIT_BYTES:
                        yield self._commit()
                        committed = time.monotonic()
            if self.waiting:
                self._embed(pool, self.batch_size)
        yield self._commit()

    # ---- what a picture is

    def _tell_apart(self, picture: Picture | Unreadable, content: Content | BrokenImage) -> None:
        if isinstance(picture, Unreadable) or isinstance(content, BrokenImage):
            self._broken(picture.id or "", content)
            return
        name = picture.id or content.hash
        try:
            check_id(name)
            beside = self._metadata(picture, content)
        except (UserError, UnicodeError) as error:
            self._broken(name, BrokenImage(BAD_ROW, str(error)))
            return
        holder = self.owner.get(content.hash)
        if holder is not None and holder != name:
            self._duplicate(name, holder)
            return
        self.seen.add(name)
        had = self.known.get(name)
        row = _Row(name, "", content, beside)
        if had is None or had[0] != content.hash or name in self.stale:
            row.state = "added" if had is None else "replaced" if had[0] != content.hash else "refitted"
            self.stale.discard(name)
            if had is not None:
                self.owner.pop(had[0], None)
            self._wait(row, picture)
        elif had[1] != beside["digest"]:
            row.state = "updated"
            self._update(row) if self.by == "picture" else self._wait(row, picture)
        else:
            self.outcomes.append(Outcome(name, "unchanged"))
            return
        self.known[name] = (content.hash, beside["digest"])
        self.owner[content.hash] = name

    def _wait(self, row: _Row, picture: Picture) -> None:
        self.waiting = [(other, p) for other, p in self.waiting if other.id != row.id] + [(row, picture)]
        self.pending.updates = [other for other in self.pending.updates if other.id != row.id]

    def _update(self, row: _Row) -> None:
        for other, _ in self.waiting:
            if other.id == row.id:  # the same picture once more before it was embedded
                other.beside, other.content = row.beside, replace(other.content, source=row.content.source)
                return
        self.pending.updates = [other for other in self.pending.updates if other.id != row.id] + [row]

    def _duplicate(self, name: str, holder: str) -> None:
        """A picture whose content is there under another id; what stood under its own id goes."""
        self.alias.setdefault(holder, name)
        if name in self.known:
            self.owner.pop(self.known.pop(name)[0], None)
            self.pending.removed.append(name)
            self.gone.append(name)
            self.stale.discard(name)
            self.waiting = [(row, picture) for row, picture in self.waiting if row.id != name]
        self.outcomes.append(Outcome(holder, "duplicate"))

    def _broken(self, name: str, error: Content | BrokenImage) -> None:
        if name in self.known:
            self.seen.add(name)  # what is there stays until the picture can be read again
        self.outcomes.append(Outcome(name, "broken", str(error)))

    def _metadata(self, picture: Picture, content: Content) -> dict[str, Any]:
        """What stands beside a picture.

        Raises:
            UserError: a value that its column cannot hold.
        """
        columns = {}
        for column in picture.columns:
            value = None if column in self.no_columns else plain(picture.columns[column])
            if value is None:
                continue
            value = column_value(value, self.kinds[column]) if column in self.kinds else value
            kind = column_kind(value)
            if kind is None and column not in self.kinds:
                self.no_columns.add(column)  # boxes and the like: nothing to filter by
                continue
            if value is None:
                continue
            if kind is None or self.kinds.setdefault(column, kind) != kind:
                what = f"column {quoted(column)} is {self.kinds[column]} in this index, not {quoted(value)}"
                raise UserError(f"{what}; mend the row or leave the cell empty")
            columns[column] = as_number(column, value) if kind == "number" else value
        texts = {language: list(given) for language, given in picture.texts.items()}
        return {"texts": texts, "columns": columns, "digest": metadata_digest(texts, columns, content.source)}

    # ---- embedding

    def _embed(self, pool: ThreadPoolExecutor, count: int) -> None:
        """The first `count` waiting pictures through the image tower."""
        batch, self.waiting = self.waiting[:count], self.waiting[count:]
        predictor, rows = self.load(), []  # loaded before the threads begin
        for (row, picture), error in zip(
            batch, pool.map(lambda item: self._decode(item[0], predictor), batch), strict=True
        ):
            if error is None:
                rows.append((row, picture))
                continue
            had = self.known.pop(row.id)
            self.owner.pop(had[0], None)
            if row.id in self.stored:  # the entry of before stays
                self.seen.add(row.id)
                self.stale.update({row.id} if self._marks() else ())
            self.outcomes.append(Outcome(row.id, "broken", str(error)))
        if not rows:
            return
        pixels = torch.stack([row.pixels for row, _ in rows if row.pixels is not None])
        encoded = predictor.pictures([Images(pixels)])
        if self.watch is not None:
            self.watch([row.id for row, _ in rows], [picture for _, picture in rows], encoded)
        matrix = vectors(encoded)
        if matrix is not None and self.by != "picture":
            matrix = self._with_titles(matrix, [row for row, _ in rows], predictor)
        self.pending.rows += [row for row, _ in rows]
        self.pending.vectors += [] if matrix is None else [matrix]
        for name, data in self.layout.write(encoded).items():
            self.pending.parts.setdefault(name, []).extend(data)
            self.pending.bytes += sum(map(len, data))
        self.pending.bytes += sum(len(row.thumbnail) + (self.side**2 if self.keep_pixels else 0) for row, _ in rows)

    def _with_titles(self, pictures: Tensor, rows: list[_Row], predictor: Predictor) -> Tensor:
        """[B, D] of each entry its titles' mean vector, or the mean of that and its picture's [B, D].

        So a query's score is the mean of its cosines with the sides.
        """
        matrix = pictures.clone()
        for place, row in enumerate(rows):
            told = {name: own for name, own in row.beside["texts"].items() if name in predictor.languages}
            titles = [(text, name) for name, own in told.items() for text in own if normalise(text)]
            # encoded one by one, as queries are: none hangs on its neighbours
            asked = [vector for text, name in titles if (vector := vectors(predictor.texts([text], name))) is not None]
            if asked:
                title = torch.cat(asked).mean(0)
                matrix[place] = title if self.by == "title" else (title + pictures[place]) / 2
        return matrix

    def _decode(self, row: _Row, predictor: Predictor) -> BrokenImage | None:
        try:
            image = load(row.content.data)
        except BrokenImage as error:
            return error
        row.pixels = predictor.pixels(image)
        row.thumbnail = encode_jpeg(shrink(image, THUMBNAIL), 85)
        row.content = replace(row.content, data=b"")
        return None

    # ---- committing

    def _commit(self) -> list[Outcome]:
        now, self.pending = self.pending, _Pending()
        fresh = {
            column: kind
            for column, kind in self.kinds.items()
            if column not in metadata_columns(self.record.table.schema)
        }
        if fresh and (now.rows or now.updates):
            self.record.add_columns(fresh)
        if now.rows:
            table = self._table(now)
            if self.stored.isdisjoint(row.id for row in now.rows):
                self.record.append(table)
            else:
                self.record.put(table)
            self.stored.update(row.id for row in now.rows)
        if now.updates:
            self.record.put(pa.table(self._beside(now.updates)))
        if now.removed:
            self.record.delete(now.removed)
            self.stored.difference_update(now.removed)
        outcomes, self.outcomes = self.outcomes, []
        return outcomes + [Outcome(row.id, row.state) for row in (*now.rows, *now.updates)]

    def _table(self, now: _Pending) -> pa.Table:
        columns: dict[str, Any] = self._beside(now.rows)
        columns["hash"] = [row.content.hash for row in now.rows]
        columns["thumbnail"] = pa.array([row.thumbnail for row in now.rows], pa.binary())
        if now.vectors:
            matrix = torch.cat(now.vectors)
            columns["vector"] = vector_column(matrix)
            columns |= {CODE: self.record.code.column(matrix)} if self.record.code else {}
        if self.keep_pixels:
            columns["pixels"] = [encode_jpeg(row.pixels, PIXELS_QUALITY) for row in now.rows if row.pixels is not None]
        columns |= {part_field(name): pa.array(data, pa.binary()) for name, data in now.parts.items()}
        columns |= {name: [self.fit] * len(now.rows) for name in self._marks()}
        schema = self.record.table.schema
        table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
        last = {row.id: place for place, row in enumerate(now.rows)}  # an id given twice is what it was last
        return table if len(last) == len(table) else table.take(sorted(last.values()))

    def _marks(self) -> list[str]:
        """The column that says how each picture was fitted, which is there while a record is refitted."""
        return [name for name in self.record.table.schema.names if name == FIT]

    def _beside(self, rows: list[_Row]) -> dict[str, Any]:
        """Columns that need no embedding."""
        columns: dict[str, Any] = {
            "id": [row.id for row in rows],
            "image": [row.content.source for row in rows],
            "texts": [_json(row.beside["texts"]) for row in rows],
            "digest": [row.beside["digest"] for row in rows],
        }
        for column, kind in self.kinds.items():
            columns[field_of(column)] = pa.array([row.beside["columns"].get(column) for row in rows], KINDS[kind])
        return columns


def _content(picture: Picture | Unreadable) -> Content | BrokenImage:
    if isinstance(picture, Unreadable):
        return picture.error
    try:
        return picture.content()
    except BrokenImage as error:
        return error


def _json(value: Mapping) -> str:
    return json.dumps(value, ensure_ascii=False)
