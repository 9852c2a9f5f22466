"""FLAVA: one model for pictures, for texts and for both, learned from pairs, pictures alone and texts alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images, Texts, same_pair
from tuwen.data.gather import gather
from tuwen.data.text import Vocabulary, mask_words
from tuwen.data.views import View
from tuwen.nn.encoded import Encoded
from tuwen.nn.fusion import MatchHead
from tuwen.nn.patch_codes import FACTOR, CodeEncoder, CodesConfig, load_codes
from tuwen.nn.patch_masking import DRAWS, block_size, hide_blocks
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.temperature import log_scale
from tuwen.nn.towers import DualEncoder, unit
from tuwen.nn.transformer import Stack
from tuwen.objectives.contrastive import contrastive, nested_mean
from tuwen.objectives.gather import global_contrast
from tuwen.objectives.masked_language import masked_language, masked_positions
from tuwen.objectives.matching import IGNORED, log_odds, matching_gain, matching_loss, one_wrong
from tuwen.systems.survey import Axes
from tuwen.systems.system import Fused, Losses, Needs, Paper, Progress, System


@dataclass(frozen=True)
class FLAVAConfig:
    """sources: share of the steps that draw pairs, pictures alone, texts alone (0.70, 0.15, 0.15 in the paper).

    codes: the patch tokenizer's size; tokenizer: a run of `dvae`, or published weights of DALL-E's encoder in
        transformers' layout. None: codes of an untrained encoder (random projections, as BEST-RQ's), see the class.
    fusion: the multimodal encoder; wrong_share: pairs whose text is another row's, for matching.
    whole_words: in pairs, words are masked whole, as published; texts alone by token.
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=lambda: TextTowerConfig(kind="flava"))
    fusion: CrossEncoderConfig = field(default_factory=CrossEncoderConfig)
    embed: int = 768
    codes: CodesConfig = field(default_factory=CodesConfig)
    tokenizer: str | None = None
    sources: Mapping[str, float] = field(default_factory=lambda: {"pairs": 0.7, "images": 0.15, "texts": 0.15})
    mask_share: float = 0.15
    wrong_share: float = 0.1
    whole_words: bool = True
    nested: tuple[int, ...] = ()  # widths of prefixes that are to be vectors of their own, see `nested_mean`
    score: Literal["fitted", "published"] = "fitted"  # the final one: see `tuwen.predictor.Predictor.final`

    @classmethod
    def sized(cls, name: str) -> "FLAVAConfig":
        towers = size(name)
        return towers.fill(cls, text=replace(towers.text, kind="flava"), codes=CodesConfig.sized(name))


