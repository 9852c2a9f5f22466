"""The final score of two stages: how much the match counts beside the first stage, settled by validation.

A head taught with negatives drawn by exp(h s), s the first stage's logit, learns log p(text | picture) / p(text) less
h s: what the contrast leaves over. So within a query the two are added, `first_logit + w log-odds`.

Shape legend: N pairs, H matching heads, W weights, Q queries, G groups of queries that stand or fall together.
"""

import math

import torch
from torch import Tensor

from tuwen.data import draws

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, math.inf)  # of the match; 0: the first stage alone, inf: the match alone
QUERIES = 100  # fewer say nothing of a weight: it is 0
LEVEL = 0.02  # chance that a match which says nothing is given a weight
FLIPS = 2000


def final_score(first_logit: Tensor, log_odds: Tensor, weight: float) -> Tensor:
    """[N] first_logit [N] + weight times the mean over heads of log_odds [N, H]; weight inf: the mean alone."""
    odds = log_odds.float().mean(-1)
    return odds if math.isinf(weight) else first_logit.float() + weight * odds


def chosen_weight(hits: Tensor, share: Tensor, group: Tensor, level: float = LEVEL) -> int:
    """Which of W weights, the first being 0, is best of those that beat 0 by more than chance; 0 where none does.

    hits: [W, Q] what each query adds to recall under each weight. share: [Q] its share in the mean recall. group: [Q]
    int64, equal for queries that chance favours together (those of one picture). Of equal recalls the smaller weight.

    A weight beats 0 where its gain, in units of its own spread over groups, is above all but `level` of the greatest
    such gains over the weights when the sign of every group's gain is drawn at random (Westfall and Young 1993, with
    sign flips): with log-odds of no worth, 0 is chosen but for `level` of the times, however many weights are tried.
    """
    hits, share = hits.double(), share.double()
    gain = (hits - hits[0]) * share
    _, place = group.unique(return_inverse=True)
    by_group = gain.new_zeros(len(gain), int(place.max()) + 1).index_add(1, place, gain)
    spread = by_group.square().sum(1).sqrt().clamp(min=1e-12)  # the same whatever the signs
    count = by_group.shape[1]
    signs = draws.uniform(torch.arange(FLIPS), count, 0, "signs of gains").ge(0.5).double() * 2 - 1
    by_chance = (signs @ by_group.T / spread).amax(1)
    beats = by_group.sum(1) / spread > by_chance.quantile(1 - level)
    beats[0] = True
    recall = (hits * share).sum(1).mul(1e9).round()  # in an order of summing of its own each would be its own number
    return int(recall.masked_fill(~beats, -1.0).argmax())  # the first of equals


def weight_name(weight: float) -> float | str:
    """A weight as JSON and people have it: a number, or "match" for the match alone."""
    return "match" if math.isinf(weight) else weight


def weight_named(name: object) -> float:
    """The weight that `weight_name` wrote.

    Raises:
        ValueError: it is none.
    """
    if name == "match":
        return math.inf
    if isinstance(name, bool) or not isinstance(name, int | float) or not 0 <= name < math.inf:
        raise ValueError(f"{str(name)[:40]!r} is no weight")
    return float(name)
