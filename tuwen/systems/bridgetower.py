"""BridgeTower: every layer of the cross encoder reads one more layer of both towers through a bridge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.text import Vocabulary, mask_words
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.nn.fusion import BridgedEncoder, MatchHead
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.temperature import Temperature
from tuwen.nn.towers import DualEncoder, unit
from tuwen.objectives.contrastive import logits_of
from tuwen.objectives.gather import global_contrast
from tuwen.objectives.masked_language import masked_language, masked_positions
from tuwen.objectives.matching import (
    drawn_pairs,
    half_pairs,
    log_odds,
    matching_accuracy,
    matching_gain,
    matching_loss,
)
from tuwen.systems.heads.classes import AnswerHead, RankingHead, head_layers
from tuwen.systems.survey import Axes
from tuwen.systems.system import Fused, Losses, Paper, Progress, System
from tuwen.teachers.pace import Pace


@dataclass(frozen=True)
class BridgeTowerConfig:
    """fusion.layers cross layers are bridged to as many last layers of both towers.

    contrast: image-text contrast with hard negatives for matching, as in the retrieval fine-tuning (and the official
        code's optional pre-training); off, as the published pre-training, there is no first stage and retrieval
        matches every pair.
    bridges: off, only the towers' last layers are read, by the first cross layer (METER, the paper's control).
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    fusion: CrossEncoderConfig = field(default_factory=CrossEncoderConfig)
    embed: int = 256
    nested: tuple[int, ...] = ()  # widths of prefixes that are to be vectors of their own, see `nested_mean`
    contrast: bool = True
    bridges: bool = True
    mask_share: float = 0.15
    hardness: float | None = None  # of negatives: 1 as published, 0 any wrong pair; None: self-paced, see `Pace`
    score: Literal["fitted", "published"] = "fitted"  # the final one: see `tuwen.predictor.Predictor.final`

    def __post_init__(self):
        if self.nested and not self.contrast:
            raise ValueError("nested widths are of the contrast, which is off")

    @classmethod
    def sized(cls, name: str) -> "BridgeTowerConfig":
        return size(name).fill(cls)


