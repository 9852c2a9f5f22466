import pytest

from tests.search import common


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A tiny r2d2 of random weights, deep enough for a match to hang on words."""
    return common.make_run(tmp_path_factory.mktemp("run") / "r2d2", **{"model.fusion.layers": 2})


@pytest.fixture(scope="session")
def clip_run(tmp_path_factory):
    """A tiny clip of random weights, which has no second stage."""
    return common.make_run(tmp_path_factory.mktemp("run") / "clip", "clip")
