"""SIMLA: one BERT reads texts alone, and text or picture with the other beside it; aligned at four levels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images, Texts, same_pair
from tuwen.data.text import Vocabulary, mask_words
from tuwen.data.views import View
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.nn.fusion import MatchHead, WordHead
from tuwen.nn.patch_codes import FACTOR, CodeEncoder, CodesConfig, load_codes
from tuwen.nn.patch_masking import DRAWS, block_size, hide_blocks
from tuwen.nn.relations import recorded
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.temperature import Temperature
from tuwen.nn.towers import DualEncoder, ImageTower, TextTower
from tuwen.nn.transformer import Attention
from tuwen.objectives.contrastive import distilled_contrastive, logits_of
from tuwen.objectives.keywords import keyword_loss, recall_among, voted, word_labels
from tuwen.objectives.masked_language import masked_language, masked_positions
from tuwen.objectives.matching import drawn_pairs, log_odds, matching_accuracy, matching_gain, matching_loss
from tuwen.systems.survey import Axes
from tuwen.systems.system import Fused, Losses, Needs, Paper, Progress, System
from tuwen.teachers.momentum import Momentum
from tuwen.teachers.pace import Pace
from tuwen.teachers.queue import FeatureQueue


@dataclass(frozen=True)
class SIMLAConfig:
    """Every layer of the text tower has cross-attention beside its own; there is no further cross encoder.

    codes: the patch tokenizer's size; tokenizer: a run of `dvae`, or published weights of DALL-E's encoder in
        transformers' layout. None: codes of an untrained encoder, see the class.
    patch_weight: of the loss of masked patches; 0 leaves it out.
    code_crop: "same" gives codes and tower one piece of the picture, "own" each its own, as the code does.
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    embed: int = 256
    nested: tuple[int, ...] = ()  # widths of prefixes that are to be vectors of their own, see `nested_mean`
    codes: CodesConfig = field(default_factory=CodesConfig)
    tokenizer: str | None = None
    code_crop: Literal["same", "own"] = "same"
    votes: int = 4  # tokens that a head names as keywords
    keywords: int = 5  # of a text, at most
    patch_weight: float = 1.0
    queue: int = 65536  # pairs
    queue_share: float = 0.25  # of an epoch, that the queue holds at most [choice]; 1 and more: as published
    queue_from: float = 1.0  # epochs before queued keys count; 0 as published
    momentum: float = 0.995
    momentum_rises: bool = True  # from 0.1 in the first steps [choice], for training from scratch, see `Momentum`
    alpha: float = 0.4  # weight of the teacher's targets, reached at the end of the first epoch
    mask_share: float = 0.15
    hardness: float | None = None  # of negatives: 1 as published, 0 any wrong pair; None: self-paced, see `Pace`
    score: Literal["fitted", "published"] = "fitted"  # the final one: see `tuwen.predictor.Predictor.final`

    def __post_init__(self):
        if self.patch_weight < 0:
            raise ValueError(f"patch_weight must be 0 or more, got {self.patch_weight}")

    @classmethod
    def sized(cls, name: str) -> "SIMLAConfig":
        return size(name).fill(cls, codes=CodesConfig.sized(name))


class PatchInput(nn.Module):
    """What stands in place of a hidden patch, and the positions of a picture's tokens where BERT reads them."""

    def __init__(self, image: ImageTowerConfig, tokens: int, width: int):
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(image.width))
        self.positions = nn.Parameter(torch.zeros(tokens, width))


