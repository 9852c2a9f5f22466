"""What single rows add to a task's figure, told while it is measured: what paired statistics are computed from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tuwen.data.corpus import Corpus, Relevance
from tuwen.tasks.metrics import CUTOFFS, NO_ANSWER


class MarkedPart(NamedTuple):
    """values: [R] float64 of rows. pictures: [R] int64 the identity of the picture each belongs to."""

    values: np.ndarray
    pictures: np.ndarray


@dataclass
class Marks:
    """The marks of every part of a figure (a language, a direction), by its name.

    The figure is the mean over parts of the mean of each part's values. Of a figure that is no mean over rows (an area,
    BLEU) the values are what leaving a row out changes, so scaled that their mean is the figure or near it.
    """

    parts: dict[str, MarkedPart] = field(default_factory=dict)

    def add(self, name: str, values, pictures) -> None:
        self.parts[name] = MarkedPart(np.asarray(values, dtype=np.float64), np.asarray(pictures, dtype=np.int64))

    def figure(self) -> float:
        return float(np.mean([part.values.mean() for part in self.parts.values()]))


def pictures_shown(corpus: Corpus, rows: Iterable[int]) -> list[int]:
    """The identities of the pictures of a corpus's rows."""
    return [corpus.record(int(row)).image_id for row in rows]


def tell_ranks(
    marks: Marks | None, language: str, ranks: Mapping[str, np.ndarray], truth: Relevance, corpus: Corpus, rows
) -> None:
    """What each query of a language adds to mean recall, by direction; those without an answer are left out.

    marks: None: nobody asks. truth: pictures of each text. rows: of the corpus, of each picture.
    """
    if marks is None:
        return
    pictures = np.asarray(pictures_shown(corpus, rows), dtype=np.int64)
    for way, rank in ranks.items():
        asked = rank != NO_ANSWER
        hits = np.mean([rank[asked] < k for k in CUTOFFS], axis=0)
        marks.add(f"{language}.{way}", 100 * hits, pictures[picture_of(truth, way)[asked]])


def picture_of(truth: Relevance, way: str) -> np.ndarray:
    """[Q] int64 the picture (position) that each query belongs to: itself, or a text's first; -1 for none.

    truth: pictures of each text.
    """
    if way == "image_to_text":
        return np.arange(truth.image_count)
    first = np.full(len(truth), -1, dtype=np.int64)
    has = np.diff(truth.start) > 0
    first[has] = truth.images[truth.start[:-1][has]]
    return first
