"""GRIT-VLP, VLMAE and SIMLA learn on scenes, in Chinese and English."""

import pytest

from tests.systems.test_foundation_learning import SCENES, recalls


@pytest.mark.slow
@pytest.mark.parametrize("system", ["grit_vlp", "vlmae", "simla"])
def test_it_finds_pictures_and_texts(system, tmp_path):
    """About a minute each on a free core: mean recall, first stage, above four times that of chance.

    `grit_vlp` has 2,000 pairs, so that its batches are grouped from the 63rd of 400 steps on.
    """
    corpus = f"{SCENES},count=2000" if system == "grit_vlp" else SCENES
    changes = {"train.steps": 400, "train.warmup": 0.1}
    for language, found in recalls(system, tmp_path / "run", corpus, **changes).items():
        assert found["first"] > 4 * found["chance"], language
