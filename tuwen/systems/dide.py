"""DiDE: two towers that never meet learn to look at each other as a cross encoder does, and answer from two vectors."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.text import Vocabulary
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.nn.fusion import MatchHead
from tuwen.nn.relations import recorded
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.temperature import Temperature
from tuwen.nn.towers import DualEncoder, unit
from tuwen.objectives.distillation import attention_distillation, soft_classes
from tuwen.objectives.gather import global_contrast
from tuwen.objectives.matching import half_pairs, log_odds, matching_accuracy
from tuwen.systems.heads.classes import head_layers
from tuwen.systems.heads.distilled import Distilled, Teaching, copy_towers, crossing_of
from tuwen.systems.survey import Axes
from tuwen.systems.system import Fused, Losses, Paper, Progress, System


@dataclass(frozen=True)
class DiDEConfig:
    """Both towers are ViTs with a pooler; they have as many heads as the teacher, and the image tower its tokens.

    starts_as: "teacher" copies of its weights what has the same shape [choice], as far as the card says; "own": none.
    attention: weight of the teacher's attention, in pre-training and for a task; 0 leaves its answers alone.
    """

    image: ImageTowerConfig = field(default_factory=lambda: ImageTowerConfig(pooler=True))
    text: TextTowerConfig = field(default_factory=lambda: TextTowerConfig(kind="flava", pooler=True))
    embed: int = 256
    nested: tuple[int, ...] = ()  # widths of prefixes that are to be vectors of their own, see `nested_mean`
    starts_as: Literal["teacher", "own"] = "teacher"
    attention: float = 1.0
    score: Literal["fitted", "published"] = "fitted"  # the final one: see `tuwen.predictor.Predictor.final`

    def __post_init__(self):
        if self.attention < 0:
            raise ValueError(f"attention is a weight, 0 or more, got {self.attention}")

    @classmethod
    def sized(cls, name: str) -> "DiDEConfig":
        """The text tower is another ViT of the picture's size."""
        image, text = size(name).image, size(name).text
        shape = {"width": image.width, "layers": image.layers, "heads": image.heads, "activation": image.activation}
        text = replace(text, kind="flava", pooler=True, **shape)
        return size(name).fill(cls, image=replace(image, pooler=True), text=text)


