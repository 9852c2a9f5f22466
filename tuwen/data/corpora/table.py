"""Your own data as a table: pairs.jsonl, CSV, TSV or Parquet, with the pictures beside it.

pairs.jsonl holds one JSON object a line:

    {"id": "1", "image": "images/1.jpg", "texts": {"zh": ["一只狗"], "en": ["A dog."]}, "split": "train"}

`texts` may also be a string or a list of strings, whose languages are then told by script (Han: zh, Latin: en, else
und). `split` and `image_id` are optional; equal `image_id`s are one picture. Any further key becomes a column.

A file called mmt.jsonl holds aligned sentences instead, a key for each language beside the others:

    {"id": "1", "image": "images/1.jpg", "split": "train", "en": "A dog.", "de": "Ein Hund."}

CSV, TSV and Parquet name in their first row (Parquet in its schema): the picture (`image`, `filepath`, `path`, ...),
the text (`text`, `caption`, `title`, or a column a language: `text_en`, `caption_zh`, or numbered: `caption_0`), and
where they want `id`, `split`, `language`, `image_id`. A text written as a list, "['a dog', 'a pet']", is several.
Without `id`, the row's number is its id. Several rows may name one picture. A Parquet table may hold the pictures
themselves (`tuwen.data.corpora.huggingface.PicturesInside`).

Picture paths start at the table's folder and never leave it, by dots, links or otherwise.
"""

import ast
import csv
import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tuwen.data.corpora.arrow import arrow_file, checked_rows
from tuwen.data.corpora.faults import Fault, Faults, RowError, one_line
from tuwen.data.corpora.files import CorpusEntry, FileCorpus, Source
from tuwen.data.corpora.json_text import json_kind, parse
from tuwen.data.corpora.lines import Lines
from tuwen.data.corpora.scripts import is_blank, language_by_script
from tuwen.errors import UserError

NAMES = ("pairs.jsonl", "pairs.csv", "pairs.tsv", "pairs.parquet")
ALIGNED = "mmt.jsonl"

# the first of these that a table has is meant; the others stay ordinary columns
IMAGE = ("image", "image_path", "filepath", "file_path", "path", "filename", "file_name", "file", "img")
TEXT = ("text", "texts", "caption", "captions", "title", "sentence", "description")
LANGUAGE = ("language", "lang")

