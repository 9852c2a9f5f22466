"""Pictures on their way into an index: what a user hands over, and the rows of any corpus."""

import datetime
import decimal
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tuwen.data.corpora.files import EVERY, FileCorpus
from tuwen.data.corpus import BrokenImage, Corpus
from tuwen.data.images import Source, load, read_file
from tuwen.data.open import COLUMNS, open_corpus, source_of, splits_of
from tuwen.data.private import UNSAID, hides
from tuwen.errors import UserError, quoted

_NUMBER = re.compile(r"[-+]?[0-9]{1,15}(\.[0-9]{1,15})?")


@dataclass(frozen=True)
class Picture:
    """A picture to index.

    image: encoded bytes, a path, a Pillow image, or pixels, as `load` takes them. id: what it is called; None:
    the hash of its content. texts: by language, shown with it. columns: metadata, to show and filter by: strings,
    numbers, true or false, lists of strings. source: where it came from, shown with it; a path given as `image` is
    taken for it.
    """

    image: Source
    id: str | None = None
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def content(self) -> "Content":
        """Its bytes (or pixels) and their hash.

        Raises:
            BrokenImage: it cannot be read.
        """
        data, source = self.image, self.source
        if isinstance(data, str | os.PathLike):
            source = source or str(Path(data).resolve())
            data = read_file(data)
        if not isinstance(data, bytes):
            data = load(data)
        digest = hashlib.blake2b(digest_size=16)
        if isinstance(data, Tensor):
            digest.update(repr(tuple(data.shape)).encode())
            digest.update(data.contiguous().numpy().tobytes())
        else:
            if not data:
                raise BrokenImage("empty", "no bytes")
            digest.update(data)
        return Content(data, digest.hexdigest(), source)


@dataclass(frozen=True)
class Content:
    """data: encoded bytes or decoded pixels; hash: 32 hexadecimal digits of either; source: where it came from."""

    data: bytes | Tensor
    hash: str
    source: str


class CorpusPictures(Sequence):
    """All rows of corpora as pictures, read when asked for. A row that cannot be read gives the `BrokenImage` itself.

    prefix: set before every id.
    """

    def __init__(self, corpora: Sequence[Corpus], prefix: str = ""):
        self.corpora, self.prefix = corpora, prefix
        self.ends = np.cumsum([len(corpus) for corpus in corpora])
        self.private = any(corpus.private for corpus in corpora)
        self.folders: set[str] = set()  # of the pictures given so far
        self.skipped: dict[str, int] = {}
        for corpus in corpora:
            for reason, count in corpus.skipped.items():
                self.skipped[reason] = self.skipped.get(reason, 0) + count

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, place):
        which = int(np.searchsorted(self.ends, place, side="right"))
        corpus = self.corpora[which]
        row = place - (int(self.ends[which - 1]) if which else 0)
        record, path = corpus.record(row), corpus.path(row)
        self.folders.add(os.path.dirname(path))
        try:
            encoded = corpus.encoded(row)
            image = corpus.image(row) if encoded is None else encoded
        except BrokenImage as error:
            name = f"row {row}, {UNSAID}" if hides(corpus.private) else self.prefix + record.id
            return Unreadable(name, error)
        return Picture(image, self.prefix + record.id, record.texts, record.columns, path)

    def faults(self) -> list[dict[str, str]]:
        """{"id", "reason"} of the corpora's unusable rows: file (and line), and what is wrong with its fix."""
        faults = [fault for corpus in self.corpora for fault in corpus.faults]
        return [
            {"id": f"{fault.file}:{fault.line}" if fault.line else str(fault.file), "reason": fault.what}
            for fault in faults
        ]

    def __iter__(self) -> Iterator:
        return (self[place] for place in range(len(self)))


@dataclass(frozen=True)
class Unreadable:
    """A row whose picture cannot be read."""

    id: str
    error: BrokenImage


def open_pictures(
    location: str | os.PathLike, split: str | None = None, prefix: str = "", progress: bool = False
) -> CorpusPictures:
    """The pictures of a folder, pair table, shards, or any other corpus; texts beside them are welcome, not needed.

    split: one split alone; None: all there are. progress: whether to show a bar while files are looked at.

    Raises:
        UserError: nothing there that is a corpus, no such split.
    """
    location = str(location)
    path = Path(location)
    as_files = path.exists() and not (path / "corpus.json").is_file() and path.suffix.lower() != ".txt"
    if as_files or location.startswith(f"{COLUMNS}:"):
        source = source_of(location, wordless=True)
        return CorpusPictures([FileCorpus(source, split or EVERY, "skip", None, progress)], prefix)
    splits = splits_of(location) if split is None else (split,)
    return CorpusPictures([open_corpus(location, split, "skip", None, progress) for split in splits], prefix)


def plain(value: Any) -> Any:
    """A metadata value as JSON would have it: what tables hold as a date is a text, as 2024-05-31."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return float(value) if isinstance(value, decimal.Decimal) else value


def column_value(value: Any, kind: str) -> Any:
    """The value as its index's column has it: a number written as text for a column of numbers, and the other way.

    What does not fit stays as it is.
    """
    if kind == "number" and isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value.strip()) else value if value.strip() else None
    if kind == "text" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value


def column_kind(value: Any) -> str | None:
    """The kind of metadata column a value can stand in; None: none."""
    if isinstance(value, bool | np.bool_):
        return "flag"
    if isinstance(value, int | float | np.integer | np.floating):
        return "number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return "tags"
    return None


def as_number(column: str, value: Any) -> float | None:
    """The value as float64; None for what is not finite.

    Raises:
        UserError: a whole number that float64 cannot hold exactly.
    """
    if isinstance(value, int | np.integer) and abs(int(value)) > 2**53:
        raise UserError(f"column {column!r}: {quoted(value, 60)} has too many digits; write it as a string")
    return float(value) if math.isfinite(value) else None


def metadata_digest(texts: Mapping[str, Sequence[str]], columns: Mapping[str, Any], source: str) -> str:
    """Hash of what stands beside a picture."""
    text = json.dumps([{k: list(v) for k, v in texts.items()}, columns, source], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def check_id(name: str) -> str:
    """The id, if it can be one.

    Raises:
        UserError: empty, too long, or with characters that do not print.
    """
    if not name or len(name) > 512 or not name.isprintable():
        raise UserError(f"id {name[:40]!r}: give 1 to 512 characters that print")
    return name


def check_rows(pictures: Sequence[Picture], kinds: Mapping[str, str]) -> None:
    """Whether ids and metadata of all pictures fit an index whose columns are of these kinds.

    Raises:
        UserError: an id that cannot be one, or a value of another kind than its column's.
    """
    known = dict(kinds)
    for picture in pictures:
        name = check_id(picture.id or "-")
        for column, value in picture.columns.items():
            kind = column_kind(value)
            if kind is not None and known.setdefault(column, kind) != kind:
                raise UserError(f"{name}: column {column!r} is {known[column]} in this index, not {quoted(value, 60)}")
            if kind == "number":
                as_number(column, value)
