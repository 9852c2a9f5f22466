"""Grouped order: the card's hand examples, a slow version, permutations of any length, blocks, what is left out."""

import math

import numpy as np
import pytest
import torch

from tuwen.data import grouping

HAND = np.array([[9, 5, 1, 2, 3], [0, 9, 4, 6, 1], [2, 1, 9, 3, 7], [1, 5, 8, 9, 2], [3, 2, 6, 1, 9]], np.float32)
KEY = (3, 0, "grouping")


def slowly(scores, start: int) -> list[int]:
    """Card, section 4.1, its pseudo-code."""
    scores = torch.tensor(scores)
    free = torch.ones(len(scores), dtype=torch.bool)
    free[start] = False
    order, place, from_image = [start], start, True
    while free.any():
        row = scores[place] if from_image else scores[:, place]
        place = int(row.masked_fill(~free, -math.inf).argmax())
        free[place] = False
        order.append(place)
        from_image = not from_image
    return order


def vectors(n: int, seed: int = 0, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    made = generator.normal(size=(2, n, width)).astype(np.float32)
    return tuple(made / np.linalg.norm(made, axis=-1, keepdims=True))


def test_the_card_s_hand_examples():
    """Check 2."""
    assert grouping.chain(HAND, 0).tolist() == [0, 1, 3, 2, 4]
    assert grouping.chain(HAND, 2).tolist() == [2, 4, 0, 1, 3]
    assert grouping.chain(HAND[:4, :4], 0).tolist() == [0, 1, 3, 2]
    assert grouping.chain(HAND[:1, :1], 0).tolist() == [0]
    assert grouping.chain(HAND[:2, :2], 1).tolist() == [1, 0]


@pytest.mark.parametrize("n", [1, 2, 3, 8, 33])
def test_a_chain_is_the_slow_one(n):
    for seed in range(5):
        v, w = vectors(n, seed)
        start = seed % n
        assert grouping.chain(v @ w.T, start).tolist() == slowly(v @ w.T, start)


def test_equal_tiny_and_broken_scores_lose_nothing():
    """Check 1: logits of temperature 0.001, whose softmax underflows; ties go to the first; no place comes twice."""
    v, w = vectors(40)
    for scores in (v @ w.T / 0.001, np.zeros((40, 40)), np.full((40, 40), -np.inf), np.full((40, 40), np.nan)):
        assert sorted(grouping.chain(scores, 7).tolist()) == list(range(40))
    assert grouping.chain(np.zeros((4, 4)), 2).tolist() == [2, 0, 1, 3]


@pytest.mark.parametrize(("n", "search"), [(13, 4), (12, 4), (3, 4), (4, 4), (16, 5), (1, 4)])
def test_a_queue_is_permuted_search_space_by_search_space(n, search):
    """Checks 1 and 4: every entry once, odd, even, with remainder or without; each hop to the most similar unused."""
    v, w = vectors(n, 3)
    entries = np.arange(n, dtype=np.int64) * 7 + 2**33  # beyond float32, in which the code keeps them
    order = grouping.grouped(v, w, entries, search, KEY)
    assert sorted(order.tolist()) == entries.tolist()
    place = {int(entry): k for k, entry in enumerate(entries)}
    spaces = []
    for begin in range(0, n, search):
        own = [place[int(entry)] for entry in order[begin : begin + search]]
        spaces.append(set(own))
        assert slowly(v[own] @ w[own].T, 0) == list(range(len(own))), "each hop goes to the most similar unused"
    assert grouping.grouped(v, w, entries, search, KEY).tolist() == order.tolist()
    if n > 4:
        assert grouping.grouped(v, w, entries, search, (4, 0, "grouping")).tolist() != order.tolist()
        assert spaces[0] != set(range(search)), "examples are shuffled before they are cut"


def test_blocks_stay_whole():
    """Check 3."""
    order = np.arange(60) * 3
    mixed = grouping.with_blocks_shuffled(order, 5, KEY)
    assert sorted(map(tuple, mixed.reshape(-1, 5))) == sorted(map(tuple, order.reshape(-1, 5)))
    assert mixed.tolist() != order.tolist()


def test_blocks_of_clusters_are_more_alike_than_random_ones():
    """Check 5: eight clusters; most of a block from one, where a random block has an eighth."""
    generator = np.random.default_rng(0)
    centres = np.eye(8, 16)
    cluster = np.repeat(np.arange(8), 32)
    v, w = ((centres[cluster] + 0.1 * generator.normal(size=(256, 16))).astype(np.float32) for _ in range(2))
    order = grouping.grouped(v, w, np.arange(256), 256, KEY)
    shares = [np.bincount(cluster[block], minlength=8).max() / 16 for block in order.reshape(-1, 16)]
    assert np.mean(shares) > 0.5

    def alike(rows):
        scores = v[rows] @ w[rows].T
        return (scores.sum() - scores.trace()) / (scores.size - len(rows))

    random = np.random.default_rng(1).permutation(256)
    near, far = (np.mean([alike(block) for block in rows.reshape(-1, 16)]) for rows in (order, random))
    assert near > far + 0.3


def test_what_was_left_out_takes_places_of_others():
    order = np.array([5, 1, 8, 3, 0, 7, 2, 9])  # of 0..10: 4, 6, 10 were left out
    joined = grouping.with_left_out(order, 11, KEY)
    assert len(joined) == len(set(joined.tolist())) == 8
    assert {4, 6, 10} <= set(joined.tolist())
    assert sum(a != b for a, b in zip(joined, order, strict=True)) == 3
    again = grouping.with_left_out(joined, 11, KEY)
    assert set(range(11)) - set(joined.tolist()) <= set(again.tolist())
    assert grouping.with_left_out(np.arange(4), 4, KEY).tolist() == [0, 1, 2, 3]


def test_sizes():
    assert grouping.sizes(128) == (1920, 48000)
    assert grouping.sizes(256) == (2048, 51200)
    assert grouping.sizes(32, 256, 1024) == (256, 1024)
    for wrong in ((32, 100), (32, 64, 100), (32, 0), (32, 64, 0)):
        with pytest.raises(ValueError, match="group_search must be a multiple of batch_size"):
            grouping.sizes(*wrong)
