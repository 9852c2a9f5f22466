"""What public caption sets have in common: annotation files in a folder, pictures found by name, texts by picture."""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tuwen.data import images
from tuwen.data.corpora.faults import Fault, Faults, RowError, one_line
from tuwen.data.corpora.files import CorpusEntry, Source
from tuwen.data.corpora.scripts import is_blank
from tuwen.errors import UserError

LONGEST = 100_000  # characters of a text
SPLITS = ("train", "val", "valid", "validation", "dev", "test")  # what splits are called, here and elsewhere
_SPLITS = {name: "val" if name in ("valid", "validation", "dev") else name for name in SPLITS}
_TAG = re.compile(r"^(.*\S)[:/][A-Za-z]{1,8}$")
_LATIN = re.compile(r"[A-Za-z0-9]$")


class Folder:
    """The files of a downloaded corpus by name, whatever folders an archive put between.

    Links to folders are not followed; an annotation file that is a link out of the folder is refused.
    """

    def __init__(self, root: Path):
        self.root = root
        self._given: dict[str, str] = {}  # found path -> the name that led to it

    @cached_property
    def _listed(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Paths from the root: of pictures by stem, of other files by name."""
        pictures: dict[str, list[str]] = {}
        others: dict[str, list[str]] = {}
        for folder, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            place = os.path.relpath(folder, self.root)
            for name in sorted(names):
                stem, extension = os.path.splitext(name)
                path = name if place == "." else f"{place}/{name}"
                if extension.lower() in images.EXTENSIONS:
                    pictures.setdefault(stem, []).append(path)
                elif not name.startswith("."):
                    others.setdefault(name, []).append(path)
        return pictures, others

    def annotation(self, *names: str) -> Path | None:
        """The file of one of these names; None where there is none.

        Raises:
            UserError: there are several, or it is no plain file of the folder.
        """
        there = [path for name in names for path in self._listed[1].get(name, ())]
        if not there:
            return None
        if len(there) > 1:
            raise UserError(f"{self.root}: {there[0]} and {there[1]}; keep one of them in the folder")
        return self.plain(self.root / there[0])

    def matching(self, pattern: str) -> list[tuple[Path, re.Match[str]]]:
        """Files whose whole name is of the pattern, sorted by path, with the match.

        Raises:
            UserError: one of them is no plain file of the folder.
        """
        rule = re.compile(pattern)
        named = [(name, path) for name, paths in self._listed[1].items() for path in paths]
        matched = [(path, match) for name, path in named if (match := rule.fullmatch(name))]
        return [(self.plain(self.root / path), match) for path, match in sorted(matched, key=lambda pair: pair[0])]

    def plain(self, path: Path) -> Path:
        """The path, if it is a plain file inside the folder.

        Raises:
            UserError: it is not.
        """
        root, real = os.path.realpath(self.root), os.path.realpath(path)
        if os.path.commonpath([root, real]) != root:
            raise UserError(f"{path}: a link that leads out of the folder; copy the file into it")
        try:
            regular = stat.S_ISREG(os.stat(path).st_mode)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}; copy the file into the folder") from None
        if not regular:
            raise UserError(f"{path}: no plain file; copy the file into the folder")
        return path

    def picture(self, name: str) -> str:
        """The path from the root of a picture named by a path, a file name or a stem; the name itself if none is there.

        A file at that very path wins; else the one file of that base name, with any extension of pictures. Of an
        absolute path, of the machine it was written on, only the base name counts.

        Raises:
            RowError: several files are called so, or another path was found to be the same file.
        """
        if "\0" in name or not name.isprintable():
            return name
        given = not os.path.isabs(name) and os.path.isfile(self.root / name)
        path = name if given else self._by_base_name(name)
        first = self._given.setdefault(path, name)
        if first != name and "/" in first and "/" in name and path not in (first, name):
            what = f"{one_line(first, 60)} and {one_line(name, 60)} are both found as {path}"
            raise RowError("ambiguous name", f"{what}; keep the folders of the annotation")
        return path

    def _by_base_name(self, name: str) -> str:
        base = name.rsplit("/", 1)[-1]
        stem, extension = os.path.splitext(base)
        known = self._listed[0]
        if extension.lower() not in images.EXTENSIONS:
            stem = base
        there = known.get(stem, [])
        same = [path for path in there if path.rsplit("/", 1)[-1] == base] or there
        if len(same) > 1:
            what = f"{len(same)} pictures are called {one_line(base, 60)}: {same[0]}, {same[1]}, ..."
            raise RowError("ambiguous name", f"{what}; keep one, or the folders of the annotation")
        return same[0] if same else name


@dataclass(frozen=True)
class Annotation:
    """What one line of an annotation says of a picture. row: makes it a row of its own instead of the picture's."""

    file: Path
    line: int
    split: str
    picture: str
    texts: Mapping[str, list[str]]
    row: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)

    def fault(self, error: RowError) -> Fault:
        """Of a text of it; in a file without lines, with the picture's name."""
        what = str(error) if self.line else f"{one_line(self.picture.rsplit('/', 1)[-1], 60)}: {error}"
        return Fault(self.file, self.line, error.reason, what)


