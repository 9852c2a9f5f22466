"""ALBEF: align picture and text by contrast with a momentum teacher, then fuse them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images, Texts, same_pair
from tuwen.data.text import Vocabulary, mask_words
from tuwen.nn.encoded import Encoded
from tuwen.nn.fusion import CrossEncoder, MatchHead, WordHead
from tuwen.nn.grad_cam import heat_of
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.temperature import Temperature
from tuwen.nn.towers import DualEncoder
from tuwen.objectives.contrastive import distilled_contrastive, logits_of
from tuwen.objectives.masked_language import masked_language, masked_positions
from tuwen.objectives.matching import drawn_pairs, log_odds, matching_accuracy, matching_gain, matching_loss
from tuwen.systems.heads.answering import AnswerDecoder, AnswerRanker
from tuwen.systems.heads.pairs import PairClassifier, TaughtMLP, mlp
from tuwen.systems.survey import Axes
from tuwen.systems.system import Fused, Losses, Paper, Progress, System
from tuwen.teachers.momentum import Momentum
from tuwen.teachers.pace import Pace
from tuwen.teachers.queue import FeatureQueue


@dataclass(frozen=True)
class ALBEFConfig:
    """The published model is size "base" with `text.layers` 6: BERT's lower half reads, its upper half fuses."""

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    fusion: CrossEncoderConfig = field(default_factory=CrossEncoderConfig)
    embed: int = 256
    nested: tuple[int, ...] = ()  # widths of prefixes that are to be vectors of their own, see `nested_mean`
    queue: int = 65536  # pairs
    queue_share: float = 0.25  # of an epoch, that the queue holds at most [choice]; 1 and more: as published
    queue_from: float = 1.0  # epochs before queued keys count; 0 as published, see the class
    momentum: float = 0.995
    momentum_rises: bool = True  # from 0.1 in the first steps [choice], for training from scratch, see `Momentum`
    alpha: float = 0.4  # weight of the teacher's targets, reached at the end of the first epoch
    mask_share: float = 0.15
    hardness: float | None = None  # of negatives: 1 as published, 0 any wrong pair; None: self-paced, see `Pace`
    score: Literal["fitted", "published"] = "fitted"  # the final one: see `tuwen.predictor.Predictor.final`

    @classmethod
    def sized(cls, name: str) -> "ALBEFConfig":
        return size(name).fill(cls)


