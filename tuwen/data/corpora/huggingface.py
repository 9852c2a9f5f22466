"""Hugging Face data sets as they lie on disk: written by `save_to_disk` (Arrow), or downloaded from the hub (Parquet).

Read by pyarrow alone, so nothing of the data set's own code runs. The columns mean what they mean in a CSV
(`tuwen.data.corpora.table`): the picture is a column image, img, ... of the type Image, texts are caption, text, title,
... or one a language (caption_zh), strings or lists of them. Columns of bytes, such as further pictures, are left out.
Splits are the folders of a DatasetDict, the beginning of
a Parquet file's name (train-00000-of-00005.parquet), or its folder (default/train/0000.parquet, as the hub converts all
it holds); a column split that names one goes before them, since some sets of several splits are published as one.
"""

import bisect
import itertools
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tuwen.data.corpora.arrow import arrow_file, checked_rows
from tuwen.data.corpora.captions import SPLITS, Folder, split_name
from tuwen.data.corpora.columns import IMAGE, column_names, table_columns
from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.files import CorpusEntry, Source
from tuwen.data.corpora.published import Format
from tuwen.data.corpora.table import entry_of
from tuwen.data.corpus import BrokenImage
from tuwen.errors import UserError

_BITS = 36  # of a row's number within its file


class HuggingFace(Source):
    """`image` of an entry is "FILE:ROW"."""

    wordless = False

    def __init__(self, root: Path):
        self.file = self.root = root
        self.folder = Folder(root)
        arrow = [(path, path.parent) for path, _ in self.folder.matching(r".*\.arrow")]
        self.files: list[tuple[Path, str | None]] = [
            (path, folder.name if (folder.parent / "dataset_dict.json").is_file() else None)
            for path, folder in arrow
            if (folder / "state.json").is_file()
        ]
        pattern = r"(?:(?P<split>[\w.]+?)-\d+-of-\d+.*|(?P<whole>train|validation|val|test)|\d{4})\.parquet"
        for path, match in self.folder.matching(pattern):
            split = match["split"] or match["whole"] or path.parent.name.removeprefix("partial-")
            if match["split"] or match["whole"] or split in SPLITS:
                self.files.append((path, split))
        if not self.files:
            raise UserError(f"{root}: neither state.json with .arrow files nor SPLIT-00000-of-00001.parquet in it")
        self._loaded: tuple[tuple[int, int], pa.Table] | None = None

    def __getstate__(self) -> dict:
        fields = {"name", "notice", "file", "root", "folder", "files", "wordless"}
        return {name: value for name, value in self.__dict__.items() if name in fields} | {"_loaded": None}

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        for number, (path, _) in enumerate(self.files):
            row = 0
            for table in self._tables(number):
                with arrow_file(path):
                    rows = table.select(self._shown[number]).to_pylist()
                for cells in rows:
                    try:
                        yield self._made(number, row, cells)
                    except RowError as error:
                        faults.add(Fault(path, row + 1, error.reason, str(error)))
                    row += 1

    def entry(self, position: int, line: int) -> CorpusEntry:
        number, row = position >> _BITS, position & (1 << _BITS) - 1
        with arrow_file(self.files[number][0]):
            cells = self._row(number, row).select(self._shown[number]).to_pylist()[0]
        return self._made(number, row, cells)

    def place(self, entry: CorpusEntry) -> tuple[Path, int]:
        return self.files[entry.position >> _BITS][0], entry.line

    def read(self, image: str) -> bytes:
        number, row = map(int, image.split(":"))
        value = self._row(number, row).column(self._columns(number).image)[0].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(data, bytes) and data:
            return data
        path = value.get("path") if isinstance(value, dict) else value
        if isinstance(path, str) and path:
            return super().read(path)
        raise BrokenImage("missing", "neither bytes nor a path")

    def _made(self, number: int, row: int, cells: dict[str, Any]) -> CorpusEntry:
        columns, own = self._columns(number), str(cells.get("split"))
        split = split_name(own if own.lower() in SPLITS else self.files[number][1] or "")
        values = columns.row({**cells, columns.image: f"{number}:{row}"}, row + 1)
        values["id"] = f"{split or 'row'}/{number}-{row}"
        return entry_of(values | ({"split": split} if split else {}), number << _BITS | row, row + 1)

    def _columns(self, number: int) -> Any:
        return self._headers[number]

    @cached_property
    def _checked(self) -> set[tuple[int, int]]:
        """(file, piece) whose offsets and texts have been looked at."""
        return set()

    @cached_property
    def _headers(self) -> list[Any]:
        """What the columns of each file mean."""
        return [table_columns(column_names(schema.names), path, self.wordless) for path, schema in self._schemas]

    @cached_property
    def _shown(self) -> list[list[str]]:
        """The columns of each file that are no pictures, as they are named here."""
        shown = []
        for (_, schema), columns in zip(self._schemas, self._headers, strict=True):
            words = {columns.text, columns.language, *columns.texts.values()}
            kinds = dict(zip(column_names(schema.names), schema.types, strict=True))
            names = [name for name, kind in kinds.items() if name in words or not _has_bytes(kind)]
            shown.append([name for name in names if name != columns.image])
        return shown

    @cached_property
    def _schemas(self) -> list[tuple[Path, pa.Schema]]:
        opened = ((path, self._opened(path)) for path, _ in self.files)
        return [(path, file.schema if path.suffix == ".arrow" else file.schema_arrow) for path, file in opened]

    def _opened(self, path: Path) -> Any:
        with arrow_file(path):
            if path.suffix == ".parquet":
                return pq.ParquetFile(path)
            return pa.ipc.open_stream(pa.memory_map(str(path)))

    def _tables(self, number: int) -> Iterator[pa.Table]:
        """The rows of a file in pieces: an Arrow file at once, as it is mapped and not read; Parquet group by group."""
        return (self._piece(number, piece) for piece in range(len(self._starts[number]) - 1))

    @cached_property
    def _starts(self) -> list[list[int]]:
        """For each file, the first row of every piece, and the number of rows."""
        starts = []
        for number, (path, _) in enumerate(self.files):
            if path.suffix == ".arrow":
                starts.append([0, self._piece(number, 0).num_rows])
            else:
                with arrow_file(path):
                    metadata = self._opened(path).metadata
                    counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
                starts.append([0, *itertools.accumulate(counts)])
        return starts

    def _piece(self, number: int, piece: int) -> pa.Table:
        path = self.files[number][0]
        file = self._opened(path)
        with arrow_file(path):
            table = file.read_all() if path.suffix == ".arrow" else file.read_row_group(piece)
            if (number, piece) not in self._checked:
                self._checked.add((number, piece))
                checked_rows(table)
            return table.rename_columns(column_names(table.column_names))

    def _row(self, number: int, row: int) -> pa.Table:
        """One row as a table; the piece it lies in is kept until another is asked for."""
        starts = self._starts[number]
        piece = bisect.bisect_right(starts, row) - 1
        loaded = self._loaded
        if loaded is None or loaded[0] != (number, piece):
            self._loaded = loaded = ((number, piece), self._piece(number, piece))
        return loaded[1].slice(row - starts[piece], 1)