class FLAVA(System):
    """Pairs: contrast, matching, masked words and masked patches on the joint states. Pictures alone: masked patches.
    Texts alone: masked words. All weights 1 (Singh et al., CVPR 2022; sections are the method card's).

    As the released code: the contrast reads what is unmasked, after the towers' final norms; the joint encoder reads
    the towers' states before those norms; matching is told on the masked pass; rows whose text was changed for another
    are columns of the contrast but ask for nothing, and have no masked losses, unless all rows are such. Positives of
    the contrast are texts that are really a picture's own, wherever in the batch they stand.
    Ours differs by choice: padding is masked in the joint encoder too; equal pictures or texts are positives of each
    other; a wrong text is another row's of the batch (theirs: of the data set); re-ranking adds the match probability
    to the cosine (the paper ranks by the cosine alone); and towers start from scratch unless told otherwise, whereas
    the published model starts from DINO and a masked language model.

    Without `tokenizer` the targets are codes of an encoder that nobody trained: a fixed random map from patches to a
    few codes (4 to 11 in use on scenes). That is enough to run, but not the published method.
    """

    paper = Paper(
        title="FLAVA: A Foundational Language And Vision Alignment Model",
        venue="CVPR 2022",
        arxiv="2112.04482",
        code="github.com/facebookresearch/multimodal",
        idea="one model for pictures, texts and both, from pairs and from each alone",
        fidelity="code",
        image_encoder="ViT",
        text_encoder="ViT-like transformer",
        interaction="cosine, then self-attention over both sides' states",
        objectives=(
            "image-text contrast",
            "masked multimodal",
            "image-text matching",
            "masked image",
            "masked language",
        ),
        axes=Axes(
            text="vit",
            vision=("patch",),
            interaction=("dot_product", "single_stream"),
            objectives=("cmcl", "mmm", "itm", "mim", "mlm"),
            data=("pmd", "imagenet", "ccnews_books"),
            parts=("codebook",),
        ),
    )
    Config = FLAVAConfig
    index_fields = ("pooled", "states.last")

    @classmethod
    def needs(cls, config: FLAVAConfig) -> Needs:
        views = {"codes": View(config.image.side // config.image.patch * FACTOR)}
        return Needs(views=views, spans=("word",) if config.whole_words else (), sources=config.sources)

    def __init__(self, config: FLAVAConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.encoders = DualEncoder(config.image, config.text, config.embed, vocabulary)
        self.mask_token = nn.Parameter(torch.zeros(config.image.width))
        width, eps = config.fusion.width, config.fusion.eps
        self.image_to_fusion = nn.Linear(config.image.width, width)
        self.text_to_fusion = nn.Linear(config.text.width, width)
        self.class_token = nn.Parameter(torch.zeros(width))
        self.fusion = Stack.of(config.fusion, "pre")
        self.match_pooler, self.match_head = nn.Linear(width, width), MatchHead(width)
        self.patch_head = PredictionHead(config.image.width, config.codes.vocabulary, eps)
        self.word_head = PredictionHead(config.text.width, vocabulary.size, eps)
        self.joint_patch_head = PredictionHead(width, config.codes.vocabulary, eps)
        self.joint_word_head = PredictionHead(width, vocabulary.size, eps)
        self.log_scale = log_scale()
        self.codes = CodeEncoder(config.codes).requires_grad_(False)

    def begin(self) -> None:
        if self.config.tokenizer:
            load_codes(self.codes, self.config.tokenizer)

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        if batch.images is None:
            masked, labels = self.mask_texts(batch, progress, whole=False)
            return Losses({"masked_words": self.masked_words(masked, labels)})
        hidden = self.hide(batch, progress)
        codes = self.codes.codes(batch.images.views["codes"])
        if batch.texts is None:
            return Losses({"masked_patches": self.masked_patches(batch.images, hidden, codes)})
        wrong, matched = self.wrong_texts(batch, progress)
        masked, labels = self.mask_texts(batch, progress, whole=self.config.whole_words)
        own = batch.image_id, batch.text_id
        terms, accuracy = self.pair_losses(
            encoded["images"],
            encoded["texts"].select(wrong),
            (own, (own[0][wrong], own[1][wrong])),
            matched,
            (batch.images, hidden, codes),
            (masked.select(wrong), labels[wrong]),
        )
        metrics = {"temperature": (-self.log_scale.detach()).exp(), "matching_accuracy": accuracy}
        return Losses(terms, metrics=metrics | {"matching_gain": matching_gain(terms["matching"], matched.long())})

    def retrieval(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        """Section 6 scores by the projections alone: their contrast [choice; the paper tunes none]."""
        contrast = global_contrast(
            encoded["images"].pooled,
            encoded["texts"].pooled,
            batch.same(),
            (-self.log_scale).exp(),
            self.config.nested,
        )
        return Losses({"contrast": contrast})

    # ---- what is hidden, what is wrong

    def hide(self, batch: Batch, progress: Progress) -> Tensor:
        """[B, h, w] bool: blocks of patches, at most 75 of 196 of them (section 4)."""
        side = self.config.image.side // self.config.image.patch
        draws = progress.uniform(batch, DRAWS, "patches")
        return hide_blocks(draws, (side, side), *block_size(side * side))

    def mask_texts(self, batch: Batch, progress: Progress, whole: bool) -> tuple[Texts, Tensor]:
        draws = progress.uniform(batch, 3 * batch.texts.ids.shape[1], "mask")
        words = batch.texts.spans if whole else None
        return mask_words(batch.texts, self.vocabulary, draws, self.config.mask_share, words, sep=False, some=True)

    def wrong_texts(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor]:
        """(which row's text each row has [B] int64, whether it is a match [B] bool)."""
        draws = progress.uniform(batch, 2, "wrong text")
        own = torch.arange(len(batch), device=batch.device)
        same = batch.same_here()
        changed = (draws[:, 0] < self.config.wrong_share) & ~same.all(1)
        return torch.where(changed, one_wrong(same, draws[:, 1]), own), ~changed

    # ---- the losses

    def pair_losses(
        self,
        images: Encoded,
        texts: Encoded,
        ids: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
        matched: Tensor,
        seen: tuple[Images, Tensor, Tensor],
        read: tuple[Texts, Tensor],
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of pairs, and the matching accuracy.

        images, texts: unmasked. ids: of the pair (picture, text) that each picture comes from, and that each
        text beside it does; a text changed for another has its own. matched: [B] bool.
        seen: pictures, hidden [B, h, w], codes [B, h, w]. read: masked texts and labels [B, L].
        """
        asked = matched | ~matched.any()  # rows that have more than a matching loss
        rows = torch.nonzero(asked)[:, 0]
        columns = gather(images.pooled), gather(texts.pooled)
        queries = images.select(rows).pooled, texts.select(rows).pooled
        same, same_texts = (
            same_pair(*(x[rows] for x in asks), *(gather(x) for x in asked_of))
            for asks, asked_of in (ids, reversed(ids))
        )
        contrast = nested_mean(
            lambda a, b, c, d: contrastive(a, b, c, d, same, (-self.log_scale).exp(), same_texts),
            (*queries, *columns),
            self.config.nested,
        )
        pictures, hidden, codes = seen
        masked, labels = read
        states = self.joint(
            self.image_states(pictures, hidden)[0], self.text_states(masked.ids, masked.mask)[0], masked.mask
        )
        logits = self.match_logits(states[:, 0])
        labels = labels.masked_fill(~asked[:, None], IGNORED)
        targets = codes.masked_fill(~(hidden & asked[:, None, None]), IGNORED).flatten(1)
        length, patches = masked.ids.shape[1], targets.shape[1]
        at_patches = states[:, -length - patches : -length]
        terms = {
            "contrast": contrast,
            "matching": matching_loss(logits, matched.long()),
            "joint_masked_words": _masked_loss(self.joint_word_head, states[:, -length:], labels),
            "joint_masked_patches": _masked_loss(self.joint_patch_head, at_patches, targets),
        }
        return terms, (logits.detach().argmax(1) == matched).float().mean()

    def masked_words(self, masked: Texts, labels: Tensor) -> Tensor:
        """Texts alone: words told from the text tower's states after its final norm."""
        return _masked_loss(self.word_head, self.text_states(masked.ids, masked.mask)[1], labels)

    def masked_patches(self, pictures: Images, hidden: Tensor, codes: Tensor) -> Tensor:
        """Pictures alone: codes of hidden patches told from the image tower's states after its final norm."""
        targets = codes.masked_fill(~hidden, IGNORED).flatten(1)
        states = self.image_states(pictures, hidden)[1]
        return _masked_loss(self.patch_head, states[:, -targets.shape[1] :], targets)

    # ---- the encoders

    def image_states(self, images: Images, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[B, N, W] tokens before the image tower's final norm, and after it."""
        layers: list[Tensor] = []
        instead = None if hidden is None else (hidden, self.mask_token)
        after = self.encoders.image.tokens(images, layers=layers, hidden=instead)
        return layers[-1], after

    def text_states(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L, W] states before the text tower's final norm, and after it."""
        layers: list[Tensor] = []
        after = self.encoders.text(ids, mask, layers=layers)
        return layers[-1], after

    def joint(self, images: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
        """[B, 1 + N + L, W] joint states: the class token, the image tokens [B, N, .], the text's [B, L, .]."""
        first = self.class_token.to(images.dtype).expand(images.shape[0], 1, -1)
        x = torch.cat([first, self.image_to_fusion(images), self.text_to_fusion(texts)], 1)
        return self.fusion(x, torch.cat([mask.new_ones(x.shape[0], x.shape[1] - mask.shape[1]), mask], 1))

    def match_logits(self, pooled: Tensor) -> Tensor:
        """[N, 2] logits (no match, match) from the joint class token's state."""
        return self.match_head(self.match_pooler(pooled).tanh())

    def encode_images(self, images: Images) -> Encoded:
        before, after = self.image_states(images)
        pooled = self.encoders.image_projection(self.encoders.image.pooled(after))
        return Encoded(unit(pooled), states={"last": before})

    def encode_texts(self, texts: Texts) -> Encoded:
        before, after = self.text_states(texts.ids, texts.mask)
        pooled = self.encoders.text_projection(self.encoders.text.pooled(after, texts.mask))
        return Encoded(unit(pooled), states={"last": before}, state_mask=texts.mask)

    def fuse(self, images: Sequence[Encoded], texts: Encoded) -> Fused:
        """Joint states of all pictures' tokens and the text's, unmasked; pooled is the joint class token's."""
        assert texts.state_mask is not None
        tokens, mask = torch.cat([image.states["last"] for image in images], 1), texts.state_mask
        states = self.joint(tokens, texts.states["last"], mask)
        whole = torch.cat([mask.new_ones(states.shape[0], states.shape[1] - mask.shape[1]), mask], 1)
        first = 1 + tokens.shape[1]
        return Fused(states[:, 0], states, whole, slice(first, states.shape[1]), slice(1, first))

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        return log_odds(self.match_logits(self.fuse([images], texts).pooled).float())[:, None]

    def rerank(self, match: Tensor, first: Tensor) -> Tensor:
        """Match probability plus cosine, in [-1, 2]."""
        return match.float().sigmoid().mean(1) + first

    def adapt(self, task: str, classes: int = 2, pictures: int = 1) -> nn.Module | None:
        """Section 6: on the joint class token's state one hidden layer, twice as wide, as the paper has it; its ReLU
        and dropout are those of the released classifier."""
        if task not in ("vqa", "entailment"):
            return None
        width = self.config.fusion.width
        hidden = nn.Linear(width, 2 * width), nn.ReLU(), nn.Dropout(0.5)
        return nn.Sequential(*hidden, nn.Linear(2 * width, classes))


class PredictionHead(nn.Module):
    """Dense, GELU, norm, then a decoder of its own (not tied to any embedding)."""

    def __init__(self, width: int, vocabulary: int, eps: float):
        super().__init__()
        self.dense, self.activation, self.norm = nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps)
        self.decoder = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.norm(self.activation(self.dense(x))))


def _masked_loss(head: PredictionHead, states: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of a head over the places of labels [B, L] that are not ignored; states [B, L, W]."""
    index, targets = masked_positions(labels)
    return masked_language(head(states.flatten(0, 1)[index]), targets)
