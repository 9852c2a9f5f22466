"""Text-to-text retrieval: texts that say the same, by vectors alone, a language at a time (COOKIE card, section 6).

Texts are alike that were written for one picture. Every distinct text is a query among all others of its language; what
several rows say in the same words stands there once. Beside the system stand chance and the words
themselves, compared by TF-IDF.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from tuwen.data.corpus import Corpus, Relevance, text_id
from tuwen.errors import UserError
from tuwen.predictor import FIRST, Predictor, vectors
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


class LanguageTexts:
    """The distinct texts of one language, and of each the identities of the pictures it was written for.

    limit: those of at most so many pictures.
    """

    def __init__(self, corpus: Corpus, language: str, limit: int | None):
        pictures: dict[int, None] = {}
        owners: dict[int, set[int]] = {}
        first: dict[int, str] = {}
        for row in range(len(corpus)):
            record = corpus.record(row)
            if limit is not None and record.image_id not in pictures and len(pictures) >= limit:
                continue
            pictures[record.image_id] = None
            for text in record.texts.get(language, ()):
                if text.strip():
                    owners.setdefault(text_id(text), set()).add(record.image_id)
                    first.setdefault(text_id(text), text)
        self.language = language
        self.texts = list(first.values())
        self.pictures = [sorted(owners[identity]) for identity in first]

    def encode(self, predictor: Predictor, batch_size: int) -> Tensor:
        """[T, D] vectors.

        Raises:
            UserError: a system without vectors of texts.
        """
        vector = vectors(predictor.texts(self.texts, self.language, batch_size, FIRST))
        if vector is None:
            raise predictor.system.lacks("text_retrieval", "it has no vectors of texts")
        return vector


def evaluate_text_retrieval(
    predictor: Predictor,
    corpus: Corpus,
    *,
    batch_size: int = 64,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    marks: Marks | None = None,
) -> dict[str, Any]:
    """Percent a language: `{"languages": {"zh": {"vectors": {"r1", "r5", "r10", "map"}, "words", "chance", ...}}}`.

    limit: the texts of at most so many pictures.

    Raises:
        UserError: an unknown language, or no language in which two texts are of one picture.
    """
    began = time.monotonic()
    by_language, lacking = {}, []
    with predictor.evaluating():
        for language in measured(predictor, corpus, languages):
            texts = LanguageTexts(corpus, language, limit)
            truth = sharing(texts.pictures)
            if not len(truth.images):
                lacking.append(language)
                continue
            by_language[language] = _marks(texts, texts.encode(predictor, batch_size), truth, marks)
    if not by_language:
        raise UserError(f"corpus {corpus.name}, split {corpus.split}: in no language two texts are of one picture")
    return {
        "system": predictor.name,
        "corpus": corpus.name,
        "split": corpus.split,
        "task": "text_retrieval",
        "languages": by_language,
        "note": f"not measured, one text a picture: {', '.join(lacking)}" if lacking else "",
        "seconds": time.monotonic() - began,
    }


def _marks(texts: LanguageTexts, vector: Tensor, truth: Relevance, marks: Marks | None) -> dict[str, Any]:
    def tell(queries: np.ndarray, precision: np.ndarray) -> None:
        if marks is not None:
            marks.add(texts.language, precision, [texts.pictures[k][0] for k in queries])

    return {
        "vectors": measure_likeness(cosines(vector, vector), truth, alone=True, tell=tell),
        "words": measure_likeness(words_alone(texts.texts, texts.texts), truth, alone=True),
        "chance": chance_of(truth, alone=True),
        "texts": len(truth),
        "queries": int((np.diff(truth.start) > 0).sum()),
    }


class TextRetrieval(Task):
    what, metric = "texts that say the same", "recall at k, mAP"
    figure = "languages.*.vectors.map"
    why, needs = "each text has a vector", ("encode_texts vectors",)

    def measure(self, predictor, head, corpus, **options):
        return evaluate_text_retrieval(predictor, corpus, **options)

    def table(self, measured):
        by_language = measured["languages"].items()
        rows = [(name, *row) for name, marks in by_language for row in rows_of_likeness(measured["system"], marks)]
        texts = ", ".join(f"{marks['queries']} {language}" for language, marks in by_language)
        return f"texts asked: {texts}; percent", ("language", *HEADINGS), rows