class BridgeTower(System):
    """Masked words and matching, each with a pass of its own: masked text with its picture, clean text with its own or
    a wrong picture (Xu et al., AAAI 2023; sections are the method card's).

    Without `contrast`, floor(B / 2) rows keep their picture and the others get another row's (section 4). With it,
    the fine-tuning's losses: contrast over the global batch, every right pair a positive, and matching of B pairs and
    2 B hard negatives. Ours differs by choice: a wrong picture is another row's of the batch (theirs: of the data set),
    and never the same picture or one with the same text; hard negatives are of this process's rows; `contrast` is on by
    default, for a first stage to search by; and both directions are re-ranked apart, as for every system here (theirs
    ranks both on one matrix, the greater of the two where both hold a pair, section 6).
    """

    paper = Paper(
        title="BridgeTower: Building Bridges Between Encoders in Vision-Language Representation Learning",
        venue="AAAI 2023",
        arxiv="2206.08657",
        code="github.com/microsoft/BridgeTower",
        idea="bridges from the upper layers of both towers to every layer of the cross encoder",
        fidelity="code",
        image_encoder="ViT (published: CLIP's)",
        text_encoder="BERT (published: RoBERTa)",
        interaction="cosine, then co-attention of both streams with bridges",
        objectives=("masked language", "image-text matching", "image-text contrast"),
        axes=Axes(
            text="roberta",
            vision=("patch",),
            interaction=("dot_product", "dual_stream"),
            objectives=("mlm", "itm", "cmcl"),
            data=("coco", "vg_data", "sbu", "cc3m"),
        ),
    )
    Config = BridgeTowerConfig
    index_fields = ("pooled", "states")
    training_only = ("pace",)

    def __init__(self, config: BridgeTowerConfig, vocabulary: Vocabulary):
        super().__init__()
        layers = config.fusion.layers
        if layers > min(config.image.layers, config.text.layers):
            raise UserError(
                f"model.fusion.layers is {layers}: each needs a layer of both towers, which have "
                f"{config.image.layers} and {config.text.layers}"
            )
        self.config, self.vocabulary = config, vocabulary
        self.encoders = DualEncoder(config.image, config.text, config.embed, vocabulary)
        width = config.fusion.width
        self.fusion = BridgedEncoder(config.fusion, config.image.width, config.text.width, config.bridges)
        self.text_pooler, self.image_pooler = nn.Linear(width, width), nn.Linear(width, width)
        self.word_dense, self.word_norm = nn.Linear(width, width), nn.LayerNorm(width, config.fusion.eps)
        self.word_decoder = nn.Linear(width, vocabulary.size)
        self.match_head = MatchHead(2 * width)
        self.temperature = Temperature()
        self.pace = Pace(config.hardness)

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        words = self.masked_words(encoded["images"], batch, progress)
        rest = self.retrieval(encoded, batch, progress)
        return replace(rest, terms={"masked_words": words, **rest.terms})

    def retrieval(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        """Matching, and contrast where the run has it."""
        images, texts = encoded["images"], encoded["texts"]
        terms = {}
        if self.config.contrast:
            terms["contrast"] = global_contrast(
                images.pooled, texts.pooled, batch.same(), self.temperature, self.config.nested
            )
            scores = logits_of(images.pooled, texts.pooled, self.temperature)
            draws = progress.uniform(batch, 2, "hard negatives")
            pairs = drawn_pairs(scores.T, scores, batch.same_here(), draws, hardness=self.pace.hardness)
        else:
            pairs = half_pairs(batch.same_here(), progress.uniform(batch, 2, "wrong picture"))
        logits = self.match_logits(images.select(pairs.images), texts.select(pairs.texts))
        terms["matching"] = matching_loss(logits, pairs.labels)
        accuracy = matching_accuracy(logits, pairs.labels)
        metrics = {"temperature": self.temperature.detach(), "matching_accuracy": accuracy, **self.pace.metrics()}
        gain = matching_gain(terms["matching"], pairs.labels)
        return Losses(terms, {"matching_gain": gain.expand(len(batch))}, metrics)

    def after_step(self, keep: Mapping[str, Tensor], progress: Progress) -> None:
        self.pace.update(keep["matching_gain"])

    def masked_words(self, images: Encoded, batch: Batch, progress: Progress) -> Tensor:
        """15% of the tokens (at least one a text, never [SEP]), told from the text stream's states with its picture."""
        draws = progress.uniform(batch, 3 * batch.texts.ids.shape[1], "mask")
        share = self.config.mask_share
        masked, labels = mask_words(batch.texts, self.vocabulary, draws, share, sep=False, some=True)
        states = self.fused(images, self.encode_texts(masked))[0]
        index, words = masked_positions(labels)
        return masked_language(self.word_logits(states.flatten(0, 1)[index]), words)

    # ---- the encoders

    def encode_images(self, images: Images) -> Encoded:
        """states "layer-k": the final norm of the k-th last layers' tokens, all by one norm (section 3)."""
        layers: list[Tensor] = []
        last = self.encoders.image.tokens(images, layers=layers)
        norm = self.encoders.image.stack.norm
        upper = [norm(x) for x in layers[-self.config.fusion.layers : -1]] + [last]
        pooled = (
            unit(self.encoders.image_projection(self.encoders.image.pooled(last))) if self.config.contrast else None
        )
        return Encoded(pooled, states=_named(upper))

    def encode_texts(self, texts: Texts) -> Encoded:
        layers: list[Tensor] = []
        last = self.encoders.text(texts.ids, texts.mask, layers=layers)
        upper = [*layers[-self.config.fusion.layers : -1], last]
        pooled = unit(self.encoders.text_projection(self.encoders.text.pooled(last, texts.mask)))
        return Encoded(pooled if self.config.contrast else None, states=_named(upper), state_mask=texts.mask)

    def fused(self, images: Encoded, texts: Encoded, kind: int = 1) -> tuple[Tensor, Tensor]:
        """Last states of the text stream [N, L, W] and of the image stream [N, I, W]; kind: the picture's type."""
        return self.fusion(_layers(images), _layers(texts), texts.state_mask, kind)

    def pooled(self, words: Tensor, patches: Tensor) -> Tensor:
        """[N, 2W]: the text's first token and the picture's pooled one (its class token, where the tower has one; else
        as that tower pools its patches), each through its pooler."""
        pooled = self.encoders.image.pool(patches)
        return torch.cat([self.text_pooler(words[:, 0]).tanh(), self.image_pooler(pooled).tanh()], -1)

    def word_logits(self, states: Tensor) -> Tensor:
        return self.word_decoder(self.word_norm(nn.functional.gelu(self.word_dense(states))))

    def match_logits(self, images: Encoded, texts: Encoded) -> Tensor:
        """[N, 2] logits (no match, match)."""
        return self.match_head(self.pooled(*self.fused(images, texts)))

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        return log_odds(self.match_logits(images, texts).float())[:, None]

    def fuse(self, images: Sequence[Encoded], texts: Encoded) -> Fused:
        """Each picture with the text in a pass of its own, the second of another type (NLVR2); pooled [B, 2W P]."""
        passes = [self.fused(image, texts, 1 + min(k, 1)) for k, image in enumerate(images)]
        mask = texts.state_mask
        assert mask is not None
        whole = torch.cat([torch.cat([mask, mask.new_ones(p.shape[:2])], 1) for _, p in passes], 1)
        states = torch.cat([x for both in passes for x in both], 1)
        return Fused(torch.cat([self.pooled(*both) for both in passes], 1), states, whole)

    def adapt(self, task: str, classes: int = 2, pictures: int = 1) -> nn.Module | None:
        """The paper's head on `fuse(...).pooled`: "vqa" and "entailment" (one picture), "two_pictures" (NLVR2), and
        "ranking" (one score a pair; "irtr" of the code, whose released form cannot run)."""
        width = self.config.fusion.width
        if task == "ranking":
            return RankingHead(2 * width, 1)
        if task == "two_pictures" and pictures == 2:
            return PairHead(*head_layers(4 * width, 3 * width, classes, 0.1))
        if task in ("vqa", "entailment"):
            layers = head_layers(2 * width, 4 * width, classes, 0.0)
            return AnswerHead(*layers) if task == "vqa" else nn.Sequential(*layers)
        return None


class PairHead(nn.Sequential):
    """On both pictures' vectors; the second picture's type starts as the first's."""

    @torch.no_grad()
    def begin(self, system: BridgeTower) -> None:
        system.fusion.types.weight[2] = system.fusion.types.weight[1]


def _named(layers: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"layer{k}": x for k, x in enumerate(layers)}


def _layers(encoded: Encoded) -> list[Tensor]:
    return [encoded.states[f"layer{k}"] for k in range(len(encoded.states))]
