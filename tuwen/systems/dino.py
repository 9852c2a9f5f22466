"""DINO: a picture tower that learns from pictures alone, each view of a picture telling what the others show."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images
from tuwen.data.text import Vocabulary
from tuwen.data.views import View
from tuwen.nn.encoded import Encoded
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.towers import image_tower, unit
from tuwen.objectives.self_distillation import self_distillation, view_targets
from tuwen.systems.survey import Axes
from tuwen.systems.system import Losses, Needs, Paper, Progress, System


@dataclass(frozen=True)
class DINOConfig:
    """`text` is what every run has, and no text is read.

    prototypes, hidden, bottleneck: of the head. local_views, local_side: small crops that the student alone reads.
    momentum: of the teacher at the start; it rises to 1 by a cosine. frozen: epochs in which prototypes stay.
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    prototypes: int = 8192
    hidden: int = 2048
    bottleneck: int = 256
    local_views: int = 8
    local_side: int = 96
    local_scale: tuple[float, float] = (0.05, 0.4)
    temperature: float = 0.1
    teacher_temperature: float = 0.04
    momentum: float = 0.996
    centre_momentum: float = 0.9
    frozen: float = 1.0
    not_built = ("text",)  # see `tuwen.nn.memory`

    @classmethod
    def sized(cls, name: str) -> "DINOConfig":
        """Local crops are of the paper's 96 to 224 pixels; small heads for sizes that train in seconds and minutes."""
        image = size(name).image
        side = max(1, round(image.side * 96 / 224 / image.patch)) * image.patch
        small = {"tiny": (64, 64, 16, 2, 0.97), "demo": (512, 256, 64, 4, 0.99)}.get(name)
        fields = ("prototypes", "hidden", "bottleneck", "local_views", "momentum")
        others = {} if small is None else dict(zip(fields, small, strict=True))
        return size(name).fill(cls, local_side=side, **others)


class PrototypeHead(nn.Module):
    """Three layers to a bottleneck of unit length, then its product with unit prototypes (section 3.1)."""

    def __init__(self, width: int, config: DINOConfig):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.bottleneck),
        )
        self.prototypes = nn.Linear(config.bottleneck, config.prototypes, bias=False)

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """[..., K] logits of a tower's vectors [..., W]. frozen: no gradient reaches the prototypes."""
        weight = F.normalize(self.prototypes.weight, dim=-1)
        return unit(self.layers(x)) @ (weight.detach() if frozen else weight).T


class Centre(nn.Module):
    """The running mean of the teacher's logits, which is taken off them so that no prototype takes all."""

    mean: Tensor

    def __init__(self, prototypes: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(prototypes))


