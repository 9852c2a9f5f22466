"""Entities of a graph as a third stream beside picture and text (ARL, arXiv 2209.07118; sections are its card's).

Shape legend: B rows, L text tokens, I image tokens, N entities, S slots of entities a text, W width, K entities' width.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuwen.data.batch import Spans, Texts
from tuwen.nn.encoded import Encoded
from tuwen.nn.sizes import CrossEncoderConfig
from tuwen.nn.transformer import Block


class GraphAttention(nn.Module):
    """A node attends to those with an edge to it and to itself (Velickovic et al. 2018, as torch_geometric has it).

    Heads stand one after the other in the output. dropout: of edges, head by head.
    """

    def __init__(self, width: int, out: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.values = nn.Linear(width, heads * out, bias=False)
        self.source, self.target = (nn.Parameter(torch.zeros(heads, out)) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(heads * out))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """[N, H out] from x [N, K] and edges [E, 2] int64 (from, to), those of every node to itself among them."""
        values = self.values(x).view(len(x), self.heads, -1)
        start, end = edges.unbind(1)
        score = F.leaky_relu((values * self.source).sum(-1)[start] + (values * self.target).sum(-1)[end], 0.2)
        most = score.new_full((len(x), self.heads), -torch.inf)
        most = most.scatter_reduce(0, end[:, None].expand_as(score), score.detach(), "amax")
        weight = (score - most[end]).exp()
        total = torch.zeros_like(most).index_add(0, end, weight)
        share = F.dropout(weight / total[end], self.dropout, self.training)
        summed = torch.zeros_like(values).index_add(0, end, share[..., None] * values[start])
        return summed.flatten(1) + self.bias


class EntityEncoder(nn.Module):
    """A vector an entity: what was learnt of the graph, normed, through two layers of attention along its edges (3).

    dropout: of each layer's input, and of its edges.
    """

    edges: Tensor

    def __init__(self, entities: int, edges: np.ndarray, width: int, heads: int = 8, dropout: float = 0.2):
        """edges: [E, 2] int64 (head, tail); of whatever kind, each counts once."""
        super().__init__()
        self.vectors = nn.Embedding(entities, width)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        hidden = max(1, width // 4)
        self.first = GraphAttention(width, hidden, heads, dropout)
        self.second = GraphAttention(heads * hidden, width, 1, dropout)
        itself = np.arange(entities)[:, None].repeat(2, 1)
        every = np.unique(np.concatenate([itself, edges]), axis=0)
        self.register_buffer("edges", torch.from_numpy(every), persistent=False)

    def forward(self) -> Tensor:
        """[N, K]."""
        x = self.dropout(self.norm(self.vectors.weight))
        x = self.dropout(F.elu(self.first(x, self.edges)))
        return self.second(x, self.edges)


def slots_of(spans: Spans | None, texts: Texts, entities: int, slots: int) -> tuple[Tensor, Tensor]:
    """(ids [B, S] int64, -1 in empty slots, mentions [B, S, L] bool): the first S entity spans of every text, in order.

    Spans whose id is no entity are left out; with no spans all slots are empty.
    """
    rows, length = texts.ids.shape
    ids = torch.full((rows, slots), -1, device=texts.ids.device)
    mentions = torch.zeros(rows, slots, length, dtype=torch.bool, device=texts.ids.device)
    if spans is None or not len(spans.id) or not entities:
        return ids, mentions
    known = (spans.id >= 0) & (spans.id < entities)
    row, start, end, entity = (x[known] for x in (spans.sequence, spans.start, spans.end, spans.id))
    order = (row * (length + 1) + start).argsort(stable=True)
    row, start, end, entity = (x[order] for x in (row, start, end, entity))
    counts = torch.bincount(row, minlength=rows)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    fits = place < slots
    row, start, end, entity, place = (x[fits] for x in (row, start, end, entity, place))
    ids[row, place] = entity
    at = torch.arange(length, device=row.device)
    mentions[row, place] = (at >= start[:, None]) & (at < end[:, None])
    return ids, mentions


def without_hidden(ids: Tensor, mentions: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The slots without entities any mention of which has a hidden token [B, L] bool; the others move up."""
    touched = (mentions & hidden[:, None]).any(2)
    gone = (ids[:, :, None] == ids[:, None]) & touched[:, None]  # whatever slot, the same entity
    stays = (ids >= 0) & ~gone.any(2)
    order = (~stays).int().argsort(dim=1, stable=True)
    ids = torch.where(stays, ids, -1).gather(1, order)
    mentions = (mentions & stays[..., None]).gather(1, order[..., None].expand_as(mentions))
    return ids, mentions


