"""R2D2: pre-ranking by a dual encoder, ranking by two cross encoders, two-way distillation from a momentum teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images, Texts, same_pair
from tuwen.data.gather import first_row, gather, gather_padded
from tuwen.data.text import Vocabulary, mask_words
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.nn.fusion import CrossEncoder, MatchHead, WordHead
from tuwen.nn.grad_cam import heat_of
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.temperature import Temperature
from tuwen.nn.towers import DualEncoder
from tuwen.objectives.contrastive import distilled_contrastive, logits_of
from tuwen.objectives.distillation import feature_guided
from tuwen.objectives.gather import global_contrast
from tuwen.objectives.masked_language import masked_language, masked_positions
from tuwen.objectives.matching import drawn_pairs, log_odds, matching_accuracy, matching_gain, matching_loss
from tuwen.systems.survey import Axes
from tuwen.systems.system import Fused, Losses, Paper, Progress, System
from tuwen.teachers.momentum import Momentum
from tuwen.teachers.pace import Pace
from tuwen.teachers.queue import FeatureQueue


@dataclass(frozen=True)
class R2D2Config:
    """Every part of the method can be switched off for an ablation.

    cross: ranking by "both" cross encoders, or by the text's queries alone: in the loss and in the score.
    feature_guided: "tokens" (all real positions), "cls", "similarity" (rows of batch similarities) or "off".
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    fusion: CrossEncoderConfig = field(default_factory=CrossEncoderConfig)
    embed: int = 768
    nested: tuple[int, ...] = ()  # widths of prefixes that are to be vectors of their own, see `nested_mean`
    ranking: bool = True
    cross: Literal["both", "text"] = "both"
    masked_words: bool = True
    enhanced: bool = False  # one masked text for all of the student's losses, as published; off: a pass of its own
    target_guided: bool = True
    feature_guided: str = "tokens"
    queue: int = 65536  # pairs
    queue_share: float = 0.25  # of an epoch, that the queue holds at most [choice]; 1 and more: as published
    queue_from: float = 1.0  # epochs before queued keys count [choice], for training from scratch, see ALBEF
    queue_decay: float = 0.99
    momentum: float = 0.995
    momentum_rises: bool = True  # from 0.1 in the first steps [choice], for training from scratch, see `Momentum`
    alpha: float = 0.4  # [choice] of the card: ALBEF's
    mask_share: float = 0.15
    hardness: float | None = None  # of negatives: 1 as published, 0 any wrong pair; None: self-paced, see `Pace`
    score: Literal["fitted", "published"] = "fitted"  # the final one: see `tuwen.predictor.Predictor.final`

    @classmethod
    def sized(cls, name: str) -> "R2D2Config":
        towers = size(name)
        image = replace(towers.image, final_norm=False)  # as the released model: tokens without CLIP's last norm
        return towers.fill(cls, image=image)


