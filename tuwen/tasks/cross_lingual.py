"""Cross-lingual retrieval: a text of one language among all texts of another (ERNIE-UniX2 card, section 6).

Every ordered pair of languages: the language of the query against that of the captions. Right are the texts that were
written for the query's picture; a system that learnt one language alone shows here what passes to the others. Beside it
stand chance and the words themselves (TF-IDF: names and numbers are the same in many languages). Within one language:
`text_retrieval`; a language against pictures: `retrieval`.
"""

import time
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np

from tuwen.data.corpus import Corpus
from tuwen.errors import UserError
from tuwen.predictor import Predictor
from tuwen.tasks.encoding import measured
from tuwen.tasks.likeness import (
    HEADINGS,
    chance_of,
    cosines,
    measure_likeness,
    rows_of_likeness,
    sharing,
    words_alone,
)
from tuwen.tasks.marks import Marks
from tuwen.tasks.task import Task
from tuwen.tasks.text_retrieval import LanguageTexts


def evaluate_cross_lingual(
    predictor: Predictor,
    corpus: Corpus,
    *,
    batch_size: int = 64,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    marks: Marks | None = None,
) -> dict[str, Any]:
    """Percent a pair: `{"pairs": {"zh-en": {"vectors": {"r1", "r5", "r10", "map"}, "words", "chance", "queries"}}}`.

    "zh-en": queries in zh, captions in en. limit: the texts of at most so many pictures.

    Raises:
        UserError: an unknown language, fewer than two, or no picture with texts in two of them.
    """
    began = time.monotonic()
    pairs = {}
    with predictor.evaluating():
        sides = [LanguageTexts(corpus, language, limit) for language in measured(predictor, corpus, languages)]
        sides = [texts for texts in sides if texts.texts]
        if len(sides) < 2:
            raise UserError(f"corpus {corpus.name}: texts in two languages are needed; name them by --languages en zh")
        vectors = {texts.language: texts.encode(predictor, batch_size) for texts in sides}
    for asked, known in permutations(sides, 2):
        truth = sharing(asked.pictures, known.pictures)
        if len(truth.images):
            ends = vectors[asked.language], vectors[known.language]
            pairs[f"{asked.language}-{known.language}"] = {
                "vectors": measure_likeness(cosines(*ends), truth, False, tell=_teller(marks, asked, known)),
                "words": measure_likeness(words_alone(asked.texts, known.texts), truth, False),
                "chance": chance_of(truth, alone=False),
                "languages": [asked.language, known.language],
                "queries": int((np.diff(truth.start) > 0).sum()),
                "captions": len(known.texts),
            }
    if not pairs:
        raise UserError(f"corpus {corpus.name}, split {corpus.split}: no picture has texts in two languages")
    return {
        "system": predictor.name,
        "corpus": corpus.name,
        "split": corpus.split,
        "task": "cross_lingual",
        "pairs": pairs,
        "seconds": time.monotonic() - began,
    }


def _teller(marks: Marks | None, asked: LanguageTexts, known: LanguageTexts):
    """Tells what each query of a pair of languages earns; a query belongs to the first picture it was written for."""

    def tell(queries: np.ndarray, precision: np.ndarray) -> None:
        if marks is not None:
            marks.add(f"{asked.language}-{known.language}", precision, [asked.pictures[k][0] for k in queries])

    return tell


class CrossLingual(Task):
    what, metric = "texts of another language", "recall at k, mAP"
    figure = "pairs.*.vectors.map"
    why, needs = "each text has a vector", ("encode_texts vectors",)

    def measure(self, predictor, head, corpus, **options):
        return evaluate_cross_lingual(predictor, corpus, **options)

    def table(self, measured):
        rows = [
            (" against ".join(marks["languages"]), *row)
            for marks in measured["pairs"].values()
            for row in rows_of_likeness(measured["system"], marks)
        ]
        return "percent", ("query against captions", *HEADINGS), rows
