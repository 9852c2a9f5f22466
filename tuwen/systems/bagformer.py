"""BagFormer: pictures are matched with words and entities instead of single characters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.spans import KINDS
from tuwen.data.text import Vocabulary
from tuwen.nn.encoded import Encoded
from tuwen.nn.fusion import CrossEncoder, MatchHead
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.temperature import Temperature, log_scale
from tuwen.nn.towers import DualEncoder, unit
from tuwen.objectives.contrastive import directional_contrastive
from tuwen.objectives.gather import against_all, global_contrast
from tuwen.objectives.matching import drawn_pairs, log_odds, matching_accuracy, matching_gain, matching_loss
from tuwen.similarity.bag import bag_of, shuffled_bag_of, sum_bags
from tuwen.similarity.flows import MaxFlow
from tuwen.similarity.token_wise import token_flow, token_scores
from tuwen.systems.survey.axes import Axes
from tuwen.systems.system import Fused, Losses, Paper, Progress, Reads, Scores, System


@dataclass(frozen=True)
class BagFormerConfig:
    """The published model is size "base" with `text.layers` 6 and pictures of 256 pixels.

    bags: what is matched with image tokens: "entity" (or "word", "phrase") spans with single tokens between them;
        "token", every token by itself; "shuffled", bags as long as the entities in a drawn order, the control that
        tells knowledge of entities from mere pooling. Nothing else differs between these arms.
    reduce: "mean" divides scores by patches or bags and learns one scale for both directions; "sum" is the official
        code's: no division, no temperature, and padded bags, [CLS]'s among them, that can be the best at 0.
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    fusion: CrossEncoderConfig = field(default_factory=CrossEncoderConfig)
    embed: int = 256
    nested: tuple[int, ...] = ()  # widths of prefixes that are to be vectors of their own, see `nested_mean`
    bags: Literal["entity", "word", "phrase", "token", "shuffled"] = "entity"
    reduce: Literal["mean", "sum"] = "mean"
    score: Literal["fitted", "published"] = "fitted"  # the final one: see `tuwen.predictor.Predictor.final`

    @classmethod
    def sized(cls, name: str) -> "BagFormerConfig":
        return size(name).fill(cls)


