"""The final score: by hand, its weight against chance, and a world whose mutual information is known."""

import math

import pytest
import torch

from tuwen.similarity.final import FLIPS, WEIGHTS, chosen_weight, final_score


def test_by_hand():
    odds = torch.tensor([[1.0, 3.0], [-2.0, 0.0]])
    first = torch.tensor([10.0, 20.0])
    assert final_score(first, odds, 0.25).tolist() == [10.5, 19.75]
    assert final_score(first, odds, math.inf).tolist() == [2.0, -1.0]


def ranked(first, odds, right, weight):
    """[Q] share of the cutoffs 1, 5, 10 at which each query's one right item is found."""
    final = final_score(first.flatten(), odds.flatten()[:, None], weight).view_as(first)
    rank = (final > final.gather(1, right[:, None])).sum(1)
    return torch.stack([rank < k for k in (1, 5, 10)]).double().mean(0)


def gallery(first, odds):
    """(hits [W, 2 I], share, group) of I pictures with a text each, both ways; first, odds: [I, I]."""
    own = torch.arange(len(first))
    hits = torch.stack([torch.cat([ranked(first, odds, own, w), ranked(first.T, odds.T, own, w)]) for w in WEIGHTS])
    return hits, torch.full((2 * len(own),), 0.5 / len(own)), torch.cat([own, own])


@pytest.mark.parametrize("shape", ["pairs", "pictures", "texts"])
@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_log_odds_that_know_nothing_get_no_weight_in_95_of_100_draws(shape, strength):
    """A first stage that knows nothing, or much; log-odds drawn for each pair, or liking some pictures or texts."""
    chosen = []
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn(60, 60, generator=generator) + strength * torch.eye(60)
        odds = torch.randn(60, 60, generator=generator)
        liked = torch.randn(60, generator=generator)
        odds = {"pairs": odds, "pictures": 0.1 * odds + liked[:, None], "texts": 0.1 * odds + liked}[shape]
        chosen.append(chosen_weight(*gallery(first, odds)))
    assert chosen.count(0) >= 95


def test_log_odds_that_know_something_get_the_weight_that_serves_them():
    """Two channels of equal noise: of a + b the best sum is even; where b comes four times as large, w is 1/4."""
    generator = torch.Generator().manual_seed(0)
    first, odds = (torch.randn(300, 300, generator=generator) + 2 * torch.eye(300) for _ in range(2))
    assert WEIGHTS[chosen_weight(*gallery(first, odds))] == 1
    assert WEIGHTS[chosen_weight(*gallery(first, 4 * odds))] == 0.25
    assert WEIGHTS[chosen_weight(*gallery(first, odds / 4))] == 4
    assert math.isinf(WEIGHTS[chosen_weight(*gallery(torch.randn(300, 300, generator=generator), odds))])


def test_of_equal_recalls_the_smaller_weight_is_taken_and_one_query_moves_nothing():
    hits = torch.zeros(7, 200)
    hits[3:] = 1.0  # all weights from the fourth on are alike
    share, group = torch.full((200,), 1 / 200), torch.arange(200)
    assert chosen_weight(hits, share, group) == 3
    hits = torch.zeros(7, 200)
    hits[:, 1:] = 0.5
    hits[4, 0] = 1.0  # the best recall, by one query's hit
    assert chosen_weight(hits, share, group) == 0
    assert chosen_weight(torch.full((7, 200), 0.3), share, group) == 0


def test_queries_of_one_group_are_one_witness():
    """Forty gains are proof where they are forty queries' own, and none where all are of one picture."""
    hits = torch.zeros(7, 200)
    hits[2, :40] = 1.0
    share = torch.full((200,), 1 / 200)
    assert chosen_weight(hits, share, torch.arange(200)) == 2
    assert chosen_weight(hits, share, torch.arange(200).clamp(min=39)) == 0
    assert FLIPS * 0.02 > 30  # the level is told from enough draws


def test_the_order_of_a_world_whose_mutual_information_is_known():
    """A head on negatives drawn by exp(h s) learns the pointwise mutual information less h s, and w puts it back.

    Pictures and texts of six kinds with a joint distribution p. A first stage sees the kind in part: s of three
    classes. The head is a table, taught to its optimum by the matching loss in closed form: log p(match) / p(no match)
    = log p(x, y) - log q(x, y), q(y | x) in proportion to p(y) exp(h s).
    """
    generator = torch.Generator().manual_seed(1)
    joint = torch.rand(6, 6, generator=generator, dtype=torch.float64).pow(3) + 0.01 + torch.eye(6, dtype=torch.float64)
    joint = joint / joint.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    information = (joint / rows[:, None] / columns).log()  # of a pair
    coarse = joint.view(3, 2, 3, 2).sum((1, 3))
    seen = (coarse / coarse.sum(1, keepdim=True) / coarse.sum(0)).log()
    first = seen.repeat_interleave(2, 0).repeat_interleave(2, 1)  # what the contrast can know: three classes
    for hardness, weight in ((1.0, 1.0), (0.5, 2.0), (0.25, 4.0), (0.0, math.inf)):
        drawn = columns * (hardness * first).exp()
        drawn = drawn / drawn.sum(1, keepdim=True)
        odds = (joint / rows[:, None]).log() - drawn.log()
        final = final_score(first.flatten(), odds.flatten()[:, None], weight).view(6, 6)
        # within a picture's texts the order is that of the information: equal but for a number a picture, and scale
        scale = weight if hardness else 1.0
        off = final / scale - information
        assert (off - off[:, :1]).abs().max() < 1e-5
    assert (first.argsort(1) != information.argsort(1)).any()  # which the first stage alone does not give
