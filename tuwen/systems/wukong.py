"""Wukong: two towers compared by one vector (CLIP), by all tokens (FILIP), or by tokens reduced to a few."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.text import Vocabulary
from tuwen.nn.encoded import Encoded
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.temperature import Temperature
from tuwen.nn.towers import DualEncoder, unit
from tuwen.objectives.contrastive import directional_contrastive, nested_mean
from tuwen.objectives.gather import against_all
from tuwen.similarity.flows import MaxFlow
from tuwen.similarity.reduced import TokenReduction
from tuwen.similarity.token_wise import token_flow, token_scores
from tuwen.systems.survey.axes import Axes
from tuwen.systems.system import Losses, Paper, Progress, Scores, System


@dataclass(frozen=True)
class WukongConfig:
    """The published models are sizes "wukong-b32" and "wukong-l14", their picture tower CLIP's (`--image-weights`).

    style: "clip" (one vector a side), "filip" (all patches), "wukong" (patches reduced to `tokens`).
    specials: [CLS] and [SEP] count among a text's tokens, as published.
    padding: see `MaxFlow`; "zeros" is the official code's, every text being padded to `text.length`.
    scales: one temperature a direction, as the official code has, or one for both, as the papers say.
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    embed: int = 256
    style: Literal["clip", "filip", "wukong"] = "wukong"
    tokens: int = 12
    specials: bool = True
    padding: Literal["discard", "zeros"] = "discard"
    scales: int = 2
    log_scale: float = 3.8665
    smoothing: float = 0.1
    nested: tuple[int, ...] = ()  # of style "clip": widths of prefixes that are to be vectors too, see `nested_mean`

    def __post_init__(self):
        if self.scales not in (1, 2):
            raise ValueError(f"scales must be 1 or 2, got {self.scales}")
        if self.style == "wukong" and self.embed % 8:
            raise ValueError(f"embed must divide by 8, the groups of the token-reduction layer; got {self.embed}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be in 0..1, got {self.smoothing}")
        if self.nested and self.style != "clip":
            raise ValueError(f'nested needs style "clip", which compares whole vectors; this one is "{self.style}"')

    @classmethod
    def sized(cls, name: str) -> "WukongConfig":
        return size(name).fill(cls, tokens=24 if name == "wukong-l14" else 12)


