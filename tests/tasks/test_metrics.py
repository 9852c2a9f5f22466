"""Retrieval metrics against hand-computed values, a slow ranking, simulation, and invariances."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tuwen.data.corpus import Relevance
from tuwen.errors import UserError
from tuwen.tasks import metrics


def by_images(texts_of_image, text_count):
    """Text -> images truth from an image -> texts table."""
    images = [[i for i, texts in enumerate(texts_of_image) if t in texts] for t in range(text_count)]
    return Relevance.of(len(texts_of_image), images)


def both_ways(scores, truth, **options):
    """Recalls image to text and text to image of a whole [I, T] matrix."""
    tr = metrics.best_ranks(lambda a, b: scores[a:b], truth.transpose(), **options)
    ir = metrics.best_ranks(lambda a, b: scores.T[a:b], truth, **options)
    return tr, ir


def slow_rank(row, relevant):
    """Rank of the first relevant item in a stable descending order; -1 where none is relevant."""
    order = sorted(range(len(row)), key=lambda item: -row[item])  # sorted is stable: earlier index first
    return next((place for place, item in enumerate(order) if item in relevant), -1)


def test_card_check_2_two_pictures_three_texts():
    scores = torch.tensor([[0.9, 0.1, 0.8], [0.2, 0.7, 0.3]])
    truth = by_images([{0, 2}, {1}], 3)
    tr, ir = both_ways(scores, truth)
    assert metrics.recalls(tr)["r1"] == 100
    assert metrics.recalls(ir)["r1"] == 100
    scores[:, 2] = torch.tensor([0.1, 0.9])
    tr, ir = both_ways(scores, truth)
    assert metrics.recalls(tr)["r1"] == 50
    assert round(metrics.recalls(ir)["r1"], 1) == 66.7


def test_card_check_3_any_hit():
    truth = by_images([{0, 1}, {2}], 3)
    tr, _ = both_ways(torch.tensor([[0.0, 0.9, 0.5], [0.0, 0.1, 0.2]]), truth)
    assert metrics.recalls(tr) == {"r1": 100, "r5": 100, "r10": 100}


def test_card_check_4_mean_of_six_or_three():
    first, second = ({"r1": 50, "r5": 60, "r10": 70}, {"r1": 80, "r5": 90, "r10": 100})
    assert metrics.mean_recall({"text_to_image": first, "image_to_text": second}) == 75
    assert metrics.mean_recall({"text_to_image": first}) == 60
    published = {"r1": 60.9, "r5": 86.8, "r10": 92.7}, {"r1": 77.6, "r5": 96.7, "r10": 98.9}
    mean = metrics.mean_recall(dict(zip(metrics.DIRECTIONS, published, strict=True)))
    assert round(mean, 1) == 85.6  # R2D2, Flickr30k-CN, zero shot


def test_card_check_7_permuting_pictures_changes_nothing():
    generator = np.random.default_rng(0)
    scores = torch.from_numpy(generator.normal(size=(40, 90))).float()  # no ties
    truth = [set(generator.choice(90, 3).tolist()) for _ in range(40)]
    order = generator.permutation(40)
    before = both_ways(scores, by_images(truth, 90))
    after = both_ways(scores[order], by_images([truth[k] for k in order], 90))
    assert (before[0][order] == after[0]).all()
    assert (before[1] == after[1]).all()


def test_card_check_8_random_scores_are_at_chance():
    scores = torch.from_numpy(np.random.default_rng(1).random((1000, 1000))).float()
    truth = Relevance.of(1000, [[k] for k in range(1000)])
    chance = metrics.chance(truth)
    assert chance == pytest.approx({"r1": 0.1, "r5": 0.5, "r10": 1.0})
    for rank in both_ways(scores, truth):
        for name, value in metrics.recalls(rank).items():
            sigma = 100 * np.sqrt(chance[name] / 100 * (1 - chance[name] / 100) / 1000)
            assert abs(value - chance[name]) < 3 * sigma


@settings(max_examples=150)
@given(st.data())
def test_ranks_equal_a_slow_stable_sort_whatever_the_block(data):
    queries, items = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 12))
    values = st.sampled_from([-1.0, 0.0, 0.5, 1.0, -100.0, float("-inf")])  # few values: many ties
    scores = data.draw(st.lists(st.lists(values, min_size=items, max_size=items), min_size=queries, max_size=queries))
    truth = data.draw(st.lists(st.sets(st.integers(0, items - 1), max_size=3), min_size=queries, max_size=queries))
    relevance = Relevance.of(items, [sorted(one) for one in truth])
    expected = [slow_rank(row, relevant) for row, relevant in zip(scores, truth, strict=True)]
    for budget in (1, items, 2 * items + 1, 10_000):
        rank = metrics.best_ranks(lambda a, b: torch.tensor(scores)[a:b], relevance, budget=budget)
        assert rank.tolist() == expected


@settings(max_examples=100)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=20), st.integers(1, 25))
def test_top_is_the_head_of_a_stable_sort(row, count):
    expected = sorted(range(len(row)), key=lambda item: -row[item])[:count]
    assert metrics.top(torch.tensor([row, row]), count).tolist() == [expected, expected]


def test_a_hundred_thousand_squared_is_never_held():
    """Each request stays within the budget; 100,000 queries of 100,000 items ask 167 at once."""
    asked = [stop - start for start, stop in metrics.blocks(100_000, 100_000)]
    assert sum(asked) == 100_000
    assert max(asked) * 100_000 <= metrics.BUDGET

    largest = 0
    generator = np.random.default_rng(2)
    scores = torch.from_numpy(generator.integers(0, 9, (300, 200))).float()

    def rows(start, stop):
        nonlocal largest
        largest = max(largest, (stop - start) * 200)
        return scores[start:stop]

    truth = Relevance.of(200, [[k % 200] for k in range(300)])
    small = metrics.best_ranks(rows, truth, budget=1000)
    assert largest <= 1000
    assert (small == metrics.best_ranks(rows, truth)).all()


def test_queries_without_an_answer_are_left_out():
    truth = Relevance.of(2, [[0], [], [1]])
    rank = metrics.best_ranks(lambda a, b: torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])[a:b], truth)
    assert rank.tolist() == [0, metrics.NO_ANSWER, 1]
    assert metrics.recalls(rank)["r1"] == 50
    assert metrics.chance(truth)["r1"] == 50
    assert metrics.recalls(np.array([metrics.NO_ANSWER])) == {"r1": 0.0, "r5": 0.0, "r10": 0.0}


def test_missed_is_no_hit_even_in_a_small_gallery():
    assert metrics.recalls(np.array([0, metrics.MISSED]))["r10"] == 50


def test_nan_scores_are_refused_rather_than_counted_as_hits():
    truth = Relevance.of(2, [[0]])
    with pytest.raises(UserError, match="NaN"):
        metrics.best_ranks(lambda a, b: torch.tensor([[float("nan"), 0.0]]), truth)


def test_chance_against_simulation():
    generator = np.random.default_rng(3)
    truth = Relevance.of(17, [sorted(generator.choice(17, m, replace=False)) for m in (1, 2, 5, 9, 17) for _ in "ab"])
    found = []
    for _ in range(4000):
        scores = torch.from_numpy(generator.random((10, 17)))
        found.append(list(metrics.recalls(metrics.best_ranks(lambda a, b, s=scores: s[a:b], truth)).values()))
    found = np.array(found)
    error = found.std(0) / np.sqrt(len(found)) + 1e-9
    assert (np.abs(found.mean(0) - list(metrics.chance(truth).values())) < 4 * error).all()


def test_chance_by_hand():
    assert metrics.chance(Relevance.of(4, [[0, 1]]))["r1"] == pytest.approx(50)
    assert metrics.chance(Relevance.of(8, [[0, 1]]))["r5"] == pytest.approx(100 * (1 - 3 / 28))  # C(6,5)/C(8,5) = 6/56
    assert metrics.chance(Relevance.of(4, [[0]]))["r10"] == 100
