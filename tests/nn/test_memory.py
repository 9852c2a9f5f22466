"""A config that no machine could hold is refused in a line before anything is made of it."""

import time
from dataclasses import replace

import pytest
import torch

from tests.systems.common import VOCABULARY
from tests.training import toy
from tuwen import systems
from tuwen.errors import UserError
from tuwen.model import load
from tuwen.nn import memory
from tuwen.nn.memory import least_numbers, memory_of, refuse_beyond_memory
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig
from tuwen.training.config import RunConfig
from tuwen.training.loop import train

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", ["small", "base"])
@pytest.mark.parametrize("name", systems.names())
def test_it_is_a_lower_bound_and_no_empty_one(name, size):
    """Every system can be built at these sizes, too."""
    config = systems.find(name).Config.sized(size)
    with torch.device("meta"):
        system = systems.find(name)(config, VOCABULARY)
    tensors = dict([*system.named_parameters(), *system.named_buffers()])
    numbers = sum(tensor.numel() for tensor in tensors.values())
    least = sum(count for _, count in least_numbers(config, VOCABULARY.size))
    assert (0 if name == "dvae" else 0.3) * numbers <= least <= numbers  # dvae has convolutions alone


def test_by_hand():
    fusion = CrossEncoderConfig(width=8, layers=3, heads=2, hidden=20)
    assert dict(least_numbers(fusion, 100)) == {"model": 3 * (4 * 64 + 2 * 8 * 20)}
    text = TextTowerConfig(width=8, layers=1, heads=2, length=5)
    assert dict(least_numbers(text, 100)) == {"model": 12 * 64 + (100 + 5) * 8}
    image = ImageTowerConfig(side=8, patch=4, width=8, layers=1, heads=2)
    assert dict(least_numbers(image, 100)) == {"model": 12 * 64 + (48 + 4) * 8}
    assert dict(least_numbers(image, 100, trained=True)) == {"model": 4 * (12 * 64 + (48 + 4) * 8)}
    assert dict(least_numbers(replace(image, locked=True), 100, trained=True)) == {"model": 12 * 64 + (48 + 4) * 8}
    backbone = {"hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 16, "label2id": {}}
    assert dict(least_numbers(replace(image, backbone=backbone), 100)) == {"model": 2 * 8 * (32 + 32)}
    config = RunConfig.of("albef", "tiny", "scenes", changes={"model.queue": 1000}).model
    assert dict(least_numbers(config, 100))["model"] == 2 * 1000 * config.embed


def test_what_fits_is_taken_and_what_does_not_names_its_largest_part(monkeypatch):
    config = RunConfig.of("albef", "tiny", "scenes").model
    least = sum(count for _, count in least_numbers(config, 100))
    for size, trained, fits in ((4 * least, False, True), (4 * least - 1, False, False), (4 * least, True, False)):
        monkeypatch.setattr(memory, "memory_of", lambda place, size=size: size)
        if fits:
            refuse_beyond_memory(config, 100, CPU, trained)
        else:
            with pytest.raises(UserError, match=r"model is the largest part.*lower its width"):
                refuse_beyond_memory(config, 100, CPU, trained)
    monkeypatch.undo()
    assert 2**28 < memory_of(CPU) < 2**50


LARGE = {"model.text.width": 2**16, "model.text.layers": 2**12, "model.text.heads": 2**10}


def test_a_run_is_refused_at_its_start_and_when_it_is_loaded(tmp_path):
    began = time.process_time()
    config = RunConfig.of("clip", "tiny", "scenes:count=8,side=32", changes=LARGE | {"train.steps": 1})
    with pytest.raises(UserError, match=r"model\.text is the largest part, and there are"):
        train(config, tmp_path / "run", quiet=True)
    assert time.process_time() - began < 10
    with toy.registered():
        train(toy.config(), tmp_path / "toy", lambda *_: {"en": 1.0}, toy.Memory(), quiet=True)
        text = (tmp_path / "toy" / "config.yaml").read_text()
        assert "    width: 8\n" in text
        for old, new in (("width: 8", f"width: {2**16}"), ("layers: 1", "layers: 4096")):
            text = text.replace(f"    {old}\n", f"    {new}\n")
        (tmp_path / "toy" / "config.yaml").write_text(text)
        with pytest.raises(UserError, match="GiB"):
            load(tmp_path / "toy")
