"""ARL: entities of a knowledge graph told by both towers, reasoned with in the fusion, and hidden whole from texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images, Spans, Texts
from tuwen.data.spans import KINDS
from tuwen.data.text import Vocabulary, mask_words
from tuwen.errors import UserError
from tuwen.nn.backbones import normalised
from tuwen.nn.decoder import PatchDecoder
from tuwen.nn.encoded import Encoded
from tuwen.nn.fusion import MatchHead, WordHead
from tuwen.nn.knowledge import EntityEncoder, KnowledgeFusion, slots_of, without_hidden
from tuwen.nn.patch_masking import hide_random
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig, size
from tuwen.nn.towers import image_tower, text_tower, unit
from tuwen.objectives.knowledge import entity_alignment
from tuwen.objectives.masked_language import masked_language, masked_positions
from tuwen.objectives.masked_pixels import masked_pixels
from tuwen.objectives.matching import (
    IGNORED,
    candidates,
    log_odds,
    matching_accuracy,
    matching_loss,
    one_wrong,
    ranking_loss,
)
from tuwen.systems.survey import Axes
from tuwen.systems.system import Fused, Losses, Paper, Progress, Reads, System

ENTITY = KINDS.index("entity")


@dataclass(frozen=True)
class KnowledgeStreamConfig:
    """width: of entities, that of the lexicon's vectors where it has them. slots: most entities a text. reason: False
    takes the entities out of the fusion, the control arm. dropout: in the graph's layers."""

    width: int = 256
    heads: int = 4
    slots: int = 24
    reason: bool = True
    dropout: float = 0.2

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie between 0 and 1 (1 excluded), got {self.dropout}")


