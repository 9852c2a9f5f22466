"""Tables beside a corpus: what was computed of its rows, or of single texts of theirs, read as columns.

A table is a Parquet file keyed by `row`, the id of a row of the corpus, and `text`, the identity of one of the row's
texts, or null where a value is of the whole row. Its other columns are laid over the rows' own (`data.beside`):
a value of the row as it is, values of texts as `OfTexts`. Some columns mean something to the loader:

noise    0..1, how likely a text is wrong (`data.noise`)
tags     names of what a picture shows, by language
written  a text that was written for the picture, by language: it stands in for one that is wrong, in as many epochs as
         the noise says; where no noise is known, it is one text more
"""

import hashlib
import json
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tuwen.data import draws
from tuwen.data.corpora.arrow import arrow_file, checked_rows
from tuwen.data.corpus import Caption, Corpus, Record, Relevance, all_texts, text_id
from tuwen.data.private import UNSAID, hides
from tuwen.data.subset import Subset, Wrapped
from tuwen.errors import UserError, quoted, reason_of

TABLE = "table.parquet"  # in the folder of a stage
ROW, TEXT = "row", "text"
NOISE, TAGS, WRITTEN = "noise", "tags", "written"
LOOKED_AT = 10_000  # rows looked for in a table before any work
_ABOUT = b"tuwen"


class OfTexts(dict[int, Any]):
    """A column's values for a row's texts, by the texts' identity (`text_id`)."""


def write_table(path: Path, table: pa.Table, optional: bool = False, private: bool = False) -> None:
    """Writes a table with columns `row` (string) and `text` (int64 or null), in one move.

    optional: whether rows that it does not name simply lack its columns; else they are a mistake. private: whether it
    is of a private corpus, and says so.
    """
    note = {"optional": optional} | ({"private": True} if private else {})
    about = {_ABOUT: json.dumps(note).encode()}
    fresh = path.with_name(f".{path.name}.tmp")
    pq.write_table(table.replace_schema_metadata(about), fresh, compression="zstd")
    fresh.replace(path)