class BagFormer(System):
    """Contrast of class vectors, contrast of bags with patches, matching; equal weights (Hou et al. 2022).

    Followed from the official fine-tuning code (the paper's pre-training is not public); sections are the method
    card's. Ours differs where the code is at fault or its arms differ by more than the bags: a text's bags do not
    depend on the batch, all arms share negatives, losses and masks, rows of one picture or text are positives of each
    other. [CLS] and padding take no part in bags, [SEP] does, as in the code. `reduce` "mean" is a [choice] for
    comparing arms; "sum" is the code's. Without a dictionary (`tokenizer.dictionary`), entities are runs of nouns.
    """

    paper = Paper(
        title="BagFormer: Better Cross-Modal Retrieval via bag-wise interaction",
        venue="EAAI 2024",
        arxiv="2212.14322",
        code="github.com/howard-hou/BagFormer (fine-tuning only)",
        idea="tokens of one entity are summed into a bag before they are matched with patches",
        fidelity="code",
        image_encoder="ViT",
        text_encoder="BERT (lower layers)",
        interaction="best patch a bag, best bag a patch; then text queries over image tokens",
        objectives=("image-text contrast", "bag-wise contrast", "image-text matching"),
        axes=Axes(
            text="bert",
            vision=("patch",),
            interaction=("token_wise", "stacked"),
            objectives=("cmcl", "fine_contrast", "itm"),
            parts=("phrases",),
            data=("private",),
        ),
    )
    Config = BagFormerConfig
    index_fields = ("pooled", "tokens", "token_mask", "states.last")

    @classmethod
    def reads(cls, config: BagFormerConfig) -> Reads:
        return Reads(spans=(_kind(config),))

    def __init__(self, config: BagFormerConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.encoders = DualEncoder(config.image, config.text, config.embed, vocabulary)
        self.fusion = CrossEncoder(config.fusion, config.image.width)
        self.match_head = MatchHead(config.fusion.width)
        self.temperature = Temperature(least=0.05)
        self.similarity = MaxFlow(config.reduce, "zeros" if config.reduce == "sum" else "discard")
        if config.reduce == "mean":
            self.log_scale = log_scale()

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        images, texts = encoded["images"], encoded["texts"]
        same = batch.same()
        contrast = global_contrast(images.pooled, texts.pooled, same, self.temperature, self.config.nested)
        bags = self.bag_contrast(images, texts, same)
        matching, accuracy, gain = self.matching(images, texts, batch, progress)
        metrics = {"temperature": self.temperature.detach(), "matching_accuracy": accuracy, "matching_gain": gain}
        return Losses({"contrast": contrast, "bags": bags, "matching": matching}, metrics=metrics)

    def bag_contrast(self, images: Encoded, texts: Encoded, same: Tensor) -> Tensor:
        """Section 4: each direction ranks by its own score, half the sum of both."""
        to_text, to_image = against_all(images, texts, self.similarities)  # [B, N] each
        return directional_contrastive(self.scale() * to_text, self.scale() * to_image, same)

    def similarities(self, images: Encoded, texts: Encoded) -> tuple[Tensor, Tensor]:
        """(S_I2T, S_T2I), each [I, T] (section 4)."""
        return token_scores(images, texts, self.similarity)

    def scale(self) -> Tensor | float:
        """What a bag score is multiplied with to be a logit."""
        return self.log_scale.exp() if self.config.reduce == "mean" else 1.0

    def matching(self, images: Encoded, texts: Encoded, batch: Batch, progress: Progress):
        """Section 4: B matched pairs, B with a wrong picture, B with a wrong text, all wrong ones equally likely."""
        same = batch.same_here()
        even = torch.zeros_like(same, dtype=torch.float32)
        pairs = drawn_pairs(even, even, same, progress.uniform(batch, 2, "negatives"))
        logits = self.match_logits(images.select(pairs.images), texts.select(pairs.texts))
        loss = matching_loss(logits, pairs.labels)
        return loss, matching_accuracy(logits, pairs.labels), matching_gain(loss, pairs.labels)

    def match_logits(self, images: Encoded, texts: Encoded) -> Tensor:
        """[N, 2] logits (no match, match) of pairs (image n, text n)."""
        return self.match_head(self.fuse([images], texts).pooled)

    def encode_images(self, images: Images) -> Encoded:
        """tokens: all of the tower's, the class token among them, as in the code."""
        encoded = self.encoders.encode_images(images)
        return replace(encoded, tokens=unit(self.encoders.image_projection(encoded.states["last"])))

    def encode_texts(self, texts: Texts) -> Encoded:
        """tokens: a unit vector a bag, the projection of the sum of its states; token_mask: bags that take part."""
        ids, mask = self.encoders.text.padded(texts.ids, texts.mask)
        encoded = self.encoders.encode_texts(ids, mask)
        sums, real = sum_bags(
            encoded.states["last"], self.bags(replace(texts, ids=ids, mask=mask)), ids == self.vocabulary.cls
        )
        tokens = unit(self.encoders.text_projection(sums)) * real[..., None]
        return replace(encoded, tokens=tokens, token_mask=real)

    def bags(self, texts: Texts) -> Tensor:
        """[S, L] the bag each token lies in; L for padding."""
        if texts.spans is None:
            raise self.lacks("encode_texts", f"the texts come without spans of kind {_kind(self.config)}")
        kind = -1 if self.config.bags == "token" else KINDS.index(_kind(self.config))
        spans = texts.spans.of(kind)
        shuffled = self.config.bags == "shuffled"
        return shuffled_bag_of(spans, texts.ids, texts.mask) if shuffled else bag_of(spans, texts.mask)

    def scores(self, images: Encoded, texts: Encoded) -> Scores:
        """Bag-wise scores, each direction's own (section 6)."""
        return Scores(*(score.float() for score in self.similarities(images, texts)))

    def flow(self, images: Encoded, texts: Encoded) -> tuple[Tensor, Tensor]:
        return token_flow(images, texts, self.similarity)

    def image_places(self, images: Images) -> Tensor:
        """The class token lies everywhere, patches in their cells."""
        tower = self.encoders.image
        tokens = tower.tokens(images)
        count, cells = tokens.shape[1], tower.grid(tokens).shape[1]
        side = math.isqrt(cells)
        places = torch.cat([torch.full((count - cells, cells), 1 / cells), torch.eye(cells)])
        return places.view(1, count, side, side).expand(tokens.shape[0], -1, -1, -1).to(tokens.device)

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        return log_odds(self.match_logits(images, texts).float())[:, None]

    def first_logit(self, first: Tensor, direction: str) -> Tensor:
        scale = self.scale()
        return first * (scale.detach() if isinstance(scale, Tensor) else scale)

    def rerank(self, match: Tensor, first: Tensor) -> Tensor:
        """Log-odds of a match plus the bag score as its contrast scales it [choice]; with `reduce` "sum" by 1.

        The code's merged score (section 6) takes the match logit alone in place of the log-odds.
        """
        return match.float().mean(-1) + self.scale() * first

    def fuse(self, images: Sequence[Encoded], texts: Encoded) -> Fused:
        """Text states after cross-attention over the tokens of all pictures; pooled is the first token's."""
        memory = torch.cat([image.states["last"] for image in images], 1)
        states = self.fusion(texts.states["last"], texts.state_mask, memory, None)
        return Fused(states[:, 0], states, texts.state_mask)


def _kind(config: BagFormerConfig) -> str:
    """The kind of span bags are made of."""
    return "entity" if config.bags in ("token", "shuffled") else config.bags