class SIMLA(System):
    """Contrast and matching as ALBEF's; masked words told with the picture, codes of masked patches told with the text;
    and the picture's vector tells its caption's keywords. A momentum teacher softens all but matching.

    Khan et al., ECCV 2022; equations as in the paper and its code (sections are the method card's). One BERT is text
    encoder (cross-attention off) and multimodal encoder (on), of text queries over picture tokens or of picture queries
    over the caption's embedding layer. As the code and perhaps not as meant: those text keys are the student's in the
    teacher's branch too, and the attention that chooses keywords is the teacher's over the student's picture tokens.

    Where ours differs, [choice]: codes and tower see one piece of the picture (theirs draw a crop each, so that code k
    is not of patch k; `code_crop` "own" is theirs); padding and special tokens are no keywords, and a token without a
    vote is none; picture queries have positions of their own, since our text towers' end with the longest text;
    pictures or texts that are equal are positives, also in the queue; the teacher has no dropout; re-ranking is by
    log-odds; for training from scratch momentum, queue and hardness are those of `albef` here. Without `tokenizer` the
    codes are of an encoder that nobody trained, as in `flava`: enough to run, not the published method.
    """

    paper = Paper(
        title="Single-Stream Multi-Level Alignment for Vision-Language Pretraining",
        venue="ECCV 2022",
        arxiv="2203.14395",
        code="github.com/codezakh/SIMLA",
        idea="one BERT with cross-attention switched on and off; words from pictures, patches from words, keywords",
        fidelity="code",
        image_encoder="ViT",
        text_encoder="BERT",
        interaction="cosine, then text queries over image tokens in every layer",
        objectives=(
            "image-text contrast",
            "image-text matching",
            "masked language",
            "masked image given the text",
            "pseudo-labelled keywords",
            "momentum distillation",
        ),
        axes=Axes(
            text="bert",
            vision=("patch",),
            interaction=("dot_product", "dual_stream"),
            objectives=("cmcl", "itm", "mlm", "mim", "xmm", "psl", "distillation"),
            data=("cc3m", "coco", "vg_data", "sbu"),
            parts=("teacher", "queue", "codebook"),
        ),
    )
    Config = SIMLAConfig
    softens = True
    index_fields = ("pooled", "states.last")
    training_only = ("teacher", "queue", "pace", "codes")

    @classmethod
    def needs(cls, config: SIMLAConfig) -> Needs:
        side = config.image.side // config.image.patch * FACTOR
        return Needs(views={"codes": View(side, crop=config.code_crop)} if config.patch_weight else {})

    def __init__(self, config: SIMLAConfig, vocabulary: Vocabulary):
        """
        Raises:
            UserError: another text tower than BERT's, another picture tower than a ViT, or towers of unequal width.
        """
        super().__init__()
        image, text = config.image, config.text
        if text.backbone is not None or text.kind != "bert" or image.backbone is not None:
            raise UserError(
                "simla reads pictures and texts with its own BERT: model.text.kind must be bert, without "
                "model.text.backbone and model.image.backbone"
            )
        if image.width != text.width:
            raise UserError(
                f"simla reads both sides by one BERT: model.image.width {image.width} must be "
                f"model.text.width {text.width}"
            )
        self.config, self.vocabulary = config, vocabulary
        self.encoders = DualEncoder(image, text, config.embed, vocabulary)
        assert isinstance(self.encoders.image, ImageTower)
        assert isinstance(self.encoders.text, TextTower)
        for block in self.encoders.text.stack.blocks:
            block.cross = Attention(text.width, text.heads, image.width, text.dropout)
            block.cross_norm = nn.LayerNorm(text.width, text.eps)
        self.patch_input = PatchInput(image, len(self.encoders.image.positions), text.width)
        self.word_head = WordHead(text.width, vocabulary.size)
        self.code_head = nn.Linear(text.width, config.codes.vocabulary)
        self.concept_head = nn.Linear(config.embed, vocabulary.size)
        self.match_head = MatchHead(text.width)
        self.temperature = Temperature()
        parts = ("encoders", "patch_input", "word_head", "code_head", "concept_head")
        self.teacher = Momentum(self, parts, config.momentum, config.momentum_rises)
        self.pace = Pace(config.hardness)
        self.queue = FeatureQueue(config.queue, config.embed)
        self.codes = CodeEncoder(config.codes).requires_grad_(False)

    def begin(self) -> None:
        if self.config.tokenizer:
            load_codes(self.codes, self.config.tokenizer)

    def before_step(self, progress: Progress) -> None:
        self.teacher.update(self, progress.step)
        self.queue.limit(int(self.config.queue_share * progress.epoch_pairs))

    # ---- the one BERT; `parts` are the system's own or the teacher's

    @staticmethod
    def embedded(parts, ids: Tensor) -> Tensor:
        """[B, L, W] words and positions of ids [B, L], before the norm of the embedding layer."""
        return parts.encoders.text.words(ids) + parts.encoders.text.positions[: ids.shape[1]]

    @staticmethod
    def multimodal(parts, x: Tensor, mask: Tensor | None, memory: Tensor, memory_mask: Tensor | None = None, only=None):
        """[B, L, W] of embeddings x [B, L, W] read with a memory [B, S, W]: all layers, cross-attention on."""
        text = parts.encoders.text
        return text.stack(text.dropout(text.embedding_norm(x)), mask, memory, memory_mask, only=only)

    # ---- the losses

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        images, alpha = encoded["images"], progress.ramp(self.config.alpha)
        aligned, taught_images = self.aligned(encoded, batch, progress)
        keywords, recall = self.keywords(images, taught_images, batch.texts, alpha)
        terms = {
            **aligned.terms,
            "masked_words": self.masked_words(images, taught_images, batch, progress, alpha),
            "keywords": keywords,
        }
        if weight := self.config.patch_weight:
            terms["masked_patches"] = weight * self.masked_patches(encoded["texts"], batch, progress, alpha)
        return replace(aligned, terms=terms, metrics={**aligned.metrics, "keyword_recall": recall})

    def retrieval(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        """Contrast and matching, with the teacher and its queue as in pre-training."""
        return self.aligned(encoded, batch, progress)[0]

    def aligned(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> tuple[Losses, Encoded]:
        """Contrast and matching, and the pictures as the teacher sees them."""
        images, texts = encoded["images"], encoded["texts"]
        with torch.no_grad():
            taught_images = self.teacher.encoders.encode_images(batch.images)
            taught_texts = self.teacher.encoders.encode_texts(batch.texts.ids, batch.texts.mask, states=False)
        matching, accuracy, gain = self.matching(images, texts, taught_images, taught_texts, batch, progress)
        contrast = self.contrast(images, texts, taught_images, taught_texts, batch, progress)
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
        """Section 4.1: ALBEF's, the text's vector being that of all layers without cross-attention."""
        queued = self.queue.read(progress.past(self.config.queue_from))
        keys = queued.behind(taught_images.pooled, taught_texts.pooled, batch.image_id, batch.text_id)
        return distilled_contrastive(
            (images.pooled, texts.pooled),
            (taught_images.pooled, taught_texts.pooled),
            (keys.images, keys.texts),
            same_pair(batch.image_id, batch.text_id, keys.image_id, keys.text_id),
            self.temperature,
            progress.ramp(self.config.alpha),
            real=keys.real,
            nested=self.config.nested,
            smoothing=batch.softening(),
        )

    def matching(self, images, texts, taught_images, taught_texts, batch, progress):
        """Section 4.2: ALBEF's pairs, fused from their words through all layers."""
        text_scores = logits_of(texts.pooled, taught_images.pooled, self.temperature)
        image_scores = logits_of(images.pooled, taught_texts.pooled, self.temperature)
        draws = progress.uniform(batch, 2, "hard negatives")
        pairs = drawn_pairs(text_scores, image_scores, batch.same_here(), draws, hardness=self.pace.hardness)
        logits = self.match_logits(images.select(pairs.images), texts.select(pairs.texts))
        loss = matching_loss(logits, pairs.labels)
        return loss, matching_accuracy(logits, pairs.labels), matching_gain(loss, pairs.labels)

    def masked_words(self, images, taught_images, batch, progress, alpha):
        """Section 4.3, MLM: words told from text and picture; the teacher reads the same masked words."""
        draws = progress.uniform(batch, 3 * batch.texts.ids.shape[1], "mask")
        masked, labels = mask_words(batch.texts, self.vocabulary, draws, self.config.mask_share)
        index, words = masked_positions(labels)
        logits = self.word_logits(self, images, masked, index)
        with torch.no_grad():
            taught = self.word_logits(self.teacher, taught_images, masked, index)
        return masked_language(logits, words, taught, alpha)

    @classmethod
    def word_logits(cls, parts, images: Encoded, masked: Texts, index: Tensor) -> Tensor:
        """[K, V] of the K masked positions."""
        states = cls.multimodal(parts, cls.embedded(parts, masked.ids), masked.mask, images.states["last"])
        return parts.word_head(states.flatten(0, 1)[index], parts.encoders.text.words.weight)

    def hide(self, batch: Batch, progress: Progress) -> Tensor:
        """[B, h, w] bool: BEiT's blocks, at most 75 of 256 patches, a block at least 16."""
        side = self.config.image.side // self.config.image.patch
        return hide_blocks(progress.uniform(batch, DRAWS, "patches"), (side, side), *block_size(side * side, of=256))

    def masked_patches(self, texts, batch, progress, alpha):
        """Section 4.3, MIM: codes of hidden patches told from the rest of the picture and the clean caption."""
        hidden = self.hide(batch, progress)
        codes = self.codes.codes(batch.images.views["codes"])[hidden]
        text = self.encoders.text
        words = text.dropout(text.embedding_norm(texts.states["last"])), texts.state_mask
        logits = self.code_logits(self, batch.images, hidden, *words)
        with torch.no_grad():
            taught = self.code_logits(self.teacher, batch.images, hidden, *words)
        return masked_language(logits, codes, taught, alpha)

    @classmethod
    def code_logits(cls, parts, images: Images, hidden: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """[K, codes] at the K hidden patches: picture queries over the embedded words [B, L, W] of the caption."""
        tower = parts.encoders.image
        tokens = tower.tokens(images, hidden=(hidden, parts.patch_input.mask_token))
        states = cls.multimodal(parts, tokens + parts.patch_input.positions, None, words, mask)
        return parts.code_head(tower.grid(states)[hidden.flatten(1)])

    def keywords(self, images: Encoded, taught_images: Encoded, texts: Texts, alpha: float) -> tuple[Tensor, Tensor]:
        """Section 4.4, PSL: the picture's vector tells what the caption's keywords are, and what the teacher sees in
        it; the loss, and the share of keywords among the five words told first."""
        attention = self.attention(images.detach(), texts)
        words = self.vocabulary
        special = torch.tensor([words.pad, words.unknown, words.cls, words.sep, words.mask], device=texts.ids.device)
        allowed = texts.mask & ~torch.isin(texts.ids, special)
        chosen = voted(attention, allowed, self.config.votes, self.config.keywords)
        labels = word_labels(texts.ids, chosen, self.vocabulary.size)
        logits = self.concept_head(images.pooled)
        with torch.no_grad():
            taught = self.teacher.concept_head(taught_images.pooled)
        return keyword_loss(logits, labels, taught, alpha), recall_among(logits, labels)

    @torch.no_grad()
    def attention(self, images: Encoded, texts: Texts) -> Tensor:
        """[B, H, L]: where the first token looks in the last layer's self-attention of the teacher's BERT."""
        last = len(self.encoders.text.stack.blocks) - 1
        first = torch.zeros(len(texts), dtype=torch.int64, device=texts.ids.device)
        with recorded(self.teacher, rf"encoders\.text\.stack\.blocks\.{last}\.attention") as relations:
            x = self.embedded(self.teacher, texts.ids)
            self.multimodal(self.teacher, x, texts.mask, images.states["last"], only=first)
        (relation,) = relations.values()
        return relation.attention[:, :, 0]

    def after_step(self, keep: Mapping[str, Tensor], progress: Progress) -> None:
        self.pace.update(keep["matching_gain"])
        self.queue.enqueue(keep["images"], keep["texts"], keep["image_id"], keep["text_id"])

    # ---- use

    def encode_images(self, images: Images) -> Encoded:
        return self.encoders.encode_images(images)

    def encode_texts(self, texts: Texts) -> Encoded:
        """pooled, as the text is read alone; states "last" [B, L, W]: its embeddings, which are read with a picture."""
        pooled = self.encoders.encode_texts(texts.ids, texts.mask, states=False).pooled
        return Encoded(pooled, states={"last": self.embedded(self, texts.ids)}, state_mask=texts.mask)

    def match_logits(self, images: Encoded, texts: Encoded) -> Tensor:
        """[N, 2] logits (no match, match) of pairs (image n, text n)."""
        x, mask = texts.states["last"], texts.state_mask
        first = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        return self.match_head(self.multimodal(self, x, mask, images.states["last"], only=first)[:, 0])

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        return log_odds(self.match_logits(images, texts).float())[:, None]

    def fuse(self, images: Sequence[Encoded], texts: Encoded) -> Fused:
        """Text states with cross-attention over the tokens of all pictures; pooled is the first token's."""
        memory = torch.cat([image.states["last"] for image in images], 1)
        states = self.multimodal(self, texts.states["last"], texts.state_mask, memory)
        return Fused(states[:, 0], states, texts.state_mask)
