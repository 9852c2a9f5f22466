"""What public sets of questions, statements and phrases have in common: entries of files become rows in memory."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tuwen.data.corpora.asked import Asked
from tuwen.data.corpora.captions import Held
from tuwen.data.corpora.faults import Fault, Faults, RowError, one_line
from tuwen.data.corpora.files import CorpusEntry
from tuwen.data.corpora.json_text import field, json_kind, load_json, objects
from tuwen.errors import UserError, quoted

SHORT = 200  # characters of an id, or of a name in a column


class Entry(NamedTuple):
    """One entry of a file. line: 0 in a file without lines, where `name` says which entry is meant."""

    file: Path
    line: int
    name: str
    split: str
    value: Any


class _Row(NamedTuple):
    file: Path
    line: int
    id: str
    split: str
    images: tuple[str, ...]
    asked: Asked


class AskedSet(Held):
    """A subclass gives `read_entries` and `rows_of`; faulty entries are left out and counted."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.made: list[_Row] = []

    def read_entries(self, faults: Faults) -> Iterator[Entry]:
        """Every entry of every file in order."""
        raise NotImplementedError

    def rows_of(self, entry: Entry) -> Iterable[tuple[str, tuple[str, ...], Asked]]:
        """Id, names of the pictures, and what is asked, of each row that an entry makes.

        Raises:
            RowError: the entry cannot be used.
        """
        raise NotImplementedError

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        self.made = []
        known: set[tuple[str, str]] = set()
        for entry in self.read_entries(faults):
            try:
                for name, pictures, asked in self.rows_of(entry):
                    if (entry.split, name) in known:
                        raise RowError("duplicate id", f"id {one_line(name, 60)!r} stands twice in {entry.split}")
                    known.add((entry.split, name))
                    images = tuple(map(self.folder.picture, pictures))
                    self.made.append(_Row(entry.file, entry.line, name, entry.split, images, asked))
                    yield self.entry(len(self.made) - 1, entry.line)
            except RowError as error:
                what = str(error) if entry.line else f"{one_line(entry.name, 60)}: {error}"
                faults.add(Fault(entry.file, entry.line, error.reason, what))

    def entry(self, position: int, line: int) -> CorpusEntry:
        row, (language, text, columns) = self.made[position], self.made[position].asked
        first, *rest = row.images
        texts = {language: [text]}
        return CorpusEntry(position, line, row.id, first, texts, row.split, columns=columns, further=tuple(rest))

    def place(self, entry: CorpusEntry) -> tuple[Path, int]:
        return self.made[entry.position].file, entry.line

    def some(self, files: Mapping[str, tuple[str, ...]]) -> dict[str, Path]:
        """By split, the files that are there of those named.

        Raises:
            UserError: none is.
        """
        there = {split: self.folder.annotation(*names) for split, names in files.items()}
        if not any(there.values()):
            self.needed(*(name for names in files.values() for name in names))
        return {split: path for split, path in there.items() if path}


def line_entries(path: Path, split: str, faults: Faults) -> Iterator[Entry]:
    """The objects of a file of JSON lines."""
    for value, lines in objects(path, faults):
        yield Entry(path, lines.number, "", split, value)


def list_of(path: Path, value: Any, key: str = "") -> list[Any]:
    """The list that a whole JSON file is, or has under a key.

    Raises:
        UserError: it is another file than it is called.
    """
    try:
        content = field(value, key, list) if key else value
        if not isinstance(content, list):
            raise RowError("wrong type", f"a list [...] stands here, not {json_kind(content)}")
    except RowError as error:
        raise UserError(one_line(f"{path}: {error}; it is another file than it is called")) from None
    return content


def named_entries(path: Path, split: str) -> Iterator[Entry]:
    """The entries of a JSON file that is one object, by their names.

    Raises:
        UserError: it is none.
    """
    value = load_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: an object {{...}} stands here, not {json_kind(value)}; see `tuwen data list`")
    for name, content in value.items():
        yield Entry(path, 0, name, split, content)


def short(value: Any, key: str, kind: type | tuple[type, ...] = str) -> Any:
    """A short text, or a number, under a key.

    Raises:
        RowError: there is none.
    """
    content = field(value, key, kind)
    if isinstance(content, str):
        if not content.strip() or len(content) > SHORT or not content.isprintable():
            raise RowError("wrong type", f"{key} is {quoted(content, 80)}; it is a short text")
        return sys.intern(content.strip())
    if isinstance(content, int) and abs(content) >= 2**63:
        raise RowError("wrong type", f"{key} is a number of over 63 bits; it is an id")
    return content


def optional(value: Mapping[str, Any], **names: str) -> dict[str, str]:
    """Columns of short texts that may be missing: column=key."""
    kept = {column: value.get(key) for column, key in names.items()}
    return {
        column: sys.intern(content.strip())
        for column, content in kept.items()
        if isinstance(content, str) and content.strip() and len(content) <= SHORT and content.isprintable()
    }
