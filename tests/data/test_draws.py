"""Draws against splitmix64 written with Python's integers, and their independence of everything but the key."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tuwen.data import draws

INT64 = st.integers(-(2**63), 2**63 - 1)
MASK = 2**64 - 1
KEY = 6915369945351179767  # of (0, "crop"): a run is resumed by another version of the code too
NUMBERS = [346049, 581196, 518054]


def slow_mix(x: int) -> int:
    """One step of splitmix64 (Steele, Lea, Flood 2014) on unsigned 64-bit integers."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def test_mix_is_splitmix64():
    """The first outputs of the public reference code for seed 0."""
    assert slow_mix(0) == 0xE220A8397B1DCDAF
    assert int(draws.mix(torch.tensor(0))) & MASK == 0xE220A8397B1DCDAF
    second = draws.mix(torch.tensor(0x9E3779B97F4A7C15 - 2**64))
    assert int(second) & MASK == 0x6E789E6AA1B965F4


@given(st.lists(INT64, min_size=1, max_size=20))
def test_mix_against_python_integers(values):
    assert [int(x) & MASK for x in draws.mix(torch.tensor(values))] == [slow_mix(v & MASK) for v in values]


@given(st.lists(INT64, min_size=1, max_size=5), st.integers(1, 6))
def test_uniform_against_python_integers(rows, count):
    found = draws.uniform(torch.tensor(rows), count, 3, "mask")
    key = draws.key(3, "mask") & MASK
    for row, drawn in zip(rows, found.tolist(), strict=True):
        start = slow_mix((row & MASK) ^ key)
        expected = [slow_mix((start + k * 0x9E3779B97F4A7C15) & MASK) for k in range(count)]
        assert drawn == [(x >> 11) * 2.0**-53 for x in expected]


def test_a_row_draws_alone():
    rows = torch.tensor([5, -9, 2**62, 5])
    together = draws.uniform(rows, 12, "a", 1)
    for k, row in enumerate(rows):
        assert torch.equal(draws.uniform(row[None], 12, "a", 1)[0], together[k])
    assert torch.equal(draws.uniform(rows.flip(0), 12, "a", 1), together.flip(0))
    assert torch.equal(draws.uniform(rows, 5, "a", 1), together[:, :5])  # fewer draws are the first ones


def test_draws_are_uniform_and_uncorrelated():
    found = draws.uniform(torch.arange(2000), 50, 0, 0, "x")
    assert found.min() >= 0
    assert found.max() < 1
    counts = torch.histc(found.float(), 100, 0, 1)
    expected = found.numel() / 100
    assert ((counts - expected) ** 2 / expected).sum() < 99 + 5 * np.sqrt(2 * 99)
    centred = (found - 0.5) * np.sqrt(12)
    for a, b in ((centred[:-1], centred[1:]), (centred[:, :-1], centred[:, 1:])):  # rows, neighbours of a row
        assert abs(float((a * b).mean())) < 5 / np.sqrt(a.numel())
    other = (draws.uniform(torch.arange(2000), 50, 0, 1, "x") - 0.5) * np.sqrt(12)
    assert abs(float((centred * other).mean())) < 5 / np.sqrt(other.numel())


def test_keys_tell_parts_apart_and_never_change():
    keys = [draws.key(*parts) for parts in ((1, 23), (12, 3), ("1", "2", "3"), ("text", "a"), ("texta",), ())]
    assert len(set(keys)) == len(keys)
    assert draws.key(0, "crop") == KEY
    assert draws.generator(0, "crop").integers(10**6, size=3).tolist() == NUMBERS


def test_a_sample_of_rows_that_alternate_has_both_kinds():
    """Every second of 2,000 rows, English and Chinese in turn, would be one language alone."""
    rows = draws.sample(2000, 1000, "measured")
    assert np.array_equal(rows, np.unique(rows))
    assert len(rows) == 1000
    assert rows.min() < 10
    assert 1990 <= rows.max() < 2000
    assert abs((rows % 2).mean() - 0.5) < 0.05
    assert np.array_equal(rows, draws.sample(2000, 1000, "measured"))
    assert not np.array_equal(rows, draws.sample(2000, 1000, "asked"))
    for most in (None, 5, 9):
        assert draws.sample(5, most, "measured").tolist() == [0, 1, 2, 3, 4]
