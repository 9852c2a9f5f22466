"""Zero-shot classification: which class's prompts fit a picture best (CLIP, section 3.1; Wukong card, section 6).

Systems of one vector a text average the prompts' vectors; those that score by tokens average the prompts' scores.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tuwen.data.classes import classes_of
from tuwen.data.corpus import Corpus
from tuwen.errors import UserError
from tuwen.predictor import Predictor
from tuwen.progress import track
from tuwen.tasks.encoding import encode_pictures
from tuwen.tasks.marks import Marks, pictures_shown
from tuwen.tasks.task import Task


def evaluate_zero_shot(
    predictor: Predictor,
    corpus: Corpus,
    *,
    batch_size: int = 64,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    classes: str | Path | None = None,
    marks: Marks | None = None,
) -> dict:
    """Accuracy in percent per language: `{"languages": {"zh": {"top1", "top5", "mean_per_class", "chance", ...}}}`.

    mean_per_class is top-1 averaged over the classes that the pictures show; chance is that of a blind guess.
    limit: at most so many pictures with a class. classes: file of names and prompts, see `classes_of`.

    Raises:
        UserError: a corpus without classes, a language without class names, a system without a first stage.
    """
    began = time.monotonic()
    known = classes_of(corpus, classes)
    table = predictor.languages
    chosen = list(languages or (language for language in known.names if language in table))
    for language in chosen:
        if language not in known.names:
            raise UserError(f"corpus {corpus.name}: no class names in {language!r}; there are {', '.join(known.names)}")
        if language not in table:
            raise UserError(f"the run knows no language {language!r}; it was trained on {', '.join(table)}")
    if not chosen:
        raise UserError(f"class names are in {', '.join(known.names)}; the run was trained on {', '.join(table)}")
    rows = np.flatnonzero(known.labels >= 0)[:limit].tolist()
    accuracy = {}
    with predictor.evaluating():
        pictures = encode_pictures(predictor, corpus, rows, batch_size)
        if not predictor.has_first(pictures.encoded):
            raise predictor.system.lacks("classify", "it has no first-stage scores")
        labels = torch.from_numpy(known.labels[pictures.rows])
        for language in chosen:
            texts = known.texts(language)
            prompts = track(texts, f"prompts {language}", len(texts))
            scores = predictor.classes(pictures.encoded, prompts, language, batch_size)
            accuracy[language] = {**accuracies(scores, labels), "prompts": len(texts)}
            if marks is not None:
                right = (ranks_of_labels(scores, labels) == 0).double()
                marks.add(language, 100 * right, pictures_shown(corpus, pictures.rows))
    return {
        "system": predictor.name,
        "corpus": corpus.name,
        "split": corpus.split,
        "task": "zero_shot",
        "languages": accuracy,
        "images": len(pictures.rows),
        "classes": len(next(iter(known.names.values()))),
        "note": known.note(chosen),
        "broken": dict(pictures.broken),
        "seconds": time.monotonic() - began,
    }


def accuracies(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Percent right of scores [I, C] with labels [I] int64; equal scores are ranked by class number.

    Raises:
        UserError: scores that are not numbers.
    """
    if not torch.isfinite(scores).all():
        raise UserError("scores are not finite numbers: the weights are broken")
    rank = ranks_of_labels(scores, labels)
    right = (rank == 0).double()
    shown = labels.unique()
    by_class = [float(right[labels == label].mean()) for label in shown]
    return {
        "top1": 100 * float(right.mean()),
        "top5": 100 * float((rank < 5).double().mean()),
        "mean_per_class": 100 * sum(by_class) / len(by_class),
        "chance": 100 / scores.shape[1],
    }


def ranks_of_labels(scores: Tensor, labels: Tensor) -> Tensor:
    """[I] int64: classes [C] that score above a picture's own, or equal with an earlier number."""
    own = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1]) < labels[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(1)


class ZeroShot(Task):
    what, metric = "classes of a picture by prompts", "accuracy"
    figure = "languages.*.top1"
    why, needs = "each pair has a score", ("encode_images encode_texts vectors",)

    def measure(self, predictor, head, corpus, **options):
        return evaluate_zero_shot(predictor, corpus, **options)

    def table(self, measured):
        cells = ("top1", "top5", "mean_per_class", "chance")
        rows = [
            (language, *(f"{marks[cell]:.1f}" for cell in cells), str(marks["prompts"]))
            for language, marks in measured["languages"].items()
        ]
        head = ("language", "top-1", "top-5", "mean per class", "chance", "prompts")
        return f"{measured['images']} images of {measured['classes']} classes, percent", head, rows
