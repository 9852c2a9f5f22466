"""VLMAE: half of every picture is hidden, and told from the text and from the fused states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images, Texts, same_pair
from tuwen.data.text import Vocabulary, mask_words
from tuwen.nn.backbones import normalised
from tuwen.nn.decoder import FeatureDecoder, PatchDecoder
from tuwen.nn.encoded import Encoded
from tuwen.nn.fusion import CrossEncoder, MatchHead, WordHead
from tuwen.nn.patch_masking import DRAWS, hide_exactly
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.temperature import Temperature
from tuwen.nn.towers import DualEncoder
from tuwen.objectives.contrastive import distilled_contrastive, logits_of
from tuwen.objectives.gather import global_contrast
from tuwen.objectives.masked_features import Distance, masked_features
from tuwen.objectives.masked_language import masked_language, masked_positions
from tuwen.objectives.masked_pixels import masked_pixels
from tuwen.objectives.matching import drawn_pairs, log_odds, matching_accuracy, matching_gain, matching_loss
from tuwen.systems.survey import Axes
from tuwen.systems.system import Fused, Losses, Paper, Progress, System
from tuwen.teachers.momentum import Momentum
from tuwen.teachers.pace import Pace
from tuwen.teachers.queue import FeatureQueue


@dataclass(frozen=True)
class RMIMConfig:
    """Regional masked image modelling: pixels of the hidden patches. RECONSTRUCTED from its name, all of it.

    mask: "block" hides rectangles, "random" single patches. condition: what the decoder looks at beside the visible
    patches: the clean "text", "fused" (text states after fusion), or "none".
    """

    mask: Literal["block", "random"] = "block"
    condition: Literal["text", "fused", "none"] = "text"
    weight: float = 1.0
    decoder: CrossEncoderConfig = field(default_factory=lambda: CrossEncoderConfig(384, 4, 6))


@dataclass(frozen=True)
class IFRConfig:
    """Image feature reconstruction: a tower's features of the whole picture. RECONSTRUCTED from its name, all of it.

    target: the momentum teacher's features, or this very tower's, without gradient. positions: patches that count.
    """

    target: Literal["momentum_full", "online_full_sg"] = "momentum_full"
    positions: Literal["all", "masked", "visible"] = "all"
    distance: Distance = "smooth_l1"
    weight: float = 1.0
    decoder: CrossEncoderConfig = field(default_factory=lambda: CrossEncoderConfig(384, 2, 6))


@dataclass(frozen=True)
class VLMAEConfig:
    """`text.layers` 6 as in ALBEF. single_pass: the masked picture replaces the whole one in every loss; False: it is a
    further pass, for the two reconstructions alone. distil: ALBEF's soft targets and queue (off at size tiny).
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    fusion: CrossEncoderConfig = field(default_factory=CrossEncoderConfig)
    embed: int = 256
    nested: tuple[int, ...] = ()  # widths of prefixes that are to be vectors of their own, see `nested_mean`
    mask_ratio: float = 0.5  # of the patches of a picture
    single_pass: bool = True
    rmim: RMIMConfig = field(default_factory=RMIMConfig)
    ifr: IFRConfig = field(default_factory=IFRConfig)
    distil: bool = True
    queue: int = 65536  # pairs
    queue_share: float = 0.25  # of an epoch, that the queue holds at most; 1 and more: as ALBEF's
    queue_from: float = 1.0  # epochs before queued keys count; 0 as ALBEF's
    momentum: float = 0.995
    momentum_rises: bool = True  # from 0.1 in the first steps, for training from scratch, see `Momentum`
    alpha: float = 0.4  # weight of the teacher's targets, reached at the end of the first epoch
    mask_share: float = 0.15  # of words
    hardness: float | None = None  # of negatives: 1 as ALBEF's, 0 any wrong pair; None: self-paced, see `Pace`
    score: Literal["fitted", "published"] = "fitted"  # the final one: see `tuwen.predictor.Predictor.final`

    def __post_init__(self):
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie between 0 and 1 (1 excluded), got {self.mask_ratio}")

    @classmethod
    def sized(cls, name: str) -> "VLMAEConfig":
        """Small decoders for the sizes that train in seconds and minutes."""
        small = {"tiny": CrossEncoderConfig(32, 1, 2), "demo": CrossEncoderConfig(64, 2, 4)}.get(name)
        others = {}
        if small is not None:
            others = {"rmim": replace(RMIMConfig(), decoder=small), "ifr": replace(IFRConfig(), decoder=small)}
        return size(name).fill(cls, distil=name != "tiny", **others)


