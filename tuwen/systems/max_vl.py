"""MAX-VL (Medical X-VL): reports, their sentences, and near-identical reports that are no negatives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images, Texts, same_pair
from tuwen.data.gather import first_row, gather_padded
from tuwen.data.sentences import identities, places, reordered
from tuwen.data.text import Vocabulary, mask_words
from tuwen.data.views import View
from tuwen.nn.encoded import Encoded
from tuwen.nn.fusion import CrossEncoder, MatchHead, WordHead
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.temperature import Temperature
from tuwen.nn.towers import DualEncoder
from tuwen.objectives.contrastive import distilled_contrastive, logits_of, soft_cross_entropy, targets_of
from tuwen.objectives.masked_language import masked_language, masked_positions
from tuwen.objectives.matching import drawn_pairs, log_odds, matching_accuracy, matching_gain, matching_loss
from tuwen.objectives.sentences import sentence_contrast, wrong_sentences
from tuwen.systems.heads.answering import AnswerDecoder, AnswerRanker
from tuwen.systems.survey import Axes
from tuwen.systems.system import Fused, Losses, Needs, Paper, Progress, System
from tuwen.teachers.momentum import Momentum
from tuwen.teachers.pace import Pace
from tuwen.teachers.queue import FeatureQueue


@dataclass(frozen=True)
class MAXVLConfig:
    """The published model is size "base" with `fusion.layers` 4 and `fusion.hidden` 2048, its towers from runs of
    `dino` and `mlm` (or a published BERT of the field).

    shuffle: a report's sentences in another order every epoch. sentences: weight of their contrast, 0 for none.
    alike: cosine of two reports' states from which they are one, above 1 for none. centred: of the states less their
    mean over the batch; False as published, see the class. alternating: the paper's earlier form, see the class.
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    fusion: CrossEncoderConfig = field(default_factory=CrossEncoderConfig)
    embed: int = 256
    nested: tuple[int, ...] = ()  # widths of prefixes that are vectors of their own in the contrast across
    shuffle: bool = True
    sentences: float = 1.0
    alike: float = 0.95
    centred: bool = True
    alternating: bool = False
    queue: int = 40960  # pairs
    queue_share: float = 0.25  # of an epoch, that the queue holds at most [choice]; 1 and more: as published
    queue_from: float = 1.0  # epochs before queued keys count; 0 as published, see `albef`
    momentum: float = 0.995
    momentum_rises: bool = True  # from 0.1 in the first steps [choice], for training from scratch, see `Momentum`
    alpha: float = 0.4  # weight of the teacher's targets, reached at the end of the first epoch
    mask_share: float = 0.15
    hardness: float | None = None  # of negatives: 1 as published, 0 any wrong pair; None: self-paced, see `Pace`
    score: Literal["fitted", "published"] = "fitted"  # the final one: see `tuwen.predictor.Predictor.final`

    @classmethod
    def sized(cls, name: str) -> "MAXVLConfig":
        return size(name).fill(cls)


