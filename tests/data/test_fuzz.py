"""Mutated files of every form: each is read or refused in a line; nothing ends in a traceback, a signal, or never."""

import pytest

from tests.data import fuzz
from tests.fuzzing import broken, faults, in_children


@pytest.mark.parametrize("form", fuzz.FORMS)
def test_a_few_mutations_of_every_form(form):
    assert faults(fuzz.outcomes(form, range(2))) == {}


@pytest.mark.slow  # about 15 minutes: a tenth of a second a mutation
@pytest.mark.parametrize("form", fuzz.FORMS)
def test_many_mutations_of_every_form(form):
    """7,800 in all; `python -m tests.data.fuzz 150` counts the same ones, and more or other forms as it is told."""
    assert faults(fuzz.outcomes(form, range(150))) == {}


def test_a_fault_of_a_reader_is_seen():
    """The fuzz itself: what throws, ends or never ends is told apart from what refuses; the rest go on."""
    ends = in_children(range(6), broken, seconds=1, waits=3)
    assert {number: what for number, (what, _) in ends.items()} == dict(
        enumerate(("traceback", "killed", "slow", "slow", "line", "line"))
    )
    assert "ValueError: thrown" in ends[0][1]
    assert faults(ends).keys() == {0, 1, 2, 3}
