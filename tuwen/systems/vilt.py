"""ViLT: one transformer over words and patches, with no encoder before it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.text import Vocabulary, mask_words
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.nn.fusion import MatchHead, WordHead
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.towers import ImageTower, TextTower
from tuwen.objectives.alignment import alignment_loss, transport_cost
from tuwen.objectives.masked_language import masked_language, masked_positions
from tuwen.objectives.matching import IGNORED, half_pairs, log_odds, matching_accuracy, matching_loss
from tuwen.systems.heads.classes import AnswerHead, RankingHead, head_layers
from tuwen.systems.survey import Axes
from tuwen.systems.system import Fused, Losses, Needs, Paper, Progress, System


@dataclass(frozen=True)
class ViLTConfig:
    """image: the ViT whose blocks read both sides. text: BERT's embeddings, of no layers and the ViT's width.

    alignment: weight of the words' alignment with patches. whole_words: words are masked whole, as published.
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=lambda: TextTowerConfig(layers=0))
    mask_share: float = 0.15
    whole_words: bool = True
    alignment: float = 0.1

    @classmethod
    def sized(cls, name: str) -> "ViLTConfig":
        towers = size(name)
        shape = {"width": towers.image.width, "heads": towers.image.heads, "layers": 0}
        return towers.fill(cls, text=replace(towers.text, kind="bert", **shape))


