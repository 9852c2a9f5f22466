"""Embedding an index's pictures again in place, by the way its run fits pictures now; resumed after any stop.

While it lasts, a column says of every picture by which fit it was embedded, written by the commit that embeds it. The
index says its new fit, and answers again, when all pictures have it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from os import PathLike

import numpy as np
import pyarrow as pa

from tuwen.data.corpus import BrokenImage
from tuwen.errors import UserError
from tuwen.search.build import finish_index, take_in
from tuwen.search.index import Index
from tuwen.search.ingest import FIT, Built
from tuwen.search.loss import LossProbe
from tuwen.search.pictures import Picture, Unreadable, open_pictures
from tuwen.search.record import IndexRecord

CHUNK = 1000  # rows looked up at once


def refit(
    out: str | PathLike,
    pictures: str | PathLike | None = None,
    run: str | PathLike | None = None,
    *,
    split: str | None = None,
    prefix: str = "",
    prune: bool = False,
    exact: int = 1_000_000,
    token: str | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Index:
    """Embeds the pictures of the index at `out` again; the answer's `built` says what was done.

    pictures: where they are now, as for `build_index`, which may hold new ones too; None: the files they came from.
    run: where the run is now, if it has moved. prune: take out what cannot be read again. The rest as for
    `build_index`.

    Raises:
        UserError: no such index, run or pictures; some cannot be read again; another process is writing to it.
    """
    began = time.monotonic()
    record = IndexRecord.open(out)
    if record is None:
        raise UserError(f"{out}: no index there")
    index = Index(record, run, device, token)
    probe = LossProbe(lambda: index.loaded, index.layout)
    if index.fit == index.run_fit:
        say(f"its pictures are {index.fit} already, as {index.run} reads them")
        _drop(record)
        index.built = Built({}, [], {}, len(index), index.size(), time.monotonic() - began)
        return index
    _begin(record)
    source = OwnPictures(index, record) if pictures is None else open_pictures(pictures, split, prefix, progress)
    say(f"{index.path}: {index.fit} until now; {len(source):,} pictures to be {index.run_fit}")
    counts, broken, ingest = take_in(index, record, source, batch_size, probe, progress)
    left = sorted(ingest.stale)
    if left and not prune:
        for fault in broken:
            say(f"not read again: {fault['id']}: {fault['reason']}")
        raise UserError(
            f"{out}: {len(left):,} pictures could not be read again; say where they are, "
            f"`tuwen index {index.run} PICTURES --refit --out {out}`, or add --prune to take them out"
        )
    _complete(index, record, left)
    loss = finish_index(index, record, exact, probe, say, anew=True)
    counts |= {"removed": len(left)} if left else {}
    index.built = Built(counts, broken, {}, len(index), index.size(), time.monotonic() - began, loss)
    return index


class OwnPictures:
    """The pictures of an index that have another fit than its run now has, from where they came."""

    def __init__(self, index: Index, record: IndexRecord):
        self.index, self.snapshot = index, record.snapshot(False)
        fits = self.snapshot.dataset.to_table(columns=[FIT])[FIT].to_pylist()
        self.places = np.flatnonzero([fit != str(index.run_fit) for fit in fits])

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Picture | Unreadable]:
        for start in range(0, len(self), CHUNK):
            yield from self._read(self.places[start : start + CHUNK])

    def _read(self, places: np.ndarray) -> Iterator[Picture | Unreadable]:
        for row in self.index.describe_at(self.snapshot, places):
            if row["image"]:
                yield Picture(row["image"], row["id"], row["texts"], row["columns"], row["image"])
            else:
                yield Unreadable(row["id"], BrokenImage("missing", "the index was not told which file it is"))


def _begin(record: IndexRecord) -> None:
    """Adds the column, unless a run that was stopped did."""
    with record.writing():
        if FIT not in record.table.schema.names:
            record.dataset().add_columns([pa.field(FIT, pa.string())])
            record.table = record.dataset()


def _complete(index: Index, record: IndexRecord, left: list[str]) -> None:
    """Takes out what is left of the old fit, and tells the record the new one, its last word."""
    with record.writing():
        record.delete(left)
        if index.milvus is not None:  # its entries do not say their fit
            index.milvus.remove(left)
            index.milvus.put(record.snapshot(False), record.dataset().to_table(columns=["id"])["id"].to_pylist())
        record.tell({"fit": asdict(index.run_fit)})
    _drop(record)


def _drop(record: IndexRecord) -> None:
    """Takes the column out again."""
    with record.writing():
        if FIT in record.table.schema.names:
            record.dataset().drop_columns([FIT])
            record.table = record.dataset()