@dataclass(frozen=True)
class ARLConfig:
    """The published model has CLIP's ViT-B/16 less its last block, RoBERTa, and six fusion layers.

    pixels_from: fusion layer whose input the hidden pixels are told from. align, matching: weights. candidates: texts a
    picture in fine-tuning for retrieval, the right one among them. whole_entities: hidden whole; False, token by token.
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    fusion: CrossEncoderConfig = field(default_factory=CrossEncoderConfig)
    knowledge: KnowledgeStreamConfig = field(default_factory=KnowledgeStreamConfig)
    painter: CrossEncoderConfig = field(default_factory=lambda: CrossEncoderConfig(384, 4, 6))
    pixels_from: int = 3
    mask_share: float = 0.15
    whole_entities: bool = True
    mask_ratio: float = 0.75
    align: float = 1.0
    matching: float = 0.1
    candidates: int = 16

    def __post_init__(self):
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie between 0 and 1, got {self.mask_ratio}")

    @classmethod
    def sized(cls, name: str) -> "ARLConfig":
        """Pixels from the middle of the fusion; small decoders for the sizes that train in seconds and minutes."""
        painter = {"tiny": CrossEncoderConfig(32, 1, 2), "demo": CrossEncoderConfig(64, 2, 4)}.get(name)
        others = {} if painter is None else {"painter": painter}
        knowledge = {"tiny": KnowledgeStreamConfig(width=32, heads=2)}.get(name, KnowledgeStreamConfig())
        layers = size(name).fusion.layers
        return size(name).fill(cls, knowledge=knowledge, pixels_from=max(1, layers // 2), **others)


class ARL(System):
    """Align, reason, learn: METER's co-attention with entities that a lexicon links in every text.

    Chen, Li and Wan, ACM Multimedia 2022, as in the official code (sections are the method card's). Align: both towers'
    first states tell which entities the text mentions. Reason: entities, read along the graph, are a third stream of
    the fusion, look at the picture and are added to the tokens that mention them. Learn: a mention is hidden whole, and
    its entity leaves the stream. Hidden pixels are told from the middle of the fusion; matching weighs a tenth.

    The lexicon is the tokenizer's (`tokenizer.lexicon=findings`, a folder of `tuwen knowledge` with vectors by TransE,
    UMLS). Where ours differs, by choice: words are hidden with one probability each (theirs shuffles groups up to 15 of
    100 of the padded length, most of a short text); all mentions of a hidden entity leave the stream; a wrong picture
    is one of the batch that is wrong, where theirs may be the right one; the graph is read once a step; ranking,
    fine-tuned or not, is by log-odds. The published model has no first stage and matches every pair; ours, so that one
    can search with it, is the cosine of what both sides ask the entities with, which Align teaches (`--top-k` as large
    as the gallery ranks as published).
    """

    paper = Paper(
        title="Align, Reason and Learn: Enhancing Medical Vision-and-Language Pre-training with Knowledge",
        venue="ACM MM 2022",
        arxiv="2209.07118",
        code="github.com/zhjohnchan/ARL",
        idea="entities of a knowledge graph are told by both towers, reasoned with in fusion, and hidden whole",
        fidelity="code",
        image_encoder="ViT (published: CLIP's)",
        text_encoder="BERT (published: RoBERTa)",
        interaction="cosine of what asks the entities, then co-attention with entities as a third stream",
        objectives=("entity alignment", "masked entities and words", "masked pixels", "image-text matching"),
        decoder="pixels of patches",
        axes=Axes(
            text="roberta",
            vision=("patch",),
            interaction=("dot_product", "dual_stream"),
            objectives=("knowledge", "mlm", "mae", "itm"),
            data=("roco", "medicat", "mimic_cxr"),
            decoder="pixels",
            parts=("graph",),
        ),
    )
    Config = ARLConfig
    training_only = ("painter", "word_head")
    index_fields = ("pooled", "states.last", "states.entities", "states.mentions")
    fuses = 1

    @classmethod
    def reads(cls, config: ARLConfig) -> Reads:
        return Reads(spans=("entity",))

    def __init__(self, config: ARLConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        width, own = config.fusion.width, config.knowledge
        self.encoders = nn.ModuleDict({"image": image_tower(config.image), "text": text_tower(config.text, vocabulary)})
        lexicon = vocabulary.lexicon
        edges = np.zeros((0, 2), dtype=np.int64) if lexicon is None else lexicon.edges[:, [0, 2]]
        self.count = 0 if lexicon is None else len(lexicon)
        self.entities = EntityEncoder(max(1, self.count), edges, own.width, dropout=own.dropout)
        self.fusion = KnowledgeFusion(config.fusion, config.image.width, config.text.width, own.width, own.heads)
        self.text_pooler, self.image_pooler = nn.Linear(width, width), nn.Linear(width, width)
        self.image_query, self.text_query = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, own.width), nn.ReLU()) for _ in range(2)
        )
        self.word_head = WordHead(width, vocabulary.size)
        self.word_vectors = nn.Linear(width, vocabulary.size, bias=False) if width != config.text.width else None
        self.match_head = MatchHead(2 * width)
        side = config.image.side // config.image.patch
        self.painter = PatchDecoder(config.painter, width, (side, side), config.image.patch)

    @torch.no_grad()
    def begin(self) -> None:
        """Takes in what `tuwen knowledge` learnt of the lexicon.

        Raises:
            UserError: no lexicon, or vectors of another width.
        """
        lexicon = self.vocabulary.lexicon
        if lexicon is None:
            raise UserError(
                "arl reads entities of a lexicon, and this run's tokenizer has none; set tokenizer.lexicon to "
                "findings, scenes, a file of triples or a folder of `tuwen knowledge`"
            )
        if lexicon.vectors is not None:
            width, own = lexicon.vectors.shape[1], self.config.knowledge.width
            if width != own:
                lengths = f"the lexicon's vectors have {width} numbers, not {own}"
                raise UserError(f"{lengths}; set model.knowledge.width={width}")
            self.entities.vectors.weight.copy_(torch.from_numpy(lexicon.vectors))

    # ---- what is read

    def entity_spans(self, texts: Texts) -> Spans | None:
        return None if texts.spans is None else texts.spans.of(ENTITY)

    def read(self, texts: Texts, slots: tuple[Tensor, Tensor], entities: Tensor) -> Encoded:
        """states "last" of the text, "entities" [B, S, K] of its slots (zeros in empty ones), "mentions" [B, S, L]."""
        tower = self.encoders["text"]
        ids, mask = tower.padded(texts.ids, texts.mask)
        rows, mentions = slots
        mentions = F.pad(mentions, (0, mask.shape[1] - mentions.shape[2]))
        z = torch.where((rows >= 0)[..., None], entities[rows.clamp(min=0)], 0.0)
        states = {"last": tower(ids, mask), "entities": z, "mentions": mentions.to(z.dtype)}
        return Encoded(states=states, state_mask=mask)

    def slots(self, texts: Texts) -> tuple[Tensor, Tensor]:
        count = self.count if self.config.knowledge.reason else 0
        return slots_of(self.entity_spans(texts), texts, count, self.config.knowledge.slots)

    def queries(self, images: Encoded | None, texts: Encoded | None) -> list[Tensor]:
        """[B, K] each: what pictures, texts or both ask the entities with, from their first states."""
        asked = []
        if images is not None:
            patches = self.fusion.entered_images(images)
            asked.append(self.image_query(self.encoders["image"].pool(patches)))
        if texts is not None:
            asked.append(self.text_query(self.fusion.entered_texts(texts)[:, 0]))
        return asked

    def encode_images(self, images: Images) -> Encoded:
        """pooled [B, K] unit vectors, states "last" of the tower."""
        encoded = Encoded(states={"last": self.encoders["image"].tokens(images)})
        return replace(encoded, pooled=unit(self.queries(encoded, None)[0]))

    def encode_texts(self, texts: Texts) -> Encoded:
        """pooled [B, K] unit vectors, states as `read` gives them."""
        return self.encoded_texts(texts, self.entities())

    def encoded_texts(self, texts: Texts, entities: Tensor) -> Encoded:
        encoded = self.read(texts, self.slots(texts), entities)
        return replace(encoded, pooled=unit(self.queries(None, encoded)[0]))

    # ---- the losses, each of a forward pass of its own

    def encode(self, batch: Batch, progress: Progress) -> dict[str, Encoded]:
        """Both sides, and "graph": states "entities" [N, K], read once for all losses."""
        entities = self.entities()
        images, texts = self.encode_images(batch.images), self.encoded_texts(batch.texts, entities)
        return {"images": images, "texts": texts, "graph": Encoded(states={"entities": entities})}

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        images, texts, entities = encoded["images"], encoded["texts"], encoded["graph"].states["entities"]
        matching, accuracy = self.matching(images, texts, batch, progress)
        terms = {
            "masked_words": self.masked_words(images, entities, batch, progress),
            "masked_pixels": self.masked_pixels(texts, batch, progress),
            "matching": self.config.matching * matching,
        }
        metrics = {"matching_accuracy": accuracy}
        if self.count and self.config.align:
            terms["align"], metrics["entities_told"] = self.align(images, texts, entities, batch)
        return Losses(terms, metrics=metrics)

    def align(self, images: Encoded, texts: Encoded, entities: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Section 4: both towers tell the text's entities; the weighted loss, and how often the picture's likeliest
        entity is one of them."""
        spans = self.entity_spans(batch.texts)
        mentioned = torch.zeros(len(batch), self.count, dtype=torch.bool, device=batch.device)
        if spans is not None:
            known = spans.id < self.count
            mentioned[spans.sequence[known], spans.id[known]] = True
        seen, read = self.queries(images, texts)
        loss = entity_alignment(seen, entities, mentioned) + entity_alignment(read, entities, mentioned)
        best = (seen.detach() @ entities.detach().T).argmax(1)
        right = mentioned.gather(1, best[:, None])[:, 0]
        asked = mentioned.any(1)
        return self.config.align * loss, (right & asked).sum() / asked.sum().clamp(min=1)

    def masked_words(self, images: Encoded, entities: Tensor, batch: Batch, progress: Progress) -> Tensor:
        """Section 4, MLM: mentions are hidden whole, and their entities are not reasoned with."""
        texts, spans = batch.texts, self.entity_spans(batch.texts)
        draws = progress.uniform(batch, 3 * texts.ids.shape[1], "mask")
        whole = spans if self.config.whole_entities else None
        masked, labels = mask_words(texts, self.vocabulary, draws, self.config.mask_share, whole, sep=False, some=True)
        index, words = masked_positions(labels)
        slots = without_hidden(*self.slots(texts), labels != IGNORED)
        states, _ = self.fusion(images, self.read(masked, slots, entities))
        table = self.encoders["text"].words.weight if self.word_vectors is None else self.word_vectors.weight
        return masked_language(self.word_head(states.flatten(0, 1)[index], table), words)

    def masked_pixels(self, texts: Encoded, batch: Batch, progress: Progress) -> Tensor:
        """Section 4, MIM: the hidden patches' normalised pixels, told from the input of layer `pixels_from`."""
        tower, patch = self.encoders["image"], self.config.image.patch
        patches = (self.config.image.side // patch) ** 2
        kept, hidden = hide_random(progress.uniform(batch, patches, "patches"), self.config.mask_ratio)
        images = Encoded(states={"last": tower.tokens(batch.images, kept=kept)})
        _, seen = self.fusion(images, texts, self.config.pixels_from)
        painted = self.painter(tower.grid(seen), kept)
        return masked_pixels(painted, normalised(batch.images.pixels, tower.mean, tower.std), hidden, patch)

    def matching(self, images: Encoded, texts: Encoded, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor]:
        """Section 4, ITM: half of the rows, drawn, have a wrong picture of the batch."""
        draws, same = progress.uniform(batch, 2, "wrong pictures"), batch.same_here()
        swapped = draws[:, 0].argsort().argsort() < len(batch) // 2
        wrong = one_wrong(same, draws[:, 1])
        own = torch.arange(len(batch), device=wrong.device)
        labels = torch.where(swapped, torch.where(same.all(1), IGNORED, 0), 1)
        logits = self.match_logits(images.select(torch.where(swapped, wrong, own)), texts)
        return matching_loss(logits, labels), matching_accuracy(logits, labels)

    def retrieval(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        """Section 6: each picture's own text against others drawn, cross entropy over their log-odds."""
        images, texts, same = encoded["images"], encoded["texts"], batch.same_here()
        chosen, counts = candidates(same, progress.uniform(batch, len(batch), "candidates"), self.config.candidates)
        own = torch.arange(len(batch), device=same.device).repeat_interleave(chosen.shape[1])
        odds = self.match(images.select(own), texts.select(chosen.flatten())).view_as(chosen)
        return Losses({"ranking": ranking_loss(odds, counts)})

    # ---- use

    def fused(self, images: Encoded, texts: Encoded) -> tuple[Tensor, Tensor]:
        """(pooled [N, 2 W], text states [N, L, W])."""
        words, patches = self.fusion(images, texts)
        seen = self.encoders["image"].pool(patches)
        return torch.cat([self.text_pooler(words[:, 0]).tanh(), self.image_pooler(seen).tanh()], 1), words

    def match_logits(self, images: Encoded, texts: Encoded) -> Tensor:
        """[N, 2] logits (no match, match) of pairs (image n, text n)."""
        return self.match_head(self.fused(images, texts)[0])

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        return log_odds(self.match_logits(images, texts).float())[:, None]

    def fuse(self, images: Sequence[Encoded], texts: Encoded) -> Fused:
        """pooled [B, 2 W] of one picture and its text; states of the text."""
        if len(images) > 1:
            raise self.lacks("fuse", f"it reads one picture a text, not {len(images)}")
        pooled, states = self.fused(images[0], texts)
        return Fused(pooled, states, texts.state_mask)

    def adapt(self, task: str, classes: int = 2, pictures: int = 1) -> nn.Module | None:
        """Section 6: a hidden layer on the pooled vectors; each answer of "vqa" is told for itself."""
        if task not in ("vqa", "entailment"):
            return None
        width = 2 * self.config.fusion.width
        layers = nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, classes)
        return EachAnswer(*layers) if task == "vqa" else nn.Sequential(*layers)


class EachAnswer(nn.Sequential):
    """The loss is the sum of the binary ones."""

    binary = True
