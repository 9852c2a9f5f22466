"""GRIT-VLP: batches of neighbours that are alike, hardest negatives among them, half of the words masked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.gather import gather
from tuwen.data.text import Vocabulary, mask_words
from tuwen.nn.encoded import Encoded
from tuwen.nn.fusion import CrossEncoder, MatchHead, WordHead
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.temperature import Temperature
from tuwen.nn.towers import DualEncoder
from tuwen.objectives.contrastive import consistency, directional_contrastive, logits_of, nested_mean
from tuwen.objectives.masked_language import masked_language, masked_positions
from tuwen.objectives.matching import hardest_pairs, log_odds, matching_accuracy, matching_gain, matching_loss
from tuwen.systems.survey import Axes
from tuwen.systems.system import Fused, Losses, Paper, Progress, System
from tuwen.teachers.pace import Pace


@dataclass(frozen=True)
class GRITVLPConfig:
    """The published model is size "base" with `text.layers` 6, as ALBEF's."""

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    fusion: CrossEncoderConfig = field(default_factory=CrossEncoderConfig)
    embed: int = 256
    nested: tuple[int, ...] = ()  # widths of prefixes that are to be vectors of their own, see `nested_mean`
    consistency: float = 0.2  # weight of the loss that holds both directions' distributions together
    mask_share: float = 0.5
    hardness: float | None = None  # share of rows whose negative is the hardest: 1 as published; None: self-paced
    score: Literal["fitted", "published"] = "fitted"  # the final one: see `tuwen.predictor.Predictor.final`

    @classmethod
    def sized(cls, name: str) -> "GRITVLPConfig":
        return size(name).fill(cls)


