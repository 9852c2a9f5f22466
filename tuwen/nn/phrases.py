"""Phrases of a text as further tokens at its end: [CLS] words phrases [SEP].

Words and phrases have one table of rows: a word's row is its id; a phrase of one token has that token's row; a longer
one has a row behind the words', by the hash of what it says.

Shape legend: B texts, L tokens, A tokens and phrases, P most phrases a text, N phrases in all, W width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tuwen.data.batch import Texts
from tuwen.data.text import Vocabulary


@dataclass(frozen=True)
class WithPhrases:
    """ids [B, A] rows of the table, mask [B, A] bool; count [B] phrases a text, first [B] the place of the first.

    sequence, start, end, place: [N] of each phrase its text, its tokens start..end-1, and its own place.
    """

    ids: Tensor
    mask: Tensor
    count: Tensor
    first: Tensor
    sequence: Tensor
    start: Tensor
    end: Tensor
    place: Tensor

    def phrases_in(self, states: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """(states of the phrases [B, P, W], which are real [B, P]) out of states [B, A, W]."""
        rank = torch.arange(most, device=states.device)
        place = (self.first[:, None] + rank).clamp(max=states.shape[1] - 1)
        phrases = states.gather(1, place[..., None].expand(-1, -1, states.shape[2]))
        return phrases, rank < self.count[:, None]


def with_phrases(texts: Texts, vocabulary: Vocabulary, most: int, rows: int) -> WithPhrases:
    """The texts with their spans as phrases, the first `most` distinct ones by place; without spans, none.

    rows: of the table, for phrases of several tokens.
    """
    ids, rows_of, length = texts.ids, len(texts.ids), texts.ids.shape[1]
    if texts.spans is None:
        places = ids.new_zeros(0, 4)
    else:
        spans = texts.spans
        places = torch.stack([spans.sequence, spans.start, spans.end, spans.id], 1).unique(dim=0)
    sequence, start, end, identity = places.unbind(1)
    every = torch.bincount(sequence, minlength=rows_of)
    rank = torch.arange(len(places), device=ids.device) - (every.cumsum(0) - every)[sequence]
    fits = rank < most
    sequence, start, end, identity, rank = (x[fits] for x in (sequence, start, end, identity, rank))
    count, first = every.clamp(max=most), texts.mask.sum(1) - 1
    place = first[sequence] + rank

    longest = length + int(count.max()) if len(count) else length
    out = ids.new_full((rows_of, longest), vocabulary.pad)
    out[:, :length] = ids
    row = torch.where(end - start == 1, ids[sequence, start], vocabulary.size + identity.remainder(rows))
    out[sequence, place] = row
    out[torch.arange(rows_of, device=ids.device), first + count] = vocabulary.sep
    mask = torch.arange(longest, device=ids.device) < (first + count + 1)[:, None]
    return WithPhrases(out, mask, count, first, sequence, start, end, place)


def corrupted(
    text: WithPhrases, labels: Tensor, draws: Tensor, vocabulary: Vocabulary, rows: int, share: float
) -> WithPhrases:
    """The text with phrases hidden: all that have a token to be told, so that no phrase gives a hidden word away.

    labels: [B, L], 0 or more where a word is to be told. Each other phrase is chosen with probability `share`; of the
    chosen 80% become [MASK], 10% another phrase's row, 10% stay (MVPTR card, section 4.3).
    draws: [B, P, 3] in [0, 1): whether, what, which.
    """
    masked_before = torch.nn.functional.pad((labels >= 0).long().cumsum(1), (1, 0))
    hit = masked_before[text.sequence, text.end] > masked_before[text.sequence, text.start]
    whether, what, which = draws[text.sequence, text.place - text.first[text.sequence]].unbind(1)
    chosen = whether < share
    ids = text.ids[text.sequence, text.place]
    other = vocabulary.size + (which * rows).long()
    ids = torch.where(chosen & (what >= 0.8) & (what < 0.9), other, ids)
    ids = ids.masked_fill((chosen & (what < 0.8)) | hit, vocabulary.mask)
    out = text.ids.clone()
    out[text.sequence, text.place] = ids
    return replace(text, ids=out)
