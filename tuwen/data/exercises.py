"""The rows of a task: what a corpus asks of its pictures, whatever corpus it is, in the one form of `corpora.asked`.

A corpus whose rows have that form already (a public one, a vqa.jsonl) is taken as it is; scenes draw exercises of
their own (`Corpus.exercises`); a table has a file beside it; phrases are those of the boxes a corpus knows.
"""

import hashlib
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from tuwen.data.corpora.asked import COLUMNS, kind_of
from tuwen.data.corpora.asked_lines import FILES
from tuwen.data.corpora.faults import Faults
from tuwen.data.corpus import Corpus, Record
from tuwen.data.grounding import phrases_of
from tuwen.data.open import open_corpus
from tuwen.data.subset import MixedCorpus, Wrapped
from tuwen.errors import UserError


def exercises_of(corpus: Corpus, kind: str) -> Corpus:
    """The split's rows of a kind: "questions", "statements", "entailment", "phrases", or "pair statements", on two
    pictures each.

    Raises:
        UserError: the corpus has none.
    """
    shown = kind_of(corpus.record(0).columns) if len(corpus) else ""
    if shown == kind.removeprefix("pair ") and corpus.pictures == 1 + kind.startswith("pair "):
        return corpus
    if corpus.parts:
        return MixedCorpus([exercises_of(part, kind) for part in corpus.parts], list(corpus.weights or ()))
    own = corpus.exercises(kind)
    if own is not None:
        return own
    if kind == "phrases":
        return PhraseRows(corpus)
    file = FILES[kind.removeprefix("pair ")]
    origin = corpus.where(0) if len(corpus) else None
    path = origin[0].parent / file if origin else None
    if path is None or not path.is_file():
        what = f"rows need columns {' and '.join(COLUMNS[kind.removeprefix('pair ')])}, or a {file} beside the table"
        raise UserError(f"corpus {corpus.name}, split {corpus.split}: has no {kind}; {what}")
    return exercises_of(open_corpus(path, corpus.split, "skip"), kind)


class PhraseRows(Wrapped):
    """Every distinct phrase of each picture of a corpus that knows boxes, as a row.

    Raises:
        UserError: as `phrases_of`.
    """

    def __init__(self, base: Corpus):
        super().__init__([base])
        faults = Faults(base.on_bad, base.name if base.private else "")
        self.base, self.phrases = base, phrases_of(base, faults=faults)
        self.skipped, self.faults = Counter(self.skipped) + faults.counts, (*self.faults, *faults.listed)
        self.languages = tuple(sorted({phrase.language for phrase in self.phrases}))
        parts = [(phrase.row, phrase.text, phrase.language, phrase.boxes.tolist()) for phrase in self.phrases]
        digest = hashlib.blake2b(f"{base.fingerprint}\x1f{parts}".encode(), digest_size=16)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.phrases)

    def record(self, row: int) -> Record:
        base, phrase = super().record(row), self.phrases[row]
        boxes = phrase.boxes.tolist()
        columns: dict[str, Any] = {"phrase": phrase.text, "box": boxes[0], "boxes": boxes, "language": phrase.language}
        return replace(base, id=f"{base.id}#{row}", texts={phrase.language: [phrase.text]}, columns=columns)

    def image_ids(self) -> np.ndarray:
        return self.base.image_ids()[[phrase.row for phrase in self.phrases]]

    def _origin(self, row: int) -> tuple[Corpus, int]:
        if not 0 <= row < len(self.phrases):
            raise IndexError(f"row {row} of {len(self.phrases)}")
        return self.base, self.phrases[row].row