_LONGEST_LIST = 100_000  # characters
_ITEM = re.compile(r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\"""")
_LIST = re.compile(rf"\[\s*+(?:{_ITEM.pattern})(?:(?:\s*+,\s*+|\s++)(?:{_ITEM.pattern}))*+\s*+,?\s*+\]", re.DOTALL)
KEYS = ("id", "image", "texts", "split", "image_id")
LANGUAGE_KEY = re.compile(r"[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*")
_LANGUAGE_OF_LINE = re.compile(r"[a-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*")
_NUMBERED_TEXT = re.compile(r"(?:text|caption|title|sentence)s?[_-]?\d+")
_TEXT_OF_LANGUAGE = re.compile(r"(?:text|texts|caption|captions|title)[_-]([a-z]{2,3}(?:[-_][a-z0-9]{1,8})*)")


def open_table(location: str | Path, split: str, on_bad: str = "stop") -> FileCorpus:
    """One split of a table: a file, or a folder with one of `NAMES`.

    on_bad: "stop" raises at the first fault; "skip" leaves faulty rows out and counts them in `skipped`.

    Raises:
        UserError: FILE:LINE, what is wrong and how to fix it; no such split; no usable row.
    """
    return FileCorpus(table_source(location), split, on_bad)


def table_source(location: str | Path, wordless: bool = False) -> Source:
    """The rows of a table file, or of the table in a folder. wordless: rows need no text, nor a column for texts."""
    path = Path(location)
    if path.is_dir():
        there = [path / name for name in NAMES if (path / name).is_file()]
        if not there:
            raise UserError(f"{path}: no table; a folder holds one of {', '.join(NAMES)}")
        path = there[0]
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a .jsonl, .csv, .tsv or .parquet table")
    kinds = {".jsonl": JsonLines, ".csv": Delimited, ".tsv": Delimited, ".parquet": Parquet}
    kind = AlignedLines if path.name == ALIGNED else kinds.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path}: not a table by its name; tables end in .jsonl, .csv, .tsv or .parquet")
    return kind(path, wordless)


class _Table(Source):
    def __init__(self, path: Path, wordless: bool = False):
        self.file, self.root, self.wordless = path, path.parent, wordless
        self.name = path.resolve().parent.name if path.name in (*NAMES, ALIGNED) else path.stem


class JsonLines(_Table):
    """pairs.jsonl. A position is the offset of a line."""

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        with Lines(self.file, faults) as lines:
            for text in lines:
                if not text.strip():
                    continue
                try:
                    yield self.made(parse(text), lines.start, lines.number)
                except RowError as error:
                    faults.add(Fault(self.file, lines.number, error.reason, str(error)))

    def entry(self, position: int, line: int) -> CorpusEntry:
        with Lines(self.file, Faults("stop"), position) as lines:
            try:
                return self.made(parse(next(lines)), position, line)
            except (StopIteration, RowError):
                raise _changed(self.file) from None

    def made(self, value: Any, position: int, line: int) -> CorpusEntry:
        """The row of a line's value."""
        return entry_of(value, position, line, self.wordless)


class AlignedLines(JsonLines):
    """mmt.jsonl: sentences of one meaning, one a language."""

    def made(self, value: Any, position: int, line: int) -> CorpusEntry:
        if not isinstance(value, dict) or "texts" in value:
            return super().made(value, position, line)
        spoken = {key: value[key] for key in value if key not in KEYS and _LANGUAGE_OF_LINE.fullmatch(key)}
        if not spoken:
            raise RowError("missing key", 'no sentence; give one a language, as "en": "A dog."')
        rest = {key: value[key] for key in value if key not in spoken}
        return super().made(rest | {"texts": spoken}, position, line)


class Delimited(_Table):
    """CSV or TSV, quoted as Excel does. A position is the offset of the first line of a row."""

    untyped = True

    @cached_property
    def _header(self) -> tuple[str, list[str], "_Columns"]:
        """Delimiter, names, and what they mean."""
        with Lines(self.file, Faults("stop")) as lines:
            first = next((text for text in lines if text.strip()), "").strip("\r\n")
        if not first:
            raise UserError(f"{self.file}: empty; its first row names the columns, e.g. image,text")
        delimiter = "\t" if self.file.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
        try:
            names = list(map(column_name, next(csv.reader([first], delimiter=delimiter, strict=True))))
        except csv.Error as error:
            raise UserError(f"{self.file}:1: {error}; the first row names the columns, e.g. image,text") from None
        return delimiter, names, table_columns(names, self.file, self.wordless)

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        delimiter, names, columns = self._header
        headed = False
        with Lines(self.file, faults) as lines:
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            while True:
                lines.begin()
                try:
                    cells = next(reader)
                    if cells and headed:
                        yield entry_of(columns.row(_named(names, cells), lines.first[1]), *lines.first, self.wordless)
                    headed = headed or bool(cells)
                except StopIteration:
                    return
                except csv.Error as error:
                    what = f"{error}; put texts with quotes or line ends in double quotes, quotes within them doubled"
                    faults.add(Fault(self.file, lines.first[1], "broken row", what))
                    lines.restart()
                    reader = csv.reader(lines, delimiter=delimiter, strict=True)
                except RowError as error:
                    faults.add(Fault(self.file, lines.first[1], error.reason, str(error)))

    def entry(self, position: int, line: int) -> CorpusEntry:
        delimiter, names, columns = self._header
        with Lines(self.file, Faults("stop"), position) as lines:
            try:
                cells = next(csv.reader(lines, delimiter=delimiter, strict=True))
                return entry_of(columns.row(_named(names, cells), line), position, line, self.wordless)
            except (StopIteration, csv.Error, RowError):
                raise _changed(self.file) from None


class Parquet(_Table):
    """A Parquet file, kept in memory in Arrow's columns. A position is a row from 0; a "line" is a row from 1."""

    def __getstate__(self) -> dict:
        names = ("name", "file", "root", "wordless")
        return {name: getattr(self, name) for name in names}  # another process reads the table itself

    @cached_property
    def _table(self) -> tuple[pa.Table, "_Columns"]:
        with arrow_file(self.file, "write it anew"):
            table = checked_rows(pq.read_table(self.file))
        names = list(map(column_name, table.column_names))
        return table.rename_columns(names), table_columns(names, self.file, self.wordless)

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        table, columns = self._table
        position = 0
        for batch in table.to_batches(max_chunksize=1024):
            with arrow_file(self.file, "write it anew"):
                rows = batch.to_pylist()  # a date that Python does not know is found here
            for cells in rows:
                try:
                    yield entry_of(columns.row(cells, position + 1), position, position + 1, self.wordless)
                except RowError as error:
                    faults.add(Fault(self.file, position + 1, error.reason, str(error)))
                position += 1

    def entry(self, position: int, line: int) -> CorpusEntry:
        table, columns = self._table
        cells = table.slice(position, 1).to_pylist()[0]
        return entry_of(columns.row(cells, line), position, line, self.wordless)


@dataclass(frozen=True)
class _Columns:
    """Which column of a CSV, TSV or Parquet table means what; None where there is none."""

    image: str
    text: str | None
    texts: Mapping[str, str]  # language to column
    language: str | None
    numbered: tuple[str, ...] = ()  # caption_0, caption_1, ...
    wordless: bool = False

    def row(self, cells: dict[str, Any], line: int) -> dict[str, Any]:
        """The cells in the form of a line of pairs.jsonl."""
        row = dict(cells)
        image = row.pop(self.image)
        languages: dict[str, Any] = {language: row.pop(column) for language, column in self.texts.items()}
        texts: Any = {language: text for language, text in languages.items() if text not in (None, "")}
        named = row.pop(self.language) if self.language else None
        if self.text is not None or self.numbered:
            numbered = [row.pop(name) for name in self.numbered]
            texts = row.pop(self.text) if self.text else [text for text in numbered if text not in (None, "")] or None
            texts = {named: texts} if named and texts else texts
        listed = {k: several(text) for k, text in texts.items()} if isinstance(texts, dict) else several(texts)
        texts = {k: text for k, text in listed.items() if text} if isinstance(listed, dict) else listed
        if texts in (None, "", {}) and not self.wordless:
            raise RowError("empty text", "no text; write one or remove the row")
        for key in ("split", "image_id"):
            row[key] = None if row.get(key) in (None, "") else row[key]
        return row | {"id": row.get("id", line), "image": image, "texts": texts}


def table_columns(names: list[str], file: Path, wordless: bool = False) -> _Columns:
    """What the columns mean.

    Raises:
        UserError: no column for the picture, none for texts unless wordless, or a name given twice.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(one_line(f"{file}:1: column {twice[0]!r} stands twice; rename one"))
    image, text, language = (next((n for n in kind if n in names), None) for kind in (IMAGE, TEXT, LANGUAGE))
    texts = {match[1]: name for name in names if (match := _TEXT_OF_LANGUAGE.fullmatch(name))}
    if texts:
        text = None
    shown = ", ".join(names)
    if image is None:
        raise UserError(one_line(f"{file}:1: no column for the picture among {shown}; name it image"))
    numbered = tuple(name for name in names if _NUMBERED_TEXT.fullmatch(name)) if text is None and not texts else ()
    if text is None and not texts and not numbered and not wordless:
        raise UserError(one_line(f"{file}:1: no column for texts among {shown}; name it text, or text_en"))
    return _Columns(image, text, texts, language, numbered, wordless)


def several(text: Any) -> Any:
    """The texts of a cell that is a list as Python, numpy or JSON writes it ("['a dog', 'a cat']"); else the cell."""
    if isinstance(text, str) and text.strip() == "[]":
        return None
    if not isinstance(text, str) or len(text) > _LONGEST_LIST or not _LIST.fullmatch(text.strip()):
        return text
    try:
        return [ast.literal_eval(item[0]) for item in _ITEM.finditer(text)]
    except (ValueError, SyntaxError):  # an escape that Python does not know
        return text


def column_name(name: str) -> str:
    """Without white space around; names with a meaning of their own in small letters, however written."""
    name = name.strip()
    known = name.lower() in (*KEYS, *IMAGE, *TEXT, *LANGUAGE) or _TEXT_OF_LANGUAGE.fullmatch(name.lower())
    return name.lower() if known else name


def _named(names: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(names):
        raise RowError("broken row", f"{len(cells)} cells under {len(names)} columns; quote texts that hold delimiters")
    return dict(zip(names, cells, strict=True))


def entry_of(row: Any, position: int, line: int, wordless: bool = False) -> CorpusEntry:
    """The row, checked. wordless: it needs no texts.

    Raises:
        RowError: a missing key, a wrong type, an empty text, ...
    """
    if not isinstance(row, dict):
        raise RowError("wrong type", f'a row is an object {{"id": ...}}, not {json_kind(row)}')
    if wordless and row.get("texts") in (None, "", [], {}):
        row = row | {"texts": {}}
    for key in ("id", "image", "texts"):
        if key not in row:
            raise RowError("missing key", f"no key {key!r}{near_key(key, row)}")
    if "split" not in row and _near("split", row):
        raise RowError("missing key", f"no key 'split'{near_key('split', row)}")
    return CorpusEntry(
        position,
        line,
        id=_name("id", row["id"]),
        image=string_of("image", row["image"]),
        texts=_texts(row["texts"]),
        split=None if row.get("split") is None else string_of("split", row["split"]),
        image_id=None if row.get("image_id") is None else _name("image_id", row["image_id"]),
        columns={key: value for key, value in row.items() if key not in KEYS},
    )


def _texts(value: Any) -> dict[str, list[str]]:
    """Texts by language, of one of the three forms."""
    if isinstance(value, dict):
        texts = {}
        for language, given in value.items():
            if not LANGUAGE_KEY.fullmatch(language):
                raise RowError("wrong type", f"texts: {language!r} is no language code such as en or zh")
            several = _strings(given)
            if several:
                texts[language] = several
        return texts
    texts = {}
    for text in _strings(value):
        texts.setdefault(language_by_script(text), []).append(text)
    return texts


def _strings(value: Any) -> list[str]:
    several = value if isinstance(value, list) else [value]
    for text in several:
        if not isinstance(text, str):
            raise RowError("wrong type", f"texts: a text is a string, not {json_kind(text)}")
        if is_blank(text):
            raise RowError("empty text", "an empty text; write it or take it out")
    return several


def string_of(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RowError("wrong type", f"{key} is {json_kind(value)}; write a string")
    if is_blank(value):
        raise RowError("wrong type", f"{key} is empty; write it")
    return value


def _name(key: str, value: Any) -> str:
    """A string, or a whole number as one."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else string_of(key, value)


def _near(key: str, row: dict[str, Any]) -> str | None:
    """A key of the row that looks like a mistyped `key`."""
    lowered = {name.lower(): name for name in row if name not in KEYS}
    others = {"image": IMAGE, "texts": TEXT}.get(key, ())
    alias = next((lowered[name] for name in others if name in lowered), None)
    close = difflib.get_close_matches(key, lowered, 1, 0.75)
    return alias or (lowered[close[0]] if close else None)


def near_key(key: str, row: dict[str, Any]) -> str:
    near = _near(key, row)
    return f" but {near!r}; rename it" if near else "; add it"


def _changed(file: Path) -> UserError:
    return UserError(f"{file}: changed since it was opened; open it again")
