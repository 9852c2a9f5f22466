"""Your own data as a table: pairs.jsonl, CSV, TSV, a spreadsheet or Parquet, with the pictures beside it.

pairs.jsonl holds one JSON object a line:

    {"id": "1", "image": "images/1.jpg", "texts": {"zh": ["一只狗"], "en": ["A dog."]}, "split": "train"}

`texts` may also be a string or a list of strings, whose languages are then told by script (Han: zh, Latin: en, else
und). `split` and `image_id` are optional; equal `image_id`s are one picture. Any further key becomes a column.

A file called mmt.jsonl holds aligned sentences instead, a key for each language beside the others:

    {"id": "1", "image": "images/1.jpg", "split": "train", "en": "A dog.", "de": "Ein Hund."}

CSV, TSV, .xlsx and Parquet name in their first row (Parquet in its schema): the picture (`image`, `filepath`, `图片`,
...), the text (`text`, `title`, `商品标题`, ..., or a column a language: `text_en`, `caption_zh`, or numbered:
`caption_0`), and where they want `id`, `split`, `language`, `image_id`, `tags` ("促销,包邮"). All names that have a
meaning stand in `corpora.columns`; others by `columns:COLUMN=NAME:TABLE` (`--columns`). A text written as a list,
"['a dog', 'a pet']", is several. Without `id`, the row's number is its id. Several rows may name one picture. A
Parquet table may hold the pictures themselves (`tuwen.data.corpora.huggingface.PicturesInside`).

Picture paths start at the table's folder and never leave it, by dots, links or otherwise.
"""

import csv
import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tuwen.data.corpora.arrow import arrow_file, checked_rows
from tuwen.data.corpora.columns import IMAGE, KEYS, TEXT, Columns, column_names, table_columns
from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.files import CorpusEntry, FileCorpus, Source
from tuwen.data.corpora.json_text import json_kind, parse
from tuwen.data.corpora.lines import Lines, table_encoding
from tuwen.data.corpora.scripts import is_blank, language_by_script
from tuwen.data.corpora.sheet import sheet_rows
from tuwen.data.private import marked
from tuwen.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # Hugging Face's ImageFolder
NAMES = ("pairs.jsonl", "pairs.csv", "pairs.tsv", "pairs.parquet", "pairs.xlsx", *METADATA)
ENDINGS = ".jsonl, .csv, .tsv, .xlsx or .parquet"
ALIGNED = "mmt.jsonl"

LANGUAGE_KEY = re.compile(r"[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*")
_LANGUAGE_OF_LINE = re.compile(r"[a-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*")


def open_table(location: str | Path, split: str, on_bad: str = "stop") -> FileCorpus:
    """One split of a table: a file, or a folder with one of `NAMES`.

    on_bad: "stop" raises at the first fault; "skip" leaves faulty rows out and counts them in `skipped`.

    Raises:
        UserError: FILE:LINE, what is wrong and how to fix it; no such split; no usable row.
    """
    return FileCorpus(table_source(location), split, on_bad)


def table_source(
    location: str | Path, wordless: bool = False, renames: Mapping[str, str] = MappingProxyType({})
) -> Source:
    """The rows of a table file, or of the table in a folder.

    wordless: rows need no text, nor a column for texts. renames: what columns are called here, by the table's names.

    Raises:
        UserError: no such file, or none that is a table by its name.
    """
    path = Path(location)
    if path.is_dir():
        there = [path / name for name in NAMES if (path / name).is_file()]
        if not there:
            raise UserError(f"{path}: no table; a folder holds one of {', '.join(NAMES)}")
        path = there[0]
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a {ENDINGS} table")
    ending = path.suffix.lower()
    if ending == ".xls":
        raise UserError(f"{path}: a spreadsheet of the old form; save it as .xlsx or .csv")
    kinds = {
        ".jsonl": JsonLines,
        ".csv": Delimited,
        ".tsv": Delimited,
        ".parquet": Parquet,
        ".xlsx": Spreadsheet,
    }
    kind = {ALIGNED: AlignedLines, "metadata.jsonl": MetadataLines}.get(path.name) or kinds.get(ending)
    if kind is None:
        raise UserError(f"{path}: not a table by its name; tables end in {ENDINGS}")
    return kind(path, wordless, renames)


class _Table(Source):
    def __init__(self, path: Path, wordless: bool = False, renames: Mapping[str, str] = MappingProxyType({})):
        self.file, self.root, self.wordless, self.renames = path, path.parent, wordless, dict(renames)
        self.private = marked(path.parent)
        self.name = path.resolve().parent.name if path.name in (*NAMES, ALIGNED) else path.stem

    def beside(self) -> Iterator[str]:
        return (image for entry in self.entries(Faults("skip")) for image in entry.images)


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
        if self.renames and isinstance(value, dict):
            value = {self.renames.get(key, key): cell for key, cell in value.items()}
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


