"""Temperatures keep within their bounds by themselves, whatever moves, copies or stores them."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from tests.systems.common import PROGRESS, VOCABULARY, build, example
from tuwen import systems
from tuwen.nn.sizes import CrossEncoderConfig
from tuwen.nn.temperature import Temperature, clamp_temperatures, log_scale
from tuwen.nn.transformer import Block


def test_a_forward_finds_the_temperature_within_its_bounds():
    system = build("blip")
    for value, clamped in ((9.0, 0.5), (-1.0, 0.001), (0.2, 0.2)):
        with torch.no_grad():
            system.temperature.fill_(value)
        losses = system(example(), PROGRESS)
        assert float(losses.metrics["temperature"]) == pytest.approx(clamped)
        losses.total.backward()  # nothing that the graph holds was written
        assert system.temperature.grad is not None


def test_a_second_forward_before_the_backward_of_the_first_leaves_its_graph_alone():
    """As of two threads, or of a step in two passes: clamping what is clamped is no change that autograd sees."""
    system = build("albef")
    first, again = system(example(), PROGRESS).total, system(example(), PROGRESS).total
    first.backward()
    gradient = system.temperature.grad.clone()
    system.zero_grad()
    again.backward()
    assert torch.equal(system.temperature.grad, gradient)


def test_a_scale_is_the_inverse_of_a_temperature():
    scale = log_scale(1 / 0.07)
    assert float((-scale).exp().detach()) == pytest.approx(0.07)
    module = nn.ParameterList([scale, Temperature(0.3, 0.1, 0.2), nn.Parameter(torch.tensor(9.0))])
    with torch.no_grad():
        scale.fill_(math.log(200))
    clamp_temperatures(module)
    assert [float(x.detach()) for x in module] == pytest.approx([math.log(100), 0.2, 9.0])


@pytest.mark.parametrize(
    "move", [lambda m: m.double(), copy.deepcopy, lambda m: m.to("cpu"), lambda m: m.requires_grad_(False)]
)
def test_it_stays_a_temperature(move):
    module = move(nn.ParameterDict({"a": Temperature(0.07, 0.05, 0.5)}))
    assert isinstance(module["a"], Temperature)
    assert (module["a"].least, module["a"].most) == (0.05, 0.5)
    assert list(module.state_dict()) == ["a"]  # the name in files is the parameter's own
    with torch.no_grad():
        module["a"].fill_(0.0)
    clamp_temperatures(module)
    assert float(module["a"].detach()) == pytest.approx(0.05)


def made_odd(config):
    """A config whose cross encoders and decoders, those of its parts included (VLMAE), have no field's default."""
    if isinstance(config, CrossEncoderConfig):
        return dataclasses.replace(config, hidden=20, activation="relu", eps=1e-3, dropout=0.25)
    parts = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return dataclasses.replace(
        config, **{name: made_odd(part) for name, part in parts.items() if dataclasses.is_dataclass(part)}
    )


@pytest.mark.parametrize("name", systems.names())
def test_every_field_of_a_cross_encoder_or_decoder_counts(name):
    """Width inside the feed-forward, activation, eps and dropout, in every block that is no tower's."""
    kind = systems.find(name)
    config = kind.Config.sized("tiny")
    changed = made_odd(config)
    if changed == config:
        pytest.skip("no cross encoder")
    system = kind(changed, VOCABULARY)
    blocks = {
        n: m for n, m in system.named_modules() if isinstance(m, Block) and "encoders." not in n and "locator." not in n
    }
    assert blocks
    for block in blocks.values():
        assert block.feed_forward[0].out_features == 20
        assert isinstance(block.feed_forward[1], nn.ReLU)
        assert (block.attention_norm.eps, block.dropout.p, block.attention.dropout) == (1e-3, 0.25, 0.25)
