"""Linear probe: what can be read off frozen features of pictures by logistic regression (FLAVA card, section 6).

The features are the image tower's, before any projection (FLAVA's class token after the last image layer). L-BFGS, at
most 1,000 iterations; the strength of the L2 penalty is chosen on the validation split among 10^-6 .. 10^6 in steps of
an eighth of a decade, by CLIP's search (Radford et al. 2021, appendix A.3): seven strengths two decades apart, then the
interval round the best is halved again and again. With it the probe is fitted anew on training and validation together.
Beside it stand the same probe on 8 x 8 thumbnails, blind to all the system learnt, the most frequent class, and chance.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from tuwen.data import draws
from tuwen.data.batch import Images
from tuwen.data.classes import class_names
from tuwen.data.corpus import Corpus
from tuwen.errors import UserError
from tuwen.predictor import Predictor
from tuwen.tasks.encoding import LookedAt, looked_at, picture_features
from tuwen.tasks.marks import Marks, pictures_shown
from tuwen.tasks.task import Task
from tuwen.tasks.zero_shot import accuracies, ranks_of_labels

EIGHTHS = 48  # of a decade, each way from 1
ITERATIONS = 1000
HELD_OUT = 0.2  # of training pictures, where a corpus has no validation split


def evaluate_linear_probe(
    predictor: Predictor,
    corpus: Corpus,
    *,
    train: Corpus | None = None,
    val: Corpus | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    languages=None,
    marks: Marks | None = None,
) -> dict[str, Any]:
    """Accuracy in percent: `{"probe": {"top1", "top5", .., "strength"}, "colours", "majority"}`.

    train, val: further splits of the corpus; without val a fifth of the training pictures is held out to choose by.
    limit: at most so many pictures of each. languages: read by nothing here; what every task is given.

    Raises:
        UserError: no classes, no training split, fewer than two classes, or none of the pictures can be read.
    """
    began = time.monotonic()
    if train is None:
        raise UserError(f"corpus {corpus.name}: a linear probe is fitted on a train split, and there is none")
    names = class_names(train)
    classes = sorted({name for name in names if name is not None})
    if len(classes) < 2:
        raise UserError(f"corpus {train.name}, split {train.split}: {len(classes)} classes to tell apart; give two")
    with predictor.evaluating():
        seen = {part.split: _labelled(predictor, part, classes, batch_size, limit) for part in (train, corpus)}
        learn, test = seen[train.split], seen[corpus.split]
        if val is None:
            identity = torch.from_numpy(train.image_ids()[learn[0].rows])
            choosing = draws.uniform(identity, 1, 0, "linear probe")[:, 0].numpy() < HELD_OUT
            choose, learn = _part(learn, choosing), _part(learn, ~choosing)
        else:
            choose = _labelled(predictor, val, classes, batch_size, limit)
    learn, choose, labels = _known(learn), _known(choose), torch.from_numpy(test[1])
    unseen = int((labels < 0).sum())
    test, labels = _known(test), labels[labels >= 0]
    if not len(labels) or not len(learn[1]) or not len(choose[1]):
        raise UserError(f"corpus {corpus.name}: a split has no picture of a class that training shows")
    most = np.bincount(np.concatenate([learn[1], choose[1]]), minlength=len(classes)).argmax()
    own = [part[0].features.numpy() for part in (learn, choose, test)]
    shown = pictures_shown(corpus, test[0].rows)
    colours = [part[0].thumbnails.numpy() for part in (learn, choose, test)]
    return {
        "system": predictor.name,
        "corpus": corpus.name,
        "split": corpus.split,
        "task": "linear_probe",
        "probe": accuracy_of_probe(own, learn[1], choose[1], labels, len(classes), marks, shown),
        "colours": accuracy_of_probe(colours, learn[1], choose[1], labels, len(classes)),
        "majority": {"top1": 100 * float((labels == int(most)).double().mean())},
        "images": len(labels),
        "fitted_on": len(learn[1]) + len(choose[1]),
        "classes": len(classes),
        "note": f"left out: {unseen} pictures of classes that training does not show" if unseen else "",
        "broken": dict(test[0].broken),
        "seconds": time.monotonic() - began,
    }


Labelled = tuple[LookedAt, np.ndarray]  # pictures and the class of each, -1 for one that training does not show


def _labelled(predictor: Predictor, corpus: Corpus, classes: list[str], batch_size: int, limit: int | None) -> Labelled:
    """The pictures that have a class, each distinct one once."""
    names, number = class_names(corpus), {name: k for k, name in enumerate(classes)}
    rows = [row for row in corpus.gallery().rows if names[row] is not None][:limit]
    if not rows:
        raise UserError(f"corpus {corpus.name}, split {corpus.split}: no picture has a class")

    def features(images: Images) -> Tensor:
        with torch.no_grad():
            return picture_features(predictor.system, images.to(predictor.device))

    seen = looked_at(predictor, corpus, rows, batch_size, features)
    return seen, np.array([number.get(str(names[row]), -1) for row in seen.rows])


def _part(labelled: Labelled, chosen: np.ndarray) -> Labelled:
    seen, labels = labelled
    mask = torch.from_numpy(chosen)
    return LookedAt(seen.features[mask], seen.thumbnails[mask], seen.rows[chosen], seen.broken), labels[chosen]


def _known(labelled: Labelled) -> Labelled:
    """Those of the classes that training shows."""
    return _part(labelled, labelled[1] >= 0)


def accuracy_of_probe(
    features: list[np.ndarray],
    learn: np.ndarray,
    choose: np.ndarray,
    test: Tensor,
    classes: int,
    marks: Marks | None = None,
    shown: Sequence[int] = (),
) -> dict[str, float]:
    """Accuracy on the last of three sets of features, by the penalty that serves the second best.

    marks: are told which of the last set is right, of the pictures shown.
    """

    def right(strength: float) -> float:
        scores = fit_probe(features[0], learn, strength, classes)(features[1])
        return float((scores.argmax(1) == choose).mean())

    strength = best_strength(right)
    predict = fit_probe(np.concatenate(features[:2]), np.concatenate([learn, choose]), strength, classes)
    scores = torch.from_numpy(predict(features[2]))
    if marks is not None:
        marks.add("all", 100 * (ranks_of_labels(scores, test) == 0).double(), shown)
    return {**accuracies(scores, test), "strength": strength}


def fit_probe(
    features: np.ndarray, labels: np.ndarray, strength: float, classes: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Scores [I, C] of features by logistic regression: the sum of cross entropies + strength / 2 |weights|^2 least.

    A class without an example scores -inf.
    """
    shown = np.unique(labels)
    if len(shown) == 1:
        return lambda x: np.where(np.arange(classes) == shown[0], 0.0, -1e30)[None].repeat(len(x), 0)
    model = LogisticRegression(C=1 / strength, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 1,000 iterations are the protocol
        model.fit(features, labels)

    def predict(x: np.ndarray) -> np.ndarray:
        scores = np.full((len(x), classes), -1e30)
        logits = model.decision_function(x)
        scores[:, model.classes_] = np.stack([-logits, logits], 1) if logits.ndim == 1 else logits
        return scores

    return predict


def best_strength(score: Callable[[float], float]) -> float:
    """CLIP's search: where the score is best, and of equals the strongest; 15 strengths are tried."""
    tried: dict[int, float] = {}
    step, places = 16, list(range(-EIGHTHS, EIGHTHS + 1, 16))
    while True:
        for place in places:
            if place not in tried and abs(place) <= EIGHTHS:
                tried[place] = score(10 ** (place / 8))
        best = max(tried, key=lambda place: (tried[place], place))
        if step == 1:
            return 10 ** (best / 8)
        step //= 2
        places = [best - step, best + step]


class LinearProbe(Task):
    what, metric = "classes of a picture, off frozen features", "accuracy"
    figure = "probe.top1"
    why, needs = "an image tower is probed", ("encode_images encode_texts", "sees_alone")
    beside = ("train", "val")

    def measure(self, predictor, head, corpus, **options):
        return evaluate_linear_probe(predictor, corpus, **options)

    def table(self, measured):
        cells = ("top1", "top5", "mean_per_class")
        chance = {"top1": measured["probe"]["chance"]}
        names = ((measured["system"], "probe"), ("colours alone", "colours"), ("most frequent class", "majority"))
        rows = [
            (name, *(f"{marks[cell]:.1f}" if cell in marks else "-" for cell in cells))
            for name, marks in [*((name, measured[key]) for name, key in names), ("chance", chance)]
        ]
        remark = f"{measured['images']} images of {measured['classes']} classes, fitted on {measured['fitted_on']}"
        return f"{remark}; percent", ("by", "top-1", "top-5", "mean per class"), rows