class Held(Source):
    """Rows that are made in one pass over a folder and kept in memory."""

    def __init__(self, root: Path):
        self.file = self.root = root
        self.name = root.resolve().name
        self.folder = Folder(root)
        self.rows: list[CorpusEntry] = []
        self.files: list[Path] = []

    def keep(self, file: Path, line: int, **fields: Any) -> CorpusEntry:
        """Adds a row that stands in that line of that file."""
        entry = CorpusEntry(len(self.rows), line, **fields)
        self.rows.append(entry)
        self.files.append(file)
        return entry

    def entry(self, position: int, line: int) -> CorpusEntry:
        return self.rows[position]

    def place(self, entry: CorpusEntry) -> tuple[Path, int]:
        return self.files[entry.position], entry.line

    def needed(self, *names: str) -> Path:
        """The annotation file of one of these names.

        Raises:
            UserError: it is not there.
        """
        path = self.folder.annotation(*names)
        if path is None:
            raise UserError(f"{self.root}: no file {' or '.join(names)} in it; see `tuwen data list`")
        return path


class CaptionSet(Held):
    """Captions line by line; all that is said of one picture of a split becomes one row.

    A subclass gives `read_annotations`. A text that cannot be used is a fault, and the others of its picture stay.
    """

    def read_annotations(self, faults: Faults) -> Iterator[Annotation]:
        """Every usable line in order; the others go to `faults`."""
        raise NotImplementedError

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        rows: dict[tuple[str, str, str], dict[str, list[str]]] = {}
        ids: dict[str, int] = {}
        self.rows, self.files = [], []
        for note in self.read_annotations(faults):
            texts = {language: list(_usable(note, several, faults)) for language, several in note.texts.items()}
            if any(note.texts.values()) and not any(texts.values()):
                continue
            try:
                if (note.split, note.picture, note.row) not in rows:
                    rows[note.split, note.picture, note.row] = {}
                    rows[note.split, note.picture, note.row] = self._add(note, ids)
            except RowError as error:
                faults.add(note.fault(error))
                continue
            for language, several in texts.items():
                rows[note.split, note.picture, note.row].setdefault(language, []).extend(several)
        yield from self.rows

    def _add(self, note: Annotation, ids: dict[str, int]) -> dict[str, list[str]]:
        """A new row with an id of its own; its texts, none yet."""
        name = note.row or os.path.splitext(note.picture.rsplit("/", 1)[-1])[0]
        for key in (name, f"{note.split}/{name}", f"{note.split}/{note.picture}#{len(self.rows)}"):
            if ids.setdefault(key, len(self.rows)) == len(self.rows):
                break
        texts: dict[str, list[str]] = {}
        image = self.folder.picture(note.picture)
        self.keep(note.file, note.line, id=key, image=image, texts=texts, split=note.split, columns=note.columns)
        return texts


def _usable(note: Annotation, texts: list[str], faults: Faults) -> Iterator[str]:
    for text in texts:
        try:
            yield checked_caption(text)
        except RowError as error:
            faults.add(note.fault(error))


def split_name(name: str) -> str:
    """The name a split has here: what others call valid, validation or dev is val, which training watches."""
    return _SPLITS.get(name.lower(), name)


def checked_caption(text: Any) -> str:
    """The text without white space around it.

    Raises:
        RowError: it is no text, shows nothing, or is longer than any caption.
    """
    if not isinstance(text, str):
        raise RowError("wrong type", f"a text is a string, not a {type(text).__name__}")
    if is_blank(text):
        raise RowError("empty text", "an empty text; write it or take the line out")
    if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
        raise RowError("broken JSON", "half a character (a lone \\ud... escape); write the character itself")
    if len(text) > LONGEST:
        raise RowError("text too long", f"a text of {len(text):,} characters; at most {LONGEST:,} are a caption")
    return text.strip()


def joined(text: str) -> str:
    """A segmented Chinese text as people write it: "男孩:n 在:p 跑:v" and "男孩 在 跑" become 男孩在跑.

    Marks of parts of speech go where every piece has one (BosonNLP's are n, wd, vshi, ...; AC/DC among other pieces
    is none); a gap of several spaces is the comma that a segmenter dropped; Latin words keep a space between them.

    Raises:
        RowError: marks remain, so the text is segmented in a way that is not known here.
    """
    marked = [piece for piece in text.split() if _TAG.match(piece)]
    every = len(marked) == len(text.split())
    strange = next((piece for piece in marked if not piece.isascii()), None)
    if strange and not every:
        raise RowError("segmented text", f"{one_line(strange, 40)!r} looks like a mark of a part of speech; clean it")
    clauses = []
    for clause in re.split(r"\s{2,}", text.strip()):
        out = ""
        for piece in clause.split():
            word = _TAG.sub(r"\1", piece) if every else piece
            out += " " + word if _LATIN.search(out) and word[:1].isascii() and word[:1].isalnum() else word
        clauses.append(out)
    return "，".join(filter(None, clauses))