class DiDE(System):
    """A picture's vector and a text's, and an MLP over both, in place of a cross encoder (Wang et al., EMNLP 2022).

    The teacher, in `data.teachers.teacher`, is a frozen run that can fuse and match; for a task, one that has learnt
    that very task. Fine-tuning follows the released code (`tuwen.systems.heads.distilled`). Pre-training is
    RECONSTRUCTED, as no code of it was released (card, section 4): contrast over the global batch [choice]; and on B
    pairs, half of them with a wrong picture as ViLT's, the distillation of attention, and of the teacher's match.

    Ours differs by choice: a picture is seen alike whether it is the first or the second (the code gives the second a
    type of its own, so that it could not be kept for both places; both start equal), and the teacher's attention is
    that of its first picture; queries of padding do not count; the halves of two ViLTs that the code's towers never use
    are not built; the teacher may be any system with layers in which text and picture meet, also in one direction.
    """

    paper = Paper(
        title="Distilled Dual-Encoder Model for Vision-Language Understanding",
        venue="EMNLP 2022",
        arxiv="2112.08723",
        code="github.com/kugwzk/DiDE (fine-tuning only)",
        idea="a dual encoder learns a cross encoder's attention and answers; pictures are encoded once",
        fidelity="code",
        image_encoder="ViT",
        text_encoder="ViT-like transformer",
        interaction="cosine, then an MLP over two vectors",
        objectives=("image-text contrast", "distilled attention", "distilled logits"),
        axes=Axes(
            text="vit",
            vision=("patch",),
            interaction=("dot_product", "shallow_fusion"),
            objectives=("cmcl", "itm", "distillation"),
            data=("coco", "vg_data", "sbu", "cc3m"),
            parts=("teacher",),
        ),
    )
    Config = DiDEConfig
    index_fields = ("pooled", "states.vector")
    has_places = False
    teachers = {"teacher": "fuse match"}  # noqa: RUF012

    def __init__(self, config: DiDEConfig, vocabulary: Vocabulary):
        super().__init__()
        if config.image.backbone or config.text.backbone or config.image.locked or config.text.locked:
            raise UserError("dide learns its towers' attention: it takes no model.*.backbone and no model.*.locked")
        if config.image.heads != config.text.heads:
            raise UserError(
                f"dide compares heads of both towers: model.image.heads is {config.image.heads}, model.text.heads "
                f"{config.text.heads}"
            )
        self.config, self.vocabulary = config, vocabulary
        self.encoders = DualEncoder(config.image, config.text, config.embed, vocabulary)
        seen, read = self.encoders.image.pooled_width, self.encoders.text.pooled_width
        self.fusion = nn.Sequential(
            nn.Linear(read + seen, read + seen), nn.LayerNorm(read + seen), nn.GELU(), nn.Linear(read + seen, read)
        )
        self.match_head = MatchHead(read)
        self.temperature = Temperature()
        self.teaching = Teaching()

    def check_teacher(self, role: str, teacher: System) -> None:
        self.teaching.check(self, role, teacher)

    def begin(self) -> None:
        if self.config.starts_as == "teacher" and "teacher" in self.roles:
            copy_towers(self.encoders, self.roles["teacher"])

    def encode_whole(self, batch: Batch) -> dict[str, Encoded]:
        """With the queries and keys that are taught."""
        return {"images": self.looked(batch.images), "texts": self.looked(batch.texts)}

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        images, texts = encoded["images"], encoded["texts"]
        contrast = global_contrast(images.pooled, texts.pooled, batch.same(), self.temperature, self.config.nested)
        pairs = half_pairs(batch.same_here(), progress.uniform(batch, 2, "wrong picture"))
        shown, teacher = images.select(pairs.images), self.roles["teacher"]
        with torch.no_grad():
            seen, read = teacher.encode_images(batch.images).select(pairs.images), teacher.encode_texts(batch.texts)
            odds = teacher.match(seen, read).float().mean(1)
            taught = self.teaching.crossing(teacher, seen, read)
        logits = self.match_logits(shown, texts)
        match = torch.stack([-odds, odds], 1).sigmoid()  # (no match, match)
        terms = {
            "contrast": contrast,
            "attention": self.config.attention
            * attention_distillation(crossing_of(shown, texts), taught, batch.texts.mask),
            "matching": soft_classes(logits, match),
        }
        accuracy = matching_accuracy(logits, pairs.labels)
        return Losses(terms, metrics={"temperature": self.temperature.detach(), "matching_accuracy": accuracy})

    # ---- the encoders

    def encode_images(self, images: Images) -> Encoded:
        """pooled [P, D], states "vector" [P, 1, W]: all that is kept of a picture."""
        tower = self.encoders.image
        only = None if images.pixels is None else tower.alone(images.pixels)
        return self.seen(tower.pooled(tower.tokens(images, only=only)))

    def encode_texts(self, texts: Texts) -> Encoded:
        tower = self.encoders.text
        only = tower.alone(texts.ids, texts.mask)
        states = tower(texts.ids, texts.mask, only=only)
        return self.read(tower.pooled(states, texts.mask if only is None else texts.mask[:, :1]))

    def seen(self, vector: Tensor) -> Encoded:
        return Encoded(unit(self.encoders.image_projection(vector)), states={"vector": vector[:, None]})

    def read(self, vector: Tensor) -> Encoded:
        return Encoded(unit(self.encoders.text_projection(vector)), states={"vector": vector[:, None]})

    def looked(self, batch: Images | Texts) -> Encoded:
        """As `encode_images` and `encode_texts`, with states "queries" and "keys" [B, H, L, d] of the last layer."""
        side = "image" if isinstance(batch, Images) else "text"
        layer = f"encoders.{side}.stack.blocks.{len(self.encoders.get_submodule(f'{side}.stack.blocks')) - 1}.attention"
        with recorded(self, layer.replace(".", r"\.")) as relations:
            if isinstance(batch, Images):
                encoded = self.seen(self.encoders.image.pooled(self.encoders.image.tokens(batch)))
            else:
                states = self.encoders.text(batch.ids, batch.mask)
                encoded = self.read(self.encoders.text.pooled(states, batch.mask))
        looks = relations[layer]
        return replace(encoded, states={**encoded.states, "queries": looks.queries, "keys": looks.keys})

    def match_logits(self, images: Encoded, texts: Encoded) -> Tensor:
        """[N, 2] logits (no match, match)."""
        return self.match_head(self.fuse([images], texts).pooled)

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        return log_odds(self.match_logits(images, texts).float())[:, None]

    def fuse(self, images: Sequence[Encoded], texts: Encoded) -> Fused:
        """The MLP over the text's vector and each picture's; pooled [B, W P], of all pictures one after the other."""
        text = texts.states["vector"]
        states = torch.cat([self.fusion(torch.cat([text, image.states["vector"]], -1)) for image in images], 1)
        return Fused(states.flatten(1), states, None)

    def adapt(self, task: str, classes: int = 2, pictures: int = 1) -> nn.Module | None:
        """The paper's heads with its losses: a teacher's attention and answers, no labels (card, sections 3 and 4)."""
        if task not in ("vqa", "two_pictures", "entailment"):
            return None
        width = self.encoders.text.pooled_width
        return Distilled(head_layers(pictures * width, 2 * width, classes, 0.0), pictures, binary=task == "vqa")
