"""Order as arithmetic: a bijection every epoch, well mixed, the same for any number of processes."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from tuwen.data.order import Order
from tuwen.errors import UserError

FIRST = [735, 54, 635, 576, 15, 872, 253, 339]
LATER = [798, 198, 139, 709, 101, 732, 988, 193]


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 3000), seed=st.integers(0, 2**40), epoch=st.integers(0, 10**6))
def test_every_epoch_is_a_bijection(rows, seed, epoch):
    found = Order(rows, 1, seed).permutation(epoch, np.arange(rows))
    assert found.dtype == np.int64
    assert np.array_equal(np.sort(found), np.arange(rows))


@settings(deadline=None, max_examples=40)
@given(data=st.data(), rows=st.integers(2, 500), seed=st.integers(0, 99))
def test_an_epoch_shows_no_row_twice_and_leaves_out_less_than_a_batch(data, rows, seed):
    order = Order(rows, data.draw(st.integers(1, rows)), seed)
    epoch = data.draw(st.integers(0, 5))
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    assert {order.epoch(step) for step in steps} == {epoch}
    seen = np.concatenate([order.batch(step) for step in steps])
    assert len(set(seen.tolist())) == len(seen) == rows - rows % order.batch_size
    assert np.array_equal(seen, order.permutation(epoch, np.arange(len(seen))))


@settings(deadline=None, max_examples=30)
@given(share=st.integers(1, 7), world=st.integers(1, 8), step=st.integers(0, 1000))
def test_processes_slice_one_global_batch(share, world, step):
    order = Order(1000, share * world, 3)
    parts = [order.batch(step)[order.slice_of(rank, world)] for rank in range(world)]
    assert {len(part) for part in parts} == {share}
    assert np.array_equal(np.concatenate(parts), order.batch(step))


def test_epochs_and_seeds_differ_and_repeat():
    order = Order(1000, 10, 0)
    positions = np.arange(1000)
    first, second, other = (
        order.permutation(0, positions),
        order.permutation(1, positions),
        Order(1000, 10, 1).permutation(0, positions),
    )
    assert np.array_equal(first, Order(1000, 77, 0).permutation(0, positions))  # the batch size only cuts
    for a, b in ((first, second), (first, other), (first, positions)):
        assert (a == b).sum() < 10  # two random permutations agree at one position on average


def test_another_tail_each_epoch():
    order = Order(103, 10, 0)
    tails = [frozenset(order.permutation(epoch, np.arange(100, 103)).tolist()) for epoch in range(200)]
    assert len(set(tails)) > 190
    assert len(frozenset.union(*tails)) > 100


@pytest.mark.parametrize("rows", [5, 6, 37, 100])
def test_every_row_comes_at_every_position_equally_often(rows):
    """Counts of n x n (position, row) cells over many epochs; for random permutations the sum below is chi-square."""
    epochs = 1500
    order, counts = Order(rows, 1, 11), np.zeros((rows, rows))
    for epoch in range(epochs):
        counts[np.arange(rows), order.permutation(epoch, np.arange(rows))] += 1
    statistic = ((counts - epochs / rows) ** 2).sum() * (rows - 1) / epochs
    assert 1e-4 < chi2.sf(statistic, (rows - 1) ** 2) < 1 - 1e-4


def test_all_orders_of_a_few_rows_come_equally_often():
    number = {p: k for k, p in enumerate(permutations(range(4)))}
    counts, order = np.zeros(24), Order(4, 4, 2)
    for epoch in range(24 * 60):
        counts[number[tuple(order.permutation(epoch, np.arange(4)).tolist())]] += 1
    assert chi2.sf(((counts - 60) ** 2 / 60).sum(), 23) > 1e-4


@pytest.mark.parametrize("rows", [64, 1000])
def test_neighbours_are_unrelated(rows):
    """The distance between rows at neighbouring positions is uniform, so no runs of the corpus survive."""
    order, epochs = Order(rows, 1, 5), 400
    counts = np.zeros(rows)
    for epoch in range(epochs):
        found = order.permutation(epoch, np.arange(rows))
        counts += np.bincount(np.diff(found) % rows, minlength=rows)
    expected = epochs * (rows - 1) / (rows - 1)
    assert counts[0] == 0
    assert 1e-4 < chi2.sf(((counts[1:] - expected) ** 2 / expected).sum(), rows - 2) < 1 - 1e-4


def test_a_hundred_million_rows_start_at_once():
    order = Order(10**8, 4096, 0)
    batch = order.batch(10**9)
    assert len(set(batch.tolist())) == 4096
    assert batch.min() >= 0
    assert batch.max() < 10**8
    assert abs(batch.mean() / 10**8 - 0.5) < 0.03
    assert Order(2**40 + 1, 8, 0).batch(5).max() > 2**33


def test_a_plan_replaces_the_permutation():
    plan = torch.tensor([4, 4, 2, 0, 1, 3, 9])
    order = Order(10, 3, 0)
    with pytest.raises(UserError, match="has 7 rows and must have 9"):
        order.batch(0, plan)
    whole = torch.cat([plan, plan[:2]])
    assert order.batch(3, whole).tolist() == [4, 4, 2]  # step 3 begins the second epoch
    assert order.batch(4, whole.numpy()).tolist() == [0, 1, 3]
    for wrong in (10, -1):
        with pytest.raises(UserError, match=r"outside 0\.\.9"):
            order.batch(0, torch.full((9,), wrong))


def test_mistakes():
    with pytest.raises(UserError, match="5 rows do not fill a batch of 8; take 5 or less"):
        Order(5, 8, 0)
    with pytest.raises(UserError, match="0 rows"):
        Order(0, 8, 0)
    with pytest.raises(UserError, match="set batch_size to 1 or more"):
        Order(5, 0, 0)
    with pytest.raises(UserError, match="does not divide among 3 processes"):
        Order(100, 8, 0).slice_of(0, 3)
    with pytest.raises(ValueError, match="count from 0"):
        Order(5, 2, 0).batch(-1)


def test_the_order_of_today_is_the_order_of_tomorrow():
    """A run is resumed by another version of the code too: these rows must never change."""
    assert Order(1000, 8, 0).batch(0).tolist() == FIRST
    assert Order(1000, 8, 7).batch(12345).tolist() == LATER