class ViLT(System):
    """Masked words given the picture; matching and the alignment of words with patches, with half of the pictures wrong
    (Kim, Son and Kim, ICML 2021; followed from the official code).

    Text embeddings (words, positions, a norm), patches and the ViT's positions get a type each and run through the
    ViT's pre-norm blocks as one sequence, the text first; what is pooled is the text's first token, through a dense
    layer and tanh. There is no first stage: retrieval matches every pair. `init` of the ViT: the published model starts
    as one, here `--set init.image=RUN` or the weights of a tower.

    Ours differs by choice: a wrong picture is another row's of the batch (theirs: of the data set); pictures are of the
    tower's square (theirs of any shape, so that patches are padded); [CLS], [SEP], the class token and padding are left
    out of the alignment as there; and padding as a key is masked in every layer, as there.
    """

    paper = Paper(
        title="ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision",
        venue="ICML 2021",
        arxiv="2102.03334",
        code="github.com/dandelin/ViLT",
        idea="words and patches through one transformer, with nothing before it but embeddings",
        fidelity="code",
        image_encoder="linear patches",
        text_encoder="BERT's embeddings",
        interaction="self-attention over words and patches",
        objectives=("masked language", "image-text matching", "word-patch alignment"),
        axes=Axes(
            text="vit",
            vision=("patch",),
            interaction=("single_stream",),
            objectives=("mlm", "itm", "wra"),
            data=("cc3m", "coco", "vg_data", "sbu"),
        ),
    )
    Config = ViLTConfig
    index_fields = ("states.last",)
    vectors = False

    @classmethod
    def needs(cls, config: ViLTConfig) -> Needs:
        return Needs(spans=("word",) if config.whole_words else ())

    def __init__(self, config: ViLTConfig, vocabulary: Vocabulary):
        super().__init__()
        image, text = config.image, config.text
        if image.backbone or image.locked or text.backbone or text.layers or text.width != image.width:
            raise UserError(
                "vilt has one transformer, model.image's own: it takes no model.*.backbone, no model.image.locked, "
                f"model.text.layers=0 and model.text.width={image.width}"
            )
        self.config, self.vocabulary = config, vocabulary
        self.encoders = Embedders(ImageTower(image), TextTower(text, vocabulary))
        self.types = nn.Embedding(3, image.width)  # text, picture, second picture
        self.pooler = nn.Linear(image.width, image.width)
        self.word_head = WordHead(image.width, vocabulary.size, text.eps)
        self.word_decoder = nn.Linear(image.width, vocabulary.size, bias=False)
        self.match_head = MatchHead(image.width)

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        rest = self.retrieval(encoded, batch, progress)
        words = self.masked_words(encoded["images"], batch, progress)
        return replace(rest, terms={"masked_words": words, **rest.terms})

    def retrieval(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        """Matching and alignment [choice]; the code ranks a text among fifteen wrong ones (`adapt("ranking")`)."""
        images, texts = encoded["images"], encoded["texts"]
        pairs = half_pairs(batch.same_here(), progress.uniform(batch, 2, "wrong picture"))
        fused = self.fuse([images.select(pairs.images)], texts)
        logits = self.match_head(fused.pooled)
        costs = self.costs(fused, batch.texts)
        real = pairs.labels != IGNORED
        terms = {
            "matching": matching_loss(logits, pairs.labels),
            "alignment": self.config.alignment * alignment_loss(costs[real], pairs.labels[real] == 1),
        }
        return Losses(terms, metrics={"matching_accuracy": matching_accuracy(logits, pairs.labels)})

    def masked_words(self, images: Encoded, batch: Batch, progress: Progress) -> Tensor:
        draws = progress.uniform(batch, 3 * batch.texts.ids.shape[1], "mask")
        spans = batch.texts.spans if self.config.whole_words else None
        masked, labels = mask_words(batch.texts, self.vocabulary, draws, self.config.mask_share, spans, False, True)
        fused = self.fuse([images], self.encode_texts(masked))
        index, words = masked_positions(labels)
        states = fused.states[:, fused.words].flatten(0, 1)[index]
        return masked_language(self.word_head(states, self.word_decoder.weight), words)

    def costs(self, fused: Fused, texts: Texts) -> Tensor:
        """[B] of the transport of words onto patches; neither [CLS], [SEP], padding nor a class token take part."""
        words = texts.mask & (texts.ids != self.vocabulary.cls) & (texts.ids != self.vocabulary.sep)
        patches = self.encoders.image.grid(fused.states[:, fused.patches])
        return transport_cost(fused.states[:, fused.words], patches, words, words.new_ones(patches.shape[:2]))

    # ---- the encoders: embeddings alone

    def encode_images(self, images: Images) -> Encoded:
        return Encoded(states={"last": self.encoders.image.embedded(images.pixels)})

    def encode_texts(self, texts: Texts) -> Encoded:
        embeddings = self.encoders.text(texts.ids, texts.mask)
        return Encoded(states={"last": embeddings + self.types.weight[0]}, state_mask=texts.mask)

    def joint(self, image: Encoded, texts: Encoded, kind: int = 1) -> Tensor:
        """[B, L + N, W] states of words, then of the tokens of a picture of that type."""
        x = torch.cat([texts.states["last"], image.states["last"] + self.types.weight[kind]], 1)
        return self.encoders.image.stack(x, joint_mask(texts, image))

    def fuse(self, images: Sequence[Encoded], texts: Encoded) -> Fused:
        """Each picture with the text in a pass of its own, the second of another type (NLVR2); pooled [B, W P]."""
        passes = [self.joint(image, texts, 1 + min(k, 1)) for k, image in enumerate(images)]
        states = torch.cat(passes, 1)
        mask = torch.cat([joint_mask(texts, image) for image in images], 1)
        pooled = torch.cat([self.pooler(x[:, 0]).tanh() for x in passes], 1)
        if len(passes) > 1:
            return Fused(pooled, states, mask)
        length = texts.states["last"].shape[1]
        return Fused(pooled, states, mask, slice(0, length), slice(length, states.shape[1]))

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        return log_odds(self.match_head(self.fuse([images], texts).pooled).float())[:, None]

    def tower_weights(self) -> dict[str, dict[str, Tensor]]:
        """What a ViT of each side alone would have: all blocks, and its type in its embeddings (DiDE)."""
        image, text = self.encoders.image.state_dict(), self.encoders.text.state_dict()
        blocks = {name: x for name, x in image.items() if name.startswith("stack.")}
        blocks |= {f"pooler.{name}": x for name, x in self.pooler.state_dict().items()}
        image["positions"] = image["positions"] + self.types.weight[1]
        text["embedding_norm.bias"] = text["embedding_norm.bias"] + self.types.weight[0]
        return {"image": image | blocks, "text": text | blocks}

    def adapt(self, task: str, classes: int = 2, pictures: int = 1) -> nn.Module | None:
        """The code's heads on `fuse(...).pooled`: "vqa", "two_pictures" (NLVR2), "ranking"; and DiDE's "entailment"."""
        width = self.config.image.width
        if task == "ranking":
            return RankingHead(width, 1)
        if task == "two_pictures" and pictures == 2:
            return PairHead(*head_layers(2 * width, 2 * width, classes, 0.0))
        if task in ("vqa", "entailment"):
            layers = head_layers(width, 2 * width, classes, 0.0)
            return AnswerHead(*layers) if task == "vqa" else nn.Sequential(*layers)
        return None


class Embedders(nn.Module):
    """Both sides' embeddings, as `encoders` of other systems: the ViT, whose blocks then read both, and BERT's."""

    def __init__(self, image: ImageTower, text: TextTower):
        super().__init__()
        self.image, self.text = image, text


class PairHead(nn.Sequential):
    """On both pictures' vectors; the second picture's type starts as the first's."""

    @torch.no_grad()
    def begin(self, system: ViLT) -> None:
        system.types.weight[2] = system.types.weight[1]


def joint_mask(texts: Encoded, image: Encoded) -> Tensor:
    """[B, L + N] bool, True on real words and on all patches."""
    assert texts.state_mask is not None
    return torch.cat([texts.state_mask, texts.state_mask.new_ones(image.states["last"].shape[:2])], 1)
