"""GRIT-VLP, VLMAE, SIMLA and MAX-VL learn on scenes, in Chinese and English."""

import pytest
import torch

from tests.systems.test_foundation_learning import SCENES, recalls, trained
from tuwen.nn.patch_masking import DRAWS, hide_exactly

STEPS = {"train.steps": 400, "train.warmup": 0.1}


@pytest.mark.slow
@pytest.mark.parametrize("system", ["grit_vlp", "simla", "max_vl"])
def test_it_finds_pictures_and_texts(system, tmp_path):
    """One and a half to two minutes each on a free core: mean recall, first stage, above four times that of chance.

    `grit_vlp` has 2,000 pairs, so that its batches are grouped from the 63rd of 400 steps on.
    """
    corpus = f"{SCENES},count=2000" if system == "grit_vlp" else SCENES
    for language, found in recalls(trained(system, tmp_path / "run", corpus, **STEPS), corpus).items():
        assert found["first"] > 4 * found["chance"], language


@pytest.mark.slow
def test_vlmae_finds_whole_pictures_no_worse_than_half_ones(tmp_path, monkeypatch):
    """About a minute and a half on a free core. Card, section 10: the tower has seen half of the patches alone, and
    is asked for whole pictures."""
    model = trained("vlmae", tmp_path / "run", **STEPS)
    whole = recalls(model)
    encoders = model.predictor.system.encoders
    real = encoders.encode_images

    def half(images, **options):
        generator = torch.Generator().manual_seed(len(images))
        kept, _ = hide_exactly(torch.rand(len(images), DRAWS + 16, generator=generator), (4, 4), 8)
        return real(images, kept=kept, **options)

    monkeypatch.setattr(encoders, "encode_images", half)
    for language, found in recalls(model).items():
        assert whole[language]["first"] > 4 * found["chance"], language
        assert whole[language]["first"] > found["first"], language
