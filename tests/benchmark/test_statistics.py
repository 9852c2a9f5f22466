"""Means, spreads and signed differences over seeds, by hand."""

import pytest

from tuwen.benchmark.statistics import differences, mean_and_spread


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


def test_one_seed_has_no_spread():
    (one,) = differences({"clip": [result(10)], "albef": [result(12)]})
    assert (one["of"], one["mean_recall"], one["spread"]) == ("albef first", 2, None)