def digest_of(path: Path) -> str:
    """Of a file's bytes.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from None


@dataclass(frozen=True)
class SideTable:
    """A table, read: its rows in the order of `keys` [R] int64, which are sorted."""

    path: Path
    digest: str
    table: pa.Table
    keys: np.ndarray
    optional: bool

    @classmethod
    def read(cls, place: str | Path) -> "SideTable":
        """The table of a file, or of a stage's folder.

        Raises:
            UserError: no table there, one without its keys, or one with a key twice.
        """
        path = Path(place) / TABLE if Path(place).is_dir() else Path(place)
        if not path.is_file():
            raise UserError(f"{path}: no table there; give a Parquet file, or the folder of a stage that has made one")
        digest = digest_of(path)
        with arrow_file(path, "make it again"):
            table = checked_rows(pq.read_table(path))
        kinds = {name: table.schema.field(name).type for name in (ROW, TEXT) if name in table.column_names}
        if kinds.get(ROW) not in (pa.string(), pa.large_string()) or kinds.get(TEXT) not in (pa.int64(), pa.null()):
            raise UserError(f"{path}: lacks the columns row (the ids of rows, texts) and text (int64, or null)")
        if WRITTEN in table.column_names and not _by_language(table.schema.field(WRITTEN).type):
            raise UserError(f"{path}: column {WRITTEN} holds no texts by language, such as {{en: a dog, zh: 狗}}")
        if table[ROW].null_count:
            raise UserError(f"{path}: {table[ROW].null_count} entries name no row")
        keys = np.fromiter((draws.key(ROW, row) for row in table[ROW].to_pylist()), np.int64, len(table))
        order = np.argsort(keys, kind="stable")
        table = table.take(pa.array(order)).combine_chunks()
        about = (table.schema.metadata or {}).get(_ABOUT, b"{}")
        try:
            note = json.loads(about)
            optional, private = (note.get(name) is True for name in ("optional", "private"))
        except (ValueError, AttributeError, RecursionError):
            raise UserError(f"{path}: its note of itself is damaged; make it again") from None
        _refuse_doubles(path, table, private)
        return cls(path, digest, table, keys[order], optional)

    @property
    def names(self) -> list[str]:
        """Of the columns that it lays over rows."""
        return [name for name in self.table.column_names if name not in (ROW, TEXT)]

    def values(self, record: Record) -> dict[str, Any]:
        """The columns of a row, by name.

        Raises:
            UserError: none of the row or of one of its texts, in a table that must have them.
        """
        key = draws.key(ROW, record.id)
        first, last = (int(np.searchsorted(self.keys, key, side)) for side in ("left", "right"))
        with arrow_file(self.path, "make it again"):  # a date that Python does not know is met here
            rows = self.table.slice(first, last - first).to_pylist()
        entries = [entry for entry in rows if entry[ROW] == record.id]
        if not entries:
            return {} if self.optional else self._lacks(record, "the row")
        if entries[0][TEXT] is None:
            return {name: entries[0][name] for name in self.names}
        by_text = {entry[TEXT]: entry for entry in entries}
        for text in all_texts(record):
            if text_id(text) not in by_text and text.strip() and not self.optional:
                self._lacks(record, "one of its texts")
        return {name: OfTexts({text: entry[name] for text, entry in by_text.items()}) for name in self.names}

    def _lacks(self, record: Record, what: str) -> dict[str, Any]:
        raise UserError(
            f"{self.path}: has nothing of {what} {record.called}; make it of the very corpus it lies beside"
        )


def _by_language(kind: pa.DataType) -> bool:
    """Whether values of a kind are texts by language, or nothing at all."""
    texts = [pa.string(), pa.large_string(), pa.null()]
    return kind == pa.null() or (pa.types.is_struct(kind) and all(field.type in texts for field in kind))


def _refuse_doubles(path: Path, table: pa.Table, private: bool) -> None:
    """Raises:
    UserError: two entries of one key.
    """
    counts = table.select([ROW, TEXT]).group_by([ROW, TEXT]).aggregate([([], "count_all")])
    several = counts.filter(pa.compute.greater(counts["count_all"], 1))
    if len(several):
        row = UNSAID if hides(private) else quoted(several[ROW][0].as_py(), 60)
        raise UserError(f"{path}: has the row {row} twice; the ids of rows must differ")


class Beside(Wrapped):
    """A corpus with tables beside it; a later table's columns go over an earlier one's."""

    def __init__(self, base: Corpus, tables: Sequence[SideTable]):
        """Raises:
        UserError: a row, of those looked at, that a table must name and does not.
        """
        super().__init__([base])
        self.base, self.tables, self.truth = base, tuple(tables), base.truth
        names = {name for table in tables for name in table.names}
        self.adds = WRITTEN in names and NOISE not in names
        identity = " ".join([base.fingerprint, *(table.digest for table in tables)])
        self.fingerprint = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
        for row in np.unique(np.linspace(0, len(base) - 1, min(LOOKED_AT, len(base))).astype(np.int64)).tolist():
            self.record(row)

    def __len__(self) -> int:
        return len(self.base)

    def record(self, row: int) -> Record:
        record = self.base.record(row)
        own: dict[str, Any] = {}
        for table in self.tables:
            own |= table.values(record)
        texts = record.texts
        if written := own.get(WRITTEN):
            if self.adds:
                more = {name: [text] for name, text in written.items() if text}
                texts = {name: [*texts.get(name, ()), *more.get(name, ())] for name in (*texts, *more)}
            elif isinstance(own.get(NOISE), OfTexts):
                known = {text_id(text): 0.0 for text in written.values() if text}
                own[NOISE] = OfTexts({**known, **own[NOISE]})
        return replace(record, texts=texts, columns=ChainMap(own, record.columns))  # type: ignore[arg-type]

    def image_ids(self) -> np.ndarray:
        return self.base.image_ids()

    def relevance(self, rows: Sequence[int], texts: Sequence[Caption]) -> Relevance:
        return super().relevance(rows, texts) if self.adds else self.base.relevance(rows, texts)

    def _origin(self, row: int) -> tuple[Corpus, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.base, row


def laid_over(corpus: Corpus, places: Sequence[str], noise: str | None = None) -> Corpus:
    """A corpus with the tables of these files or folders of stages beside it; the corpus itself where there are none.

    noise: "drop" leaves out what is likely wrong, as `DataConfig.noise` says.

    Raises:
        UserError: as `SideTable.read`, `Beside` and `without_noisy`.
    """
    whole = Beside(corpus, [SideTable.read(place) for place in places]) if places else corpus
    return without_noisy(whole) if noise == "drop" else whole


def noise_of(record: Record, text: str) -> float:
    """How likely a text of a row is wrong.

    Raises:
        UserError: the row has no such column.
    """
    values = record.columns.get(NOISE)
    value = values.get(text_id(text)) if isinstance(values, Mapping) else values
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise UserError(
            f"row {record.called}: has no {NOISE} in 0..1 for one of its texts; lay a table of "
            "`tuwen data noise` beside the corpus (data.beside)"
        )
    return float(value)


def trusted_text(record: Record, text: str, language: str, key: tuple[int, ...], weighs: bool) -> str | None:
    """The text; or, as often as it is likely wrong, what was written for the picture in its language.

    key: of the draw, (seed, epoch, entry). weighs: whether, where nothing was written, such a text is None instead.
    """
    written = (record.columns.get(WRITTEN) or {}).get(language)
    if not (weighs or (written and NOISE in record.columns)):
        return text
    wrong = draws.generator(*key, NOISE).random() < noise_of(record, text)
    return (written or None) if wrong else text


def without_noisy(corpus: Corpus, above: float = 0.5) -> Subset:
    """The corpus without the texts that are more likely wrong than right, and without rows that have no others.

    Raises:
        UserError: no noise is known, or nothing is left.
    """
    rows, dropped = [], {}
    for row in range(len(corpus)):
        record = corpus.record(row)
        wrong = {text for text in all_texts(record) if text.strip() and noise_of(record, text) > above}
        if any(text.strip() and text not in wrong for text in all_texts(record)):
            rows.append(row)
            if wrong:
                dropped[row] = wrong
    if not rows:
        raise UserError(f"{corpus.name}, {corpus.split}: every text counts as wrong (data.noise drop)")
    return Subset(corpus, rows, dropped)
