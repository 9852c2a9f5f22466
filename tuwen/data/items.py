"""Rows of a task: a corpus whose rows have further columns, and a share of it kept aside for validation."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tuwen.data import draws
from tuwen.data.corpus import Corpus, Record
from tuwen.data.subset import Subset, Wrapped


class WithColumns(Wrapped):
    """A corpus whose rows have further columns, which a pure function makes of each record and row."""

    def __init__(self, base: Corpus, make: Callable[[Record, int], Mapping[str, Any]], made_of: str):
        """made_of: what the function depends on beside them; the fingerprint follows it."""
        super().__init__([base])
        self.base, self._make, self.truth = base, make, base.truth
        self.fingerprint = hashlib.blake2b(f"{base.fingerprint} {made_of}".encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.base)

    def record(self, row: int) -> Record:
        record = self.base.record(row)
        return replace(record, columns={**record.columns, **self._make(record, row)})

    def image_ids(self) -> np.ndarray:
        return self.base.image_ids()

    def _origin(self, row: int) -> tuple[Corpus, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
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
