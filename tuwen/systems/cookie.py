"""COOKIE: pictures and texts read by one and the same head, three contrasts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.gather import first_row, gather, gather_padded
from tuwen.data.text import Vocabulary
from tuwen.data.views import View
from tuwen.nn.clips import merged
from tuwen.nn.encoded import Encoded
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.temperature import log_scale
from tuwen.nn.towers import image_tower, text_tower, unit
from tuwen.nn.transformer import Stack
from tuwen.objectives.gather import global_contrast
from tuwen.objectives.unimodal import view_contrastive
from tuwen.systems.survey.axes import Axes
from tuwen.systems.system import Losses, Needs, Paper, Progress, Reads, System


@dataclass(frozen=True)
class COOKIEConfig:
    """layers: of the head. shared: one head and projection for both sides; no: two that start equal, the control arm.

    pictures, texts: weights of the contrasts within a side; 0 draws no second view, no second text.
    readout: a summary token before each sequence, or the mean or greatest of the head's states.
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    width: int = 768
    heads: int = 12
    layers: int = 2
    embed: int = 512
    shared: bool = True
    pictures: float = 1.0
    texts: float = 1.0
    readout: Literal["summary", "mean", "max"] = "summary"
    nested: tuple[int, ...] = ()  # widths of prefixes that are to be vectors of their own, see `nested_mean`

    @classmethod
    def sized(cls, name: str) -> "COOKIEConfig":
        towers = size(name)
        pool = towers.image.pool
        readout: Literal["summary", "mean", "max"] = "max" if pool == "max" else "mean" if pool == "mean" else "summary"
        width, heads = towers.fusion.width, towers.fusion.heads
        return towers.fill(cls, width=width, heads=heads, readout=readout)