class GRITVLP(System):
    """ALBEF's parts without teacher and queue; contrast with consistency, hardest negatives, words masked at one half.

    Byun et al., ECCV 2022; equations as in the official code (sections are the method card's). The sampler is the
    loop's `train.order: grouped` (`tuwen.data.grouping`, `tuwen.training.grouping`), which this system has by default:
    from the second epoch on a batch holds a chain of neighbours, so that the hardest of its wrong partners is hard.
    Where the sampler differs, by choice: the global batch is grouped, where each of their processes groups the pairs
    that it saw itself, so that an example stays with its process for the whole run; and what an epoch left out comes
    back in the next.

    Where the losses differ, by choice: keys of the contrast are those of the global batch, which is one chain of
    neighbours (theirs: this process's, which is theirs); wrong partners are this process's. Pairs of one picture or one
    text are each other's positives in the contrast and never negatives (grouping brings two captions of one picture
    side by side). For training from scratch the share of rows whose negative is the hardest is paced (`Pace`), the
    others take any wrong one: `hardness` 1 is the published, deterministic choice. Re-ranking is by the log-odds of a
    match. Their fine-tuning for retrieval, with a momentum queue, is left out.
    """

    paper = Paper(
        title="GRIT-VLP: Grouped Mini-batch Sampling for Efficient Vision and Language Pre-training",
        venue="ECCV 2022",
        arxiv="2208.04060",
        code="github.com/jaeseokbyun/GRIT-VLP",
        idea="similar pairs share a batch, whose hardest negatives are hard; no teacher, half of the words masked",
        fidelity="code",
        image_encoder="ViT",
        text_encoder="BERT (lower layers)",
        interaction="cosine, then text queries over image tokens",
        objectives=("image-text contrast", "consistency", "image-text matching", "masked language"),
        axes=Axes(
            text="bert",
            vision=("patch",),
            interaction=("dot_product", "dual_stream"),
            objectives=("cmcl", "itm", "mlm"),
            data=("cc3m", "coco", "vg_data", "sbu"),
            parts=("sampler",),
        ),
    )
    Config = GRITVLPConfig
    softens = True
    train_order = "grouped"
    index_fields = ("pooled", "states.last")
    training_only = ("pace",)

    def __init__(self, config: GRITVLPConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.encoders = DualEncoder(config.image, config.text, config.embed, vocabulary)
        self.fusion = CrossEncoder(config.fusion, config.image.width)
        self.word_head = WordHead(config.fusion.width, vocabulary.size)
        self.match_head = MatchHead(config.fusion.width)
        self.temperature = Temperature()
        self.pace = Pace(config.hardness)

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        aligned = self.retrieval(encoded, batch, progress)
        words = self.masked_words(encoded["images"], batch, progress)
        return replace(aligned, terms={**aligned.terms, "masked_words": words})

    def retrieval(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        """Contrast, consistency and matching."""
        images, texts = encoded["images"], encoded["texts"]
        contrast, agreement = self.contrast(images, texts, batch)
        matching, pairs_metrics, gain = self.matching(images, texts, batch, progress)
        terms = {"contrast": contrast, "consistency": agreement, "matching": matching}
        metrics = {"temperature": self.temperature.detach(), **pairs_metrics, **self.pace.metrics()}
        return Losses(terms, {"matching_gain": gain.expand(len(batch))}, metrics)

    def contrast(self, images, texts, batch: Batch) -> tuple[Tensor, Tensor]:
        """Section 4: keys are detached, so each tower learns from its own queries; (contrast, weighted consistency)."""
        same = batch.same()

        def logits(pictures, words, picture_keys, word_keys):
            return logits_of(pictures, word_keys, self.temperature), logits_of(words, picture_keys, self.temperature)

        def right(*vectors) -> Tensor:
            from_pictures, from_words = logits(*vectors)
            return directional_contrastive(from_pictures, from_words, same, batch.softening())

        vectors = images.pooled, texts.pooled, gather(images.pooled.detach()), gather(texts.pooled.detach())
        contrast = nested_mean(right, vectors, self.config.nested)
        agreement = nested_mean(lambda *x: consistency(*logits(*x)), vectors, self.config.nested)
        return contrast, self.config.consistency * agreement

    def matching(self, images: Encoded, texts: Encoded, batch: Batch, progress: Progress):
        """Section 4: B matched pairs, B with the hardest wrong picture, B with the hardest wrong text: loss, metrics
        and gain. "negative_cosine" is the mean cosine of a row with its wrong partners."""
        scores = logits_of(images.pooled.detach(), texts.pooled.detach(), 1.0)
        draws = progress.uniform(batch, 4, "hard negatives")
        pairs = hardest_pairs(scores.T, scores, batch.same_here(), draws, self.pace.hardness)
        logits = self.match_logits(images.select(pairs.images), texts.select(pairs.texts))
        loss = matching_loss(logits, pairs.labels)
        wrong = pairs.labels == 0
        metrics = {
            "matching_accuracy": matching_accuracy(logits, pairs.labels),
            "negative_cosine": scores[pairs.images[wrong], pairs.texts[wrong]].sum() / wrong.sum().clamp(min=1),
        }
        return loss, metrics, matching_gain(loss, pairs.labels)

    def masked_words(self, images: Encoded, batch: Batch, progress: Progress) -> Tensor:
        """Section 4: as ALBEF's, half of the words masked, told from text and picture; no teacher."""
        draws = progress.uniform(batch, 3 * batch.texts.ids.shape[1], "mask")
        masked, labels = mask_words(batch.texts, self.vocabulary, draws, self.config.mask_share)
        index, words = masked_positions(labels)
        states = self.fuse([images], self.encode_texts(masked)).states
        logits = self.word_head(states.flatten(0, 1)[index], self.encoders.text.words.weight)
        return masked_language(logits, words)

    def after_step(self, keep: Mapping[str, Tensor], progress: Progress) -> None:
        self.pace.update(keep["matching_gain"])

    def match_logits(self, images: Encoded, texts: Encoded) -> Tensor:
        """[N, 2] logits (no match, match) of pairs (image n, text n)."""
        return self.match_head(self.fusion.first(texts.states["last"], texts.state_mask, images.states["last"], None))

    def encode_images(self, images: Images) -> Encoded:
        return self.encoders.encode_images(images)

    def encode_texts(self, texts: Texts) -> Encoded:
        return self.encoders.encode_texts(texts.ids, texts.mask)

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        return log_odds(self.match_logits(images, texts).float())[:, None]

    def fuse(self, images: Sequence[Encoded], texts: Encoded) -> Fused:
        """Text states after cross-attention over the tokens of all pictures; pooled is the first token's."""
        memory = torch.cat([image.states["last"] for image in images], 1)
        states = self.fusion(texts.states["last"], texts.state_mask, memory, None)
        return Fused(states[:, 0], states, texts.state_mask)
