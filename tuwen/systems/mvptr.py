"""MVPTR: phrases beside the words and concepts beside the picture, first each for itself, then together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.spans import KINDS
from tuwen.data.text import Vocabulary, mask_words
from tuwen.nn.encoded import Encoded
from tuwen.nn.fusion import MatchHead, WordHead
from tuwen.nn.phrases import WithPhrases, corrupted, with_phrases
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.towers import ImageTower, TextTower, unit
from tuwen.nn.transformer import Stack
from tuwen.objectives.contrastive import logits_of
from tuwen.objectives.gather import global_contrast
from tuwen.objectives.grounding import grounding_scores, weakly_supervised_grounding
from tuwen.objectives.masked_language import masked_language, masked_positions
from tuwen.objectives.matching import (
    IGNORED,
    drawn_pairs,
    hardest_negatives,
    log_odds,
    matching_accuracy,
    matching_gain,
    matching_loss,
    one_wrong,
)
from tuwen.systems.survey import Axes
from tuwen.systems.system import Fused, Located, Losses, Needs, Paper, Progress, Reads, System
from tuwen.teachers.pace import Pace


@dataclass(frozen=True)
class MVPTRConfig:
    """Loss weights are all 1.

    concepts: "text": the nouns of the text are recovered from the picture, whose encoder never sees them; "tags": those
        of the corpus's column "tags", which the encoder sees in part.
    tags_seen: share of rows whose tags are seen (and masked as words are); of the others every place is masked, as it
        is in use, where no tags are known [choice: an oracle or detector at hand would be read always].
    places: for concepts, in tokens. phrases: most a text. rows: of the table of phrases of several tokens.
    regions: of a phrase, "top3" takes one of its three nearest at random while training (the official code), "max"
        the nearest (as printed).
    ground: "fused" compares fused phrases with fused regions (the code), which a sign of the pair in both may satisfy;
        "single" compares them as the uni-modal stage gives them; "off" leaves the loss out (the control arm).
    negatives: "hardest" (the code) or "drawn" by softmax of `hardness` times the scores.
    hardness: of drawn negatives, 1 as VSC's whole scores, 0 any wrong row, None: self-paced, see `Pace`. While the
        contrast is unsure, what its whole scores draw looks to it like the right one: from scratch matching then has
        nothing to begin with.
    nested: widths of prefixes that are to be vectors of their own, see `nested_mean`.
    score: the final one: see `tuwen.predictor.Predictor.final`.
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    fusion: CrossEncoderConfig = field(default_factory=CrossEncoderConfig)
    embed: int = 768
    nested: tuple[int, ...] = ()
    concepts: str = "text"
    tags_seen: float = 0.5
    places: int = 20
    phrases: int = 8
    rows: int = 55529
    mask_share: float = 0.15
    margin: float = 0.2
    regions: str = "top3"
    ground: str = "fused"
    negatives: str = "hardest"
    hardness: float | None = None
    score: Literal["fitted", "published"] = "fitted"

    def __post_init__(self):
        choices = {
            "concepts": ("text", "tags"),
            "regions": ("top3", "max"),
            "ground": ("fused", "single", "off"),
            "negatives": ("hardest", "drawn"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.hardness is not None and not 0 <= self.hardness <= 1:
            raise ValueError(f"hardness must lie between 0 and 1, got {self.hardness}")
        if self.text.width != self.fusion.width:
            raise ValueError("text.width and fusion.width must be equal: they share word embeddings")

    @classmethod
    def sized(cls, name: str) -> "MVPTRConfig":
        towers = size(name)
        rows = 55529 if towers.text.width >= 384 else 4096
        return towers.fill(cls, text=replace(towers.text, kind="bert"), rows=rows)


class Towers(nn.Module):
    """What reads pictures and texts before concepts and phrases join."""

    def __init__(self, image: ImageTower, text: TextTower):
        super().__init__()
        self.image, self.text = image, text


class MVPTR(System):
    """MCR + VSC + MLM + ITM + WPG in one pass, unit weights (Li et al., ACM MM 2022; official code, card section 4).

    Text side: [CLS] words phrases [SEP], phrases being rows of one embedding table with the words: a phrase of one
    token is that token's row. Picture side: [CLS] concepts [SEP] regions. Each has its encoder (the uni-modal stage:
    MCR, VSC); then one encoder reads words, phrases and regions together (the cross-modal stage: MLM, ITM, WPG).

    Where ours differs, by choice: regions are a ViT's patches, not a frozen detector's, so boxes are its positions;
    phrases are noun phrases and runs of nouns by part of speech (Chinese and English), not a scene-graph parser's, and
    stand in hashed rows instead of a counted vocabulary; concepts come from the text, hidden from the picture's
    encoder, or from tags; ITM's class 1 is a match throughout (the code's polarity flips between pre-training and
    retrieval); g_v is [CLS]'s as published where the image tower has a class token, else the regions are pooled as
    that tower pools, which learns sooner from scratch; VSC is over the global batch with equal pictures or texts as
    positives; a loss without a phrase is 0, where the code gives no number; negatives may be drawn by less than VSC's
    whole scores (`hardness`), without which matching does not begin to learn from scratch, and the final score of drawn
    ones makes up for how they were drawn, where the code ranks by the match alone. Leak guard as published: a phrase
    with a masked token is masked.
    """

    paper = Paper(
        title="MVPTR: Multi-Level Semantic Alignment for Vision-Language Pre-Training via Multi-Stage Learning",
        venue="ACM MM 2022",
        arxiv="2201.12596",
        code="github.com/Junction4Nako/mvp_pytorch",
        idea="phrases and concepts as a second level: recovered within a modality, grounded across",
        fidelity="code",
        image_encoder="ViT patches as regions, with concepts (published: VinVL regions with tags)",
        text_encoder="BERT over words and phrases",
        interaction="cosine, then self-attention over words, phrases and regions",
        objectives=(
            "masked concept recovery",
            "visual-semantic contrast",
            "masked language",
            "image-text matching",
            "weakly supervised phrase grounding",
        ),
        axes=Axes(
            text="bert",
            vision=("patch",),
            interaction=("dot_product", "stacked"),
            objectives=("mcr", "vsc", "mlm", "itm", "wpg"),
            data=("unknown",),
            parts=("concepts", "phrases"),
        ),
    )
    Config = MVPTRConfig
    softens = True
    index_fields = ("pooled", "states.last")
    training_only = ("pace",)

    def __init__(self, config: MVPTRConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        fusion, width = config.fusion, config.fusion.width
        self.encoders = Towers(ImageTower(config.image), TextTower(config.text, vocabulary))
        self.phrase_rows = nn.Embedding(config.rows, width)
        self.further_positions = nn.Parameter(torch.zeros(config.phrases, width))  # phrases lengthen the text
        self.image_to_fusion = nn.Linear(config.image.width, width)
        self.concept_positions = nn.Parameter(torch.zeros(config.places + 2, width))
        self.concept_norm = nn.LayerNorm(width, fusion.eps)
        self.visual, self.joint = (Stack.of(fusion, "post") for _ in range(2))
        self.image_projection = nn.Linear(width, config.embed, bias=False)
        self.text_projection = nn.Linear(width, config.embed, bias=False)
        self.pool, self.match_head = nn.Linear(width, width), MatchHead(width)
        self.concept_head, self.word_head = (WordHead(width, vocabulary.size) for _ in range(2))
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # unclamped
        self.pace = Pace(1.0 if config.negatives == "hardest" else config.hardness)

    @classmethod
    def reads(cls, config: MVPTRConfig) -> Reads:
        return Reads(spans=("phrase", "entity"))

    @classmethod
    def needs(cls, config: MVPTRConfig) -> Needs:
        return Needs(tags=config.concepts == "tags")

    # ---- the uni-modal stage

    def encode(self, batch: Batch, progress: Progress) -> dict[str, Encoded]:
        concepts, real, _ = self.hidden_concepts(batch, progress)
        text, _ = self.hidden_words(batch, progress)
        return {"images": self.see(batch.images, concepts, real), "texts": self.read(text)}

    def hidden_concepts(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor, Tensor]:
        """(what stands in the places for concepts [B, S], where anything does [B, S] bool, what is to be told there
        [B, S], -100 for nothing).

        Where tags are not seen, every place is masked, also those behind the last concept, so that nothing but the
        picture tells what or how many there are.
        """
        words, places = self.vocabulary, self.config.places
        concepts = self.concepts_of(batch)
        whole = concepts.ids.masked_fill(~concepts.mask, IGNORED)
        drawn = progress.uniform(batch, 3 * places + 1, "concepts")
        masked, labels = mask_words(concepts, words, drawn, self.config.mask_share)
        seen = drawn[:, -1:] < (self.config.tags_seen if self.config.concepts == "tags" else 0.0)
        return torch.where(seen, masked.ids, words.mask), concepts.mask | ~seen, torch.where(seen, labels, whole)

    def concepts_of(self, batch: Batch) -> Texts:
        """Tokens of the rows' concepts [B, S], special ones left out: of their tags, or of the nouns of their texts."""
        texts = batch.columns["tags"] if self.config.concepts == "tags" else batch.texts
        if self.config.concepts == "tags":
            is_concept = texts.mask & (texts.ids != self.vocabulary.cls) & (texts.ids != self.vocabulary.sep)
        else:
            nouns = texts.spans.of(KINDS.index("entity"))
            place = torch.arange(texts.ids.shape[1], device=texts.ids.device)
            within = (nouns.start[:, None] <= place) & (place < nouns.end[:, None])
            is_concept = torch.zeros_like(texts.mask, dtype=torch.int64).index_add(0, nouns.sequence, within.long()) > 0
        first = (~is_concept).long().sort(dim=1, stable=True).indices[:, : self.config.places]
        ids, mask = texts.ids.gather(1, first), is_concept.gather(1, first)
        short = (0, self.config.places - first.shape[1])
        ids = nn.functional.pad(ids.masked_fill(~mask, self.vocabulary.pad), short, value=self.vocabulary.pad)
        return Texts(ids, nn.functional.pad(mask, short), texts.language)

    def hidden_words(self, batch: Batch, progress: Progress) -> tuple[WithPhrases, Tensor]:
        """The texts with phrases, words masked as BERT does but for [SEP], and the labels [B, L] of the words.

        A phrase with a masked token is masked; the others are corrupted by themselves and never told.
        """
        texts, length = batch.texts, batch.texts.ids.shape[1]
        drawn = progress.uniform(batch, 3 * length, "mask")
        masked, labels = mask_words(texts, self.vocabulary, drawn, self.config.mask_share, sep=False)
        both = with_phrases(masked, self.vocabulary, self.config.phrases, self.config.rows)
        by_phrase = progress.uniform(batch, 3 * self.config.phrases, "phrases").view(len(batch), -1, 3)
        return corrupted(both, labels, by_phrase, self.vocabulary, self.config.rows, self.config.mask_share), labels

    def read(self, text: WithPhrases) -> Encoded:
        """T and g_t; states "last" [B, A, W] of words and phrases."""
        tower = self.encoders.text
        table = torch.cat([tower.words.weight, self.phrase_rows.weight])
        positions = torch.cat([tower.positions, self.further_positions])[: text.ids.shape[1]]
        states = tower.read(table[text.ids] + positions, text.mask)
        return Encoded(unit(self.text_projection(states[:, 0])), states={"last": states}, state_mask=text.mask)

    def see(self, images: Images, concepts: Tensor, real: Tensor) -> Encoded:
        """V and g_v; states "last" [B, N, W], the regions alone, and "concepts" [B, S, W]; real: [B, S] bool, places
        that hold a concept, whichever id was drawn for it."""
        words, rows = self.vocabulary, len(concepts)
        regions = self.image_to_fusion(self.encoders.image.tokens(images))
        ends = [concepts.new_full((rows, 1), special) for special in (words.cls, words.sep)]
        ids = torch.cat([ends[0], concepts, ends[1]], 1)
        tags = self.concept_norm(self.encoders.text.words(ids) + self.concept_positions)
        sides = torch.ones_like(ids[:, :1], dtype=torch.bool), torch.ones_like(regions[..., 0], dtype=torch.bool)
        states = self.visual(torch.cat([tags, regions], 1), torch.cat([sides[0], real, sides[0], sides[1]], 1))
        count = ids.shape[1]
        parts = {"last": states[:, count:], "concepts": states[:, 1 : count - 1]}
        pool = self.encoders.image
        whole = states[:, 0] if pool.class_token is not None else pool.pool(parts["last"])
        return Encoded(unit(self.image_projection(whole)), states=parts)

    # ---- losses

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        images, texts = encoded["images"], encoded["texts"]
        _, _, concepts = self.hidden_concepts(batch, progress)
        text, labels = self.hidden_words(batch, progress)
        temperature = (-self.log_scale).exp()
        joint = self.fused(images.states["last"], texts)
        matching, accuracy, gain = self.matching(images, texts, joint, batch, progress)
        terms = {
            "masked_concepts": self.word_loss(self.concept_head, images.states["concepts"], concepts),
            "contrast": global_contrast(
                images.pooled, texts.pooled, batch.same(), temperature, self.config.nested, batch.softening()
            ),
            "masked_words": self.word_loss(self.word_head, joint[:, : labels.shape[1]], labels),
            "matching": matching,
        }
        if self.config.ground != "off":
            terms["grounding"] = self.grounding(joint, images, texts, text, batch, progress)
        metrics = {"temperature": temperature.detach(), "matching_accuracy": accuracy, **self.pace.metrics()}
        return Losses(terms, {"matching_gain": gain.expand(len(batch))}, metrics)

    def retrieval(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        """VSC and ITM, of texts and pictures in which nothing is hidden [choice]."""
        images, texts = encoded["images"], encoded["texts"]
        temperature = (-self.log_scale).exp()
        joint = self.fused(images.states["last"], texts)
        matching, accuracy, gain = self.matching(images, texts, joint, batch, progress)
        contrast = global_contrast(
            images.pooled, texts.pooled, batch.same(), temperature, self.config.nested, batch.softening()
        )
        keep, metrics = {"matching_gain": gain.expand(len(batch))}, {"matching_accuracy": accuracy}
        return Losses({"contrast": contrast, "matching": matching}, keep, {**metrics, **self.pace.metrics()})

    def after_step(self, keep: Mapping[str, Tensor], progress: Progress) -> None:
        self.pace.update(keep["matching_gain"])

    def word_loss(self, head: WordHead, states: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy over the words alone at the labelled positions [B, L] of states [B, L, W] (MCR, MLM)."""
        index, targets = masked_positions(labels)
        return masked_language(head(states.flatten(0, 1)[index], self.encoders.text.words.weight), targets)

    def matching(self, images: Encoded, texts: Encoded, joint: Tensor, batch: Batch, progress: Progress):
        """ITM: the B positives, and for half of the rows the text with a wrong picture, for the others the picture
        with a wrong text; wrong ones come from this process's rows, by VSC's scores, nothing is encoded anew."""
        rows, same = len(batch), batch.same_here()
        scores = logits_of(texts.pooled, images.pooled, (-self.log_scale).exp())
        drawn = progress.uniform(batch, 3, "matching")
        if self.config.negatives == "hardest":
            wrong_image, wrong_text = hardest_negatives(scores, same)[0], hardest_negatives(scores.T, same)[0]
        else:
            pairs = drawn_pairs(scores, scores.T, same, drawn[:, :2], hardness=self.pace.hardness)
            wrong_image, wrong_text = pairs.images[rows : 2 * rows], pairs.texts[2 * rows :]
        own, exists = torch.arange(rows, device=batch.device), ~same.all(1)
        first_half = torch.zeros_like(exists)
        first_half[drawn[:, 2].argsort()[: rows // 2]] = True
        pictures, wrong = torch.where(first_half, wrong_image, own), torch.where(first_half, own, wrong_text)
        negative = self.fused(images.states["last"].index_select(0, pictures), texts.select(wrong))
        logits = self.match_logits(torch.cat([joint[:, 0], negative[:, 0]]))
        labels = torch.cat([torch.ones_like(own), torch.where(exists, 0, IGNORED)])
        loss = matching_loss(logits, labels)
        return loss, matching_accuracy(logits, labels), matching_gain(loss, labels)

    def grounding(self, joint: Tensor, images: Encoded, texts: Encoded, text: WithPhrases, batch: Batch, progress):
        """WPG: the phrases of a text lie nearer to the regions of its picture than to those of another row's."""
        words, regions = self.grounded(joint, images, texts)
        phrases, mask = text.phrases_in(words, self.config.phrases)
        drawn = progress.uniform(batch, 2 * self.config.phrases + 1, "grounding")
        same = batch.same_here()
        other, exists = one_wrong(same, drawn[:, -1]), ~same.all(1)
        by_chance = self.config.regions == "top3" and self.training
        which, which_other = drawn[:, :-1].chunk(2, 1) if by_chance else (None, None)
        own = grounding_scores(unit(phrases), unit(regions), mask, which)
        wrong = grounding_scores(unit(phrases), unit(regions.index_select(0, other)), mask, which_other)
        return weakly_supervised_grounding(own, wrong, mask.any(1) & exists, self.config.margin)

    # ---- the cross-modal stage

    def fused(self, regions: Tensor, texts: Encoded) -> Tensor:
        """[B, A + N, W]: H, states of words and phrases, then of regions [B, N, W]."""
        assert texts.state_mask is not None
        real = torch.cat([texts.state_mask, torch.ones_like(regions[..., 0], dtype=torch.bool)], 1)
        return self.joint(torch.cat([texts.states["last"], regions], 1), real)

    def grounded(self, joint: Tensor, images: Encoded, texts: Encoded) -> tuple[Tensor, Tensor]:
        """States of words and phrases [B, A, W] and of regions [B, N, W] that are compared; a class token is none."""
        grid = self.encoders.image.grid
        if self.config.ground == "single":
            return texts.states["last"], grid(images.states["last"])
        count = texts.states["last"].shape[1]
        return joint[:, :count], grid(joint[:, count:])

    def match_logits(self, first: Tensor) -> Tensor:
        """[N, 2] (no match, match) from the fused states of [CLS]."""
        return self.match_head(torch.tanh(self.pool(first)))

    # ---- use

    def encode_images(self, images: Images) -> Encoded:
        """With every place for concepts masked."""
        unknown = torch.full((len(images), self.config.places), self.vocabulary.mask, device=images.device)
        seen = self.see(images, unknown, torch.ones_like(unknown, dtype=torch.bool))
        return replace(seen, states={"last": seen.states["last"]})

    def encode_texts(self, texts: Texts) -> Encoded:
        return self.read(with_phrases(texts, self.vocabulary, self.config.phrases, self.config.rows))

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        return log_odds(self.match_logits(self.fused(images.states["last"], texts)[:, 0]).float())[:, None]

    def rerank(self, match: Tensor, first: Tensor) -> Tensor:
        """The log-odds. Negatives drawn by exp(hardness s) leave hardness s out of the best log-odds: it is added."""
        odds = super().rerank(match, first)
        if self.config.negatives == "hardest":
            return odds
        hardness = 1.0 if self.config.hardness is None else self.config.hardness
        return odds + hardness * self.log_scale.exp() * first

    def fuse(self, images: Sequence[Encoded], texts: Encoded) -> Fused:
        """Words and phrases over the regions of all pictures; pooled is [CLS]'s state, as the code's VQA takes it."""
        states = self.fused(torch.cat([image.states["last"] for image in images], 1), texts)
        states = states[:, : texts.state_mask.shape[1]]
        return Fused(states[:, 0], states, texts.state_mask)

    def locate(self, images: Images, texts: Texts) -> Located:
        """Heat over the regions: their cosine with the mean of the text's phrases, or with [CLS] where it has none."""
        text = with_phrases(texts, self.vocabulary, self.config.phrases, self.config.rows)
        seen, read = self.encode_images(images), self.read(text)
        words, regions = self.grounded(self.fused(seen.states["last"], read), seen, read)
        phrases, mask = text.phrases_in(words, self.config.phrases)
        meant = (unit(phrases) * mask[..., None]).sum(1)
        meant = torch.where(mask.any(1, keepdim=True), meant, words[:, 0].to(meant.dtype))
        heat = (unit(regions) @ unit(meant)[..., None])[..., 0]
        height = images.pixels.shape[2] // self.config.image.patch
        return Located(heat=heat.unflatten(1, (height, -1)))