class COOKIE(System):
    """Two towers under a weight-shared transformer; contrast across, among pictures, among texts (Wen et al. 2021).

    RECONSTRUCTED: the abstracts give the shared transformer and the three contrasts, no code was released; the rest is
    the method card's (sections 3 to 4b): positives of a picture are its two augmentations, those of a text the
    texts of one picture; a norm a modality before the head; three temperatures; no queue, no momentum. Positions are
    the towers' own. Rows of one
    picture or one text are positives of each other in all three.
    """

    paper = Paper(
        title="COOKIE: Contrastive Cross-Modal Knowledge Sharing Pre-training for Vision-Language Representation",
        venue="ICCV 2021",
        arxiv="2207.00733",
        code="github.com/kywen1119/COOKIE (empty)",
        idea="one transformer on top of both towers, and contrast within each side beside the one across",
        fidelity="reconstructed",
        image_encoder="ViT, then the shared transformer",
        text_encoder="BERT, then the shared transformer",
        interaction="cosine of two vectors",
        objectives=("image-text contrast", "image-image contrast", "text-text contrast"),
        axes=Axes(
            text="bert",
            vision=("grid", "patch"),
            interaction=("dot_product",),
            objectives=("cmcl", "cl", "text_contrast"),
            data=("coco", "vg_data", "cc3m", "sbu"),
        ),
    )
    Config = COOKIEConfig
    renamed: ClassVar[Mapping[str, str]] = {"shared_head": "head", "text_projection": "projection"}
    twins: ClassVar[Mapping[str, str]] = {  # drawn alike
        "shared_head": "head",
        "text_head": "head",
        "text_projection": "projection",
    }

    @classmethod
    def reads(cls, config: COOKIEConfig) -> Reads:
        return Reads(clips=True)

    @classmethod
    def needs(cls, config: COOKIEConfig) -> Needs:
        views = {"second": View(config.image.side, crop="own")} if config.pictures else {}
        return Needs(views=views, texts=2 if config.texts else 1)

    def __init__(self, config: COOKIEConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        image, text = image_tower(config.image), text_tower(config.text, vocabulary)
        self.encoders = nn.ModuleDict({"image": image, "text": text})
        self.image_input, self.text_input = (
            nn.Linear(w, config.width) for w in (config.image.width, config.text.width)
        )
        self.image_norm, self.text_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        if config.readout == "summary":
            self.image_summary, self.text_summary = (nn.Parameter(torch.zeros(config.width)) for _ in range(2))
        self.shared_head = Stack(config.width, config.layers, config.heads, "pre")
        if not config.shared:
            self.text_head = Stack(config.width, config.layers, config.heads, "pre")
        self.projection = nn.Linear(config.width, config.embed, bias=False)
        if not config.shared:
            self.text_projection = nn.Linear(config.width, config.embed, bias=False)
        self.log_scales = nn.ParameterDict({name: log_scale() for name in self.parts()})

    def parts(self) -> list[str]:
        """The contrasts that count, by name."""
        weights = {"across": 1.0, "pictures": self.config.pictures, "texts": self.config.texts}
        return [name for name, weight in weights.items() if weight]

    def encode(self, batch: Batch, progress: Progress) -> dict[str, Encoded]:
        """Section 4b: "images" and "texts"; "second", another view; "other", another text of the row."""
        encoded = {"images": self.encode_images(batch.images)}
        if self.config.pictures:
            encoded["second"] = self.encode_images(batch.images.view("second"))
        first, other = self.two_texts(batch)
        encoded["texts"] = self.encode_texts(first)
        if self.config.texts:
            encoded["other"] = self.encode_texts(other)
        return encoded

    def two_texts(self, batch: Batch) -> tuple[Texts, Texts]:
        """The first and the second text of each row; the only one twice where one was drawn."""
        texts = batch.texts
        assert texts is not None
        if texts.owner is None:
            return texts, texts
        place = texts.owner.sort(stable=True).indices.view(len(batch), 2)
        plain = replace(texts, owner=None)
        return plain.select(place[:, 0]), plain.select(place[:, 1])

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        images, texts = encoded["images"].pooled, encoded["texts"].pooled
        same = batch.same()
        scale = {name: value.exp() for name, value in self.log_scales.items()}
        terms = {"across": global_contrast(images, texts, same, 1 / scale["across"], self.config.nested)}
        if self.config.pictures:
            alike = batch.image_id[:, None] == gather(batch.image_id)
            contrast = self.within(images, encoded["second"].pooled, alike.repeat(2, 2), 1 / scale["pictures"])
            terms["pictures"] = self.config.pictures * contrast
        if self.config.texts:
            alike = same.repeat(2, 2) | self.same_words(*self.two_texts(batch))
            contrast = self.within(texts, encoded["other"].pooled, alike, 1 / scale["texts"])
            terms["texts"] = self.config.texts * contrast
        metrics = {f"temperature_{name}": 1 / value.detach() for name, value in scale.items()}
        metrics["modality_gap"] = (images.mean(0) - texts.mean(0)).norm().detach()
        return Losses(terms, metrics=metrics)

    def retrieval(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        """Section 6: the contrast across pictures and texts alone."""
        images, texts, scale = encoded["images"].pooled, encoded["texts"].pooled, self.log_scales["across"].exp()
        return Losses({"across": global_contrast(images, texts, batch.same(), 1 / scale, self.config.nested)})

    def within(self, first: Tensor, second: Tensor, alike: Tensor, temperature: Tensor) -> Tensor:
        """Section 4, terms 2 and 3: 2 B rows against the 2 N views of all processes, itself left out."""
        every = torch.cat([gather(first), gather(second)])
        rows, size = torch.arange(len(first), device=first.device) + first_row(len(first)), len(every) // 2
        place = torch.cat([rows, rows + size])
        itself = place[:, None] == torch.arange(len(every), device=first.device)
        return view_contrastive(torch.cat([first, second]), every, alike, itself, temperature)

    def same_words(self, first: Texts, other: Texts) -> Tensor:
        """[2 B, 2 N] bool: equal token for token, so that one sentence of two pictures is no negative of itself."""
        plain = [torch.where(texts.mask, texts.ids + 1, 0) for texts in (first, other)]
        rows, every = torch.cat(plain), torch.cat([gather_padded(ids) for ids in plain])
        rows = nn.functional.pad(rows, (0, every.shape[1] - rows.shape[1]))
        return (rows[:, None] == every).all(2)

    def first_logit(self, first: Tensor, direction: str) -> Tensor:
        return first * self.log_scales["across"].detach().exp()

    def encode_images(self, images: Images) -> Encoded:
        """Of a clip the mean of its frames' vectors (section 6)."""
        x = self.image_norm(self.image_input(self.encoders["image"].tokens(images)))
        summary = getattr(self, "image_summary", None)
        return merged(self.read(x, None, summary, self.shared_head, self.projection), images.owner)

    def encode_texts(self, texts: Texts) -> Encoded:
        ids, mask = self.encoders["text"].padded(texts.ids, texts.mask)
        x = self.text_norm(self.text_input(self.encoders["text"](ids, mask)))
        head, projection = (
            (self.shared_head, self.projection) if self.config.shared else (self.text_head, self.text_projection)
        )
        return self.read(x, mask, getattr(self, "text_summary", None), head, projection)

    def read(
        self, x: Tensor, mask: Tensor | None, summary: Tensor | None, head: Stack, projection: nn.Linear
    ) -> Encoded:
        """pooled [B, D] from a side's tokens [B, N, W] through the head; states "last" are the head's."""
        if summary is not None and self.config.layers:
            x = torch.cat([summary.to(x.dtype).expand(x.shape[0], 1, -1), x], 1)
            mask = None if mask is None else torch.cat([mask.new_ones(x.shape[0], 1), mask], 1)
        states = head(x, mask)
        real = torch.ones(states.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        if summary is not None and self.config.layers:
            pooled = states[:, 0]
        elif self.config.readout == "max":
            pooled = states.masked_fill(~real[..., None], float("-inf")).amax(1)
        else:
            pooled = (states * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        return Encoded(unit(projection(pooled)), states={"last": states}, state_mask=mask)
