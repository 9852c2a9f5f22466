"""Mutated files of every form: each is read or refused in a line; nothing ends in a traceback, a signal, or never."""

import os
import time

import pytest

from tests import fuzzing
from tests.data import fuzz


def faults(form, numbers):
    return {number: end for number, end in fuzz.outcomes(form, numbers).items() if end[0] not in ("read", "line")}


@pytest.mark.parametrize("form", fuzz.FORMS)
def test_a_few_mutations_of_every_form(form):
    assert faults(form, range(2)) == {}


@pytest.mark.slow  # about 8 minutes
@pytest.mark.parametrize("form", fuzz.FORMS)
def test_many_mutations_of_every_form(form):
    assert faults(form, range(200)) == {}


def test_a_fault_of_a_reader_is_seen(monkeypatch):
    """The fuzz itself: a reader that throws, ends the process or never ends is told apart from one that refuses."""
    monkeypatch.setattr(fuzzing, "SECONDS", 2)
    for broken, what in (("1 / 0", "traceback"), ("os.kill(os.getpid(), 9)", "killed"), ("time.sleep(60)", "slow")):
        monkeypatch.setattr(fuzz, "read_all", lambda location, broken=broken: eval(broken, {"os": os, "time": time}))
        assert {end[0] for end in fuzz.outcomes("pairs.jsonl", range(1)).values()} == {what}
