"""Texts from a decoder: greedy, by beam search, or drawn from the nucleus; whole batches at a time.

Shape legend: B rows, K beams, L words so far ([CLS] first), V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tuwen.data import draws
from tuwen.data.text import Vocabulary
from tuwen.nn.decoder import Speaker

Choose = Callable[[Tensor, int], Tensor]  # (log probabilities [B, V], place) -> words [B]


@dataclass(frozen=True)
class Generation:
    """How texts are made.

    method: "greedy" takes the likeliest word each time; "beam" keeps the `beams` likeliest beginnings and gives the
        ended text of greatest log-likelihood / words^length_penalty; "nucleus" draws each word from the fewest that
        together have probability `top_p` (Holtzman et al. 2020), at `temperature`.
    most: tokens a text, none: as many as the decoder has positions.
    seed: of the nucleus's draws.
    """

    method: Literal["greedy", "beam", "nucleus"] = "beam"
    beams: int = 5
    length_penalty: float = 1.0
    top_p: float = 0.9
    temperature: float = 1.0
    most: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.method not in ("greedy", "beam", "nucleus"):
            raise ValueError(f"method must be greedy, beam or nucleus, got {self.method!r}")
        if self.beams < 1 or (self.most is not None and self.most < 1):
            raise ValueError(f"beams and most must be at least 1, got {self.beams} and {self.most}")
        if not 0 < self.top_p <= 1 or self.temperature <= 0:
            raise ValueError(f"top_p must lie in 0 to 1 and temperature above 0: {self.top_p}, {self.temperature}")


@dataclass(frozen=True)
class Generated:
    """ids: [B, L] from [CLS] on, [SEP] at the end of a text that ended, then padding; mask: [B, L] bool, no padding.

    score: [B] float32, log-likelihood / words^length_penalty, [SEP] counted as a word and [CLS] not.
    """

    ids: Tensor
    mask: Tensor
    score: Tensor


@torch.no_grad()
def generate(speaker: Speaker, vocabulary: Vocabulary, how: Generation, keys: Tensor | None = None) -> Generated:
    """One text a row of the speaker. No text is empty, and no special token but [SEP] is said.

    keys: [B] int64, what the nucleus's draws of a row are keyed by beside the seed; none: the row's place.
    A text of beam search never scores below the greedy one, which is tried too. A row's text does not depend on the
    rows beside it.
    """
    length = speaker.decoder.length if how.most is None else min(how.most + 2, speaker.decoder.length)
    if how.method == "greedy":
        return _walk(speaker, vocabulary, how, length, lambda log_p, place: log_p.argmax(1))
    if how.method == "nucleus":
        keys = torch.arange(len(speaker)) if keys is None else keys
        drawn = draws.uniform(keys, length, how.seed, "nucleus").to(speaker.memory.device)
        return _walk(speaker, vocabulary, how, length, lambda log_p, place: _drawn(log_p, drawn[:, place], how))
    greedy = _walk(speaker.fresh(), vocabulary, how, length, lambda log_p, place: log_p.argmax(1))
    return greedy if how.beams == 1 else _better(_Beams(speaker, vocabulary, how, length).search(), greedy, vocabulary)


def _walk(speaker: Speaker, vocabulary: Vocabulary, how: Generation, length: int, choose: Choose) -> Generated:
    """One word after the other until every text has ended or has `length` words."""
    rows, device = len(speaker), speaker.memory.device
    ids = torch.full((rows, 1), vocabulary.cls, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    total, count = torch.zeros(rows, device=device), torch.zeros(rows, device=device)
    for place in range(length - 1):
        log_p = _allowed(speaker.log_probabilities(ids), vocabulary, place)
        word = choose(log_p, place).masked_fill(ended, vocabulary.pad)
        total += log_p.gather(1, word[:, None])[:, 0].masked_fill(ended, 0)
        count += ~ended
        ids = torch.cat([ids, word[:, None]], 1)
        ended = ended | (word == vocabulary.sep)
        if ended.all():
            break
    return Generated(ids, ids != vocabulary.pad, total / count.clamp(min=1) ** how.length_penalty)


def _allowed(log_p: Tensor, vocabulary: Vocabulary, place: int) -> Tensor:
    """Log probabilities with those of words that may not be said at this place at -inf."""
    never = [vocabulary.pad, vocabulary.unknown, vocabulary.cls, vocabulary.mask]
    log_p = log_p.clone()
    log_p[:, never if place else [*never, vocabulary.sep]] = -torch.inf
    return log_p


def _drawn(log_p: Tensor, draw: Tensor, how: Generation) -> Tensor:
    """[B] words, each from the nucleus of its row; draw: [B] in [0, 1)."""
    p, order = (log_p.double() / how.temperature).softmax(1).sort(dim=1, descending=True, stable=True)
    before = p.cumsum(1) - p
    p = p.masked_fill(before >= how.top_p, 0)  # the first always stays
    edges = p.cumsum(1)
    place = torch.searchsorted(edges, (draw * edges[:, -1])[:, None], right=True)
    last = (p > 0).sum(1, keepdim=True) - 1  # rounding may leave the draw at the very edge
    return order.gather(1, torch.minimum(place, last))[:, 0]


class _Beams:
    """Beam search over a batch: of the 2 K likeliest continuations, those among the first K that end are done with,
    the first K that do not end go on; a row is finished once K of its texts have ended."""

    def __init__(self, speaker: Speaker, vocabulary: Vocabulary, how: Generation, length: int):
        self.speaker, self.words, self.how, self.length = speaker, vocabulary, how, length
        rows, device = len(speaker), speaker.memory.device
        self.rows = rows
        self.first = torch.arange(rows, device=device)[:, None] * how.beams  # where each row's beams start
        speaker.select(torch.arange(rows, device=device).repeat_interleave(how.beams))
        self.ids = torch.full((rows * how.beams, 1), vocabulary.cls, device=device)
        self.live = torch.full((rows, how.beams), -torch.inf, device=device)  # log-likelihood of each beginning
        self.live[:, 0] = 0
        self.best = torch.full((rows, length), vocabulary.pad, device=device)
        self.score = torch.full((rows,), -torch.inf, device=device)
        self.ended = torch.zeros(rows, dtype=torch.int64, device=device)

    def search(self) -> Generated:
        for place in range(self.length - 1):
            self._step(place)
            if bool((self.ended >= self.how.beams).all()):
                break
        self._finish()
        longest = int((self.best != self.words.pad).sum(1).max())
        ids = self.best[:, :longest]
        return Generated(ids, ids != self.words.pad, self.score)

    def _step(self, place: int) -> None:
        beams = self.how.beams
        log_p = _allowed(self.speaker.log_probabilities(self.ids), self.words, place)
        size = log_p.shape[1]
        total = (self.live[:, :, None] + log_p.view(self.rows, beams, size)).flatten(1)
        value, flat = total.topk(min(2 * beams, total.shape[1]), dim=1)
        word, beam = flat % size, flat // size
        ends = (word == self.words.sep) & (value > -torch.inf)
        self._end(ends[:, :beams], value[:, :beams], beam[:, :beams], place)
        going = ends.long().sort(dim=1, stable=True).indices[:, :beams]  # the likeliest that do not end, in order
        self.live = value.masked_fill(ends, -torch.inf).gather(1, going)
        chosen = (self.first + beam.gather(1, going)).flatten()
        self.ids = torch.cat([self.ids[chosen], word.gather(1, going).flatten()[:, None]], 1)
        self.speaker.reorder(chosen)

    def _end(self, ends: Tensor, value: Tensor, beam: Tensor, place: int) -> None:
        """Texts that end at this place: the best of each row is held against the row's best so far."""
        open_rows = self.ended < self.how.beams
        score = (value / (place + 1) ** self.how.length_penalty).masked_fill(~ends | ~open_rows[:, None], -torch.inf)
        best, which = score.max(1)
        own = self.first[:, 0] + beam.gather(1, which[:, None])[:, 0]
        text = torch.full_like(self.best, self.words.pad)
        text[:, : place + 1], text[:, place + 1] = self.ids[own], self.words.sep
        self._take(best, text)
        self.ended += (ends & open_rows[:, None]).sum(1)

    def _finish(self) -> None:
        """In rows that are not finished, the likeliest beginning counts as it stands."""
        words = self.ids.shape[1] - 1
        text = torch.full_like(self.best, self.words.pad)
        text[:, : words + 1] = self.ids[self.first[:, 0]]
        score = self.live[:, 0] / max(words, 1) ** self.how.length_penalty
        self._take(score.masked_fill(self.ended >= self.how.beams, -torch.inf), text)

    def _take(self, score: Tensor, text: Tensor) -> None:
        better = score > self.score
        self.best = torch.where(better[:, None], text, self.best)
        self.score = torch.where(better, score, self.score)


def _better(first: Generated, other: Generated, vocabulary: Vocabulary) -> Generated:
    """Of two texts a row the one that scores higher, of equals the first."""
    longest = max(first.ids.shape[1], other.ids.shape[1])
    ids = [
        torch.nn.functional.pad(text.ids, (0, longest - text.ids.shape[1]), value=vocabulary.pad)
        for text in (first, other)
    ]
    second = other.score > first.score
    chosen = torch.where(second[:, None], ids[1], ids[0])
    longest = int((chosen != vocabulary.pad).sum(1).max())
    chosen = chosen[:, :longest]
    return Generated(chosen, chosen != vocabulary.pad, torch.where(second, other.score, first.score))