def layer_of(config: CrossEncoderConfig, width: int, heads: int) -> Block:
    """A layer with cross-attention of a config, but for its width and heads; its memory is as wide."""
    return Block(width, heads, "post", config.activation, config.eps, config.dropout, width, config.hidden)


class KnowledgeLayer(nn.Module):
    """A text layer with entities (3): both attend to themselves, then to the picture; entities are added to the tokens
    that mention them, h = norm(dropout(W_o(h + M^T Z W)) + h); then both have their feed-forward."""

    def __init__(self, config: CrossEncoderConfig, width: int, heads: int):
        """width, heads: of the entities' stream."""
        super().__init__()
        self.text = layer_of(config, config.width, config.heads)
        self.seen = nn.Linear(config.width, width)
        self.entities = layer_of(config, width, heads)
        self.to_text = nn.Linear(width, config.width)
        self.out, self.norm = nn.Linear(config.width, config.width), nn.LayerNorm(config.width, config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor, y: Tensor, z: Tensor, mentions: Tensor) -> tuple[Tensor, Tensor]:
        """(text [B, L, W], entities [B, S, K]) from text x, its mask [B, L], picture y [B, I, W], entities z."""
        real = mentions.any(2)
        real = real | ~real.any(1, keepdim=True)  # a text without entities: nothing is added, and nothing is NaN
        x = self.text.attended(x, mask, y)
        z = self.entities.attended(z, real, self.seen(y))
        reasoned = x + mentions.to(x.dtype).transpose(1, 2) @ self.to_text(z)
        x = self.norm(self.dropout(self.out(reasoned)) + x)
        return self.text.fed(x), self.entities.fed(z)


class KnowledgeFusion(nn.Module):
    """Co-attention of both sides with entities on the text's: every layer reads the layer before of both (3)."""

    def __init__(self, config: CrossEncoderConfig, image_width: int, text_width: int, width: int, heads: int):
        super().__init__()
        self.image_input, self.text_input = (nn.Linear(w, config.width) for w in (image_width, text_width))
        self.types = nn.Embedding(2, config.width)  # text, picture
        self.text_layers = nn.ModuleList(KnowledgeLayer(config, width, heads) for _ in range(config.layers))
        self.image_layers = nn.ModuleList(layer_of(config, config.width, config.heads) for _ in range(config.layers))

    def entered_texts(self, texts: Encoded) -> Tensor:
        """[B, L, W] before the first layer: projected, with their type."""
        return self.text_input(texts.states["last"]) + self.types.weight[0]

    def entered_images(self, images: Encoded) -> Tensor:
        """[B, I, W], as `entered_texts`."""
        return self.image_input(images.states["last"]) + self.types.weight[1]

    def forward(self, images: Encoded, texts: Encoded, layers: int | None = None) -> tuple[Tensor, Tensor]:
        """Last states of text and picture, after so many layers (None: all)."""
        x, y = self.entered_texts(texts), self.entered_images(images)
        z, mentions, mask = texts.states["entities"], texts.states["mentions"] > 0, texts.state_mask
        assert mask is not None
        pairs: Sequence = list(zip(self.text_layers, self.image_layers, strict=True))[:layers]
        for of_text, of_image in pairs:
            (x, z), y = of_text(x, mask, y, z, mentions), of_image(y, None, x, mask)
        return x, y
