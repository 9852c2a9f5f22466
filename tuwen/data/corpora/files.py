"""What every corpus read from files as they lie has in common: rows, faults, picture paths, splits.

A `Source` knows one file or folder and gives its rows; `FileCorpus` makes one split of it a corpus. A million rows
cost a few arrays: a row is read and parsed again whenever it is asked for.
"""

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import compress, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tuwen.data import images
from tuwen.data.corpora.faults import Fault, Faults, one_line
from tuwen.data.corpora.parts import path_inside, veiled
from tuwen.data.corpus import BrokenImage, Corpus, Record, hashed_split
from tuwen.errors import UserError
from tuwen.speech import spoken

EVERY = "all"  # the split of every row, where no row names a split so

_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?")  # codes as 007, or of over 15 digits, are none
_FIXES = {
    "missing": "put the file there or mend its path",
    "outside": "copy the picture into the folder and give its path from there",
    "too large": "shrink the picture",
    "not a file": "name a picture file",
    "unreadable": "mend its name or permissions",
}


@dataclass(frozen=True)
class CorpusEntry:
    """One row as it stands in its file.

    position: what `Source.entry` takes to read it again. image: path from the source's root, "/" between folders.
    further: more pictures of the row, in order; every row of a source has as many.
    """

    position: int
    line: int
    id: str
    image: str
    texts: Mapping[str, Sequence[str]]
    split: str | None = None
    image_id: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    further: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[str, ...]:
        return (self.image, *self.further)


class Source:
    """Rows of a file or folder. `file` is named in messages; picture paths start at `root` and never leave it."""

    name: str
    file: Path
    root: Path
    notice = ""  # licence or attribution that built copies must carry
    class_names: Mapping[str, Sequence[str]] = MappingProxyType({})  # as `Corpus.class_names`
    private = False  # whether its texts and names are people's secrets, as those of patients
    untyped = False  # whether columns come as strings, numbers too, as of CSV

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        """Every usable row in order; the others go to `faults`."""
        raise NotImplementedError

    def entry(self, position: int, line: int) -> CorpusEntry:
        """The row again, by the position and line it had."""
        raise NotImplementedError

    def read(self, image: str) -> bytes:
        """The bytes of a picture by the name its entry gives: here a file under the root, and none outside.

        Raises:
            BrokenImage: "outside" for a path that leaves the root by whatever road, else as `images.read_file`.
        """
        return _read(self.root, image)

    def url(self, entry: CorpusEntry) -> str:
        """Where the picture was published, where the source knows it, so that what is missing can be fetched."""
        return ""

    def absent(self) -> Iterator[tuple[str, str]]:
        """(address, text) of pictures that were to be fetched and are in no row."""
        return iter(())

    def beside(self) -> Iterator[str]:
        """Pictures that rows name where every picture in their folders is meant to be in some row, as of a table."""
        return iter(())

    def queries(self, split: str) -> Sequence[tuple[int, str, str]]:
        """As `Corpus.queries`, once the entries were read."""
        return ()

    def place(self, entry: CorpusEntry) -> tuple[Path, int]:
        """The file and line a fault of this row is reported at."""
        return self.file, entry.line

    def fault(self, entry: CorpusEntry, reason: str, what: str) -> Fault:
        return Fault(*self.place(entry), reason, what)


@dataclass
class Places:
    """Where rows are: what `Source.entry` takes, for many rows."""

    positions: array = field(default_factory=lambda: array("q"))
    lines: array = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        return len(self.positions)

    def add(self, entry: CorpusEntry) -> None:
        self.positions.append(entry.position)
        self.lines.append(entry.line)

    def entry(self, source: Source, row: int) -> CorpusEntry:
        return source.entry(self.positions[row], self.lines[row])


Missing = Callable[[CorpusEntry, str], None]  # a row and the address of its picture, which is not there


class NoRows(UserError):
    """A split without a usable row; `faults` says what was wrong with those there are."""

    def __init__(self, message: str, faults: Sequence[Fault]):
        super().__init__(message)
        self.faults = faults


