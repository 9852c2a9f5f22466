"""Vectors of entities from the graph they stand in, by TransE: what `tuwen knowledge` and `do: knowledge` train.

Shape legend: N entities, K kinds of relation, E edges, D width.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tuwen.data import draws
from tuwen.data.lexicons.lexicon import Lexicon
from tuwen.errors import UserError
from tuwen.objectives.knowledge import transe_distance, transe_loss
from tuwen.progress import track

_TRIES = 20  # draws for a corrupted copy that is no edge
_SCORES = 1 << 24  # distances in memory at once


@dataclass(frozen=True)
class KnowledgeConfig:
    """ARL's settings (its card, section 3): width 256, L1, margin 5, 25 negatives, 1000 epochs of 100 batches, rate 1.

    least: entities that fewer texts of the corpus name are left out, where there is a corpus (ARL: more than 20).
    connected: entities without an edge are left out too (ARL).
    """

    width: int = 256
    margin: float = 5.0
    negatives: int = 25
    epochs: int = 1000
    batches: int = 100
    lr: float = 1.0
    seed: int = 0
    least: int = 1
    connected: bool = False

    def __post_init__(self):
        for name in ("width", "negatives", "epochs", "batches"):
            if not 1 <= getattr(self, name) <= 2**20:
                raise ValueError(f"{name} must lie between 1 and {2**20}, got {getattr(self, name)}")
        if not (self.margin > 0 and self.lr > 0 and self.least >= 0):
            raise ValueError("margin and lr must be positive, least 0 or more")


def learn_knowledge(
    lexicon: Lexicon, config: KnowledgeConfig, texts: Iterable[str] | None = None, device: str | torch.device = "cpu"
) -> tuple[Lexicon, dict[str, Any]]:
    """The lexicon with vectors [N, D] of unit length, and what they reached; the same for the same seed.

    texts: of the corpus it is for; None: every entity stays.

    Raises:
        UserError: no edge is left to learn from.
    """
    if texts is not None:
        lexicon = lexicon.among(np.flatnonzero(lexicon.counts(texts) >= config.least).tolist())
    if config.connected:
        lexicon = lexicon.among(np.unique(lexicon.edges[:, [0, 2]]).tolist())
    if not len(lexicon.edges):
        raise UserError(
            f"the lexicon has no edge among its {len(lexicon):,} entities to learn from; add triples, or lower least"
        )
    edges = torch.from_numpy(lexicon.edges).to(device)
    entities, relations = transe(edges, len(lexicon), len(lexicon.relations), config)
    reached = tail_ranks(edges, entities, relations)
    chance = (1 / torch.arange(1, len(lexicon) + 1)).mean()
    metrics = {
        "entities": len(lexicon),
        "relations": len(lexicon.relations),
        "edges": len(edges),
        "mrr": float((1 / reached.double()).mean()),
        "chance_mrr": float(chance),
        "hits10": 100 * float((reached <= 10).double().mean()),
    }
    return replace(lexicon, vectors=F.normalize(entities, dim=1).cpu().numpy()), metrics


def transe(edges: Tensor, count: int, kinds: int, config: KnowledgeConfig) -> tuple[Tensor, Tensor]:
    """(entities [N, D], relations [K, D]) learnt from edges [E, 3] int64 by plain gradient descent."""
    generator = torch.Generator().manual_seed(draws.key("transe", config.seed))
    tables = [_table(rows, config.width, generator).to(edges.device).requires_grad_() for rows in (count, kinds)]
    optimizer = torch.optim.SGD(tables, lr=config.lr)
    known, share = _keys(edges, count, kinds).sort().values, head_share(edges, kinds)
    size = -(-len(edges) // config.batches)
    for _ in track(range(config.epochs), "epochs", config.epochs):
        for batch in edges[torch.randperm(len(edges), generator=generator).to(edges.device)].split(size):
            copies, real = corrupted_edges(batch, share, known, count, kinds, config.negatives, generator)
            distances = [_distance(tables[0], tables[1], some) for some in (batch, copies)]
            loss = transe_loss(distances[0], distances[1], real, config.margin)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return tables[0].detach(), tables[1].detach()


def head_share(edges: Tensor, kinds: int) -> Tensor:
    """[K] how often the head of an edge of a kind is corrupted: tails a head over the sum with heads a tail (Bernoulli,
    Wang et al. 2014), so that a copy is seldom true."""
    counts = torch.bincount(edges[:, 1], minlength=kinds).double()
    heads, tails = (
        torch.bincount(edges[:, [1, side]].unique(dim=0)[:, 0], minlength=kinds).clamp(min=1) for side in (0, 2)
    )
    tails_a_head, heads_a_tail = counts / heads, counts / tails
    return tails_a_head / (tails_a_head + heads_a_tail).clamp(min=1e-9)


def corrupted_edges(
    edges: Tensor, share: Tensor, known: Tensor, count: int, kinds: int, copies: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(copies [B, C, 3] of edges [B, 3] with another head or tail, real [B, C] bool: those that are no edges).

    share: [K], see `head_share`. known: [E] sorted keys of all edges; a copy that is one is drawn again, some times.
    """
    drawn = edges[:, None].repeat(1, copies, 1)
    side = torch.rand(drawn.shape[:2], generator=generator, dtype=torch.float64).to(edges.device)
    side = torch.where(side < share[drawn[..., 1]], 0, 2)
    real = torch.zeros_like(side, dtype=torch.bool)
    for _ in range(_TRIES):
        other = torch.randint(count, side.shape, generator=generator).to(edges.device)
        drawn = torch.where(real[..., None], drawn, drawn.scatter(2, side[..., None], other[..., None]))
        real = ~torch.isin(_keys(drawn, count, kinds), known, assume_unique=False)
        if bool(real.all()):
            break
    return drawn, real


@torch.no_grad()
def tail_ranks(edges: Tensor, entities: Tensor, relations: Tensor) -> Tensor:
    """[E] int64 rank of each edge's tail, from 1, by distance among all entities but the other tails of its head and
    kind (the filtered ranks of Bordes et al. 2013); equal distances count half."""
    ranks, count = [], len(entities)
    for batch in edges.split(max(1, _SCORES // (count * entities.shape[1]))):
        head, kind, tail = batch.unbind(1)
        distance = transe_distance(entities[head][:, None], relations[kind][:, None], entities[None])
        row, other = torch.nonzero((edges[None, :, 0] == head[:, None]) & (edges[None, :, 1] == kind[:, None])).T
        own = distance.gather(1, tail[:, None])
        distance[row, edges[other, 2]] = torch.inf
        ranks.append(1 + (distance < own).sum(1) + (distance == own).sum(1) // 2)
    return torch.cat(ranks)


def _distance(entities: Tensor, relations: Tensor, edges: Tensor) -> Tensor:
    head, kind, tail = edges.unbind(-1)
    return transe_distance(entities[head], relations[kind], entities[tail])


def _keys(edges: Tensor, count: int, kinds: int) -> Tensor:
    """An int64 an edge [..., 3], equal for equal edges."""
    return (edges[..., 0] * kinds + edges[..., 1]) * count + edges[..., 2]


def _table(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """[rows, width] by Xavier's uniform rule, as OpenKE begins."""
    bound = (6 / (rows + width)) ** 0.5
    return (2 * torch.rand(rows, width, generator=generator) - 1) * bound
