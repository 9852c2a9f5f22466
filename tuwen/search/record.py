"""The record of an index: one Lance table, in a local folder or at an object store's URL.

    about      one row of JSON: which run, which parts are kept and how, what was measured
    pictures   one row a picture: id, hash, image, texts, digest, thumbnail, vector, its code of few bytes if there are
               such, parts, metadata ("column_NAME")

Every change is one commit of Lance, which is there whole or not at all; readers keep the version they opened.
"""

import contextlib
import fcntl
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tuwen.errors import UserError, quoted, reason_of, refused
from tuwen.search.codes import CODE, Code
from tuwen.search.columns import KINDS, as_matrix, field_of
from tuwen.search.seal import LOCK, SEAL, STAMP, opens, seal

VERSION = 1
FRAGMENT_BYTES = 1 << 29  # files are joined up to about this size
CHUNK = 65536  # rows read at once


class Unusable(UserError):
    """An index that cannot be read or written, through no fault of who asks it: damaged, or its disk is full."""


class Busy(UserError):
    """An index that another process or thread is writing."""


# what Lance and Arrow raise of files that are not as they were written, and what such content does to those who read it
_HARM = (OSError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError, NotImplementedError, MemoryError)


def unharmed(location: str | os.PathLike, *more: type[Exception]) -> contextlib.AbstractContextManager[None]:
    """While an index is read: what is wrong with its files becomes one line.

    Raises:
        Unusable: in place of what Lance raises, its panics too, and of `more`.
    """
    return refused(f"{location}: damaged", "build the index again", (*_HARM, *more), Unusable)


def _writes(change: Callable) -> Callable:
    """A method whose failing is one line."""

    @functools.wraps(change)
    def safely(self, *arguments, **options):
        what = f"{self.location}: cannot be written"
        with refused(what, "what was committed is kept, and the same command goes on from there", _HARM, Unusable):
            return change(self, *arguments, **options)

    return safely


@dataclass(frozen=True)
class Snapshot:
    """One version of the pictures; a position is a row's place in it, 0 to N - 1, in the order they were added.

    dataset: Lance's, pinned to the version. row_ids: [N] uint64, Lance's own. vectors: [N, D] float32 of the same rows;
    None where there are none, they are left to a database's index, or codes stand for them. codes: [N, bytes] int8 or
    uint8, see `tuwen.search.codes`. location: the index's, for messages.
    """

    version: int
    dataset: Any
    row_ids: np.ndarray
    vectors: Tensor | None
    location: str = "the index"
    codes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.row_ids)

    @cached_property
    def order(self) -> np.ndarray:
        """Positions by ascending row id."""
        return np.argsort(self.row_ids, kind="stable")

    def positions(self, row_ids: np.ndarray) -> np.ndarray:
        """Positions of rows that are there, int64."""
        return self.order[np.searchsorted(self.row_ids, row_ids, sorter=self.order)]

    def rows(self, positions: np.ndarray, columns: Sequence[str]) -> dict[str, list]:
        """The columns of the given rows, in the order given."""
        unique, place = np.unique(positions, return_inverse=True)
        if not len(unique):
            return {name: [] for name in columns}
        with unharmed(self.location):
            table = self.dataset.take(unique.tolist(), columns=list(columns))
            cells = {name: table[name].to_pylist() for name in columns}
        return {name: [values[k] for k in place.tolist()] for name, values in cells.items()}

    def where(self, condition: str) -> np.ndarray:
        """Positions of all rows that meet a condition in SQL."""
        with unharmed(self.location):
            table = self.dataset.to_table(columns=[], filter=condition, with_row_id=True)
            return self.positions(table["_rowid"].to_numpy())

    def among(self, ids: Sequence[str]) -> dict[str, int]:
        """Positions of the pictures of these ids that are there."""
        if not ids:
            return {}
        condition = f"id IN ({', '.join(map(literal, ids))})"
        with unharmed(self.location):
            table = self.dataset.to_table(columns=["id"], filter=condition, with_row_id=True)
            return dict(zip(table["id"].to_pylist(), self.positions(table["_rowid"].to_numpy()).tolist(), strict=True))

    def find(self, picture: str) -> int:
        """Position of a picture by its id.

        Raises:
            KeyError: no such picture.
        """
        places = self.where(f"id = {literal(picture)}")
        if not len(places):
            raise KeyError(picture)
        return int(places[0])


