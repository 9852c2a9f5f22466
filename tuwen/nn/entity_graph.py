"""The graph over a corpus's entities, made of their features once an epoch: neighbours by CAN, likeness by neighbours.

Shape legend: N entities (nodes), U entities of a batch, W width of features, M pairs that are alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

LIKE, UNLIKE = 0.85, 0.5  # similarity above which two entities are neighbours, and below which they are not
_CHUNK = 1 << 24  # distances in memory at once


def can_weights(features: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """(columns [N, k] int64, weights [N, k]) of Clustering with Adaptive Neighbours (Nie et al. 2014; card, 4.4).

    p_ij = relu(d_i,(k+1) - d_ij) / (k d_i,(k+1) - sum of the k least d_i), d the squared distance of features [N, W]; a
    node is its own nearest, as in the official code. Rows sum to 1; where the k+1 nearest are equally far, all weigh
    alike. k is at most N - 1.
    """
    k = min(neighbours, len(features) - 1)
    if k < 1:
        return torch.zeros(len(features), 1, dtype=torch.int64), torch.ones(len(features), 1)
    columns, weights = [], []
    for rows in torch.arange(len(features)).split(max(1, _CHUNK // len(features))):
        distance = torch.cdist(features[rows].double(), features.double()).square()
        distance[torch.arange(len(rows)), rows] = 0
        near = distance.topk(k + 1, dim=1, largest=False, sorted=True)
        bound, inner = near.values[:, k:], near.values[:, :k]
        total = k * bound - inner.sum(1, keepdim=True)
        even = total <= 1e-12 * bound.clamp(min=1e-30)
        weights.append(torch.where(even, 1 / k, (bound - inner).relu() / torch.where(even, 1, total)))
        columns.append(near.indices[:, :k])
    return torch.cat(columns), torch.cat(weights).float()


def symmetric(columns: Tensor, weights: Tensor) -> sparse.csr_array:
    """[N, N]: (P + P^T) / 2 of P's rows, sparse."""
    n, k = columns.shape
    places = np.repeat(np.arange(n), k), columns.numpy().reshape(-1)
    p = sparse.csr_array((weights.numpy().astype(np.float64).reshape(-1), places), shape=(n, n))
    return ((p + p.T) / 2).tocsr()


@dataclass(frozen=True)
class EntityGraph:
    """How alike entities are: the cosine of their rows of the graph's weights, where it is `UNLIKE` or more.

    ids: [N] int64, ascending. starts [N + 1], columns [M] int64 and values [M] float32: the alike of each, as rows of a
    sparse matrix; what is not listed is less.
    """

    ids: Tensor
    starts: Tensor
    columns: Tensor
    values: Tensor

    @classmethod
    def of(cls, ids: Tensor, weights: sparse.csr_array) -> "EntityGraph":
        """weights: [N, N] non-negative. A node without any is like itself alone."""
        length = np.sqrt(np.asarray(weights.multiply(weights).sum(1)).reshape(-1))
        rows = sparse.diags_array(1 / np.where(length > 0, length, 1)) @ weights
        alike = sparse.csr_array(rows @ rows.T)
        alike.setdiag(1)
        alike = alike.tocsr()
        alike.data[alike.data < UNLIKE] = 0
        alike.eliminate_zeros()
        alike.sort_indices()
        parts = (alike.indptr, alike.indices, np.minimum(alike.data, 1))
        starts, columns, values = (torch.from_numpy(np.array(part)) for part in parts)
        return cls(ids, starts.long(), columns.long(), values.float())

    def __len__(self) -> int:
        return len(self.ids)

    def between(self, ids: Tensor) -> Tensor:
        """[U, U] float32 likeness of distinct entities [U], on their device; NaN where one of a pair is in no graph."""
        asked = ids.cpu()
        place = torch.searchsorted(self.ids, asked).clamp(max=max(len(self.ids) - 1, 0))
        known = self.ids[place] == asked if len(self.ids) else torch.zeros_like(asked, dtype=torch.bool)
        out = torch.full((len(asked), len(asked)), torch.nan)
        out[known[:, None] & known] = 0
        seat = torch.full((len(self.ids),), -1)
        seat[place[known]] = torch.nonzero(known)[:, 0]
        for row in torch.nonzero(known)[:, 0].tolist():
            begin, end = self.starts[place[row]], self.starts[place[row] + 1]
            there = seat[self.columns[begin:end]]
            out[row, there[there >= 0]] = self.values[begin:end][there >= 0]
        return out.to(ids.device)

    def shuffled(self, generator: np.random.Generator) -> "EntityGraph":
        """The same graph over other entities: the control that nothing is learnt of a graph that says nothing."""
        order = torch.from_numpy(generator.permutation(len(self.ids)))
        weights = sparse.csr_array((self.values.numpy(), self.columns.numpy(), self.starts.numpy()))
        weights = weights[order.numpy()][:, order.numpy()].tocsr()
        weights.sort_indices()
        starts, columns = (torch.from_numpy(np.array(part)).long() for part in (weights.indptr, weights.indices))
        return EntityGraph(self.ids, starts, columns, torch.from_numpy(weights.data.copy()))


def graph_of_features(ids: Tensor, features: Tensor, neighbours: int) -> EntityGraph:
    """The graph of entities [N] by the directions of their features [N, W]."""
    return EntityGraph.of(ids, symmetric(*can_weights(torch.nn.functional.normalize(features, dim=1), neighbours)))


def graph_of_edges(count: int, edges: np.ndarray) -> EntityGraph:
    """The graph of a lexicon's rows by the tails of its edges [E, 3]: alike are those that share them (siblings)."""
    ones = np.ones(len(edges))
    weights = sparse.csr_array((ones, (edges[:, 0], edges[:, 2])), shape=(count, count))
    return EntityGraph.of(torch.arange(count), weights)


class EntityMemory:
    """The latest feature of every entity met, on the CPU, and the graph made of them; at most so many entities, those
    met first.

    ids: [N] int64, ascending. features: [N, W]. graph: None until it is made.
    """

    def __init__(self, width: int, most: int):
        self.most = most
        self.ids, self.features = torch.zeros(0, dtype=torch.int64), torch.zeros(0, width)
        self.graph: EntityGraph | None = None

    def update(self, ids: Tensor, features: Tensor) -> None:
        """Takes in features [R, W] of entities [R]; of one that is there twice the later."""
        ids, features = ids.cpu(), features.detach().float().cpu()
        unique, place = ids.unique(return_inverse=True)
        last = torch.zeros_like(unique).scatter_reduce(0, place, torch.arange(len(ids)), "amax", include_self=False)
        fresh = unique[~torch.isin(unique, self.ids)][: max(0, self.most - len(self.ids))]
        self.ids, order = torch.cat([self.ids, fresh]).sort()
        self.features = torch.cat([self.features, self.features.new_zeros(len(fresh), self.features.shape[1])])[order]
        known = torch.isin(unique, self.ids)
        self.features[torch.searchsorted(self.ids, unique[known])] = features[last[known]]

    def tensors(self) -> dict[str, Tensor]:
        graph = {} if self.graph is None else {f"graph.{name}": x for name, x in vars(self.graph).items()}
        return {"ids": self.ids, "features": self.features, **graph}

    def load(self, memory: Mapping[str, Tensor]) -> None:
        """Takes in what `tensors` gave."""
        self.ids, self.features = memory["ids"].cpu(), memory["features"].cpu()
        graph = {name.removeprefix("graph."): x.cpu() for name, x in memory.items() if name.startswith("graph.")}
        self.graph = EntityGraph(**graph) if graph else None
