import pytest

from tests.search import common


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A tiny r2d2 of random weights."""
    return common.make_run(tmp_path_factory.mktemp("run") / "r2d2")


@pytest.fixture(scope="session")
def clip_run(tmp_path_factory):
    """A tiny clip of random weights, which has no second stage."""
    return common.make_run(tmp_path_factory.mktemp("run") / "clip", "clip")
