"""Classification of pictures: a linear layer on the image tower's features, learnt together with the tower.

`linear_probe` leaves the tower as it is. Beside the system stand the most frequent class of training, which is all that
a model blind to the picture can say, and chance.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images
from tuwen.data.classes import class_names
from tuwen.data.corpus import Corpus
from tuwen.data.subset import Marked
from tuwen.errors import UserError
from tuwen.predictor import Predictor
from tuwen.systems.system import Head, Losses, Needs, Progress, System
from tuwen.tasks.choosing import Choice
from tuwen.tasks.encoding import picture_features, width_of
from tuwen.tasks.heads import accuracy, label_loss
from tuwen.tasks.marks import Marks, pictures_shown
from tuwen.tasks.task import Task, TaskConfig
from tuwen.tasks.zero_shot import accuracies, ranks_of_labels

WATCHED = 1000  # pictures that a validation during training looks at


@dataclass(frozen=True)
class ClassificationConfig(TaskConfig):
    """classes: what the training split decided: the names in its column "cls", the most frequent first."""

    classes: tuple[str, ...] = ()


class PictureClassifier(Head):
    """A class of a picture, by cross entropy; pictures of label -1 teach nothing."""

    def __init__(self, system: System, classes: int):
        super().__init__()
        self.layer = nn.Linear(width_of(system, lambda images: picture_features(system, images)), classes)

    def needs(self) -> Needs:
        return Needs(columns=("label",))

    def logits(self, system: System, images: Images) -> Tensor:
        """[B, C] float32."""
        return self.layer(picture_features(system, images)).float()

    def losses(self, system: System, batch: Batch, progress: Progress) -> Losses:
        assert batch.images is not None
        logits, labels = self.logits(system, batch.images), batch.columns["label"]
        assert isinstance(labels, Tensor)
        return Losses({"classes": label_loss(logits, labels)}, {}, {"accuracy": accuracy(logits.detach(), labels)})


def evaluate_classification(
    predictor: Predictor,
    head: PictureClassifier,
    corpus: Corpus,
    classes: Sequence[str],
    *,
    batch_size: int = 64,
    limit: int | None = None,
    languages=None,
    marks: Marks | None = None,
) -> dict[str, Any]:
    """Accuracy in percent: `{"head": {"top1", "top5", "mean_per_class", "chance"}, "majority": {"top1"}, ...}`.

    corpus: rows with a column "label". limit: at most so many pictures. languages: read by nothing here.

    Raises:
        UserError: no picture of a class that training showed, or none can be read.
    """
    began = time.monotonic()
    labels = np.array([int(corpus.record(row).columns["label"]) for row in range(len(corpus))], dtype=np.int64)
    rows = np.flatnonzero(labels >= 0)[:limit].tolist()
    logits, readable, broken = [], list[int](), Counter[str]()
    with predictor.evaluating():
        for images, batch_rows, faults in predictor.read(corpus, rows, batch_size):
            broken.update(faults)
            readable += batch_rows
            if batch_rows:
                logits.append(head.logits(predictor.system, images.to(predictor.device)).cpu())
    if not readable:
        raise UserError(
            f"corpus {corpus.name}, split {corpus.split}: none of {len(rows)} pictures of known classes can be read"
        )
    if marks is not None:
        right = ranks_of_labels(torch.cat(logits), torch.from_numpy(labels[readable])) == 0
        marks.add("all", 100 * right.double(), pictures_shown(corpus, readable))
    truth, unseen = torch.from_numpy(labels[readable]), int((labels < 0).sum())
    return {
        "system": predictor.name,
        "corpus": corpus.name,
        "split": corpus.split,
        "task": "classification",
        "head": accuracies(torch.cat(logits), truth),
        "majority": {"top1": 100 * float((truth == 0).double().mean())},
        "images": len(readable),
        "classes": len(classes),
        "note": f"left out: {unseen} pictures of classes that training does not show" if unseen else "",
        "broken": dict(broken),
        "seconds": time.monotonic() - began,
    }


class Classification(Task):
    what, metric = "classes of a picture, learnt", "accuracy"
    figure = "head.top1"
    why, needs = "an image tower is trained", ("encode_images encode_texts", "sees_alone")
    verb, learnt = "classify", True
    Config = ClassificationConfig

    def prepare(self, corpus):
        counts = Counter(name for name in class_names(corpus) if name is not None)
        if len(counts) < 2:
            raise UserError(
                f'corpus {corpus.name}, split {corpus.split}: {len(counts)} classes in its column "cls"; give two'
            )
        return replace(self.config, classes=tuple(sorted(counts, key=lambda name: (-counts[name], name))))

    def rows(self, corpus, split):
        """The pictures that have a class; -1 stands for one that training does not show."""
        number = {name: k for k, name in enumerate(self.config.classes)}
        named = [(row, name) for row, name in enumerate(class_names(corpus)) if name is not None]
        labels = [number.get(name, -1) for _, name in named]
        return Marked(corpus, [row for row, _ in named], "label", labels)

    def head(self, system, tokenizer):
        return PictureClassifier(system, len(self.config.classes))

    def measure(self, predictor, head, corpus, **options):
        return evaluate_classification(predictor, head, corpus, self.config.classes, **options)

    def validate(self, predictor, head, corpus):
        marks = self.measure(predictor, head, corpus, limit=WATCHED)["head"]
        return {"score": marks["top1"], "mean_per_class": marks["mean_per_class"]}

    def use(self, predictor, head, pictures, texts, **how):
        """A `Choice` a picture: the likeliest class and its probability."""
        choices = []
        with predictor.evaluating():
            for picture in pictures:
                images = Images(predictor.pixels(picture)[None]).to(predictor.device)
                chances = head.logits(predictor.system, images)[0].softmax(0)
                best = int(chances.argmax())
                choices.append(Choice(self.config.classes[best], float(chances[best])))
        return choices

    def table(self, measured):
        cells = ("top1", "top5", "mean_per_class")
        head = measured["head"]
        parts = ((measured["system"], head), ("most frequent class", measured["majority"]))
        rows = [
            (name, *(f"{marks[cell]:.1f}" if cell in marks else "-" for cell in cells))
            for name, marks in (*parts, ("chance", {"top1": head["chance"]}))
        ]
        remark = f"{measured['images']} images of {measured['classes']} classes, percent"
        return remark, ("by", "top-1", "top-5", "mean per class"), rows
