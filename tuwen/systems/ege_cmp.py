"""EGE-CMP: the entities of a title as a third stream beside it, and a graph over all of them; CAPTURE without both."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tuwen.data import draws
from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.gather import gather
from tuwen.data.text import Vocabulary, mask_words
from tuwen.nn.co_attention import CoAttention
from tuwen.nn.encoded import Encoded
from tuwen.nn.entities import EntityTexts, entity_texts
from tuwen.nn.entity_graph import EntityMemory, graph_of_edges, graph_of_features
from tuwen.nn.fusion import WordHead
from tuwen.nn.regions import RegionTower
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig, check_sizes, size
from tuwen.nn.towers import ImageTower, image_tower, text_tower, unit
from tuwen.nn.transformer import Stack
from tuwen.objectives.entity_graph import node_ranking, released_ranking, subgraph_ranking
from tuwen.objectives.masked_features import masked_features
from tuwen.objectives.masked_language import masked_language, masked_positions
from tuwen.objectives.masked_pixels import masked_pixels
from tuwen.objectives.matching import IGNORED
from tuwen.objectives.unimodal import two_sided_contrastive
from tuwen.systems.survey.axes import Axes
from tuwen.systems.system import Fused, Losses, Paper, Progress, Reads, System

SPLITS = {  # published layer splits: separate, co-attention, joint
    **{"446": (4, 4, 6), "066": (0, 6, 6), "222": (2, 2, 2), "255": (2, 5, 5), "552": (5, 4, 2)},
    **{"525": (5, 2, 5), "606": (6, 1, 6), "660": (6, 6, 0), "888": (8, 8, 8)},
}
TEMPERATURE, ZEROED = 0.07, 0.9  # fixed; the share of hidden regions that are zeros, the others are told and seen


@dataclass(frozen=True)
class EGECMPConfig:
    """The published model is size "base" with `split` 446, `inner` 512, `regions` "features" (36 a picture).

    fusion: of co-attention and joint encoder; its layers are the joint encoder's. inner: width inside co-attention;
        None: the fusion's. co_layers: of co-attention. split: one of the published splits of layers, over what towers,
        co_layers and fusion say, by the code's names (552 has 4 layers of co-attention).
    entities: the third stream; False is CAPTURE. most: entities a text. nodes: most entities in the graph.
    graph: what says which entities are alike, "learnt" once an epoch from their features, by the "lexicon"'s edges
        (those of one tail), at "random" (a learnt one over other entities, the negative control), or "none".
    neighbours: of a node. margin: of both rankings; unpublished, 0.2 [choice].
    ranking: "intended", or "released", the official code's, which gives no gradient (the control).
    regions: "patches" of the image tower, or a detector's "features" [N, feature_width] with boxes, from the corpus.
    masked_words, masked_regions: whether they are learnt; a locked tower has none to learn. mask_share: of both.
    """

    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    fusion: CrossEncoderConfig = field(default_factory=CrossEncoderConfig)
    embed: int = 512
    inner: int | None = None
    co_layers: int = 4
    split: Literal["446", "066", "222", "255", "552", "525", "606", "660", "888"] | None = None
    entities: bool = True
    most: int = 15
    nodes: int = 16384
    graph: Literal["learnt", "lexicon", "random", "none"] = "learnt"
    neighbours: int = 10
    margin: float = 0.2
    ranking: Literal["intended", "released"] = "intended"
    regions: Literal["patches", "features"] = "patches"
    feature_width: int = 2048
    masked_words: bool = True
    masked_regions: bool = True
    mask_share: float = 0.15

    def __post_init__(self):
        check_sizes(self)
        if not 0 < self.mask_share < 1 or self.margin < 0:
            raise ValueError("mask_share must lie between 0 and 1, margin be 0 or more")

    @classmethod
    def sized(cls, name: str) -> "EGECMPConfig":
        towers = size(name)
        fusion = replace(towers.fusion, activation="quick_gelu")
        return towers.fill(cls, fusion=fusion, co_layers={"tiny": 1, "demo": 1}.get(name, 4))

    def of_split(self) -> "EGECMPConfig":
        """With the layers that `split` says."""
        if self.split is None:
            return self
        separate, co_layers, joint = SPLITS[self.split]
        towers = {name: replace(getattr(self, name), layers=separate) for name in ("image", "text")}
        return replace(self, **towers, co_layers=co_layers, fusion=replace(self.fusion, layers=joint), split=None)


class Towers(nn.Module):
    """What reads pictures and texts before they meet."""

    def __init__(self, config: EGECMPConfig, vocabulary: Vocabulary):
        super().__init__()
        features = config.regions == "features"
        self.image = RegionTower(config.image, config.feature_width) if features else image_tower(config.image)
        self.text = text_tower(config.text, vocabulary)
        self.image_pooler = _pooler(self.image.pooled_width, config.embed, config.image)
        self.text_pooler = _pooler(self.text.pooled_width, config.embed, config.text)


class EGECMP(System):
    """CAPTURE (Zhan et al., ICCV 2021) with an entity stream and graph (EGE-CMP, Dong et al., TPAMI 2023); sections
    are the method card's, from both official codes.

    Title, entities of the title (one sequence, read by the title's layers) and regions are encoded apart, and their
    pooled vectors contrasted, (picture, title) and (picture, entities), over both sides. Then one co-attention is
    applied twice, (title, entities) and (picture, title), and one joint encoder twice, [title; picture] and [entities;
    title]; words, words of entities, and regions that were hidden are told from what comes out. Entities that the graph
    calls alike rank before others, alone and as subgraphs.

    Where ours differs: the graph's losses have the intended form, with gradient (RECONSTRUCTED; the code's is a
    constant, `ranking` "released"); an entity is the mean of its own tokens' states (the code's are the last slot's
    embeddings); A is the cosine of rows of the CAN weights of all nodes' features, sparse, where the code trains an
    autoencoder on dense n x n matrices; entities are those of the lexicon, or runs of nouns, not a commercial tagger's;
    losses count once (the code adds the regions' twice) and are means over entities; equal pictures or titles are
    partners; a title without entities takes no part in their contrast; regions are patches by default. Search uses the
    contrast's vectors: the code extracts the joint encoder's first states, which only masked words train.
    """

    paper = Paper(
        title="Entity-Graph Enhanced Cross-Modal Pretraining for Instance-level Product Retrieval",
        venue="TPAMI 2023",
        arxiv="2206.08842",
        code="github.com/Xiaodongsuper/Entity-Graph-Enhanced-Cross-Modal-Pretraining-for-Instance-level-Product-Retrieval",
        idea="the entities of a title are a third stream, and a graph over all of them says which belong together",
        fidelity="code",
        image_encoder="ViT patches as regions (published: a detector's features)",
        text_encoder="BERT (lower layers), read by titles and entities",
        interaction="cosine, then co-attention and self-attention over title, entities and regions",
        objectives=(
            *("image-text contrast over both sides", "image-entity contrast", "masked language (title, entities)"),
            *("masked regions", "node ranking", "subgraph ranking"),
        ),
        axes=Axes(
            *("bert", ("region", "patch"), ("dual_stream", "stacked")),
            ("cmcl", "mlm", "mrfr", "mfr", "node_ranking", "subgraph_ranking"),
            parts=("graph", "phrases"),
            data=("product1m",),
        ),
    )
    Config = EGECMPConfig

    @classmethod
    def reads(cls, config: EGECMPConfig) -> Reads:
        return Reads(spans=("entity",) if config.entities else (), features=config.regions == "features")

    def __init__(self, config: EGECMPConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        layers, embed = config.of_split(), config.embed
        fusion, self.encoders = layers.fusion, Towers(layers, vocabulary)
        widths = ((x, fusion.width) for x in (layers.image.width, layers.text.width))
        self.image_to_fusion, self.text_to_fusion = (nn.Identity() if a == b else nn.Linear(a, b) for a, b in widths)
        self.co_attention = CoAttention(fusion, layers.co_layers, config.inner)
        self.joint = Stack.of(fusion, "pre", final_norm=False)
        self.places = nn.Parameter(torch.zeros(2, max(config.text.length, 256), fusion.width))  # of first, of second
        self.image_out, self.entity_out = nn.Linear(fusion.width, embed), nn.Linear(fusion.width, embed)
        self.text_out = nn.Linear((2 if config.entities else 1) * fusion.width, embed)
        self.word_in, self.word_head = nn.Linear(embed, config.text.width), WordHead(config.text.width, vocabulary.size)
        self.patches = isinstance(self.encoders.image, ImageTower) and not config.image.locked
        told = 3 * config.image.patch**2 if self.patches else config.image.width
        told = config.feature_width if config.regions == "features" else told
        self.region_head = nn.Sequential(nn.Linear(embed, fusion.width), nn.GELU(), nn.Linear(fusion.width, told))
        self.nodes = EntityMemory(embed if config.text.locked else config.text.width, config.nodes)
        if config.graph == "lexicon" and vocabulary.lexicon is None:
            raise self.lacks("rank by a lexicon", "the tokenizer has none; set tokenizer.lexicon")

    # ---- the three streams

    def encode(self, batch: Batch, progress: Progress) -> dict[str, Encoded]:
        text, entities, *_ = self.hidden_words(batch, progress)
        images = self.see(batch.images, self.hidden_regions(batch, progress))
        return {"images": images, "texts": self.read(text, entities)}

    def hidden_words(self, batch: Batch, progress: Progress) -> tuple[Texts, EntityTexts | None, Tensor, Tensor]:
        """(title, its entities, what is to be told of the title [B, L], of the entities [B, A]), each masked by itself
        as BERT does, but for [SEP]."""

        def masked(texts: Texts, purpose: str) -> tuple[Texts, Tensor]:
            if not self.config.masked_words:  # the tokenizer may have no mask
                return texts, torch.full_like(texts.ids, IGNORED)
            drawn = progress.uniform(batch, 3 * texts.ids.shape[1], purpose)
            return mask_words(texts, self.vocabulary, drawn, self.config.mask_share, sep=False)

        title, labels = masked(batch.texts, "mask")
        if (entities := self.entities_of(batch.texts)) is None:
            return title, None, labels, labels
        words, further = masked(entities.texts, "mask entities")
        return title, replace(entities, texts=words), labels, further

    def entities_of(self, texts: Texts) -> EntityTexts | None:
        most, length = self.config.most, self.config.text.length
        return entity_texts(texts, self.vocabulary, most, length) if self.config.entities else None

    def read(self, texts: Texts, entities: EntityTexts | None) -> Encoded:
        """t; states "last" [B, L, W] of the title and, of its entities, "entities" [B, A, W] with their mask, their
        pooled vector e, and whether there is any."""
        last, pooled, mask = self.words(texts)
        if entities is None:
            return Encoded(pooled, states={"last": last}, state_mask=mask)
        states, vector, real = self.words(entities.texts)
        exists = torch.bincount(entities.owner, minlength=len(texts)) > 0
        further = {"entities": states, "entity_mask": real, "entity": vector, "any_entity": exists}
        return Encoded(pooled, states={"last": last, **further}, state_mask=mask)

    def words(self, texts: Texts) -> tuple[Tensor, Tensor, Tensor]:
        """(states, unit vector, mask) of a sequence."""
        ids, mask = self.encoders.text.padded(texts.ids, texts.mask)
        states = self.encoders.text(ids, mask)
        return states, unit(self.encoders.text_pooler(self.encoders.text.pooled(states, mask))), mask

    def see(self, images: Images, hidden: Tensor | None = None) -> Encoded:
        """v; states "last" [B, N, W]; of hidden [B, K] regions the features are zeros."""
        tower: Any = self.encoders.image
        if self.patches and hidden is not None:
            height = images.pixels.shape[2] // self.config.image.patch
            nothing = self.places.new_zeros(self.config.image.width)
            tokens = tower.tokens(images, hidden=(hidden.unflatten(1, (height, -1)), nothing))
        elif isinstance(tower, RegionTower):
            tokens = tower.tokens(images, hidden)
        else:
            tokens = tower.tokens(images)
            if hidden is not None:  # a locked tower's features stand for regions
                first = tokens.shape[1] - hidden.shape[1]
                tokens = tokens.masked_fill(nn.functional.pad(hidden, (first, 0))[..., None], 0)
        mask = tower.mask(images) if isinstance(tower, RegionTower) else torch.ones_like(tokens[..., 0]).bool()
        pooled = unit(self.encoders.image_pooler(tower.pooled(tokens)))
        return Encoded(pooled, states={"last": tokens}, state_mask=mask)

    def hidden_regions(self, batch: Batch, progress: Progress, told: bool = False) -> Tensor | None:
        """[B, K] bool: regions whose features are zeros; told: those that are to be told, a few of them seen."""
        if not self.config.masked_regions:
            return None
        images = batch.images
        if self.patches:
            count = math.prod(side // self.config.image.patch for side in images.pixels.shape[2:])
        elif self.config.regions == "features":
            count = images.features.shape[1]
        else:
            count = self.locked_features(images).shape[1]
        whether, seen = progress.uniform(batch, 2 * count, "regions").view(len(batch), count, 2).unbind(2)
        hidden = whether < self.config.mask_share
        hidden = hidden if images.feature_mask is None else hidden & images.feature_mask
        return hidden if told else hidden & (seen < ZEROED)

    @torch.no_grad()
    def locked_features(self, images: Images) -> Tensor:
        """[B, K, W] what a tower that is no trained ViT gives."""
        return self.encoders.image.grid(self.encoders.image.tokens(images))

    # ---- where they meet

    def together(self, images: Encoded, texts: Encoded) -> tuple[Tensor, Tensor, Tensor | None]:
        """Title [B, L, E], picture [B, N, E] and entities [B, A, E] after co-attention and the joint encoder."""
        t, v = self.text_to_fusion(texts.states["last"]), self.image_to_fusion(images.states["last"])
        t_mask, v_mask = texts.state_mask, images.state_mask
        e, e_mask = texts.states.get("entities"), texts.states.get("entity_mask")
        if e is not None:
            t, e = self.co_attention(t, t_mask, self.text_to_fusion(e), e_mask)
        v, t = self.co_attention(v, v_mask, t, t_mask)
        title, v = self.joined(t, t_mask, v, v_mask)
        if e is not None:
            e, again = self.joined(e, e_mask, t, t_mask)
            title, e = torch.cat([title, again], 2), self.entity_out(e).relu()
        return self.text_out(title).relu(), self.image_out(v).relu(), e

    def joined(self, first: Tensor, first_mask: Tensor, second: Tensor, second_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Both sequences as one through the joint encoder, with places of their own; beyond the last place, its."""
        last = self.places.shape[1] - 1
        where = [torch.arange(x.shape[1], device=x.device).clamp(max=last) for x in (first, second)]
        x = torch.cat([first + self.places[0, where[0]], second + self.places[1, where[1]]], 1)
        x = self.joint(x, torch.cat([first_mask, second_mask], 1))
        return x[:, : first.shape[1]], x[:, first.shape[1] :]

    # ---- losses

    def losses(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        images, texts = encoded["images"], encoded["texts"]
        _, entities, of_title, of_entities = self.hidden_words(batch, progress)
        terms, keep = self.contrasts(images, texts, batch), {}
        if self.config.masked_words or self.config.masked_regions:
            title, regions, words = self.together(images, texts)
        if self.config.masked_words:
            terms["masked_words"] = self.word_loss(title, of_title)
        if self.config.masked_words and words is not None:
            terms["masked_entities"] = self.word_loss(words, of_entities)
        if self.config.masked_regions:
            terms["masked_regions"] = self.region_loss(regions, batch, progress)
        if entities is not None and self.config.graph != "none":
            features = self.entity_features(entities, texts.states["entities"])
            node, subgraph = self.rankings(entities.id, features, progress)
            terms |= {"nodes": node, "subgraphs": subgraph}
            real = entities.by_text(torch.ones_like(entities.id))
            keep = {"features": entities.by_text(features), "ids": entities.by_text(entities.id), "real": real}
        return Losses(terms, {name: tensor.detach() for name, tensor in keep.items()})

    def contrasts(self, images: Encoded, texts: Encoded, batch: Batch) -> dict[str, Tensor]:
        """Section 4.3: picture with title, and picture with entities, over the global batch."""
        same, every = batch.same(), torch.ones(len(batch), dtype=torch.bool, device=batch.device)
        pairs = {"contrast": (texts.pooled, every)}
        if "entity" in texts.states:
            pairs["entity_contrast"] = (texts.states["entity"], texts.states["any_entity"])
        terms = {}
        for name, (vector, real) in pairs.items():
            columns = gather(images.pooled), gather(vector)
            terms[name] = two_sided_contrastive((images.pooled, vector), columns, same, real, gather(real), TEMPERATURE)
        return terms

    def retrieval(self, encoded: dict[str, Encoded], batch: Batch, progress: Progress) -> Losses:
        return Losses(self.contrasts(encoded["images"], encoded["texts"], batch))

    def word_loss(self, states: Tensor, labels: Tensor) -> Tensor:
        index, targets = masked_positions(labels)
        x = self.word_in(states.flatten(0, 1)[index])
        return masked_language(self.word_head(x, self.encoders.text.words.weight), targets)

    def region_loss(self, regions: Tensor, batch: Batch, progress: Progress) -> Tensor:
        """Section 4.2: squared error of patches' normalised pixels, of a detector's features, or of a locked tower's,
        which are normalised; over the hidden regions, those that were seen all the same included."""
        tower, hidden = self.encoders.image, self.hidden_regions(batch, progress, told=True)
        predicted = self.region_head(tower.grid(regions))
        if isinstance(tower, RegionTower):
            return masked_features(predicted, batch.images.features, hidden, "mse", normed=False)
        if self.patches:
            return masked_pixels(predicted, batch.images.pixels.float(), hidden, self.config.image.patch)
        return masked_features(predicted, self.locked_features(batch.images), hidden, "mse")

    # ---- the graph

    def entity_features(self, entities: EntityTexts, states: Tensor) -> Tensor:
        """[N, W] the mean of an entity's own tokens; of a locked text tower after the pooler, which alone can learn."""
        features = entities.features(states)
        return self.encoders.text_pooler(features) if self.config.text.locked else features

    def rankings(self, ids: Tensor, features: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        """Sections 4.5 and 4.6 among the distinct entities of this process's texts; 0 until there is a graph."""
        graph, margin, zero = self.nodes.graph, self.config.margin, features.sum() * 0
        if graph is None or not len(ids):
            return zero, zero
        distinct, place = ids.unique(return_inverse=True)
        sums = features.new_zeros(len(distinct), features.shape[1]).index_add(0, place, features)
        means = sums / torch.bincount(place)[:, None]
        likeness, drawn = graph.between(distinct), draws.uniform(distinct, 4, progress.seed, progress.step, "graph")
        if self.config.ranking == "released":
            return released_ranking(means, likeness, drawn[:, :2])
        node = node_ranking(means, likeness, drawn[:, :2], margin)
        return node, subgraph_ranking(means, likeness, drawn[:, 2:], margin)

    def after_step(self, keep: Mapping[str, Tensor], progress: Progress) -> None:
        if keep:
            real = keep["real"].bool()
            self.nodes.update(keep["ids"][real], keep["features"][real])

    def end_epoch(self, progress: Progress) -> None:
        """A new graph: of the lexicon, or of the nodes' features as they are now."""
        lexicon, nodes = self.vocabulary.lexicon, self.nodes
        if self.config.graph == "lexicon" and lexicon is not None:
            nodes.graph = graph_of_edges(len(lexicon), lexicon.edges)
        elif len(nodes.ids):
            nodes.graph = graph_of_features(nodes.ids, nodes.features, self.config.neighbours)
            if self.config.graph == "random":
                nodes.graph = nodes.graph.shuffled(draws.generator(progress.seed, progress.epoch, "graph"))

    def memory(self) -> Mapping[str, Tensor]:
        return self.nodes.tensors()

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        self.nodes.load(memory)

    # ---- use

    def encode_images(self, images: Images) -> Encoded:
        return self.see(images)

    def encode_texts(self, texts: Texts) -> Encoded:
        return self.read(texts, self.entities_of(texts))

    def first_logit(self, first: Tensor, direction: str) -> Tensor:
        return first / TEMPERATURE

    def fuse(self, images: Sequence[Encoded], texts: Encoded) -> Fused:
        """The title's states over the regions of all pictures; pooled is its first state."""
        states, masks = zip(*((x.states["last"], x.state_mask) for x in images), strict=True)
        regions = Encoded(states={"last": torch.cat(states, 1)}, state_mask=torch.cat(masks, 1))
        title = self.together(regions, texts)[0]
        return Fused(title[:, 0], title, texts.state_mask)


def _pooler(width: int, embed: int, tower: ImageTowerConfig | TextTowerConfig) -> nn.Module:
    """ReLU(W h); of a locked tower nothing is left out inside, so it is done to h."""
    return nn.Sequential(nn.Dropout(tower.dropout if tower.locked else 0.0), nn.Linear(width, embed), nn.ReLU())
