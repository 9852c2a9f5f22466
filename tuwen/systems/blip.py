"""BLIP: one text transformer that reads alone, or with cross-attention over the picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.text import Vocabulary
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.nn.fusion import MatchHead, WordHead
from tuwen.nn.grad_cam import heat_of
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.temperature import Temperature
from tuwen.nn.towers import DualEncoder, TextTower
from tuwen.nn.transformer import Attention
from tuwen.objectives.contrastive import logits_of
from tuwen.objectives.gather import global_contrast
from tuwen.objectives.matching import drawn_pairs, log_odds, matching_accuracy, matching_gain, matching_loss
from tuwen.systems.heads.answering import AnswerDecoder, AnswerRanker
from tuwen.systems.survey import Axes
from tuwen.systems.system import Fused, Losses, Paper, Progress, System
from tuwen.teachers.pace import Pace


@dataclass(frozen=True)
class BLIPConfig:
    """Every layer of the text tower has cross-attention beside its own; there is no further cross encoder."""

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    embed: int = 256
    nested: tuple[int, ...] = ()  # widths of prefixes that are to be vectors of their own, see `nested_mean`
    hardness: float | None = None  # of negatives: 1 as published, 0 any wrong pair; None: self-paced, see `Pace`
    score: Literal["fitted", "published"] = "fitted"  # the final one: see `tuwen.predictor.Predictor.final`

    @classmethod
    def sized(cls, name: str) -> "BLIPConfig":
        return size(name).fill(cls)


class BLIP(System):
    """Contrast of the towers' vectors, and matching by the same text layers with cross-attention switched on.

    Li et al. 2022, section 3.2: the text encoder and the image-grounded text encoder share all but the
    cross-attention. The form is that of transformers' `BlipForImageTextRetrieval`, whose weights are read and written.
    Left out: the decoder with its language loss, the bootstrapping of captions, the momentum teacher with its queue,
    and the token [Encode] in place of [CLS], which transformers leaves out as well. Ours by choice: re-ranking by the
    log-odds of a match.
    """

    paper = Paper(
        title="BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language Understanding "
        "and Generation",
        venue="ICML 2022",
        arxiv="2201.12086",
        code="github.com/salesforce/BLIP",
        idea="one text transformer reads alone, or looks at the picture in every layer; its retrieval half",
        fidelity="code",
        image_encoder="ViT",
        text_encoder="BERT",
        interaction="cosine, then text queries over image tokens in every layer",
        objectives=("image-text contrast", "image-text matching"),
        axes=Axes(
            text="bert",
            vision=("patch",),
            interaction=("dot_product", "dual_stream"),
            objectives=("cmcl", "itm"),
            data=("cc3m", "coco", "vg_data", "sbu"),
        ),
    )
    Config = BLIPConfig
    softens = True
    index_fields = ("pooled", "states.last")
    training_only = ("pace",)

    def __init__(self, config: BLIPConfig, vocabulary: Vocabulary):
        """
        Raises:
            UserError: a text tower of another kind than BERT's.
        """
        super().__init__()
        text = config.text
        if text.backbone is not None or text.kind != "bert":
            raise UserError("blip looks at pictures from inside its text tower: model.text.kind must be bert")
        self.config, self.vocabulary = config, vocabulary
        self.encoders = DualEncoder(config.image, text, config.embed, vocabulary)
        for block in self.words.stack.blocks:
            block.cross = Attention(text.width, text.heads, config.image.width, text.dropout)
            block.cross_norm = nn.LayerNorm(text.width, text.eps)
        self.match_head = MatchHead(text.width)
        self.temperature = Temperature()
        self.pace = Pace(config.hardness)

    @property
    def words(self) -> TextTower:
        assert isinstance(self.encoders.text, TextTower)
        return self.encoders.text

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        images, texts = encoded["images"], encoded["texts"]
        contrast = global_contrast(
            images.pooled, texts.pooled, batch.same(), self.temperature, self.config.nested, batch.softening()
        )
        matching, accuracy, gain = self.matching(images, texts, batch, progress)
        metrics = {"temperature": self.temperature.detach(), "matching_accuracy": accuracy, **self.pace.metrics()}
        keep = {"matching_gain": gain.expand(len(batch))}
        return Losses({"contrast": contrast, "matching": matching}, keep, metrics)

    def after_step(self, keep: Mapping[str, Tensor], progress: Progress) -> None:
        self.pace.update(keep["matching_gain"])

    def matching(self, images: Encoded, texts: Encoded, batch: Batch, progress: Progress):
        """B matched pairs, B with a wrong picture, B with a wrong text drawn by scores: loss, accuracy and gain."""
        scores = logits_of(images.pooled, texts.pooled, self.temperature)
        draws = progress.uniform(batch, 2, "hard negatives")
        pairs = drawn_pairs(scores.T, scores, batch.same_here(), draws, hardness=self.pace.hardness)
        logits = self.match_logits(images.select(pairs.images), texts.select(pairs.texts))
        loss = matching_loss(logits, pairs.labels)
        return loss, matching_accuracy(logits, pairs.labels), matching_gain(loss, pairs.labels)

    def match_logits(self, images: Encoded, texts: Encoded) -> Tensor:
        """[N, 2] logits (no match, match) of pairs (image n, text n)."""
        x = self.words.dropout(self.words.embedding_norm(texts.states["last"]))
        first = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        states = self.words.stack(x, texts.state_mask, images.states["last"], only=first)
        return self.match_head(states[:, 0])

    def encode_images(self, images: Images) -> Encoded:
        return self.encoders.encode_images(images)

    def encode_texts(self, texts: Texts) -> Encoded:
        """pooled, as the text is read alone; states "last" [B, L, W]: its embeddings, which are read with a picture."""
        pooled = self.encoders.encode_texts(texts.ids, texts.mask, states=False).pooled
        embedded = self.words.words(texts.ids) + self.words.positions[: texts.ids.shape[1]]
        return Encoded(pooled, states={"last": embedded}, state_mask=texts.mask)

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        return log_odds(self.match_logits(images, texts).float())[:, None]

    def match_heat(self, images: Encoded, texts: Encoded) -> Tensor:
        """Grad-CAM of the log-odds of a match in the middle layer, as ALBEF's grounding [choice]."""
        layer = rf"encoders\.text\.stack\.blocks\.{(self.config.text.layers - 1) // 2}\.cross"
        return heat_of(self, layer, lambda: self.match(images, texts)[:, 0], texts.state_mask, self.encoders.image.grid)

    def adapt(self, task: str, classes: int = 2, pictures: int = 1) -> nn.Module | None:
        """Answers ranked by a decoder of as many layers as the text has, with the form of transformers'
        `BlipForQuestionAnswering`; its word head is new. (Theirs teaches itself with momentum copies; left out.)"""
        if task != "vqa":
            return None
        text = self.config.text
        return AnswerRanker(AnswerDecoder(text, text, text.width, self.vocabulary.size))

    def answer_layers(self) -> tuple[nn.ModuleList, WordHead | None]:
        return self.words.stack.blocks, None

    def fuse(self, images: Sequence[Encoded], texts: Encoded) -> Fused:
        """Text states with cross-attention over the tokens of all pictures; pooled is the first token's."""
        memory = torch.cat([image.states["last"] for image in images], 1)
        x = self.words.dropout(self.words.embedding_norm(texts.states["last"]))
        states = self.words.stack(x, texts.state_mask, memory)
        return Fused(states[:, 0], states, texts.state_mask)