class ALBEF(System):
    """Contrast, matching with hard negatives, masked words; a momentum teacher softens contrast and words.

    Li et al., NeurIPS 2021; equations as in the official code (section numbers below are the method card's, which
    follow the paper's section 3). Where ours differs, by choice: identical pictures or texts in batch and queue are
    positives, never negatives (the pre-training code masks the diagonal only); the teacher runs without dropout;
    re-ranking is by the log-odds of a match (the code takes the match logit alone). For training from scratch:
    momentum is min(0.995, (1 + t) / (10 + t)), and the queue's keys count from `queue_from` epochs on. Untrained towers
    otherwise learn to drift away from old keys, which lowers the loss sooner than telling pairs apart, and stay there.
    """

    paper = Paper(
        title="Align before Fuse: Vision and Language Representation Learning with Momentum Distillation",
        venue="NeurIPS 2021",
        arxiv="2107.07651",
        code="github.com/salesforce/ALBEF",
        idea="contrast aligns the towers before a cross encoder fuses them; a momentum teacher softens noisy targets",
        fidelity="code",
        image_encoder="ViT",
        text_encoder="BERT (lower layers)",
        interaction="cosine, then text queries over image tokens",
        objectives=("image-text contrast", "image-text matching", "masked language", "momentum distillation"),
        axes=Axes(
            text="bert",
            vision=("patch",),
            interaction=("dot_product", "dual_stream"),
            objectives=("cmcl", "itm", "mlm", "distillation"),
            data=("cc3m", "coco", "vg_data", "sbu"),
            parts=("teacher", "queue"),
        ),
    )
    Config = ALBEFConfig
    softens = True
    training_only = ("teacher", "queue", "pace")
    index_fields = ("pooled", "states.last")

    def __init__(self, config: ALBEFConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.encoders = DualEncoder(config.image, config.text, config.embed, vocabulary)
        self.fusion = CrossEncoder(config.fusion, config.image.width)
        self.word_head = WordHead(config.fusion.width, vocabulary.size)
        self.match_head = MatchHead(config.fusion.width)
        self.temperature = Temperature()
        self.teacher = Momentum(self, ("encoders", "fusion", "word_head"), config.momentum, config.momentum_rises)
        self.pace = Pace(config.hardness)
        self.queue = FeatureQueue(config.queue, config.embed)

    def before_step(self, progress: Progress) -> None:
        self.teacher.update(self, progress.step)
        self.queue.limit(int(self.config.queue_share * progress.epoch_pairs))

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        aligned, taught_images = self.aligned(encoded, batch, progress)
        alpha = progress.ramp(self.config.alpha)
        words = self.masked_words(encoded["images"], taught_images, batch, progress, alpha)
        return replace(aligned, terms={**aligned.terms, "masked_words": words})

    def retrieval(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        """Section 6: contrast and matching, with the teacher, its queue and its targets as in pre-training."""
        return self.aligned(encoded, batch, progress)[0]

    def aligned(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> tuple[Losses, Encoded]:
        """Contrast and matching, and the pictures as the teacher sees them."""
        images, texts = encoded["images"], encoded["texts"]
        with torch.no_grad():
            teacher = self.teacher.encoders
            taught_images = teacher.encode_images(batch.images)
            taught_texts = teacher.encode_texts(batch.texts.ids, batch.texts.mask)

        contrast = self.contrast(images, texts, taught_images, taught_texts, batch, progress)
        matching, accuracy, gain = self.matching(images, texts, taught_images, taught_texts, batch, progress)

        keep = {
            "images": taught_images.pooled,
            "texts": taught_texts.pooled,
            "image_id": batch.image_id,
            "text_id": batch.text_id,
            "matching_gain": gain.expand(len(batch)),
        }
        metrics = {"temperature": self.temperature.detach(), "matching_accuracy": accuracy, **self.pace.metrics()}
        metrics["queued_keys"] = self.queue.filled(progress.past(self.config.queue_from))
        return Losses({"contrast": contrast, "matching": matching}, keep, metrics), taught_images

    def contrast(self, images, texts, taught_images, taught_texts, batch, progress):
        """Section 4.1: keys are the teacher's vectors, of this batch and of the queue; targets are softened by it."""
        queued = self.queue.read(progress.past(self.config.queue_from))
        keys = queued.behind(taught_images.pooled, taught_texts.pooled, batch.image_id, batch.text_id)
        same = same_pair(batch.image_id, batch.text_id, keys.image_id, keys.text_id)
        return distilled_contrastive(
            (images.pooled, texts.pooled),
            (taught_images.pooled, taught_texts.pooled),
            (keys.images, keys.texts),
            same,
            self.temperature,
            progress.ramp(self.config.alpha),
            real=keys.real,
            nested=self.config.nested,
            smoothing=batch.softening(),
        )

    def matching(self, images, texts, taught_images, taught_texts, batch, progress):
        """Section 4.2: B matched pairs, B with a wrong picture, B with a wrong text, drawn by the contrast's scores."""
        text_scores = logits_of(texts.pooled, taught_images.pooled, self.temperature)
        image_scores = logits_of(images.pooled, taught_texts.pooled, self.temperature)
        draws = progress.uniform(batch, 2, "hard negatives")
        pairs = drawn_pairs(text_scores, image_scores, batch.same_here(), draws, hardness=self.pace.hardness)
        logits = self.match_logits(images.select(pairs.images), texts.select(pairs.texts))
        loss = matching_loss(logits, pairs.labels)
        return loss, matching_accuracy(logits, pairs.labels), matching_gain(loss, pairs.labels)

    def masked_words(self, images, taught_images, batch, progress, alpha):
        """Section 4.3: the words masked are read from text and picture; the teacher reads the same masked words."""
        draws = progress.uniform(batch, 3 * batch.texts.ids.shape[1], "mask")
        masked, labels = mask_words(batch.texts, self.vocabulary, draws, self.config.mask_share)
        index, words = masked_positions(labels)
        logits = self.word_logits(self, images, masked, index)
        with torch.no_grad():
            taught = self.word_logits(self.teacher, taught_images, masked, index)
        return masked_language(logits, words, taught, alpha)

    @staticmethod
    def word_logits(parts: nn.Module, images: Encoded, masked: Texts, index: Tensor) -> Tensor:
        """[K, V] of the K masked positions, by the student's parts or the teacher's."""
        texts = parts.encoders.encode_texts(masked.ids, masked.mask)
        states = parts.fusion(texts.states["last"], masked.mask, images.states["last"], None)
        return parts.word_head(states.flatten(0, 1)[index], parts.encoders.text.words.weight)

    def match_logits(self, images: Encoded, texts: Encoded) -> Tensor:
        """[N, 2] logits (no match, match) of pairs (image n, text n)."""
        first = self.fusion.first(texts.states["last"], texts.state_mask, images.states["last"], None)
        return self.match_head(first)

    def after_step(self, keep: Mapping[str, Tensor], progress: Progress) -> None:
        self.pace.update(keep["matching_gain"])
        self.queue.enqueue(keep["images"], keep["texts"], keep["image_id"], keep["text_id"])

    def encode_images(self, images: Images) -> Encoded:
        return self.encoders.encode_images(images)

    def encode_texts(self, texts: Texts) -> Encoded:
        return self.encoders.encode_texts(texts.ids, texts.mask)

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        return log_odds(self.match_logits(images, texts).float())[:, None]

    def match_heat(self, images: Encoded, texts: Encoded) -> Tensor:
        """Section 6, grounding: Grad-CAM of the logit of a match in the third of six fusion layers."""
        layer = rf"fusion\.stack\.blocks\.{(self.config.fusion.layers - 1) // 2}\.cross"
        return heat_of(
            self, layer, lambda: self.match_logits(images, texts)[:, 1], texts.state_mask, self.encoders.image.grid
        )

    def adapt(self, task: str, classes: int = 2, pictures: int = 1) -> nn.Module | None:
        """Section 6: answers ranked by a decoder, two pictures through doubled layers, entailment by an MLP; each with
        the momentum teacher's targets."""
        config = self.config
        if task == "vqa":
            decoder = AnswerDecoder(config.text, config.fusion, config.fusion.width, self.vocabulary.size)
            return AnswerRanker(decoder, ("encoders", "fusion"), config.alpha)
        if task == "two_pictures" and pictures == 2:
            return PairClassifier(config.fusion, config.image.width, classes, ("encoders",), config.alpha)
        if task == "entailment":
            return TaughtMLP(mlp(config.fusion.width, classes), ("encoders", "fusion"), config.alpha)
        return None

    def answer_layers(self) -> tuple[nn.ModuleList, WordHead | None]:
        return self.fusion.stack.blocks, self.word_head

    def fuse(self, images: Sequence[Encoded], texts: Encoded) -> Fused:
        """Text states after cross-attention over the tokens of all pictures; pooled is the first token's."""
        memory = torch.cat([image.states["last"] for image in images], 1)
        states = self.fusion(texts.states["last"], texts.state_mask, memory, None)
        return Fused(states[:, 0], states, texts.state_mask)
