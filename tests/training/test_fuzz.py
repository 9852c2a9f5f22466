"""Files of a run changed at random: it is loaded and gone on with, or refused in a line."""

import pytest

from tests.fuzzing import faults
from tests.training import fuzz


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fuzz.made(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", fuzz.FILES)
def test_a_few_changes_of_every_file(whole, name):
    assert faults(fuzz.outcomes(whole, name, range(3))) == {}


@pytest.mark.slow  # about 6 minutes: a tenth of a second a change
@pytest.mark.parametrize("name", fuzz.FILES)
def test_many_changes_of_every_file(whole, name):
    ends = fuzz.outcomes(whole, name, range(300))
    assert faults(ends) == {}
    assert {what for what, _ in ends.values()} == {"read", "line"}
