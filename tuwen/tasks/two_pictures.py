"""Statements about two pictures (NLVR2), or about one that holds several (NLVR): true or false.

A picture at least three times as wide as high is cut into the squares it holds from left to right: NLVR's three boxes,
400 x 100, which no square tower could read whole. Other rows of one picture are statements about that one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from tuwen.data.corpora.asked_lines import FILES
from tuwen.data.corpus import BrokenImage, Corpus
from tuwen.data.exercises import exercises_of
from tuwen.data.subset import Wrapped
from tuwen.errors import UserError
from tuwen.tasks.labels import LabelConfig, LabelTask, numbered, predicted, prepared

BOXES = 3  # of an NLVR picture


@dataclass(frozen=True)
class TwoPicturesConfig(LabelConfig):
    """pictures: that a statement is about; 0: what the training split shows (2, NLVR's 3, or 1)."""

    pictures: int = 0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.pictures <= BOXES:
            raise ValueError(f"pictures must lie between 0 and {BOXES}, got {self.pictures}")


class TwoPictures(LabelTask):
    what = "is a statement about two pictures true"
    why, needs, pictures = "pictures and statement are read together", ("fuse", "encode_images encode_texts"), 2
    file = FILES["statements"]
    Config = TwoPicturesConfig

    def __init__(self, config=None):
        super().__init__(config)
        self.pictures = self.config.pictures or 2  # type: ignore[misc]

    def prepare(self, corpus):
        rows = statements_of(corpus)
        count = self.config.pictures or pictures_of(rows)
        return prepared(replace(self.config, pictures=count), rows, ("true", "false"))

    def rows(self, corpus, split):
        rows = statements_of(corpus)
        if rows.pictures == 1 and self.pictures > 1:
            rows = Boxes(rows, self.pictures)
        if rows.pictures != self.pictures:
            raise UserError(
                f"corpus {rows.name}, split {rows.split}: its statements are about {rows.pictures} pictures, and the "
                f"head's about {self.pictures}"
            )
        return numbered(self.config, rows)

    def predictions(self, predictor, head, corpus, **beside) -> Iterator[dict[str, Any]]:
        """As NLVR2's server takes them: an identifier, True or False."""
        for record, label in predicted(self.config, predictor, head, corpus):
            yield {"identifier": record.id, "prediction": label.capitalize()}


def statements_of(corpus: Corpus) -> Corpus:
    """Rows that are statements: about two pictures where there are such, else about one."""
    shown = corpus.record(0).columns if len(corpus) else {}
    if "sentence" in shown:
        return exercises_of(corpus, "pair statements" if corpus.pictures == 2 else "statements")
    try:
        return exercises_of(corpus, "pair statements")
    except UserError:
        return exercises_of(corpus, "statements")


def pictures_of(rows: Corpus) -> int:
    """How many pictures a statement is about: 2, or of one picture those it holds (NLVR)."""
    if rows.pictures > 1:
        return rows.pictures
    for row in range(min(len(rows), 50)):
        try:
            height, width = rows.image(row).shape[1:]
        except BrokenImage:
            continue
        return BOXES if width >= BOXES * height else 1
    return 1


class Boxes(Wrapped):
    """Pictures cut into squares as high as they are, evenly from left to right."""

    def __init__(self, base: Corpus, count: int):
        super().__init__([base])
        self.base, self.pictures, self.truth = base, count, base.truth
        self.fingerprint = f"{base.fingerprint}-in-{count}"

    def __len__(self) -> int:
        return len(self.base)

    def shown(self, row: int) -> Sequence[Tensor]:
        (picture,) = self.base.shown(row)
        height, width = picture.shape[1:]
        side = min(height, width)
        starts = [round(k * (width - side) / (self.pictures - 1)) for k in range(self.pictures)]
        return [picture[:, :, start : start + side] for start in starts]

    def image_ids(self):
        return self.base.image_ids()

    def _origin(self, row: int) -> tuple[Corpus, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.base, row