class FileCorpus(Corpus):
    """One split of a source.

    Opening reads every picture of the split once: its content is its identity (unless the row gives an `image_id`), so
    copies of a picture are one picture, and its header and end are checked. Damage in the middle of a
    picture is found when it is decoded.
    """

    def __init__(
        self, source: Source, split: str, on_bad: str = "stop", missing: "Missing | None" = None, progress: bool = False
    ):
        """missing: is told of every row whose picture is not there, where the source knows its address."""
        faults = Faults(on_bad, source.name if source.private else "")
        listing = _Listing(source, faults)
        chosen, self.split_rule = listing.choose(split, faults)
        pictures = _Pictures(source, listing.by_hash and split != EVERY and split, faults, missing)
        self._source = source
        self._places, self._image_ids = pictures.read(chosen, progress)
        self.faults = tuple(faults.listed)
        self.skipped: Counter[str] = Counter(faults.counts)
        beside = source.root / "zeroshot.json"
        self.zero_shot = beside if beside.is_file() else None
        self.name, self.notice, self.class_names = source.name, source.notice, dict(source.class_names)
        self.private, self.queries = source.private, source.queries(split)
        self.split, self.pictures = split, listing.pictures
        self.languages = tuple(sorted(listing.languages))
        self._numbers = listing.numbers
        self.fingerprint = pictures.fingerprint(split)
        if not len(self):
            raise NoRows(self._why_empty(listing, pictures), self.faults)

    def __len__(self) -> int:
        return len(self._places)

    def record(self, row: int) -> Record:
        entry = self._entry(row)
        columns = {k: _number(v) if k in self._numbers else v for k, v in entry.columns.items()}
        shown = columns if self._numbers else entry.columns
        return Record(entry.id, entry.texts, self._image_ids[row], shown, self.private)

    def encoded(self, row: int) -> bytes:
        with veiled(self.private):
            return self._source.read(self._entry(row).image)

    def image(self, row: int) -> Tensor:
        with veiled(self.private):
            return images.decode(self.encoded(row))

    def shown(self, row: int) -> Sequence[Tensor]:
        with veiled(self.private):
            return [images.decode(self._source.read(image)) for image in self._entry(row).images]

    def image_ids(self) -> np.ndarray:
        return np.array(self._image_ids, dtype=np.int64)

    @property
    def source(self) -> Source:
        """The file or folder that this is a split of."""
        return self._source

    def path(self, row: int) -> str:
        return str(self._source.root.resolve() / self._entry(row).image)

    def where(self, row: int) -> tuple[Path, int]:
        return self._source.place(self._entry(row))

    def _entry(self, row: int) -> CorpusEntry:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self._places.entry(self._source, row)

    def _why_empty(self, listing: "_Listing", pictures: "_Pictures") -> str:
        if self.faults:
            counts = ", ".join(f"{count} {reason}" for reason, count in self.skipped.most_common())
            return one_line(f"{self._source.file}: no usable row in split {self.split!r}: {counts}; {self.faults[0]}")
        if listing.by_hash:
            there = ", ".join(sorted(pictures.seen)) or "none"
            return f"{self._source.file}: no rows in split {self.split!r}; by {self.split_rule} there are: {there}"
        return f"{self._source.file}: no rows; put one picture with its texts in each"


def splits_of(source: Source) -> tuple[str, ...]:
    """The splits a source has, sorted; faulty rows are passed over."""
    faults = Faults("skip", source.name if source.private else "")
    listing = _Listing(source, faults)
    if not listing.by_hash:
        return tuple(sorted(listing.splits))
    pictures = _Pictures(source, None, faults)
    pictures.read(listing.places)
    return tuple(sorted(pictures.seen))


class _Listing:
    """First pass: where the rows are, the splits they name, their languages, which untyped columns hold numbers.

    Ids are unique over all splits.
    """

    def __init__(self, source: Source, faults: Faults):
        self.source = source
        self.places, self._codes = Places(), array("l")
        self.splits: dict[str, int] = {}
        self.languages: set[str] = set()
        self.pictures = 0  # a row
        kinds: dict[str, bool] = {}  # column: whether all its cells are numbers, or empty
        lines: dict[int, int] = {}
        for entry in source.entries(faults):
            first = lines.setdefault(hash(entry.id), entry.line)
            if first != entry.line:
                what = f"id {entry.id!r} stands in line {first} too; give each row an id of its own"
                faults.add(source.fault(entry, "duplicate id", what))
                continue
            self.pictures = self.pictures or len(entry.images)
            if len(entry.images) != self.pictures:
                what = f"{len(entry.images)} pictures, where the rows before have {self.pictures}; give each as many"
                faults.add(source.fault(entry, "number of pictures", what))
                continue
            self.places.add(entry)
            named = entry.split
            self._codes.append(-1 if named is None else self.splits.setdefault(named, len(self.splits)))
            self.languages.update(entry.texts)
            for name, cell in entry.columns.items() if source.untyped else ():
                if cell and isinstance(cell, str):
                    kinds[name] = kinds.get(name, True) and _NUMBER.fullmatch(cell) is not None
        self.numbers = frozenset(name for name, numeric in kinds.items() if numeric)

    @property
    def by_hash(self) -> bool:
        return not self.splits

    def choose(self, split: str, faults: Faults) -> tuple[Places, str]:
        """The rows that may be of the split, and where the split comes from."""
        if split == EVERY and EVERY not in self.splits:
            return self.places, "every row"
        if self.by_hash:
            if split not in ("train", "test"):
                raise UserError(
                    f"{self.source.file}: no split {split!r}: no row names its split, so pictures are split by a hash "
                    f"into train and test; ask for one of these or give every row a split"
                )
            return self.places, "hash of the picture (a tenth is test), since no row names its split"
        self._report_unnamed(faults)
        if split not in self.splits:
            there = ", ".join(sorted(self.splits))
            raise UserError(one_line(f"{self.source.file}: no split {split!r}; there are: {there}"))
        code = self.splits[split]
        own = [row_code == code for row_code in self._codes]
        positions, lines = (array("q", compress(part, own)) for part in (self.places.positions, self.places.lines))
        return Places(positions, lines), "the rows name it"

    def _report_unnamed(self, faults: Faults) -> None:
        for row, code in enumerate(self._codes):
            if code < 0:
                what = "no split, though other rows name theirs; add it, e.g. train"
                faults.add(self.source.fault(self.places.entry(self.source, row), "no split", what))