class MetadataLines(JsonLines):
    """metadata.jsonl of Hugging Face's ImageFolder: `file_name`, and a text by any name that a column may have."""

    def made(self, value: Any, position: int, line: int) -> CorpusEntry:
        if not isinstance(value, dict) or {"image", "texts"} <= {*value}:
            return super().made(value, position, line)
        names = column_names(list(value), self.renames)
        try:
            columns = table_columns(names, self.file, self.wordless)
        except UserError as error:
            raise RowError("missing key", str(error).removeprefix(f"{self.file}:1: ")) from None
        row = columns.row(dict(zip(names, value.values(), strict=True)), line)
        return entry_of(row, position, line, self.wordless)


class Delimited(_Table):
    """CSV or TSV, quoted as Excel does, in UTF-8 or GB18030. A position is the offset of the first line of a row."""

    untyped = True

    def _lines(self, faults: Faults, offset: int = 0) -> Lines:
        return Lines(self.file, faults, offset, self._encoding)

    @cached_property
    def _encoding(self) -> str:
        return table_encoding(self.file)

    @cached_property
    def _header(self) -> tuple[str, list[str], Columns]:
        """Delimiter, names, and what they mean."""
        with self._lines(Faults("stop")) as lines:
            first = next((text for text in lines if text.strip()), "").strip("\r\n")
        if "\r" in first:
            raise UserError(f"{self.file}:1: lines end in CR alone; save the table with LF or CRLF line ends")
        if not first:
            raise UserError(f"{self.file}: empty; its first row names the columns, e.g. image,text")
        delimiter = "\t" if self.file.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
        try:
            names = column_names(next(csv.reader([first], delimiter=delimiter, strict=True)), self.renames)
        except csv.Error as error:
            raise UserError(f"{self.file}:1: {error}; the first row names the columns, e.g. image,text") from None
        return delimiter, names, table_columns(names, self.file, self.wordless, self.private)

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        delimiter, names, columns = self._header
        headed = False
        with self._lines(faults) as lines:
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
        with self._lines(Faults("stop"), position) as lines:
            try:
                cells = next(csv.reader(lines, delimiter=delimiter, strict=True))
                return entry_of(columns.row(_named(names, cells), line), position, line, self.wordless)
            except (StopIteration, csv.Error, RowError):
                raise _changed(self.file) from None


class Parquet(_Table):
    """A Parquet file, kept in memory in Arrow's columns. A position is a row from 0; a "line" is a row from 1."""

    def __getstate__(self) -> dict:
        names = ("name", "file", "root", "wordless", "renames", "private")
        return {name: getattr(self, name) for name in names}  # another process reads the table itself

    @cached_property
    def _table(self) -> tuple[pa.Table, Columns]:
        with arrow_file(self.file, "write it anew"):
            table = checked_rows(pq.read_table(self.file))
        names = column_names(table.column_names, self.renames)
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


class Spreadsheet(_Table):
    """The first sheet of an .xlsx file that has rows, in memory. A position is a row from 0; a line is the sheet's."""

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_rows"}

    @cached_property
    def _rows(self) -> tuple[list[str], Columns, list[tuple[int, list[Any]]]]:
        """Names, what they mean, and (line, cells) of each row."""
        filled = sheet_rows(self.file)
        if not filled:
            raise UserError(f"{self.file}: empty; its first row names the columns, e.g. 图片, 商品标题")
        (_, header), *rows = filled
        width = max(place + 1 for place, cell in enumerate(header) if cell is not None)
        names = column_names([str(cell or f"column {n}") for n, cell in enumerate(header[:width], 1)], self.renames)
        columns = table_columns(names, self.file, self.wordless, self.private)
        written = {columns.image, columns.text, *columns.texts.values(), *columns.numbered, "split", "image_id"}
        as_text = [name in written for name in names]
        made = []
        for line, cells in rows:
            padded = [*cells[:width], *[None] * (width - len(cells))]
            made.append((line, [str(c) if t and c is not None else c for c, t in zip(padded, as_text, strict=True)]))
        return names, columns, made

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        for position, (line, _) in enumerate(self._rows[2]):
            try:
                yield self._entry(position)
            except RowError as error:
                faults.add(Fault(self.file, line, error.reason, str(error)))

    def entry(self, position: int, line: int) -> CorpusEntry:
        return self._entry(position)

    def _entry(self, position: int) -> CorpusEntry:
        names, columns, rows = self._rows
        line, cells = rows[position]
        row = {k: v for k, v in zip(names, cells, strict=True) if v is not None or k in columns.used}
        return entry_of(columns.row(row, line), position, line, self.wordless)


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
    if isinstance(value, float) and value.is_integer():  # as pandas writes whole numbers beside empty cells
        value = int(value)
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