class VLMAE(System):
    """ALBEF whose picture tower reads the visible patches alone; the hidden ones are told, so that none is overlooked.

    He et al., arXiv 2208.09374. RECONSTRUCTED: no code was released, and the abstract alone could be read. [A] from it:
    contrast, matching and masked words on what is visible, generative learning on what is not, a step that costs less
    (which only a masked pass that replaces the full one can give). [B] names from secondary notes: RMIM, IFR. [D] all
    else: ALBEF's parts and losses (`albef.py`), MAE's pixels, and the switches of the config (card, sections 4 and 12).

    - RMIM: a decoder with fixed positions gets the tower's visible patches, one learned vector elsewhere, and looks at
      the clean text in every layer; squared error of the hidden patches' normalised pixels. A fusion of text queries
      has no picture states to take in its middle, so the decoder's source is always the tower's output.
    - IFR: a learned query a patch looks at the fused states of the clean text; smooth L1 to the teacher's features of
      the whole picture, normalised. Its layers have self-attention too, as all of ours do.
    - Both are of true pairs alone. A negative of matching brings its own visible patches along.

    In use the tower reads the whole picture, and neither decoder is built. Equal pictures or texts are positives, the
    teacher has no dropout, momentum, queue and hardness are those of `albef` here, and re-ranking is by log-odds.
    """

    paper = Paper(
        title="VLMAE: Vision-Language Masked Autoencoder",
        venue="arXiv 2022",
        arxiv="2208.09374",
        code="none",
        idea="half of the picture is hidden and told from text and fused states, so that no place is overlooked",
        fidelity="reconstructed",
        image_encoder="ViT over visible patches",
        text_encoder="BERT (lower layers)",
        interaction="cosine, then text queries over image tokens",
        objectives=(
            "image-text contrast",
            "image-text matching",
            "masked language",
            "masked pixels",
            "feature reconstruction",
        ),
        decoder="pixels of patches",
        axes=Axes(
            text="bert",
            vision=("patch",),
            interaction=("dot_product", "dual_stream"),
            objectives=("cmcl", "itm", "mlm", "mae", "mfr", "distillation"),
            data=("cc3m", "coco", "vg_data", "sbu"),
            decoder="pixels",
            parts=("teacher", "queue"),
        ),
    )
    Config = VLMAEConfig
    softens = True
    training_only = ("teacher", "queue", "pace", "painter", "teller")
    index_fields = ("pooled", "states.last")

    def __init__(self, config: VLMAEConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.encoders = DualEncoder(config.image, config.text, config.embed, vocabulary)
        self.fusion = CrossEncoder(config.fusion, config.image.width)
        self.word_head = WordHead(config.fusion.width, vocabulary.size)
        self.match_head = MatchHead(config.fusion.width)
        side = config.image.side // config.image.patch
        self.grid = (side, side)
        self.hidden_patches = side * side - round((1 - config.mask_ratio) * side * side)
        text_width = {"text": config.text.width, "fused": config.fusion.width, "none": None}[config.rmim.condition]
        self.painter = PatchDecoder(config.rmim.decoder, config.image.width, self.grid, config.image.patch, text_width)
        self.teller = FeatureDecoder(config.ifr.decoder, config.fusion.width, side * side, config.image.width)
        self.temperature = Temperature()
        self.pace = Pace(config.hardness)
        momentum = config.ifr.weight and config.ifr.target == "momentum_full"
        parts = ("encoders", "fusion", "word_head") if config.distil else ("encoders",) if momentum else ()
        self.teacher = Momentum(self, parts, config.momentum, config.momentum_rises)
        if config.distil:
            self.queue = FeatureQueue(config.queue, config.embed)

    def before_step(self, progress: Progress) -> None:
        self.teacher.update(self, progress.step)
        if self.config.distil:
            self.queue.limit(int(self.config.queue_share * progress.epoch_pairs))

    # ---- what is hidden

    def masks(self, batch: Batch, progress: Progress) -> tuple[Tensor | None, Tensor | None]:
        """(kept [B, K] int64, hidden [B, N] bool); None, None where every patch is seen."""
        if not self.hidden_patches:
            return None, None
        draws = progress.uniform(batch, DRAWS + self.grid[0] * self.grid[1], "patches")
        return hide_exactly(draws, self.grid, self.hidden_patches, self.config.rmim.mask == "block")

    def encode(self, batch: Batch, progress: Progress) -> dict[str, Encoded]:
        """ "images" as all losses but the reconstructions read them; "visible" beside them where these are whole."""
        kept, _ = self.masks(batch, progress)
        visible = self.encoders.encode_images(batch.images, kept=kept)
        encoded = {"images": visible, "texts": self.encode_texts(batch.texts)}
        if kept is not None and not self.config.single_pass:
            encoded |= {"images": self.encode_images(batch.images), "visible": visible}
        return encoded

    # ---- the losses

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        images, texts = encoded["images"], encoded["texts"]
        taught = self.taught(batch)
        contrast = self.contrast(images, texts, taught, batch, progress)
        fused, matching, accuracy, gain = self.matching(images, texts, taught, batch, progress)
        words = self.masked_words(images, taught, batch, progress)
        terms = {"contrast": contrast, "matching": matching, "masked_words": words}
        visible = encoded.get("visible")
        if visible is not None:
            fused = self.fusion(texts.states["last"], texts.state_mask, visible.states["last"], None)
        terms |= self.reconstructions(images if visible is None else visible, texts, fused, taught, batch, progress)
        return self.reported(terms, taught, accuracy, gain, batch, progress)

    def retrieval(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        """Contrast and matching, as in pre-training."""
        images, texts, taught = encoded["images"], encoded["texts"], self.taught(batch)
        contrast = self.contrast(images, texts, taught, batch, progress)
        _, matching, accuracy, gain = self.matching(images, texts, taught, batch, progress)
        return self.reported({"contrast": contrast, "matching": matching}, taught, accuracy, gain, batch, progress)

    def reported(self, terms: dict[str, Tensor], taught, accuracy: Tensor, gain: Tensor, batch, progress) -> Losses:
        """The terms, with what the pace and the queue are given after the step."""
        keep = {"matching_gain": gain.expand(len(batch))}
        metrics = {"temperature": self.temperature.detach(), "matching_accuracy": accuracy, **self.pace.metrics()}
        if self.config.distil:
            keep |= {"images": taught[0].pooled, "texts": taught[1].pooled}
            keep |= {"image_id": batch.image_id, "text_id": batch.text_id}
            metrics["queued_keys"] = self.queue.filled(progress.past(self.config.queue_from))
        return Losses(terms, keep, metrics)

    @torch.no_grad()
    def taught(self, batch: Batch) -> tuple[Encoded, Encoded]:
        """The teacher's view of the whole picture, and of the text where it distils; empty where there is none."""
        images, texts = Encoded(), Encoded()
        if self.teacher.parts:
            images = self.teacher.encoders.encode_images(batch.images)
        if self.config.distil:
            texts = self.teacher.encoders.encode_texts(batch.texts.ids, batch.texts.mask)
        return images, texts

    def contrast(self, images, texts, taught, batch, progress):
        """ALBEF's, section 4.1, or without a teacher's targets and queue the plain one."""
        if not self.config.distil:
            return global_contrast(
                images.pooled, texts.pooled, batch.same(), self.temperature, self.config.nested, batch.softening()
            )
        taught_images, taught_texts = (encoded.pooled for encoded in taught)
        queued = self.queue.read(progress.past(self.config.queue_from))
        keys = queued.behind(taught_images, taught_texts, batch.image_id, batch.text_id)
        return distilled_contrastive(
            (images.pooled, texts.pooled),
            (taught_images, taught_texts),
            (keys.images, keys.texts),
            same_pair(batch.image_id, batch.text_id, keys.image_id, keys.text_id),
            self.temperature,
            progress.ramp(self.config.alpha),
            real=keys.real,
            nested=self.config.nested,
            smoothing=batch.softening(),
        )

    def matching(self, images, texts, taught, batch, progress):
        """The fused states of true pairs [B, L, W]; loss, accuracy and gain over them and 2B pairs drawn as ALBEF's.

        A picture's states are of its own visible patches, in whatever pair it stands.
        """
        image_keys, text_keys = taught if self.config.distil else (images, texts)
        text_scores = logits_of(texts.pooled, image_keys.pooled, self.temperature)
        image_scores = logits_of(images.pooled, text_keys.pooled, self.temperature)
        draws = progress.uniform(batch, 2, "hard negatives")
        pairs = drawn_pairs(text_scores, image_scores, batch.same_here(), draws, hardness=self.pace.hardness)
        fused = self.fusion(texts.states["last"], texts.state_mask, images.states["last"], None)
        wrong_images, wrong_texts = pairs.images[len(batch) :], pairs.texts[len(batch) :]
        wrong = self.match_logits(images.select(wrong_images), texts.select(wrong_texts))
        logits = torch.cat([self.match_head(fused[:, 0]), wrong])
        loss = matching_loss(logits, pairs.labels)
        return fused, loss, matching_accuracy(logits, pairs.labels), matching_gain(loss, pairs.labels)

    def masked_words(self, images, taught, batch, progress):
        """ALBEF's, section 4.3, told from the visible patches; the teacher sees the whole picture."""
        draws = progress.uniform(batch, 3 * batch.texts.ids.shape[1], "mask")
        masked, labels = mask_words(batch.texts, self.vocabulary, draws, self.config.mask_share)
        index, words = masked_positions(labels)
        logits = self.word_logits(self, images, masked, index)
        if not self.config.distil:
            return masked_language(logits, words)
        with torch.no_grad():
            soft = self.word_logits(self.teacher, taught[0], masked, index)
        return masked_language(logits, words, soft, progress.ramp(self.config.alpha))

    @staticmethod
    def word_logits(parts: nn.Module, images: Encoded, masked: Texts, index: Tensor) -> Tensor:
        """[K, V] of the K masked positions, by the student's parts or the teacher's."""
        texts = parts.encoders.encode_texts(masked.ids, masked.mask)
        states = parts.fusion(texts.states["last"], masked.mask, images.states["last"], None)
        return parts.word_head(states.flatten(0, 1)[index], parts.encoders.text.words.weight)

    def reconstructions(self, images, texts, fused, taught, batch, progress) -> dict[str, Tensor]:
        """RMIM and IFR, weighted (card, section 4): of true pairs, given the clean text and its fused states."""
        rmim, ifr, tower = self.config.rmim, self.config.ifr, self.encoders.image
        kept, hidden = self.masks(batch, progress)
        terms = {}
        if rmim.weight and hidden is not None:
            read = {"text": texts.states["last"], "fused": fused, "none": None}[rmim.condition]
            mask = None if read is None else texts.state_mask
            painted = self.painter(tower.grid(images.states["last"]), kept, read, mask)
            pixels = normalised(batch.images.pixels, tower.mean, tower.std)
            terms["masked_pixels"] = rmim.weight * masked_pixels(painted, pixels, hidden, self.config.image.patch)
        if ifr.weight:
            if ifr.target == "online_full_sg":
                with torch.no_grad():
                    features = tower.tokens(batch.images)
            else:
                features = taught[0].states["last"]
            rebuilt = self.teller(fused, texts.state_mask)
            everywhere = rebuilt.new_ones(rebuilt.shape[:2], dtype=torch.bool)
            hidden = ~everywhere if hidden is None else hidden
            asked = {"all": everywhere, "masked": hidden, "visible": ~hidden}[ifr.positions]
            terms["features"] = ifr.weight * masked_features(rebuilt, tower.grid(features), asked, ifr.distance)
        return terms

    def after_step(self, keep: Mapping[str, Tensor], progress: Progress) -> None:
        self.pace.update(keep["matching_gain"])
        if self.config.distil:
            self.queue.enqueue(keep["images"], keep["texts"], keep["image_id"], keep["text_id"])

    # ---- use: whole pictures

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
