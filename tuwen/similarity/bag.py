"""Bags: neighbouring tokens of a text summed into one vector, so that a word or entity is matched as a whole.

BagFormer (Hou et al. 2022; card sections 3 and 5b). A text's bags are its spans of one kind; every token outside them
is a bag by itself. Bags partition the real tokens, whatever stands beside the text in a batch (the official code cuts
all texts of a batch to the fewest bags; ours pads and masks them).

Shape legend: S sequences, L tokens, K = L bags at most, W width.
"""

import torch
from torch import Tensor

from tuwen.data import draws
from tuwen.data.batch import Spans


def bag_of(spans: Spans, mask: Tensor) -> Tensor:
    """[S, L] int64: the bag each token lies in, counted from 0 in every text; L for padding.

    spans: of one kind, none overlapping another. mask [S, L]: True on real tokens.
    """
    first = _first(spans, mask)
    return torch.where(mask, first.long().cumsum(1) - 1, mask.shape[1])


def shuffled_bag_of(spans: Spans, ids: Tensor, mask: Tensor) -> Tensor:
    """`bag_of` with the same bag lengths in an order drawn from the text's own ids: the control of card section 9.

    The first and the last real token ([CLS] and [SEP]) keep bags of their own.
    """
    length = mask.shape[1]
    bag, place = bag_of(spans, mask), torch.arange(length, device=mask.device)
    weights = draws.mix(place + 1)
    key = draws.mix((torch.where(mask, ids, 0) * weights).sum(1))
    draw = draws.uniform(key, length, "shuffled bags")
    inner = mask & (place > 0) & (place < mask.sum(1, keepdim=True) - 1)
    size = torch.zeros(len(mask), length + 1, dtype=torch.int64, device=mask.device)
    size.scatter_add_(1, bag, inner.long())
    size = size[:, :length]  # inner tokens a bag: 0 for those of [CLS] and [SEP], and for bags that do not exist
    order = torch.where(size > 0, draw, 2.0).argsort(1)
    ends = size.gather(1, order).cumsum(1)  # of the shuffled bags, among the inner tokens
    position = place[None].expand_as(mask).contiguous() - 1
    fresh = torch.searchsorted(ends, position, right=True) + 1
    last = fresh.gather(1, (mask.sum(1, keepdim=True) - 2).clamp(min=0)) + 1
    whole = torch.where(inner, fresh, torch.where(place[None] == 0, 0, last))
    return torch.where(mask, whole, length)


def sum_bags(states: Tensor, bag: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """(sums [S, K, W] of each bag's states [S, L, W], real [S, K] bool); K = L, sums past the last bag are zero.

    bag: as `bag_of` gives. masked [S, L]: True on tokens whose bag takes no part ([CLS] in BagFormer).
    """
    sequences, length, width = states.shape
    sums = states.new_zeros(sequences, length + 1, width)
    sums = sums.scatter_add(1, bag[..., None].expand_as(states), states)[:, :length]
    counts = torch.zeros(sequences, length + 1, dtype=torch.int64, device=bag.device)
    counts.scatter_add_(1, bag, (~masked).long())
    return sums, counts[:, :length] > 0


def _first(spans: Spans, mask: Tensor) -> Tensor:
    """[S, L] bool: real tokens that begin a bag, which are all but those that go on with a span."""
    flags = torch.zeros(mask.shape[0], mask.shape[1] + 1, dtype=torch.int64, device=mask.device)
    ones = torch.ones_like(spans.start)
    flags.index_put_((spans.sequence, spans.start + 1), ones, accumulate=True)
    flags.index_put_((spans.sequence, spans.end), -ones, accumulate=True)
    return mask & (flags.cumsum(1)[:, :-1] == 0)