class MAXVL(System):
    """ALBEF's parts for pictures with reports: contrast across and within, with sentences, matching, masked words.

    Park et al., arXiv 2208.05140, as in the official code of its later form, with cross-attention one way (section
    numbers are the method card's). `model.alternating` is the earlier form, RECONSTRUCTED from the traces that can be
    read (section 10): the very same layers read the picture by the words and then the words by the picture, each pass
    with a match head of its own; their losses' mean is learnt, and a pair's score is the mean of both.
    Where the code is wrong, ours is as meant (card, section 10): the teacher's words are a distribution over the
    vocabulary; every row has its own draws of negatives; where all others are near-identical, none is taken.

    Where ours differs, by choice: keys of the sentence contrast are those of all processes; rows of one picture or one
    text are positives, and a sentence is no negative of a report that says it too, word for word; two reports are
    near-identical by their states less the batch's mean, because the states of a text tower that was never taught to
    part texts share one large direction, and all cosines of them pass 0.95; queue, momentum and hardness for
    training from scratch are those of `albef` here; re-ranking is by log-odds.
    """

    paper = Paper(
        title="Self-supervised Multi-modal Training from Uncurated Image and Reports Enables Zero-shot Oversight "
        "Artificial Intelligence in Radiology",
        venue="arXiv 2022",
        arxiv="2208.05140",
        code="github.com/sangjoon-park/Medical_X-VL",
        idea="pictures against reports and each of their sentences; near-identical reports are no negatives",
        fidelity="code",
        image_encoder="ViT (published: DINO's)",
        text_encoder="BERT (published: CXR-BERT)",
        interaction="cosine, then text queries over image tokens",
        objectives=(
            "image-text contrast",
            "contrast within each side",
            "image-sentence contrast",
            "image-text matching",
            "masked language",
            "momentum distillation",
        ),
        axes=Axes(
            text="bert",
            vision=("patch",),
            interaction=("dot_product", "dual_stream"),
            objectives=("cmcl", "cl", "text_contrast", "sentence_contrast", "itm", "mlm", "distillation"),
            data=("mimic_cxr",),
            parts=("teacher", "queue", "sentences"),
        ),
    )
    Config = MAXVLConfig
    training_only = ("teacher", "queue", "pace")
    index_fields = ("pooled", "states.last")

    @classmethod
    def needs(cls, config: MAXVLConfig) -> Needs:
        whole = View(config.image.side, augment=False, crop="none")
        return Needs(views={"whole": whole}, sentences=bool(config.shuffle or config.sentences))

    def __init__(self, config: MAXVLConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.encoders = DualEncoder(config.image, config.text, config.embed, vocabulary)
        width, seen = config.fusion.width, config.image.width
        self.image_input = nn.Linear(seen, width) if config.alternating and seen != width else nn.Identity()
        self.fusion = CrossEncoder(config.fusion, width if config.alternating else seen)
        self.word_head = WordHead(width, vocabulary.size)
        self.match_head = MatchHead(width)
        self.image_match_head = MatchHead(width) if config.alternating else None
        self.temperature = Temperature()
        parts = ("encoders", "image_input", "fusion", "word_head")
        self.teacher = Momentum(self, parts, config.momentum, config.momentum_rises)
        self.pace = Pace(config.hardness)
        self.queue = FeatureQueue(config.queue, config.embed)

    def before_step(self, progress: Progress) -> None:
        self.teacher.update(self, progress.step)
        self.queue.limit(int(self.config.queue_share * progress.epoch_pairs))

    # ---- what is read

    def encode(self, batch: Batch, progress: Progress) -> dict[str, Encoded]:
        return {
            "images": self.encode_images(batch.images),
            "texts": self.encode_texts(self.report(batch, progress)),
        }

    def report(self, batch: Batch, progress: Progress) -> Texts:
        """Section 4: the report with its sentences in an order of this epoch."""
        texts, sentences = batch.texts, batch.sentences
        assert texts is not None
        if sentences is None or not self.config.shuffle:
            return texts
        assert sentences.owner is not None
        place = places(sentences.owner, len(batch))
        order = progress.uniform(batch, int(place.max()) + 1, "sentences")[sentences.owner, place]
        return reordered(sentences, order, len(batch), self.vocabulary, self.config.text.length)

    @torch.no_grad()
    def taught(self, batch: Batch, report: Texts) -> tuple[Encoded, Encoded]:
        """What the teacher sees: the picture as it is in use, and the same report."""
        whole = batch.images.view("whole") if "whole" in batch.images.views else batch.images
        encoders = self.teacher.encoders
        return encoders.encode_images(whole), encoders.encode_texts(report.ids, report.mask)

    # ---- the losses: L = L_ita + 2 L_itm + L_mlm

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        report = self.report(batch, progress)
        taught = self.taught(batch, report)
        aligned = self.aligned(encoded, taught, batch, progress)
        words = self.masked_words(encoded["images"], taught[0], report, batch, progress)
        return replace(aligned, terms={**aligned.terms, "masked_words": words})

    def retrieval(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        """Section 6: contrasts and matching, of texts as they are."""
        return self.aligned(encoded, self.taught(batch, batch.texts), batch, progress)

    def aligned(
        self, encoded: dict[str, Encoded], taught: tuple[Encoded, Encoded], batch: Batch, progress: Progress
    ) -> Losses:
        """The contrasts, a fifth of the weight each, and matching."""
        images, texts = encoded["images"], encoded["texts"]
        terms = self.contrasts(images, texts, *taught, batch, progress)
        if self.config.sentences and batch.sentences is not None:
            terms["sentences"] = self.config.sentences * self.sentences(images, batch) / 5
        matching, gain, metrics = self.matching(images, texts, *taught, batch, progress)
        terms["matching"] = 2 * matching
        keep = {
            "images": taught[0].pooled,
            "texts": taught[1].pooled,
            "image_id": batch.image_id,
            "text_id": batch.text_id,
            "matching_gain": gain.expand(len(batch)),
        }
        metrics |= {"temperature": self.temperature.detach(), **self.pace.metrics()}
        metrics["queued_keys"] = self.queue.filled(progress.past(self.config.queue_from))
        return Losses(terms, keep, metrics)

    def contrasts(self, images, texts, taught_images, taught_texts, batch, progress) -> dict[str, Tensor]:
        """Sections 4.1 and 4.2: across with softened targets; within each side, against the teacher's, with hard ones.

        "contrast" holds two fifths, i2t and t2i, "pictures" and "texts" one each.
        """
        queued = self.queue.read(progress.past(self.config.queue_from))
        keys = queued.behind(taught_images.pooled, taught_texts.pooled, batch.image_id, batch.text_id)
        same = same_pair(batch.image_id, batch.text_id, keys.image_id, keys.text_id)
        across = distilled_contrastive(
            (images.pooled, texts.pooled),
            (taught_images.pooled, taught_texts.pooled),
            (keys.images, keys.texts),
            same,
            self.temperature,
            progress.ramp(self.config.alpha),
            real=keys.real,
            nested=self.config.nested,
        )
        targets = targets_of((same & keys.real).to(images.pooled.dtype))

        def within(rows: Tensor, columns: Tensor) -> Tensor:
            return soft_cross_entropy(logits_of(rows, columns, self.temperature), targets, real=keys.real)

        pictures, reports = within(images.pooled, keys.images), within(texts.pooled, keys.texts)
        return {"contrast": 2 * across / 5, "pictures": pictures / 5, "texts": reports / 5}

    def sentences(self, images: Encoded, batch: Batch) -> Tensor:
        """Section 4.3: every sentence of the report, as the teacher reads it alone, against those of other reports."""
        texts, rows = batch.sentences, len(batch)
        assert texts is not None
        assert texts.owner is not None
        with torch.no_grad():
            vectors = self.teacher.encoders.encode_texts(texts.ids, texts.mask, states=False).pooled
        every = gather_padded(vectors[None]).flatten(0, 1)
        owner = gather_padded((texts.owner + first_row(rows) + 1)[None]).flatten() - 1  # -1 on padding
        words = gather_padded(identities(texts)[None]).flatten()
        mine = torch.arange(rows, device=owner.device) + first_row(rows)
        own = mine[:, None] == owner
        wrong = wrong_sentences(own, batch.same(), owner, words)
        return sentence_contrast(images.pooled, every, own, wrong, self.temperature)

    def matching(self, images, texts, taught_images, taught_texts, batch, progress):
        """Section 4.4: ALBEF's pairs, no wrong partner of which is near-identical; loss, gain and metrics."""
        same, near = batch.same_here(), self.near(taught_texts)
        text_scores = logits_of(texts.pooled, taught_images.pooled, self.temperature)
        image_scores = logits_of(images.pooled, taught_texts.pooled, self.temperature)
        draws = progress.uniform(batch, 2, "hard negatives")
        pairs = drawn_pairs(text_scores, image_scores, same | near, draws, hardness=self.pace.hardness)
        logits = self.match_logits(images.select(pairs.images), texts.select(pairs.texts))
        loss = torch.stack([matching_loss(own, pairs.labels) for own in logits]).mean()
        metrics = {
            "matching_accuracy": matching_accuracy(torch.stack(logits).mean(0), pairs.labels),
            "near_identical": (near & ~same).sum() / (~same).sum().clamp(min=1),  # share of wrong pairs left out
        }
        return loss, matching_gain(loss, pairs.labels), metrics

    def near(self, taught_texts: Encoded) -> Tensor:
        """[B, B] bool: reports whose states, as the teacher's text tower pools them, are near-identical."""
        tower: Any = self.teacher.encoders.text
        states = tower.pooled(taught_texts.states["last"], taught_texts.state_mask)
        if self.config.centred:
            states = states - states.mean(0)
        units = F.normalize(states, dim=1)
        return units @ units.T >= self.config.alike

    def masked_words(self, images, taught_images, report: Texts, batch: Batch, progress: Progress) -> Tensor:
        """Section 4.5: ALBEF's, of the report as it was read."""
        draws = progress.uniform(batch, 3 * report.ids.shape[1], "mask")
        masked, labels = mask_words(report, self.vocabulary, draws, self.config.mask_share)
        index, words = masked_positions(labels)
        logits = self.word_logits(self, images, masked, index)
        with torch.no_grad():
            taught = self.word_logits(self.teacher, taught_images, masked, index)
        return masked_language(logits, words, taught, progress.ramp(self.config.alpha))

    @staticmethod
    def word_logits(parts: nn.Module, images: Encoded, masked: Texts, index: Tensor) -> Tensor:
        """[K, V] of the K masked positions, by the student's parts or the teacher's."""
        texts = parts.encoders.encode_texts(masked.ids, masked.mask)
        states = parts.fusion(texts.states["last"], masked.mask, parts.image_input(images.states["last"]), None)
        return parts.word_head(states.flatten(0, 1)[index], parts.encoders.text.words.weight)

    def after_step(self, keep: Mapping[str, Tensor], progress: Progress) -> None:
        self.pace.update(keep["matching_gain"])
        self.queue.enqueue(keep["images"], keep["texts"], keep["image_id"], keep["text_id"])

    # ---- use

    def match_logits(self, images: Encoded, texts: Encoded) -> list[Tensor]:
        """[N, 2] logits (no match, match) of pairs (image n, text n), of each match head."""
        words, patches, mask = texts.states["last"], self.image_input(images.states["last"]), texts.state_mask
        logits = [self.match_head(self.fusion.first(words, mask, patches, None))]
        if self.image_match_head is not None:
            read = self.encoders.image.pool(self.fusion(patches, None, words, mask))
            logits.append(self.image_match_head(read))
        return logits

    def encode_images(self, images: Images) -> Encoded:
        return self.encoders.encode_images(images)

    def encode_texts(self, texts: Texts) -> Encoded:
        return self.encoders.encode_texts(texts.ids, texts.mask)

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        """[N, heads] log-odds."""
        return torch.stack([log_odds(logits.float()) for logits in self.match_logits(images, texts)], 1)

    def adapt(self, task: str, classes: int = 2, pictures: int = 1) -> nn.Module | None:
        """Section 6, questions: answers ranked by a decoder, as ALBEF's."""
        config = self.config
        if task != "vqa":
            return None
        decoder = AnswerDecoder(config.text, config.fusion, config.fusion.width, self.vocabulary.size)
        return AnswerRanker(decoder, ("encoders", "image_input", "fusion"), config.alpha)

    def answer_layers(self) -> tuple[nn.ModuleList, WordHead | None]:
        return self.fusion.stack.blocks, self.word_head

    def fuse(self, images: Sequence[Encoded], texts: Encoded) -> Fused:
        """Text states after cross-attention over the tokens of all pictures; pooled is the first token's."""
        memory = torch.cat([self.image_input(image.states["last"]) for image in images], 1)
        states = self.fusion(texts.states["last"], texts.state_mask, memory, None)
        return Fused(states[:, 0], states, texts.state_mask)