class Wukong(System):
    """Contrast by mean-of-max similarity of tokens, a direction each its own (Gu et al. 2022; FILIP, Yao et al. 2022).

    Followed from the official evaluation code and a released fine-tuning of FILIP with the same layers; the code of
    pre-training was never published. Sections are the card's. Ours differs by choice: identical pictures or texts of
    a batch are positives of each other; padding is left out exactly unless `padding` says otherwise; the text tower is
    of either kind. The class token takes no part in token-wise scores, as published. FILIP's dropping of tokens before
    the gathering, which the released loss constructs and never calls, is not here.

    `Encoded.pooled` of the token-wise styles is the mean of the tokens, scaled to length 1 [choice]: a shortlist for
    large indexes; scores never read it.
    """

    paper = Paper(
        title="Wukong: A 100 Million Large-scale Chinese Cross-modal Pre-training Benchmark",
        venue="NeurIPS 2022 Datasets and Benchmarks",
        arxiv="2202.06767",
        code="github.com/huawei-noah/Pretrained-Language-Model (evaluation only)",
        idea="a locked image tower, whose patches are reduced to a few tokens that are matched with words",
        fidelity="code",
        image_encoder="ViT (published: CLIP's or Swin, locked)",
        text_encoder="BERT-like or causal transformer (published)",
        interaction="mean of each token's best match",
        objectives=("token-wise image-text contrast",),
        axes=Axes(
            text="gpt2",
            vision=("patch",),
            interaction=("dot_product", "token_wise"),
            objectives=("cmcl", "fine_contrast"),
            data=("wukong",),
        ),
    )
    Config = WukongConfig
    index_fields = ("pooled", "tokens", "token_mask")

    def __init__(self, config: WukongConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.encoders = DualEncoder(config.image, config.text, config.embed, vocabulary)
        self.reduction = TokenReduction(config.embed, config.tokens) if config.style == "wukong" else None
        self.log_scales = nn.ParameterList(
            Temperature(config.log_scale, 0.0, math.log(100)) for _ in range(config.scales)
        )  # of i2t and of t2i
        self.similarity = MaxFlow(padding=config.padding)

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        images, texts = encoded["images"], encoded["texts"]
        same = batch.same()
        first, last = self.log_scales[0].exp(), self.log_scales[-1].exp()

        def contrast_of(image_vectors: Tensor, text_vectors: Tensor) -> Tensor:
            sides = replace(images, pooled=image_vectors), replace(texts, pooled=text_vectors)
            to_text, to_image = against_all(*sides, self.similarities)
            return directional_contrastive(first * to_text, last * to_image, same, self.config.smoothing, bound=100)

        contrast = nested_mean(contrast_of, (images.pooled, texts.pooled), self.config.nested)
        return Losses({"contrast": contrast}, metrics={"temperature": 1 / first.detach()})

    def similarities(self, images: Encoded, texts: Encoded) -> tuple[Tensor, Tensor]:
        """(S_i2t, S_t2i), each [I, T] (4.1)."""
        if self.config.style == "clip":
            with torch.autocast(images.pooled.device.type, enabled=False):
                cosine = images.pooled @ texts.pooled.T
            return cosine, cosine
        return token_scores(images, texts, self.similarity)

    def scores(self, images: Encoded, texts: Encoded) -> Scores:
        """By what the style says; computed in float64 and rounded once, so that blocks change no ranking."""
        if self.config.style == "clip":
            return super().scores(images, texts)
        double = (x.map(lambda y: y.double() if y.is_floating_point() else y) for x in (images, texts))
        return Scores(*(score.float() for score in self.similarities(*double)))

    def first_logit(self, first: Tensor, direction: str) -> Tensor:
        return first * self.log_scales[0 if direction == "image_to_text" else -1].detach().exp()

    def encode_images(self, images: Images) -> Encoded:
        """tokens: the patches [B, N, D], or the reduced tokens [B, K, D]."""
        if self.config.style == "clip":
            return self.encoders.encode_images(images)
        grid = self.projected_grid(images)
        tokens = unit(grid if self.reduction is None else self.reduction(grid))
        return Encoded(unit(tokens.mean(1)), tokens)

    def projected_grid(self, images: Images) -> Tensor:
        """[B, N, D] patches in the shared space, before their scaling to length 1."""
        states = self.encoders.image.tokens(images)
        return self.encoders.image_projection(self.encoders.image.grid(states))

    def encode_texts(self, texts: Texts) -> Encoded:
        if self.config.style == "clip":
            return self.encoders.encode_texts(texts.ids, texts.mask)
        states = self.encoders.encode_texts(texts.ids, texts.mask).states["last"]
        tokens = unit(self.encoders.text_projection(states))
        real = texts.mask if self.config.specials else self.content(texts)
        # a tower may read padding of its own; zeros stand up to its length, whatever texts are beside
        length = self.config.text.length if self.config.padding == "zeros" else tokens.shape[1]
        tokens = F.pad(tokens, (0, 0, 0, length - tokens.shape[1]))
        real = F.pad(real, (0, length - real.shape[1]))
        return Encoded(unit((tokens * real[..., None]).sum(1)), tokens, real)

    def content(self, texts: Texts) -> Tensor:
        """[B, L] bool: real tokens but [CLS] and [SEP]."""
        return texts.mask & (texts.ids != self.vocabulary.cls) & (texts.ids != self.vocabulary.sep)

    def flow(self, images: Encoded, texts: Encoded) -> tuple[Tensor, Tensor]:
        if self.config.style == "clip":
            raise self.lacks("flow", 'style "clip" has one vector a side')
        return token_flow(images, texts, self.similarity)

    def image_places(self, images: Images) -> Tensor:
        """[B, N, h, w]: patches are cells of the grid; a reduced token lies where its weights are."""
        if self.reduction is None:
            return super().image_places(images)
        grid = self.projected_grid(images)
        side = math.isqrt(grid.shape[1])
        return self.reduction.weights(grid).unflatten(-1, (side, -1))