class R2D2(System):
    """L = L_tgd + L_fgr + L_fgd + L_mlm, unit weights [choice] (Xie et al. 2022; sections are the method card's).

    - GCPR (4.1): contrast over the global batch; TgD (4.5) replaces it when `target_guided`.
    - FGR (4.2): text queries over image tokens, and image queries over text states, each with its own match head;
      matched pairs weigh 2 against 1.
    - MLM (4.3) on the text-query cross encoder, matched pairs only. ET (4.4): the student reads one masked text in
      all its losses, contrast included, as the paper's figure shows; the teacher reads the clean one.
    - FgD (4.6): the student's states of the masked text follow the teacher's of the clean one.

    Only fine-tuning code was released (GCPR, FGR and the final score follow it); pre-training, and with it the
    distillation terms, MLM and ET, are reconstructed from public notes and the figure: alpha, queue size, the momentum
    and FgD's distance could not be verified.
    """

    paper = Paper(
        title="Zero and R2D2: A Large-scale Chinese Cross-modal Benchmark and A Vision-Language Framework",
        venue="ACM MM 2023 (as CCMB)",
        arxiv="2205.03860",
        code="github.com/yuxie11/R2D2 (fine-tuning only)",
        idea="global pre-ranking, fine-grained ranking by two cross encoders, target- and feature-guided distillation",
        fidelity="reconstructed",
        image_encoder="ViT (published: CLIP's)",
        text_encoder="BERT (published: RoBERTa-wwm)",
        interaction="cosine, then text over image and image over text",
        objectives=("image-text contrast", "image-text matching", "masked language", "target- and feature-guided"),
        axes=Axes(
            text="roberta",
            vision=("patch",),
            interaction=("dot_product", "dual_stream"),
            objectives=("cmcl", "itm", "mlm", "distillation"),
            data=("zero",),
            parts=("teacher", "queue"),
        ),
    )
    Config = R2D2Config
    softens = True
    training_only = ("teacher", "queue", "pace")
    index_fields = ("pooled", "states.last")

    def __init__(self, config: R2D2Config, vocabulary: Vocabulary):
        super().__init__()
        if config.enhanced and not (config.masked_words or config.feature_guided != "off"):
            raise UserError(
                "model.enhanced masks the text for no loss: switch it off, or masked_words or feature_guided on"
            )
        self.config, self.vocabulary = config, vocabulary
        self.encoders = DualEncoder(config.image, config.text, config.embed, vocabulary)
        self.temperature = Temperature()
        width = config.fusion.width
        self.ranked_twice = config.ranking and config.cross == "both"
        if self.ranked_twice:
            self.image_to_fusion = nn.Linear(config.image.width, width)
            self.image_queries = CrossEncoder(config.fusion, config.text.width)
            self.image_match_head = MatchHead(width)
        if config.ranking:
            self.pace = Pace(config.hardness)
        if config.ranking or config.masked_words:
            self.text_queries = CrossEncoder(config.fusion, config.image.width)
        if config.ranking:
            self.text_match_head = MatchHead(width)
        if config.masked_words:
            self.word_head = WordHead(width, vocabulary.size)
        if config.target_guided or config.feature_guided != "off":
            self.teacher = Momentum(self, ("encoders",), config.momentum, config.momentum_rises)
        if config.target_guided:
            self.queue = FeatureQueue(config.queue, config.embed)

    def before_step(self, progress: Progress) -> None:
        if self.config.target_guided or self.config.feature_guided != "off":
            self.teacher.update(self, progress.step)
        if self.config.target_guided:
            self.queue.limit(int(self.config.queue_share * progress.epoch_pairs))

    def encode(self, batch: Batch, progress: Progress) -> dict[str, Encoded]:
        """Pictures; "texts", what contrast and ranking read; "masked", what masked words and FgD read."""
        config = self.config
        encoded = {"images": self.encode_images(batch.images)}
        if config.masked_words or config.feature_guided != "off":
            encoded["masked"] = self.encode_texts(self.mask(batch, progress)[0])
        encoded["texts"] = encoded["masked"] if config.enhanced else self.encode_texts(batch.texts)
        return encoded

    def mask(self, batch: Batch, progress: Progress) -> tuple[Texts, Tensor]:
        """The one masked form of the batch's texts, and the labels [B, L]."""
        draws = progress.uniform(batch, 3 * batch.texts.ids.shape[1], "mask")
        return mask_words(batch.texts, self.vocabulary, draws, self.config.mask_share)

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        config, images, texts = self.config, encoded["images"], encoded["texts"]
        terms, keep, metrics = {}, {}, {"temperature": self.temperature.detach()}
        if config.target_guided or config.feature_guided != "off":
            with torch.no_grad():
                taught_texts = self.teacher.encoders.encode_texts(batch.texts.ids, batch.texts.mask)
        if config.target_guided:
            with torch.no_grad():
                taught_images = self.teacher.encoders.encode_images(batch.images, states=False)
            terms["contrast"] = self.target_guided(images, texts, taught_images, taught_texts, batch, progress)
            metrics["queued_keys"] = self.queue.filled(progress.past(config.queue_from))
            keep = {"images": taught_images.pooled, "texts": taught_texts.pooled}
            keep |= {"image_id": batch.image_id, "text_id": batch.text_id}
        else:
            terms["contrast"] = global_contrast(
                images.pooled, texts.pooled, batch.same(), self.temperature, config.nested, batch.softening()
            )
        matched_states = None
        if config.ranking:
            terms["matching"], matched_states, metrics["matching_accuracy"], gain = self.ranking(
                images, texts, batch, progress
            )
            keep["matching_gain"] = gain.expand(len(batch))
            metrics |= self.pace.metrics()
        if config.masked_words:
            if not config.enhanced or matched_states is None:
                matched_states = self.text_over_image(images, encoded["masked"])
            index, words = masked_positions(self.mask(batch, progress)[1])
            logits = self.word_head(matched_states.flatten(0, 1)[index], self.encoders.text.words.weight)
            terms["masked_words"] = masked_language(logits, words)
        if config.feature_guided != "off":
            terms["feature_guided"] = feature_guided(
                encoded["masked"], taught_texts, config.feature_guided, self.temperature.detach()
            )
        return Losses(terms, keep, metrics)

    def retrieval(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        """Section 6: GCPR and FGR, without distillation, queue and masked words. (The code freezes the image tower too:
        `train.rates`.)"""
        images, texts = encoded["images"], encoded["texts"]
        contrast = global_contrast(
            images.pooled, texts.pooled, batch.same(), self.temperature, self.config.nested, batch.softening()
        )
        if not self.config.ranking:
            return Losses({"contrast": contrast})
        matching, _, accuracy, gain = self.ranking(images, texts, batch, progress)
        metrics = {"matching_accuracy": accuracy, **self.pace.metrics()}
        return Losses({"contrast": contrast, "matching": matching}, {"matching_gain": gain.expand(len(batch))}, metrics)

    def target_guided(self, images, texts, taught_images, taught_texts, batch, progress) -> Tensor:
        """TgD, section 4.5: keys are the teacher's; a queued key counts 0.99^age, the current batch's count 1."""
        now = (taught_images.pooled, taught_texts.pooled, batch.image_id, batch.text_id)
        keys = self.queue.read(progress.past(self.config.queue_from)).behind(*(gather(x) for x in now))
        same = same_pair(batch.image_id, batch.text_id, keys.image_id, keys.text_id)
        return distilled_contrastive(
            (images.pooled, texts.pooled),
            (taught_images.pooled, taught_texts.pooled),
            (keys.images, keys.texts),
            same,
            self.temperature,
            progress.ramp(self.config.alpha),
            self.config.queue_decay ** keys.age.to(images.pooled.dtype),
            keys.real,
            self.config.nested,
            batch.softening(),
        )

    def ranking(
        self, images: Encoded, texts: Encoded, batch: Batch, progress: Progress
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """FGR, section 4.2: B matched pairs, B with a wrong picture, B with a wrong text of the global batch.

        Returns the loss, the text-query states of the matched pairs [B, L, W], the matching accuracy and gain.
        """
        rows = len(batch)
        all_images = Encoded(gather(images.pooled), states={"last": gather(images.states["last"])})
        all_texts = Encoded(
            gather(texts.pooled),
            states={"last": gather_padded(texts.states["last"])},
            state_mask=gather_padded(texts.state_mask),
        )
        text_scores = logits_of(texts.pooled, all_images.pooled, self.temperature)
        image_scores = logits_of(images.pooled, all_texts.pooled, self.temperature)
        draws = progress.uniform(batch, 2, "hard negatives")
        pairs = drawn_pairs(text_scores, image_scores, batch.same(), draws, first_row(rows), self.pace.hardness)

        pairs_images = Encoded.cat([images, all_images.select(pairs.images[rows : 2 * rows]), images])
        pairs_texts = Encoded.cat([texts, texts, all_texts.select(pairs.texts[2 * rows :])])
        wrong = torch.arange(rows, 3 * rows, device=batch.device)
        matched_states = self.text_over_image(images, texts)
        wrong_first = self.text_over_image_first(pairs_images.select(wrong), pairs_texts.select(wrong))
        text_logits = self.text_match_head(torch.cat([matched_states[:, 0], wrong_first]))
        logits = [text_logits]
        if self.ranked_twice:
            logits.append(self.image_match_head(self.image_over_text(pairs_images, pairs_texts)))
        loss = torch.stack([matching_loss(one_way, pairs.labels, 2) for one_way in logits]).mean()
        accuracy = matching_accuracy(torch.stack(logits).sum(0), pairs.labels)
        return loss, matched_states, accuracy, matching_gain(loss, pairs.labels, 2)

    def text_over_image(self, images: Encoded, texts: Encoded) -> Tensor:
        """[N, L, W]: text queries over image tokens."""
        return self.text_queries(texts.states["last"], texts.state_mask, images.states["last"], None)

    def text_over_image_first(self, images: Encoded, texts: Encoded) -> Tensor:
        """[N, W]: the first token of `text_over_image`, all that matching reads."""
        return self.text_queries.first(texts.states["last"], texts.state_mask, images.states["last"], None)

    def image_over_text(self, images: Encoded, texts: Encoded) -> Tensor:
        """[N, W]: image queries over text states, pooled; of a class token, all that matching reads."""
        pair = self.image_to_fusion(images.states["last"]), None, texts.states["last"], texts.state_mask
        if self.config.image.pool == "class":
            return self.image_queries.first(*pair)
        return self.encoders.image.pool(self.image_queries(*pair))

    def after_step(self, keep: Mapping[str, Tensor], progress: Progress) -> None:
        if self.config.ranking:
            self.pace.update(keep["matching_gain"])
        if "images" in keep:
            self.queue.enqueue(keep["images"], keep["texts"], keep["image_id"], keep["text_id"])

    def encode_images(self, images: Images) -> Encoded:
        return self.encoders.encode_images(images)

    def encode_texts(self, texts: Texts) -> Encoded:
        return self.encoders.encode_texts(texts.ids, texts.mask)

    def matches(self) -> bool:
        return self.config.ranking

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        """[N, 2] log-odds by the text-query and by the image-query cross encoder; [N, 1] by the first alone."""
        if not self.config.ranking:
            raise self.lacks("match", "model.ranking is off in this run")
        by_query = [log_odds(self.text_match_head(self.text_over_image_first(images, texts)))]
        if self.ranked_twice:
            by_query.append(log_odds(self.image_match_head(self.image_over_text(images, texts))))
        return torch.stack(by_query, 1).float()

    def rerank(self, match: Tensor, first: Tensor) -> Tensor:
        """Mean match probability plus cosine (section 6), in [-1, 2]."""
        return match.float().sigmoid().mean(1) + first

    def match_heat(self, images: Encoded, texts: Encoded) -> Tensor:
        """Grad-CAM of the text queries' log-odds in their middle layer, as ALBEF's grounding [choice]."""
        layer = rf"text_queries\.stack\.blocks\.{(self.config.fusion.layers - 1) // 2}\.cross"
        return heat_of(self, layer, lambda: self.match(images, texts)[:, 0], texts.state_mask, self.encoders.image.grid)

    def fuse(self, images: Sequence[Encoded], texts: Encoded) -> Fused:
        """Text-query states over the tokens of all pictures; pooled is the first token's."""
        memory = torch.cat([image.states["last"] for image in images], 1)
        states = self.text_queries(texts.states["last"], texts.state_mask, memory, None)
        return Fused(states[:, 0], states, texts.state_mask)
