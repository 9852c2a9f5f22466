"""Baselines that do not look: the commonest class, the commonest by how a text begins, and a corpus without pictures.

A class is an answer's or a label's number.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tuwen.data.corpus import Corpus, Record, normalise
from tuwen.data.subset import Wrapped
from tuwen.errors import quoted

WORDS, TIMES, MOST = 6, 5, 2000  # of a beginning at most; it is known from so often on; beginnings kept
_WORD = re.compile(r"[^\W\u4e00-\u9fff]+|[\u4e00-\u9fff]")


def beginnings_of(texts: Iterable[str], classes: Iterable[int]) -> dict[str, int]:
    """The commonest class by how a text begins, in up to `WORDS` words (of Chinese, characters), of rows to learn from.

    A beginning is left out where the one a word shorter says the same. The empty one is always there.
    """
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for text, number in zip(texts, classes, strict=True):
        for beginning in _beginnings(text):
            counts[beginning][number] += 1
    common = {beginning: min(c, key=lambda k: (-c[k], k)) for beginning, c in counts.items()}
    known = [b for b in common if not b or counts[b].total() >= TIMES]
    answers: dict[str, int] = {}
    for beginning in sorted(known, key=lambda b: (len(b.split()), -counts[b].total(), b)):
        if not beginning or common[beginning] != by_beginning(beginning, answers):
            answers[beginning] = common[beginning]
    return dict(list(answers.items())[:MOST])


def check_beginnings(beginnings: Mapping[str, int], classes: int) -> None:
    """Raises:
    ValueError: a class that is none of so many, as in a config that was edited.
    """
    for beginning, number in beginnings.items():
        if not 0 <= number < classes:
            raise ValueError(f"beginnings: {quoted(beginning, 60)} has class {quoted(number, 40)} of {classes}")


def by_beginning(text: str, beginnings: Mapping[str, int]) -> int:
    """The class of the longest beginning that is known."""
    return next((beginnings[part] for part in reversed(_beginnings(text)) if part in beginnings), 0)


def _beginnings(text: str) -> list[str]:
    """Shortest first, the empty one before all."""
    words = _WORD.findall(normalise(text).lower())[:WORDS]
    return [" ".join(words[:count]) for count in range(len(words) + 1)]


class Blind(Wrapped):
    """A corpus whose pictures are all grey ("picture"), or whose texts all say the same ("text")."""

    def __init__(self, base: Corpus, what: str):
        super().__init__([base])
        self.base, self.what, self.truth = base, what, base.truth
        self.fingerprint = f"{base.fingerprint}-without-{what}"

    def __len__(self) -> int:
        return len(self.base)

    def record(self, row: int) -> Record:
        record = self.base.record(row)
        if self.what == "picture":
            return record
        return replace(record, texts={name: ["?"] for name in record.texts})

    def shown(self, row: int) -> Sequence[Tensor]:
        shown = self.base.shown(row)
        return [torch.full_like(picture, 128) for picture in shown] if self.what == "picture" else shown

    def image_ids(self):
        return self.base.image_ids()

    def _origin(self, row: int) -> tuple[Corpus, int]:
        return self.base, row
