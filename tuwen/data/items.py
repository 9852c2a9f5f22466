"""Rows of a task: what is asked of pictures, one row a question, statement or phrase, over the pictures of a corpus."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuwen.data import draws
from tuwen.data.corpus import Corpus, Record
from tuwen.data.subset import Subset, Wrapped

Asked = Callable[[int, Record], Iterator["Item"]]  # (row, its record) -> what is asked of it


@dataclass(frozen=True)
class Item:
    """What one row of a task asks. rows: of the corpus, whose pictures it is about, in order. id: within its row."""

    rows: tuple[int, ...]
    id: str
    language: str
    text: str
    columns: Mapping[str, Any] = field(default_factory=dict)


class Items(Wrapped):
    """A corpus whose rows are items; a row's `image_id` is the picture's, or stands for its pictures together."""

    def __init__(self, base: Corpus, items: Sequence[Item], image_ids: np.ndarray, pictures: int = 1):
        """image_ids: [rows of the base] int64. pictures: separate ones a row; items of another number are left out."""
        super().__init__([base])
        self.base, self.pictures = base, pictures
        self.items = [item for item in items if len(item.rows) == pictures]
        self._image_ids = image_ids
        self.languages = tuple(name for name in base.languages if any(item.language == name for item in self.items))
        self.truth = "identity"
        digest = hashlib.blake2b(base.fingerprint.encode(), digest_size=16)
        for item in self.items:
            digest.update(repr((item.rows, item.id, item.language, item.text)).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.items)

    def record(self, row: int) -> Record:
        item = self._item(row)
        return Record(item.id, {item.language: [item.text]}, self._identity(item), item.columns)

    def shown(self, row: int) -> Sequence[Tensor]:
        return [picture for own in self._item(row).rows for picture in self.base.shown(own)]

    def image_ids(self) -> np.ndarray:
        return np.array([self._identity(item) for item in self.items], dtype=np.int64)

    def _identity(self, item: Item) -> int:
        own = [int(self._image_ids[row]) for row in item.rows]
        return own[0] if len(own) == 1 else draws.key("pictures", *own)

    def _item(self, row: int) -> Item:
        if not 0 <= row < len(self.items):
            raise IndexError(f"row {row} of {len(self.items)}")
        return self.items[row]

    def _origin(self, row: int) -> tuple[Corpus, int]:
        return self.base, self._item(row).rows[0]


def items_of(corpus: Corpus, asked: Asked, pictures: int = 1) -> Items:
    """All that is asked of a corpus's rows, in their order. Items may name further rows of the corpus, as its own
    columns number them: of part of a corpus, those whose rows are all in it."""
    records = [corpus.record(row) for row in range(len(corpus))]
    place = {int(row): k for k, row in enumerate(corpus.rows)} if isinstance(corpus, Subset) else None
    items = []
    for row, record in enumerate(records):
        for item in asked(row, record):
            rows = item.rows if place is None or item.rows == (row,) else tuple(place.get(r, -1) for r in item.rows)
            if min(rows) >= 0:
                items.append(replace(item, rows=rows))
    return Items(corpus, items, np.array([record.image_id for record in records], dtype=np.int64), pictures)


class WithColumns(Wrapped):
    """A corpus whose rows have further columns, which a pure function makes of each record."""

    def __init__(self, base: Corpus, make: Callable[[Record], Mapping[str, Any]], made_of: str):
        """made_of: what the function depends on beside the record; the fingerprint follows it."""
        super().__init__([base])
        self.base, self._make, self.truth = base, make, base.truth
        self.fingerprint = hashlib.blake2b(f"{base.fingerprint} {made_of}".encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.base)

    def record(self, row: int) -> Record:
        record = self.base.record(row)
        return replace(record, columns={**record.columns, **self._make(record)})

    def image_ids(self) -> np.ndarray:
        return self.base.image_ids()

    def _origin(self, row: int) -> tuple[Corpus, int]:
        return self.base, row


def split_off(corpus: Corpus, share: float = 0.1) -> tuple[Corpus, Corpus | None]:
    """(the rest, a share of the rows) drawn by picture, or by the column "group" where rows have one; always the same.

    The second is None where it, or the rest, would be empty.
    """
    groups = []
    for row in range(len(corpus)):
        record = corpus.record(row)
        group = record.columns.get("group")
        groups.append(record.image_id if group is None else draws.key("group", str(group)))
    drawn = draws.uniform(torch.tensor(groups, dtype=torch.int64), 1, "validation")[:, 0].numpy() < share
    if drawn.all() or not drawn.any():
        return corpus, None
    return Subset(corpus, np.flatnonzero(~drawn)), Subset(corpus, np.flatnonzero(drawn))
