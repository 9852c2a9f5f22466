"""Oversight: is this report of this picture right? True reports against such as were made wrong, by kind of error.

MAX-VL's second use of its matching head (card, section 6): the score of an error is 1 - p(match), of a system without
a cross encoder the first stage's, negated; nothing is learnt for it. Errors (`tuwen.data.faulty`): another row's
report, a name exchanged, sides and places, extents, a negation. A report that a kind leaves as it is does not count.

Beside each area stands "blind", that of the same reports with other rows' pictures: what the words alone give away.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tuwen.data.corpus import Caption, Corpus, text_id
from tuwen.data.faulty import ERRORS, Errors
from tuwen.errors import UserError
from tuwen.predictor import Predictor
from tuwen.tasks.areas import area_with_interval, group_of
from tuwen.tasks.encoding import EncodedPictures, encode_captions, encode_pictures, measured
from tuwen.tasks.marks import Marks, pictures_shown
from tuwen.tasks.matching import pair_scores, tell_area
from tuwen.tasks.task import Task


def evaluate_oversight(
    predictor: Predictor,
    corpus: Corpus,
    *,
    batch_size: int = 64,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    marks: Marks | None = None,
) -> dict[str, Any]:
    """`{"languages": {"en": {"mean_auc", "kinds": {"location": {"auc", "low", "high", "blind", "above", "pairs"}}}}}`.

    auc: of telling wrong reports from right ones, with the middle 95 of 100 resamples by patient or picture; above: the
    share of pictures whose wrong report is more of an error than their right one, ties half. limit: at most so many
    rows. marks: told what each report adds to the area of its kind of error.

    Raises:
        UserError: no report in which an error can be made.
    """
    began = time.monotonic()
    rows = list(range(len(corpus) if limit is None else min(limit, len(corpus))))
    errors, by_language = Errors(corpus, seed), {}
    with predictor.evaluating():
        pictures = encode_pictures(predictor, corpus, rows, batch_size)
        for language in measured(predictor, corpus, languages):
            kinds = {}
            for kind in ERRORS:
                own = _of_kind(predictor, corpus, pictures, errors, language, kind, batch_size, marks)
                if own is not None:
                    kinds[kind] = own
            if kinds:
                mean = float(np.mean([own["auc"] for own in kinds.values()]))
                by_language[language] = {"mean_auc": mean, "kinds": kinds}
    if not by_language:
        raise UserError(f"corpus {corpus.name}, split {corpus.split}: no report in which an error can be made")
    return {
        "system": predictor.name,
        "corpus": corpus.name,
        "split": corpus.split,
        "task": "oversight",
        "languages": by_language,
        "images": len(pictures.rows),
        "score": "1 - match probability" if predictor.system.matches() else "first-stage score, negated",
        "broken": dict(pictures.broken),
        "seconds": time.monotonic() - began,
    }


def _of_kind(
    predictor: Predictor,
    corpus: Corpus,
    pictures: EncodedPictures,
    errors: Errors,
    language: str,
    kind: str,
    batch_size: int,
    marks: Marks | None,
) -> dict[str, Any] | None:
    """The figures of one kind of error; None where it changes fewer than two reports."""
    cases = [(place, errors.of(row, language, kind)) for place, row in enumerate(pictures.rows.tolist())]
    made = [(place, pair) for place, pair in cases if pair is not None]
    if len(made) < 2:
        return None
    captions = [Caption(text, language, text_id(text), 0, 0) for _, pair in made for text in pair]
    texts = encode_captions(predictor, captions, batch_size)
    image = torch.tensor([place for place, _ in made]).repeat_interleave(2)
    text = torch.arange(len(captions))
    other = image.view(-1, 2).roll(max(1, len(made) // 2), 0).flatten()

    def wrongness(of: torch.Tensor) -> np.ndarray:
        parts = torch.arange(len(text)).split(batch_size)
        scores = [pair_scores(predictor, pictures.encoded, texts, of[part], text[part]) for part in parts]
        return -torch.cat(scores).double().numpy()

    labels = np.tile([0, 1], len(made))
    groups = [group_of(corpus.record(int(pictures.rows[place]))) for place, _ in made for _ in range(2)]
    scores = wrongness(image)
    tell_area(marks, f"{language}.{kind}", labels, scores, pictures_shown(corpus, pictures.rows[image]))
    right, wrong = scores[::2], scores[1::2]
    blind = area_with_interval(labels, wrongness(other), groups)["auc"]
    above = float(((wrong > right) + 0.5 * (wrong == right)).mean())
    return {
        **area_with_interval(labels, scores, groups),
        "blind": blind,
        "above": above,
        "pairs": len(made),
        "groups": len(set(groups)),
    }


class Oversight(Task):
    what, metric = "is a report of a picture right", "ROC-AUC"
    figure = "languages.*.mean_auc"
    why, needs = "each pair has a score", ("match", "encode_images encode_texts")

    def measure(self, predictor, head, corpus, **options):
        return evaluate_oversight(predictor, corpus, **options)

    def table(self, measured):
        rows = []
        for language, marks in measured["languages"].items():
            for kind, own in marks["kinds"].items():
                between = "-" if own["low"] is None else f"{own['low']:.3f} to {own['high']:.3f}"
                figures = f"{own['auc']:.3f}", between, f"{own['blind']:.3f}", f"{100 * own['above']:.1f}%"
                rows.append((language, kind, *figures, str(own["pairs"])))
        head = ("language", "error", "ROC-AUC", "95 of 100", "blind", "above the right one", "pairs")
        return f"{measured['images']} images, by {measured['score']}", head, rows
