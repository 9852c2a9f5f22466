"""Means, spreads and signed differences over seeds, by hand."""

import pytest
import torch

from tuwen.benchmark.statistics import clearly_best, differences, gain_interval, mean_and_spread
from tuwen.tasks.metrics import DIRECTIONS, NO_ANSWER


def result(first, reranked=None, r1=0.0):
    """A retrieval JSON of one language with the given mean recalls."""
    stages = {"first": first} if reranked is None else {"first": first, "reranked": reranked}
    ways = {"image_to_text": {"r1": r1}, "text_to_image": {"r1": 2 * r1}}
    return {"languages": {"zh": {stage: {"mean_recall": value, **ways} for stage, value in stages.items()}}}


def test_mean_and_sample_deviation_number_by_number():
    mean, spread = mean_and_spread([{"a": {"b": 1.0}, "c": 5}, {"a": {"b": 4.0}, "c": 5}])
    assert mean == {"a": {"b": 2.5}, "c": 5}
    assert spread == {"a": {"b": pytest.approx(4.5**0.5)}, "c": 0}
    assert mean_and_spread([{"a": 1.0}]) == ({"a": 1.0}, None)


def test_differences_keep_their_sign_and_pair_the_seeds():
    found = {"clip": [result(10, r1=4), result(20, r1=4)], "r2d2": [result(9, 12, r1=1), result(15, 16, r1=1)]}
    own, other = differences(found)
    assert (own["of"], own["over"], own["mean_recall"]) == ("r2d2 reranked", "r2d2 first", 2)
    assert (other["of"], other["over"]) == ("r2d2 reranked", "clip first")
    assert other["mean_recall"] == -1  # (12 - 10 + 16 - 20) / 2
    assert other["spread"] == pytest.approx(18**0.5)  # of +2 and -4
    assert (other["image_to_text"], other["text_to_image"]) == (-3, -6)


def test_what_no_seed_re_ranked_is_no_row_and_raises_no_p():
    """Weight 0 leaves the first stage; a family of one p is not raised, and two hypotheses would double it."""
    firsts, others = [20.0, 24.0, 25.0], [17.0, 20.0, 24.0]
    found = {"clip": [result(first) for first in others], "r2d2": [result(first, first) for first in firsts]}
    (row,) = differences(found)
    assert (row["of"], row["over"]) == ("r2d2 reranked", "clip first")
    assert row["p_holm"] == row["p"] < 1
    found["r2d2"][2] = result(25.0, 26.0)  # one seed that was re-ranked
    own, other = differences(found)
    assert own["of"] == "r2d2 reranked"
    assert other["p_holm"] == pytest.approx(2 * other["p"])


def test_one_seed_has_no_spread():
    (one,) = differences({"clip": [result(10)], "albef": [result(12)]})
    assert (one["of"], one["mean_recall"], one["spread"]) == ("albef first", 2, None)


def test_the_interval_of_a_gain_holds_the_gain_and_is_that_of_the_binomial():
    """Of 400 queries a quarter go from rank 3 to the first: a third of a hit each, 8.3 points."""
    gained = torch.arange(400) % 4 == 0
    first = torch.full((400,), 3)
    ranks = {f"en.first.{way}": first for way in DIRECTIONS}
    ranks |= {f"en.reranked.{way}": torch.where(gained, 0, first) for way in DIRECTIONS}
    low, high = gain_interval(ranks, "en")
    deviation = 100 / 3 * (0.25 * 0.75 / 800) ** 0.5  # of the mean over both directions
    assert low == pytest.approx(100 / 12 - 1.96 * deviation, abs=0.12)
    assert high == pytest.approx(100 / 12 + 1.96 * deviation, abs=0.12)
    assert gain_interval(dict.fromkeys(ranks, first), "en") == (0, 0)


def test_queries_without_an_answer_are_in_no_interval_and_one_direction_is_enough():
    first = torch.tensor([5, 5, NO_ANSWER, NO_ANSWER])
    ranks = {"zh.first.text_to_image": first, "zh.reranked.text_to_image": torch.tensor([0, 0, NO_ANSWER, NO_ANSWER])}
    assert gain_interval(ranks, "zh") == (pytest.approx(200 / 3), pytest.approx(200 / 3))


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        # leads of 5, 6, 7: 6 ± 4.303 * 1 / sqrt(3) = 2.48; above 0
        ([[10, 20, 30], [15, 26, 37]], [False, True]),
        # leads of 1, 6, 11: 6 ± 4.303 * 5 / sqrt(3) = 12.4; holds 0
        ([[10, 20, 30], [11, 26, 41]], [False, False]),
        # two seeds, leads of 5 and 6: 5.5 ± 12.706 * 0.707 / sqrt(2) = 6.35; holds 0
        ([[10, 20], [15, 26]], [False, False]),
        # ahead of the one, not of the other
        ([[10, 20, 30], [15, 26, 37], [15.1, 25, 36]], [False, False, False]),
        # a re-ranking of weight 0 is its first stage
        ([[15, 26, 37], [10, 20, 30], [15, 26, 37]], [True, False, True]),
        ([[10], [90]], [False, False]),
        ([[10, 20, 30]], [False]),
        ([[10, 20], [10, 20]], [False, False]),
    ],
)
def test_best_is_what_leads_every_other_by_more_than_its_interval(rows, best):
    assert clearly_best(rows) == best
