"""The entities of a text as a sequence of their own: [CLS] entity [SEP] entity [SEP] ... (EGE-CMP's card, section 3).

Shape legend: B texts, A tokens of the longest sequence, N entities in all, M most entities a text, W width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tuwen.data.batch import Texts
from tuwen.data.spans import KINDS
from tuwen.data.text import Vocabulary
from tuwen.errors import UserError


@dataclass(frozen=True)
class EntityTexts:
    """texts: the sequences, [B, A]. owner, rank, start, end, id: [N] of each entity its text, its number there, its
    tokens start..end-1 of the sequence, and its identity (`Spans.id`). most: M."""

    texts: Texts
    owner: Tensor
    rank: Tensor
    start: Tensor
    end: Tensor
    id: Tensor
    most: int

    def features(self, states: Tensor) -> Tensor:
        """[N, W]: the mean of each entity's own tokens in states [B, A, W], without [CLS] and [SEP]."""
        sums = torch.nn.functional.pad(states.cumsum(1), (0, 0, 1, 0))
        return (sums[self.owner, self.end] - sums[self.owner, self.start]) / (self.end - self.start)[:, None]

    def by_text(self, values: Tensor) -> Tensor:
        """[B, M, ...] of values [N, ...] an entity; 0 where a text has no such entity."""
        out = values.new_zeros(len(self.texts), self.most, *values.shape[1:])
        return out.index_put((self.owner, self.rank), values)


def entity_texts(texts: Texts, vocabulary: Vocabulary, most: int, length: int) -> EntityTexts:
    """The texts' spans of kind "entity", the first `most` distinct ones by place that fit into `length` tokens.

    Raises:
        UserError: the texts come without spans.
    """
    if texts.spans is None:
        raise UserError("cannot encode_texts: the texts come without spans of kind entity")
    rows, device = len(texts.ids), texts.ids.device
    spans = texts.spans.of(KINDS.index("entity"))
    places = torch.stack([spans.sequence, spans.start, spans.end, spans.id], 1).unique(dim=0)
    _, group = places[:, [0, 3]].unique(dim=0, return_inverse=True)
    first = torch.full_like(group, len(group)).scatter_reduce(0, group, torch.arange(len(group), device=device), "amin")
    places = places[first[group] == torch.arange(len(group), device=device)]  # an entity named twice stands once
    owner, begin, stop, identity = places.unbind(1)

    every = torch.bincount(owner, minlength=rows)
    rank = torch.arange(len(owner), device=device) - (every.cumsum(0) - every)[owner]
    sizes = stop - begin + 1
    before = sizes.cumsum(0) - sizes
    head = 1 if vocabulary.cls >= 0 else 0
    firsts = (every.cumsum(0) - every).clamp(max=max(len(owner) - 1, 0))
    start = before - (before[firsts][owner] if len(owner) else before) + head
    fits = (rank < most) & (start + sizes <= length)
    owner, begin, identity, rank, sizes, start = (x[fits] for x in (owner, begin, identity, rank, sizes, start))

    ends = torch.full((rows,), head + 1, device=device).scatter_reduce(0, owner, start + sizes, "amax")
    ids = texts.ids.new_full((rows, int(ends.max()) if rows else head + 1), vocabulary.pad)
    ids[:, head] = vocabulary.sep  # of a text without entities
    if head:
        ids[:, 0] = vocabulary.cls
    tokens = sizes - 1
    whose = torch.arange(len(tokens), device=device).repeat_interleave(tokens)
    within = torch.arange(len(whose), device=device) - (tokens.cumsum(0) - tokens)[whose]
    ids[owner[whose], start[whose] + within] = texts.ids[owner[whose], begin[whose] + within]
    ids[owner, start + tokens] = vocabulary.sep
    mask = torch.arange(ids.shape[1], device=device) < ends[:, None]
    return EntityTexts(Texts(ids, mask, texts.language), owner, rank, start, start + tokens, identity, most)
