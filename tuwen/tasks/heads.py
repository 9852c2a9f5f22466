"""Heads that name a class of pictures and a text: a few layers on joint states, or on the vectors of two towers.

Shape legend: B rows, P pictures a row, C classes, W width of what is read.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images, blank_images, blank_texts
from tuwen.nn.encoded import Encoded
from tuwen.predictor import vectors
from tuwen.systems.system import Head, Losses, Needs, Progress, System
from tuwen.tasks.task import Task

HIDDEN = 2  # of the default head, in widths of what it reads
DROPOUT = 0.1


def head_of(system: System, task: Task, classes: int, column: str) -> Head:
    """The head that the system's paper gives for a task, if it gives one and `task.way` is "paper"; else the default.

    column: of the rows, with their targets or labels.
    """
    part = system.adapt(task.name(), classes, task.pictures) if task.config.way == "paper" else None
    return part if isinstance(part, Head) else Classifier(system, task, classes, column, part)


class Classifier(Head):
    """A class of pictures and a text, learnt by cross entropy from labels [B] or soft targets [B, C]; rows of label -1,
    or without a target, teach nothing.

    column: of the rows, with their targets or labels. layers: from [B, W] to [B, C]; None: the default. They may have
    `of(system, images, texts)`, called in place of a call on `read`; `binary`: each class is told for itself, by binary
    cross entropy summed over classes (BridgeTower's VQA); `taught` and `alpha`: parts whose momentum copies, with the
    layers', soften the targets with that weight; `ramps`: it is reached at the end of the first epoch (ALBEF's card,
    section 6).
    """

    def __init__(self, system: System, task: Task, classes: int, column: str, layers: nn.Module | None = None):
        super().__init__()
        self.pictures, self.column = task.pictures, column
        self.layers = default_layers(width_read(system, task.pictures), classes) if layers is None else layers
        self.binary = bool(getattr(layers, "binary", False))
        if taught := getattr(layers, "taught", ()):
            self.momentum = (*taught, "head.layers")  # type: ignore[misc]

    def needs(self) -> Needs:
        return Needs(columns=(self.column,))

    def begin(self, system: System) -> None:
        begin = getattr(self.layers, "begin", None)
        if callable(begin):
            begin(system)

    def before_step(self, system: System, progress: Progress) -> None:
        if self.momentum:
            self.teacher.update(system, progress.step)

    def losses(self, system: System, batch: Batch, progress: Progress) -> Losses:
        logits = self.of_batch(system, batch)
        targets = batch.columns[self.column]
        assert isinstance(targets, Tensor)
        if self.binary:
            loss = binary_loss(logits, targets)
        else:
            loss = soft_loss(logits, targets) if targets.is_floating_point() else label_loss(logits, targets)
        if self.momentum:
            with torch.no_grad(), self.teacher.standing_in(system):
                taught = self.of_batch(system, batch)
            alpha = float(cast(Any, self.layers).alpha)
            alpha = progress.ramp(alpha) if getattr(self.layers, "ramps", False) else alpha
            loss = (1 - alpha) * loss + alpha * soft_loss(logits, taught.softmax(1))
        return Losses({"task": loss}, {}, {"accuracy": accuracy(logits.detach(), targets)})

    def of_batch(self, system: System, batch: Batch) -> Tensor:
        assert batch.images is not None
        assert batch.texts is not None
        images = encoded_pictures(system, batch.images, self.pictures)
        return self.logits(system, images, system.encode_texts(batch.texts)).float()

    def logits(self, system: System, images: Sequence[Encoded], texts: Encoded) -> Tensor:
        """[B, C] from one `Encoded` a picture and that of the text."""
        own = getattr(self.layers, "of", None)
        return self.layers(read(system, images, texts)) if own is None else own(system, images, texts)


def soft_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of logits [B, C] with targets [B, C], each row's as shares of their sum; mean over rows that have
    any."""
    shares = targets / targets.sum(1, keepdim=True).clamp(min=1e-9)
    return -(shares * logits.log_softmax(1)).sum() / (targets.sum(1) > 0).sum().clamp(min=1)


def binary_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of logits [B, C] with targets in 0 to 1, summed over classes, mean over rows."""
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").sum(1).mean()


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of logits [B, C] with labels [B], mean over those that are not -1; 0 where there is none."""
    total = F.cross_entropy(logits, labels.long(), ignore_index=-1, reduction="sum")
    return total / (labels >= 0).sum().clamp(min=1)


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows of what the likeliest class earns: its soft target, or 1 where it is the label."""
    best = logits.argmax(1)
    if targets.is_floating_point():
        return targets.gather(1, best[:, None]).float().mean()
    return (best == targets).float().mean()


def encoded_pictures(system: System, images: Images, pictures: int) -> list[Encoded]:
    """One `Encoded` a picture of the rows; a clip is one."""
    if pictures == 1:
        return [system.encode_images(images)]
    return [system.encode_images(images.part(k)) for k in range(pictures)]


def read(system: System, images: Sequence[Encoded], texts: Encoded) -> Tensor:
    """[B, W]: joint states' vector of a system that fuses so many pictures; else the text's vector, the pictures', and
    their products with it.

    Raises:
        UserError: a system that has neither.
    """
    if system.can("fuse") and (system.fuses is None or system.fuses >= len(images)):
        return system.fuse(images, texts).pooled
    parts = [vectors(encoded) for encoded in (texts, *images)]
    if any(part is None for part in parts):
        raise system.lacks("fuse", "it has no vectors of pictures and texts")
    text, *seen = (part for part in parts if part is not None)
    return torch.cat([text, *seen, *(text * picture for picture in seen)], 1) * text.shape[1] ** 0.5


@torch.no_grad()
def width_read(system: System, pictures: int) -> int:
    """W of `read`, told by one blank row."""
    training = system.training
    system.eval()
    picture = system.encode_images(blank_images(system.config.image.side))
    texts = system.encode_texts(blank_texts(max(system.vocabulary.cls, 0), 2))
    width = read(system, [picture] * pictures, texts).shape[1]
    system.train(training)
    return width


def default_layers(width: int, classes: int) -> nn.Module:
    """A norm, one hidden layer, the classes."""
    hidden = nn.Linear(width, HIDDEN * width), nn.GELU(), nn.Dropout(DROPOUT)
    return nn.Sequential(nn.LayerNorm(width), *hidden, nn.Linear(HIDDEN * width, classes))