class _Pictures:
    """Second pass: every picture read once, its identity and the fingerprint of all that is kept.

    hashed: keep only rows whose picture falls into this split by its hash; None or False keeps all.
    """

    def __init__(self, source: Source, hashed: str | bool | None, faults: Faults, missing: Missing | None = None):
        self._source, self._hashed, self._faults, self._missing = source, hashed, faults, missing
        self._known: dict[str, bytes | BrokenImage] = {}
        self._digest = hashlib.blake2b(digest_size=16)
        self.seen: set[str] = set()

    def read(self, places: Places, progress: bool = False) -> tuple[Places, array]:
        """The rows kept, and their picture identities (int64)."""
        usable, identities = Places(), array("q")
        console = Console(stderr=True)
        rows = track(range(len(places)), spoken("reading"), console=console, transient=True, disable=not progress)
        entries = (places.entry(self._source, row) for row in rows)
        with ThreadPoolExecutor(8) as pool:
            while chunk := list(islice(entries, 256)):
                unread = {image for entry in chunk for image in entry.images} - self._known.keys()
                self._known.update(zip(unread, pool.map(self._content, unread), strict=True))
                for entry in chunk:
                    identity = self._identity(entry)
                    if identity is not None:
                        usable.add(entry)
                        identities.append(identity)
        return usable, identities

    def _content(self, image: str) -> bytes | BrokenImage:
        """8 bytes that stand for what is in a picture file, or why it cannot be used."""
        try:
            data = self._source.read(image)
            images.probe(data)
        except BrokenImage as error:
            return error
        return hashlib.blake2b(data, digest_size=8).digest()

    def _identity(self, entry: CorpusEntry) -> int | None:
        """The picture's identity; None where the row is of another split or cannot be used."""
        contents = [self._known[image] for image in entry.images]
        for image, content in zip(entry.images, contents, strict=True):
            if isinstance(content, BrokenImage):
                self._report(entry, image, content)
                return None
        content = b"".join(part for part in contents if isinstance(part, bytes))
        content = content if len(contents) == 1 else _digest(content)
        named = entry.image_id is not None
        identity = _digest(f"image\x1f{entry.image_id}".encode()) if named else content
        number = int.from_bytes(identity, "little", signed=True)
        split = hashed_split(str(number))
        self.seen.add(split)
        if self._hashed and split != self._hashed:
            return None
        row = [entry.id, dict(entry.texts), entry.split, entry.image_id, dict(entry.columns), content.hex()]
        self._digest.update(json.dumps(row, sort_keys=True, default=str).encode())
        return number

    def _report(self, entry: CorpusEntry, image: str, content: BrokenImage) -> None:
        if self._missing and content.reason == "missing" and (url := self._source.url(entry)):
            self._missing(entry, url)
        fix = _FIXES.get(content.reason, "replace the picture or remove the row")
        what = f"picture {one_line(image, 120)!r}: {one_line(str(content), 160)}; {fix}"
        self._faults.add(self._source.fault(entry, content.reason, what))

    def fingerprint(self, split: str) -> str:
        self._digest.update(split.encode())
        return self._digest.hexdigest()


def _number(cell: str) -> int | float | None:
    return (float(cell) if "." in cell else int(cell)) if cell else None


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


def _read(root: Path, image: str) -> bytes:
    try:
        return images.read_file(path_inside(root, image))
    except BrokenImage as error:
        if error.reason == "missing":
            hint = "; write / between folders, not \\" if "\\" in image else ""
            raise BrokenImage("missing", f"there is no such file under {root}{hint}") from None
        raise
