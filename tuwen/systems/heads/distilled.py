"""DiDE's fine-tuning (sections 4 and 6 of its card): a frozen teacher's attention and answers, and no labels.

Shape legend: B rows, P pictures a row, C classes, L words, N tokens of a picture.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tuwen.data.batch import Batch, blank_images, blank_texts
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.nn.relations import Crossing, Meeting, RanTwice, meeting_of, recorded
from tuwen.nn.towers import DualEncoder
from tuwen.objectives.distillation import attention_distillation, soft_answers, soft_classes
from tuwen.systems.system import Head, Losses, Progress, System

OF_SYSTEM = r"(?!head\.).*"  # layers of a teacher, not of its head
SIDES = ("image", "text")


class Teaching:
    """Where each teacher's text and picture meet, told once by a blank pair. No module: it has nothing to learn."""

    def __init__(self):
        self.meetings: dict[int, Meeting] = {}

    @torch.no_grad()
    def crossing(self, teacher: System, images: Encoded, texts: Encoded) -> Crossing:
        """Queries and keys of the teacher's words and patches in the last layers where they meet."""
        meeting = self.meeting(teacher)
        with recorded(teacher, meeting.where) as relations:
            fused = teacher.fuse([images], texts)
        return meeting.crossing(relations, fused)

    @torch.no_grad()
    def meeting(self, teacher: System) -> Meeting:
        if id(teacher) not in self.meetings:
            images, texts = blank_pair(teacher)
            try:
                with recorded(teacher, OF_SYSTEM) as relations:
                    fused = teacher.fuse([images], texts)
                met = meeting_of(relations, fused, tokens_of(texts), tokens_of(images))
            except RanTwice:  # one layer for several streams (EGE-CMP): which of its runs would be meant?
                met = Meeting("", "")
            self.meetings[id(teacher)] = met
        return self.meetings[id(teacher)]

    def check(self, student: Any, role: str, teacher: System) -> None:
        """Raises:
        UserError: a teacher whose attention the student's could not be compared with.
        """
        name = type(teacher).__module__.rpartition(".")[2]
        if type(teacher).reads(teacher.config).features:
            raise UserError(f"{role}: {name} reads a detector's regions, and dide patches; take a teacher of pictures")
        if not self.meeting(teacher).where:
            raise UserError(f"{role}: {name} has no layer of its own in which text and picture look at each other")
        taught = self.crossing(teacher, *blank_pair(teacher))
        patches = taught.patch_queries if taught.patch_keys is None else taught.patch_keys
        image, first = student.config.image, student.encoders.image.first
        own = image.heads, (image.side // image.patch) ** 2 + first
        where = "model.image.heads and model.text.heads", "model.image's side, patch, pool and registers"
        assert patches is not None
        theirs = patches.shape[1:3]
        for what, mine, its, fields in zip(("heads", "image tokens"), own, theirs, where, strict=True):
            if mine != its:
                raise UserError(f"{role}: {name} has {its} {what}, and this run's model {mine}; set {fields} alike")


def blank_pair(teacher: System) -> tuple[Encoded, Encoded]:
    """A picture and a text of another number of tokens, encoded."""
    place = next(teacher.parameters()).device
    with torch.no_grad():
        images = teacher.encode_images(blank_images(teacher.config.image.side).to(place))
        words = 3 if tokens_of(images) == 2 else 2
        return images, teacher.encode_texts(blank_texts(max(teacher.vocabulary.cls, 0), words).to(place))


def tokens_of(encoded: Encoded) -> int:
    """Tokens of a row."""
    return next(iter(encoded.states.values())).shape[1]


class Distilled(Head):
    """Layers on `fuse(...).pooled` that learn a teacher's answers, beside the distillation of its attention.

    The classes are told by a KL divergence from the teacher's probabilities; `binary`: each answer for itself, by the
    binary cross entropy to them, summed over answers (VQA). Probabilities are a sigmoid's of a teacher that tells each
    answer for itself, else a softmax's. Of several pictures the attention's loss is the sum. All weights are 1.
    """

    teachers = {"teacher": "fuse task"}  # noqa: RUF012

    def __init__(self, layers: Sequence[nn.Module], pictures: int, binary: bool):
        super().__init__()
        self.layers, self.pictures, self.binary = nn.Sequential(*layers), pictures, binary

    def losses(self, system: Any, batch: Batch, progress: Progress) -> Losses:
        assert batch.images is not None
        assert batch.texts is not None
        teacher, parts = system.roles["teacher"], [batch.images.part(k) for k in range(self.pictures)]
        images, texts = [system.looked(part) for part in parts], system.looked(batch.texts)
        with torch.no_grad():
            seen, read = [teacher.encode_images(part) for part in parts], teacher.encode_texts(batch.texts)
            taught = taught_probabilities(teacher, seen, read)
            crossings = [system.teaching.crossing(teacher, picture, read) for picture in seen]
        own = [crossing_of(picture, texts) for picture in images]
        attention = [
            attention_distillation(mine, theirs, batch.texts.mask) for mine, theirs in zip(own, crossings, strict=True)
        ]
        logits = self.logits(system, images, texts).float()
        soft = soft_answers if self.binary else soft_classes
        whole = system.config.attention * torch.stack(attention).sum()
        terms = {"answers": soft(logits, taught), "attention": whole}
        agreement = (logits.detach().argmax(1) == taught.argmax(1)).float().mean()
        return Losses(terms, metrics={"agreement": agreement})

    def logits(self, system: System, images: Sequence[Encoded], texts: Encoded) -> Tensor:
        """[B, C] from one `Encoded` a picture and that of the text."""
        return self.layers(system.fuse(images, texts).pooled)


@torch.no_grad()
def taught_probabilities(teacher: System, images: Sequence[Encoded], texts: Encoded) -> Tensor:
    """[B, C] of the classes, by the head that a teacher has learnt."""
    head: Any = teacher.head
    logits = head.logits(teacher, images, texts).float()
    return logits.sigmoid() if getattr(head, "binary", False) else logits.softmax(1)


def crossing_of(images: Encoded, texts: Encoded) -> Crossing:
    """How a student's picture and text would look at each other in its towers' last layers; never computed in use."""
    return Crossing(texts.states["queries"], images.states["keys"], images.states["queries"], texts.states["keys"])


@torch.no_grad()
def copy_towers(student: DualEncoder, teacher: Any) -> None:
    """Fills both towers with what the teacher has of the same name and shape: its towers' weights, or what it says they
    are (`tower_weights`)."""
    weights = getattr(teacher, "tower_weights", None)
    given = weights() if weights else {side: teacher.encoders.get_submodule(side).state_dict() for side in SIDES}
    for side in SIDES:
        for name, tensor in student.get_submodule(side).state_dict().items():
            value = given[side].get(name)
            if value is not None and value.shape == tensor.shape:
                tensor.copy_(value)