class DINO(System):
    """Self-distillation without labels: a student tells, from any crop, what its moving average sees in a large one.

    Caron et al., ICCV 2021, algorithm 1 and section 3; MAX-VL's first stage (its card, section 5: two large and eight
    small crops, teacher temperature 0.04, 8192 prototypes, prototypes frozen for an epoch). What is used, and what
    other systems take by `init: {image: RUN}`, is the average, as there; the student is in checkpoints alone.
    Ours differs by choice: crops are changed as the run says (`data.augment`, the paper's large ones are those of
    `data.crop_scale` 0.4 to 1), without its blur and solarisation; weight decay does not rise. An average that follows
    at once makes all pictures choose one prototype (section 5.3), so momentum is as published from the first step, but
    at sizes that train for minutes, where nothing would ever reach it.
    """

    paper = Paper(
        title="Emerging Properties in Self-Supervised Vision Transformers",
        venue="ICCV 2021",
        arxiv="2104.14294",
        code="github.com/facebookresearch/dino",
        idea="from any crop of a picture tell what a moving average of oneself sees in a large one",
        fidelity="paper",
        image_encoder="ViT",
        text_encoder="none",
        interaction="none",
        objectives=("self-distillation of views",),
        axes=Axes(
            text="none",
            vision=("patch",),
            interaction=("none",),
            objectives=("cl", "distillation"),
            data=("imagenet", "mimic_cxr"),
            parts=("teacher",),
        ),
    )
    Config = DINOConfig
    training_only = ("student", "target")
    sees_alone = True
    twins: ClassVar[Mapping[str, str]] = {"student.image": "encoders.image"}  # drawn alike

    @classmethod
    def needs(cls, config: DINOConfig) -> Needs:
        views = {"second": View(config.image.side, crop="own")}
        local = View(config.local_side, crop="own", scale=config.local_scale)
        views |= {f"local{k}": local for k in range(config.local_views)}
        return Needs(views=views, sources={"images": 1.0})

    @classmethod
    def compares_rows(cls, config: DINOConfig) -> bool:
        return False  # a row is held against the centre, which is of batches before

    def __init__(self, config: DINOConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.encoders = nn.ModuleDict({"image": image_tower(config.image)}).requires_grad_(False)
        student = image_tower(config.image)
        width = student.pooled_width
        self.student = nn.ModuleDict({"image": student, "head": PrototypeHead(width, config)})
        head = PrototypeHead(width, config).requires_grad_(False)
        self.target = nn.ModuleDict({"head": head, "centre": Centre(config.prototypes)})

    def train(self, mode: bool = True) -> "DINO":
        super().train(mode)
        for part in (self.encoders, *([self.target] if hasattr(self, "target") else [])):
            part.train(False)  # an average without dropout
        return self

    def copy_student(self, _: nn.Module) -> None:
        """Student and average begin as one: the tower as the average's, the head as the student's."""
        self.average(1.0, towers_of=self.encoders, into=self.student)
        self.average(1.0, towers_of=self.student["head"], into=self.target["head"])

    @staticmethod
    @torch.no_grad()
    def average(share: float, towers_of: nn.Module, into: nn.Module) -> None:
        """into <- (1 - share) into + share towers_of, by the parameters' names."""
        there = dict(towers_of.named_parameters())
        for name, parameter in into.named_parameters():
            if name in there:
                parameter.lerp_(there[name], share)

    def before_step(self, progress: Progress) -> None:
        """The average follows; its momentum rises from `momentum` to 1 (section 3.1)."""
        done = progress.step / max(1, progress.total_steps)
        momentum = 1 - (1 - self.config.momentum) * (math.cos(math.pi * done) + 1) / 2
        self.average(1 - momentum, towers_of=self.student, into=self.encoders)
        self.average(1 - momentum, towers_of=self.student["head"], into=self.target["head"])

    def encode(self, batch: Batch, progress: Progress) -> dict[str, Encoded]:
        return {}

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        """Algorithm 1: two large crops, read by both; small ones, by the student alone."""
        config, images = self.config, batch.images
        large = [images, images.view("second")]
        small = [images.view(f"local{k}") for k in range(config.local_views)]
        frozen = not progress.past(config.frozen)
        head = self.student["head"]
        student = torch.stack([head(self.vector(self.student["image"], view), frozen) for view in [*large, *small]])
        with torch.no_grad():
            tower, target = self.encoders["image"], self.target["head"]
            teacher = torch.stack([target(self.vector(tower, view)) for view in large])
            targets = view_targets(teacher, self.target["centre"].mean, config.teacher_temperature)
        loss = self_distillation(student, targets, config.temperature)
        entropy = torch.special.entr(targets).sum(-1).mean()
        used = entropy.new_tensor(float(targets.argmax(-1).unique().numel()))
        metrics = {"target_entropy": entropy, "prototypes_used": used}
        return Losses({"self_distillation": loss}, {"logits": teacher.mean(0)}, metrics)

    def after_step(self, keep: Mapping[str, Tensor], progress: Progress) -> None:
        self.target["centre"].mean.lerp_(
            keep["logits"].mean(0).to(self.target["centre"].mean), 1 - self.config.centre_momentum
        )

    @staticmethod
    def vector(tower: nn.Module, images: Images) -> Tensor:
        """[B, W], what the tower pools."""
        return tower.pooled(tower.tokens(images))

    def encode_images(self, images: Images) -> Encoded:
        """pooled [B, W] unit vectors and states "last" of the average's tower."""
        tower = self.encoders["image"]
        tokens = tower.tokens(images)
        return Encoded(unit(tower.pooled(tokens)), states={"last": tokens})
