"""PRD2: R2D2's dual-encoder sibling, pre-ranking with two-way distillation and no cross encoder."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tuwen.data.batch import Batch, Images, Texts, same_pair
from tuwen.data.gather import gather
from tuwen.data.text import Vocabulary, mask_words
from tuwen.nn.encoded import Encoded
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.temperature import Temperature
from tuwen.nn.towers import DualEncoder
from tuwen.objectives.contrastive import distilled_contrastive
from tuwen.objectives.distillation import feature_guided
from tuwen.systems.survey import Axes
from tuwen.systems.system import Losses, Paper, Progress, System
from tuwen.teachers.momentum import Momentum
from tuwen.teachers.queue import FeatureQueue


@dataclass(frozen=True)
class PRD2Config:
    """feature_guided: "tokens", "cls", "similarity" or "off", as in R2D2."""

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    embed: int = 768
    nested: tuple[int, ...] = ()  # widths of prefixes that are to be vectors of their own, see `nested_mean`
    feature_guided: str = "tokens"
    queue: int = 65536  # pairs
    queue_share: float = 0.25  # of an epoch, that the queue holds at most [choice]; 1 and more: as published
    queue_from: float = 1.0  # epochs before queued keys count [choice], for training from scratch, see ALBEF
    queue_decay: float = 0.99
    momentum: float = 0.995
    momentum_rises: bool = True  # from 0.1 in the first steps [choice], for training from scratch, see `Momentum`
    alpha: float = 0.4
    mask_share: float = 0.15

    @classmethod
    def sized(cls, name: str) -> "PRD2Config":
        towers = size(name)
        return towers.fill(cls, image=replace(towers.image, final_norm=False))


class PRD2(System):
    """L = L_tgd + L_fgd: R2D2's sections 4.5 and 4.6 on its two towers alone.

    A checkpoint was released, no training code: the losses are reconstructed as in R2D2. The student's contrast reads
    the masked text when FgD is on (one pass, as R2D2's enhanced training), the clean text otherwise.
    """

    paper = Paper(
        title="Zero and R2D2: A Large-scale Chinese Cross-modal Benchmark and A Vision-Language Framework",
        venue="ACM MM 2023 (as CCMB)",
        arxiv="2205.03860",
        code="github.com/yuxie11/R2D2 (model only)",
        idea="the dual-encoder part of R2D2 with target- and feature-guided distillation",
        fidelity="reconstructed",
        image_encoder="ViT (published: CLIP's)",
        text_encoder="BERT (published: RoBERTa-wwm)",
        interaction="cosine of two vectors",
        objectives=("image-text contrast", "target- and feature-guided"),
        axes=Axes(
            text="roberta",
            vision=("patch",),
            interaction=("dot_product",),
            objectives=("cmcl", "distillation"),
            data=("zero",),
            parts=("teacher", "queue"),
        ),
    )
    Config = PRD2Config
    softens = True
    training_only = ("teacher", "queue")

    def __init__(self, config: PRD2Config, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.encoders = DualEncoder(config.image, config.text, config.embed, vocabulary)
        self.temperature = Temperature()
        self.teacher = Momentum(self, ("encoders",), config.momentum, config.momentum_rises)
        self.queue = FeatureQueue(config.queue, config.embed)

    def before_step(self, progress: Progress) -> None:
        self.teacher.update(self, progress.step)
        self.queue.limit(int(self.config.queue_share * progress.epoch_pairs))

    def encode(self, batch: Batch, progress: Progress) -> dict[str, Encoded]:
        texts = batch.texts
        if self.config.feature_guided != "off":
            draws = progress.uniform(batch, 3 * texts.ids.shape[1], "mask")
            texts, _ = mask_words(texts, self.vocabulary, draws, self.config.mask_share)
        return {
            "images": self.encode_images(batch.images),
            "texts": self.encoders.encode_texts(texts.ids, texts.mask),  # FgD reads their states
        }

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        images, texts = encoded["images"], encoded["texts"]
        with torch.no_grad():
            taught_images = self.teacher.encoders.encode_images(batch.images, states=False)
            taught_texts = self.teacher.encoders.encode_texts(batch.texts.ids, batch.texts.mask)
        now = (taught_images.pooled, taught_texts.pooled, batch.image_id, batch.text_id)
        keys = self.queue.read(progress.past(self.config.queue_from)).behind(*(gather(x) for x in now))
        terms = {
            "contrast": distilled_contrastive(
                (images.pooled, texts.pooled),
                (taught_images.pooled, taught_texts.pooled),
                (keys.images, keys.texts),
                same_pair(batch.image_id, batch.text_id, keys.image_id, keys.text_id),
                self.temperature,
                progress.ramp(self.config.alpha),
                self.config.queue_decay ** keys.age.to(images.pooled.dtype),
                keys.real,
                self.config.nested,
                batch.softening(),
            )
        }
        if self.config.feature_guided != "off" and texts.states:
            temperature = self.temperature.detach()
            terms["feature_guided"] = feature_guided(texts, taught_texts, self.config.feature_guided, temperature)
        keep = dict(zip(("images", "texts", "image_id", "text_id"), now, strict=True))
        queued = self.queue.filled(progress.past(self.config.queue_from))
        return Losses(terms, keep, {"temperature": self.temperature.detach(), "queued_keys": queued})

    def after_step(self, keep: Mapping[str, Tensor], progress: Progress) -> None:
        self.queue.enqueue(keep["images"], keep["texts"], keep["image_id"], keep["text_id"])

    def encode_images(self, images: Images) -> Encoded:
        return self.encoders.encode_images(images, states=False)

    def encode_texts(self, texts: Texts) -> Encoded:
        return self.encoders.encode_texts(texts.ids, texts.mask, states=False)
