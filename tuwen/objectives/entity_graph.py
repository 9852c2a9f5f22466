"""Ranking by an entity graph: neighbours before others (EGE-CMP's card, sections 4.5 and 4.6).

Shape legend: U entities of a batch, D width of their features, G entities of a drawn subgraph.
"""

import torch
from torch import Tensor

from tuwen.nn.entity_graph import LIKE, UNLIKE


def drawn_from(choice: Tensor, draws: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(which [U, count] int64, real [U, count] bool) of the entities that choice [U, U] bool allows a row.

    draws: [U] in [0, 1): where a row begins; from there the allowed ones follow in order, going round, so that none
    comes twice. real: False beyond the number of those allowed.
    """
    number = choice.sum(1, keepdim=True)
    rank = torch.arange(count, device=choice.device)
    place = ((draws[:, None] * number).long() + rank) % number.clamp(min=1)
    order = choice.to(torch.int8).sort(dim=1, descending=True, stable=True).indices  # the allowed ones first, in order
    return order.gather(1, place.clamp(max=choice.shape[1] - 1)), rank < number


def node_ranking(features: Tensor, likeness: Tensor, draws: Tensor, margin: float) -> Tensor:
    """Mean over entities of max(0, margin - cos(x, x of a neighbour) + cos(x, x of another)), both drawn.

    features: [U, D]. likeness: [U, U] in 0..1, NaN where nothing is known of a pair. draws: [U, 2] in [0, 1). Entities
    without a neighbour or without another in the batch take no part; where none is left it is 0.
    RECONSTRUCTED: the intended form, with gradient; the released code's is `released_ranking`.
    """
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    right, has_right = drawn_from((likeness > LIKE) & ~itself, draws[:, 0], 1)
    wrong, has_wrong = drawn_from(likeness < UNLIKE, draws[:, 1], 1)
    unit = torch.nn.functional.normalize(features, dim=1)
    near, far = ((unit * unit[which[:, 0]]).sum(1) for which in (right, wrong))
    asked = (has_right & has_wrong)[:, 0]
    return ((margin - near + far).relu() * asked).sum() / asked.sum().clamp(min=1)


def subgraph_ranking(features: Tensor, likeness: Tensor, draws: Tensor, margin: float) -> Tensor:
    """Mean over entities of how much less a drawn subgraph of neighbours holds together than one of others.

    Of each set, the entity itself among its neighbours, five are drawn where it has more than five, else three; both
    are cut to the smaller, of at least two. A subgraph is the row sums r of its cosines; the loss is the mean over g of
    max(0, margin + r of others - r of neighbours). As `node_ranking` otherwise.
    """
    sets = likeness > LIKE, likeness < UNLIKE
    drawn = [drawn_from(choice, draws[:, k], 5) for k, choice in enumerate(sets)]
    size = torch.stack([torch.where(choice.sum(1) > 5, 5, choice.sum(1).clamp(max=3)) for choice in sets]).amin(0)
    member = torch.arange(5, device=features.device) < size[:, None]
    unit = torch.nn.functional.normalize(features, dim=1)
    near, far = (cohesion(unit[which], member) for which, _ in drawn)
    each = ((margin + far - near).relu() * member).sum(1) / size.clamp(min=1)
    asked = size >= 2
    return (each * asked).sum() / asked.sum().clamp(min=1)


def cohesion(nodes: Tensor, member: Tensor) -> Tensor:
    """[U, G]: of each node of a subgraph the sum of its cosines with all; nodes [U, G, D] unit, member [U, G] bool."""
    gram = nodes @ nodes.transpose(1, 2)
    return (gram * member[:, None, :]).sum(2)


def released_ranking(features: Tensor, likeness: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """(node, subgraph) as the official code has them, the control: constants, as features are cut off the graph.

    Numbers of a neighbour and of "another" are compared one by one, without anchor and margin, and the other is drawn
    among the most similar entities (the card's pitfalls 1 and 2).
    """
    features = features.detach()
    right, has = drawn_from(likeness > LIKE, draws[:, 0], 1)
    others = (likeness < UNLIKE).sum(1)
    near = likeness.nan_to_num(0.0).sort(dim=1, descending=True, stable=True).indices
    wrong = near.gather(1, (draws[:, 1] * others).long()[:, None])
    asked = has[:, 0] & (others > 0)
    gap = (features[wrong[:, 0]] - features[right[:, 0]]).relu().mean(1)
    node = (gap * asked).sum() / asked.sum().clamp(min=1)
    return node, subgraph_ranking(features, likeness, draws, 0.0)