class PicturesInside(HuggingFace):
    """A Parquet table of your own that holds the pictures: a column of bytes, or of bytes and path, as the hub's Image.

    Its columns mean what they mean without pictures inside (`tuwen.data.corpora.table`).
    """

    def __init__(self, path: Path, name: str, wordless: bool = False):
        self.file, self.root, self.folder = path, path.parent, Folder(path.parent)
        self.files, self.name, self.wordless, self._loaded = [(path, None)], name, wordless, None

    def _made(self, number: int, row: int, cells: dict[str, Any]) -> CorpusEntry:
        columns = self._columns(number)
        return entry_of(columns.row({**cells, columns.image: f"0:{row}"}, row + 1), row, row + 1, self.wordless)


def holds_pictures(path: Path) -> bool:
    """Whether a Parquet table's column for the picture is one of bytes. False for what is no readable Parquet file."""
    try:
        with arrow_file(path):
            schema = pq.read_schema(path)
    except UserError:
        return False
    kinds = dict(zip(column_names(schema.names), schema.types, strict=True))
    image = next((kinds[name] for name in IMAGE if name in kinds), None)
    return image is not None and _has_bytes(image)


def _has_bytes(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type hold bytes, as pictures do."""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    return any(_has_bytes(kind.field(k).type) for k in range(kind.num_fields))


FORMATS = (
    Format(
        name="huggingface",
        title="Hugging Face data sets on disk",
        languages=(),
        needs="what Dataset.save_to_disk writes, or SPLIT-00000-of-00001.parquet of the hub; an Image column and texts",
        ask="your own, or huggingface.co/datasets",
        licence="that of its makers",
        records="-",
        read=HuggingFace,
    ),
)