class IndexRecord:
    """The two tables. about: what the index was told and measured."""

    def __init__(self, location: str | os.PathLike, table: Any, about: dict[str, Any]):
        self.location, self.table, self.about = str(location), table, about

    @classmethod
    def create(cls, location: str | os.PathLike, about: Mapping[str, Any], schema: pa.Schema) -> "IndexRecord":
        """An empty record, also where the making of one was stopped.

        Raises:
            UserError: other things are there, or nothing can be written there.
        """
        folder = None if "://" in str(location) else Path(location)
        own = {"about.lance", "pictures.lance", LOCK, SEAL, STAMP}
        if folder is not None and folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - own):
            raise UserError(f"{location} holds something else than an index; choose another place")
        try:
            for name in ("about", "pictures"):
                _drop(_place(location, name))
            pictures = _lance().write_dataset(schema.empty_table(), _place(location, "pictures"))
            record = cls(location, pictures, {})
            record.tell({"version": VERSION, **about})  # last: a record without it is not there yet
            return record
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{location}: no index can be written there ({reason_of(error)})") from None

    @classmethod
    def open(cls, location: str | os.PathLike) -> "IndexRecord | None":
        """The record, or None where there is none, or none that was made to its end.

        Raises:
            UserError: damaged, or written by another version of tuwen.
        """
        local = "://" not in str(location)
        if local and not Path(location).is_dir():
            return None
        with unharmed(location, KeyError, IndexError):
            if local and not opens(Path(location)):
                raise Unusable(f"{location}: damaged; build the index again")
            about_table, pictures = (_table(location, name) for name in ("about", "pictures"))
            if about_table is None and (pictures is None or pictures.count_rows() == 0):
                return None
            if about_table is None or pictures is None:
                raise Unusable(f"{location}: damaged; build the index again")
            about = json.loads(about_table.to_table()["json"][0].as_py())
            if about["version"] == VERSION:
                return cls(location, pictures, about)
        raise UserError(f"{location}: written by another version of tuwen; build the index again")

    @_writes
    def tell(self, about: Mapping[str, Any]) -> None:
        """Puts new entries into `about`."""
        self.about = {**self.about, **about}
        row = pa.table({"json": [json.dumps(self.about, ensure_ascii=False)]})
        there = _table(self.location, "about") is not None
        _lance().write_dataset(row, _place(self.location, "about"), mode="overwrite" if there else "create")
        if self.local is not None:
            seal(self.local)

    @property
    def code(self) -> Code | None:
        """The form of the codes that stand beside the vectors; None: there are none."""
        return Code.in_schema(self.table.schema)

    @property
    def local(self) -> Path | None:
        return None if "://" in self.location else Path(self.location)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Alone among the writers of a local folder, processes and threads; upon the newest version.

        Raises:
            UserError: another process or thread is writing.
        """
        if self.local is None:
            self.table = self.dataset()
            yield
            return
        with open(self.local / LOCK, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Busy(f"{self.location}: is being written elsewhere; wait until that is done") from None
            self.table = self.dataset()  # the files of the one at hand may be gone
            yield
            seal(self.local)

    def snapshot(self, vectors: bool, old: Snapshot | None = None) -> Snapshot:
        """The newest version. vectors: whether they are read, or in their place the codes, if there are such.

        What an older snapshot holds is not read again.
        """
        with unharmed(self.location, KeyError):
            dataset = self.dataset()
            in_memory = old is not None and (old.vectors is not None or old.codes is not None)
            if old is not None and old.version == dataset.version and in_memory == vectors:
                return old
            row_ids = dataset.to_table(columns=[], with_row_id=True)["_rowid"].to_numpy()
            read: dict[str, Tensor] = {}
            if vectors:
                column, name = (CODE, "codes") if CODE in dataset.schema.names else ("vector", "vectors")
                read[name] = _matrix(dataset, column, row_ids, old, getattr(old, name, None))
            return Snapshot(dataset.version, dataset, row_ids, read.get("vectors"), self.location, read.get("codes"))

    def dataset(self) -> Any:
        """Lance's view of the newest version."""
        return _lance().dataset(_place(self.location, "pictures"))

    # ---- changes, one commit each

    @_writes
    def append(self, rows: pa.Table) -> None:
        self.table.insert(rows)

    @_writes
    def put(self, rows: pa.Table, key: str = "id") -> None:
        """Rows take the place of those with equal keys; others are added. Columns left out keep their values."""
        merge = self.table.merge_insert(key).when_matched_update_all()
        if set(rows.schema.names) >= set(self.table.schema.names):
            merge = merge.when_not_matched_insert_all()
        merge.execute(rows)

    @_writes
    def delete(self, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), 1000):
            self.table.delete(f"id IN ({', '.join(map(literal, ids[start : start + 1000]))})")

    @_writes
    def add_columns(self, kinds: Mapping[str, str]) -> None:
        """New metadata columns by name and kind, null in all rows."""
        self.dataset().add_columns([pa.field(field_of(name), KINDS[kind]) for name, kind in kinds.items()])
        self.table = self.dataset()

    @_writes
    def set_code(self, code: Code | None) -> None:
        """Gives all pictures codes of that form, made of the vectors they have; None takes codes out."""
        if self.code is not None:
            self.dataset().drop_columns([CODE])
        if code is not None:
            self.dataset().add_columns(_coded(code), read_columns=["vector"], batch_size=CHUNK)
        self.table = self.dataset()

    @_writes
    def index_ids(self) -> None:
        """Makes pictures be found by id without reading all ids; `tidy` keeps that up to date."""
        dataset = self.dataset()
        if not any(index["fields"] == ["id"] for index in dataset.list_indices()):
            dataset.create_scalar_index("id", "BTREE")

    @_writes
    def tidy(self) -> None:
        """Joins small files and deletes what no version needs."""
        dataset = self.dataset()
        files = len(dataset.get_fragments())
        rows = max(1, dataset.count_rows())
        target = max(1024, FRAGMENT_BYTES // max(1, self.about.get("bytes", 1024)))
        if files > max(8, 2 * rows // target):
            dataset.optimize.compact_files(target_rows_per_fragment=target)
        if dataset.list_indices():
            self.dataset().optimize.optimize_indices()
        self.dataset().cleanup_old_versions(older_than=timedelta(0))
        self.table = self.dataset()


def literal(value: str) -> str:
    """A string in SQL.

    Raises:
        UserError: bytes of the command line that are no UTF-8.
    """
    return "'" + check_text(value).replace("'", "''") + "'"


def check_text(value: str) -> str:
    """The string, if it can be written as UTF-8.

    Raises:
        UserError: it cannot: a terminal of another encoding sent it.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{quoted(value, 80)} is not UTF-8; set the terminal, or the file it comes from, to UTF-8"
        ) from None
    return value


def _coded(code: Code) -> Any:
    """What makes the column of codes out of that of vectors, for Lance."""

    @_lance().batch_udf(pa.schema([(CODE, code.arrow)]))
    def column(batch: pa.RecordBatch) -> pa.RecordBatch:
        return pa.record_batch([code.column(as_matrix(batch["vector"]))], names=[CODE])

    return column


def _lance() -> Any:
    try:
        import lance
    except ImportError:
        raise UserError("search needs lance: pip install 'tuwen[search]'") from None
    return lance


def _place(location: str | os.PathLike, name: str) -> str:
    return f"{str(location).rstrip('/')}/{name}.lance"


def _table(location: str | os.PathLike, name: str) -> Any:
    """A table, or None where it was never finished."""
    with contextlib.suppress(ValueError, FileNotFoundError):
        return _lance().dataset(_place(location, name))
    return None


def _drop(place: str) -> None:
    """Takes a table away, in a folder also what is left of one that was never finished."""
    if "://" in place:
        _lance().LanceDataset.drop(place, ignore_not_found=True)
    elif Path(place).exists():
        shutil.rmtree(place)


def _matrix(dataset: Any, column: str, row_ids: np.ndarray, old: Snapshot | None, known: Tensor | None) -> Tensor:
    """[N, .] a column of lists of the rows in the dataset's order.

    known: [., .] the same of the older snapshot's rows, from which what it has is copied.
    """
    kind = dataset.schema.field(column).type
    out = torch.empty(len(row_ids), kind.list_size, dtype=as_matrix(pa.array([], kind)).dtype)
    if (
        old is not None
        and known is not None
        and len(old)
        and (known.dtype, known.shape[1]) == (out.dtype, out.shape[1])
    ):
        place = np.searchsorted(old.row_ids, row_ids, sorter=old.order).clip(max=len(old) - 1)
        there = old.row_ids[old.order[place]] == row_ids
        if there.mean() > 0.5:
            out[torch.from_numpy(there)] = known[torch.from_numpy(old.order[place[there]])]
            for part in np.array_split(np.flatnonzero(~there), len(there) // CHUNK + 1):
                out[torch.from_numpy(part)] = as_matrix(dataset.take(part.tolist(), columns=[column])[column])
            return out
    begin = 0
    for batch in dataset.scanner(columns=[column]).to_batches():
        out[begin : begin + len(batch)] = as_matrix(batch[column])
        begin += len(batch)
    return out
