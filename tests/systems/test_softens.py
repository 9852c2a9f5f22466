"""`data.noise: soften`: systems that say so change by it in their contrast alone; others are refused."""

from dataclasses import replace

import pytest
import torch

from tests.systems.common import PROGRESS, build, example, shaken
from tuwen import systems
from tuwen.errors import UserError
from tuwen.systems.system import Needs
from tuwen.training.config import RunConfig
from tuwen.training.refusals import with_noise

OWN_INPUTS = {"mvptr", "simla", "slan"}  # tags, a view for codes, spans
SOFT = [name for name in systems.names() if systems.find(name).softens]


@pytest.mark.parametrize("name", sorted(set(SOFT) - OWN_INPUTS))
def test_noise_changes_the_contrast_and_nothing_else(name):
    system, batch = shaken(build(name)).eval(), example()

    def terms(noise):
        columns = {} if noise is None else {"noise": torch.full((len(batch),), noise)}
        with torch.no_grad():
            return system(replace(batch, columns=columns), PROGRESS).terms

    plain, right, wrong = terms(None), terms(0.0), terms(1.0)
    assert all(torch.equal(plain[term], right[term]) for term in plain)
    assert [term for term in plain if not torch.equal(plain[term], wrong[term])] == ["contrast"]
    assert wrong["contrast"] != plain["contrast"]


@pytest.mark.parametrize("name", SOFT)
def test_the_loader_is_asked_for_the_noise(name):
    config = RunConfig.of(name, "tiny", "scenes", changes={"data.noise": "soften"})
    assert with_noise(config, build(name), Needs(columns=("label",))).columns == ("label", "noise")
    assert with_noise(RunConfig.of(name, "tiny", "scenes"), build(name), Needs()) == Needs()


@pytest.mark.parametrize("name", ["bridgetower", "dvae", "wukong"])
def test_a_system_without_such_a_contrast_is_refused(name):
    config = RunConfig.of(name, "tiny", "scenes", changes={"data.noise": "soften"})
    with pytest.raises(UserError, match=f"data.noise: {name} has no contrast here .* weight or drop"):
        with_noise(config, build(name), Needs())
