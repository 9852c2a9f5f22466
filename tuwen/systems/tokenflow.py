"""TokenFlow: tokens matched by a flow whose masses come from the other side's whole vector."""

from dataclasses import dataclass, field
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.text import Vocabulary
from tuwen.nn.clips import FrameOrder, merged
from tuwen.nn.encoded import Encoded
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.temperature import log_scale
from tuwen.nn.towers import DualEncoder, unit
from tuwen.objectives.contrastive import directional_contrastive
from tuwen.objectives.gather import against_all, global_contrast
from tuwen.similarity.flows import Flow, SoftFlow, Transport
from tuwen.similarity.token_wise import token_flow, token_scores
from tuwen.systems.survey.axes import Axes
from tuwen.systems.system import Losses, Paper, Progress, Reads, Scores, System


@dataclass(frozen=True)
class TokenFlowConfig:
    """The similarity and the loss; all options but the first two are ablations of the card (section 8).

    sharpness: of the softmax that spreads a token's mass. normalize: divide by the sum of the masses, see `SoftFlow`.
    mass: "cross", "own" or "uniform". signed: negative masses are kept. detach: no gradient through masses.
    clips: of a clip, one token a frame or all patches of all frames. frame_layers: of self-attention over a clip's
        frames, which then know their order; 0 leaves them as they are, and the order unknown.
    exact: both marginals, by Sinkhorn with `regulariser`, instead of one. whole: share of the plain contrast of whole
    vectors in the loss.
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    embed: int = 512
    sharpness: float = 20.0
    normalize: bool = False
    mass: Literal["cross", "own", "uniform"] = "cross"
    signed: bool = False
    detach: bool = False
    exact: bool = False
    regulariser: float = 0.05
    whole: float = 0.0
    clips: Literal["frame", "patches"] = "frame"
    frame_layers: int = 0
    nested: tuple[int, ...] = ()  # widths of prefixes that are to be vectors of their own, see `nested_mean`

    def __post_init__(self):
        if not 0 <= self.whole <= 1:
            raise ValueError(f"whole must be in 0..1, got {self.whole}")
        if self.signed and self.normalize:
            raise ValueError("signed masses may sum to nothing: switch normalize off")
        if self.nested and not self.whole:
            raise ValueError("nested widths are of the whole vectors' contrast: give it a share, whole above 0")

    @classmethod
    def sized(cls, name: str) -> "TokenFlowConfig":
        return size(name).fill(cls)


class TokenFlow(System):
    """S = sum of flow times token similarity, its masses cosines with the other side's whole vector (Zou et al. 2022).

    No code was published; this follows the card's formula, in which two re-implementations agree (section 4.3), with
    masses over the token count [choice], cut off at 0 [choice], and sharpness 20 (a re-implementation's). [CLS] and
    [SEP], and the picture's class token, are whole vectors and no tokens: inside the set they would take its mass
    (section 10). One learned temperature for both directions.
    """

    paper = Paper(
        title="TokenFlow: Rethinking Fine-grained Cross-modal Alignment in Vision-Language Retrieval",
        venue="arXiv 2022",
        arxiv="2209.13822",
        code="none",
        idea="a token ships what the other side's whole vector finds in it, to the tokens it is like",
        fidelity="reconstructed",
        image_encoder="ViT (published: CLIP's)",
        text_encoder="BERT-like or causal transformer (published: CLIP's)",
        interaction="flow between tokens",
        objectives=("token-wise image-text contrast",),
        axes=Axes(
            text="gpt2",
            vision=("patch",),
            interaction=("dot_product", "token_wise"),
            objectives=("cmcl", "fine_contrast"),
            data=("private",),
        ),
    )
    Config = TokenFlowConfig
    index_fields = ("pooled", "tokens", "token_mask")

    @classmethod
    def reads(cls, config: TokenFlowConfig) -> Reads:
        return Reads(clips=True)

    def __init__(self, config: TokenFlowConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.encoders = DualEncoder(config.image, config.text, config.embed, vocabulary)
        layers, heads = config.frame_layers, config.image.heads
        self.order = FrameOrder(config.embed, heads, layers) if layers else None
        self.log_scale = log_scale()
        self.similarity: Flow = SoftFlow(config.sharpness, config.mass, config.signed, config.normalize, config.detach)
        if config.exact:
            self.similarity = Transport(config.regulariser)

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        images, texts = encoded["images"], encoded["texts"]
        same = batch.same()
        scale, share = self.log_scale.exp(), self.config.whole
        to_text, to_image = against_all(images, texts, self.similarities)
        tokens = directional_contrastive(scale * to_text, scale * to_image, same)
        terms = {"tokens": (1 - share) * tokens}
        if share:
            terms["contrast"] = share * global_contrast(
                images.pooled, texts.pooled, same, 1 / scale, self.config.nested
            )
        return Losses(terms, metrics={"temperature": 1 / scale.detach()})

    def similarities(self, images: Encoded, texts: Encoded) -> tuple[Tensor, Tensor]:
        """(S_V, S_T), each [I, T] (section 4.3)."""
        return token_scores(images, texts, self.similarity)

    def scores(self, images: Encoded, texts: Encoded) -> Scores:
        """Computed in float64 and rounded once, so that blocks change no ranking."""
        double = (x.map(lambda y: y.double() if y.is_floating_point() else y) for x in (images, texts))
        return Scores(*(score.float() for score in self.similarities(*double)))

    def flow(self, images: Encoded, texts: Encoded) -> tuple[Tensor, Tensor]:
        return token_flow(images, texts, self.similarity)

    def encode_images(self, images: Images) -> Encoded:
        """tokens: the patches [B, N, D]; of a clip, its frames' vectors [B, F, D] or all their patches [B, F N, D]."""
        encoded, tower = self.encoders.encode_images(images), self.encoders.image
        patches = unit(self.encoders.image_projection(tower.grid(encoded.states["last"])))
        return merged(Encoded(encoded.pooled, patches), images.owner, self.config.clips, self.order)

    def encode_texts(self, texts: Texts) -> Encoded:
        """tokens: all [B, L, D], of which words alone are real."""
        encoded = self.encoders.encode_texts(texts.ids, texts.mask)
        words = texts.mask & (texts.ids != self.vocabulary.cls) & (texts.ids != self.vocabulary.sep)
        tokens = unit(self.encoders.text_projection(encoded.states["last"]))
        return Encoded(encoded.pooled, tokens, F.pad(words, (0, tokens.shape[1] - words.shape[1])))
