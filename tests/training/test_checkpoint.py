"""Checkpoints: whole or not there, shared memory kept shared, nothing pickled."""

import os

import pytest
import torch
from torch import nn

from tuwen.errors import UserError
from tuwen.training import checkpoint, optim
from tuwen.training.checkpoint import State
from tuwen.training.config import TrainConfig


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(6, 4)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.words.weight
        self.inner = nn.Linear(4, 4)
        store = torch.arange(8.0)
        self.register_buffer("low", store[:4])
        self.register_buffer("high", store[4:])
        self.register_buffer("turned", torch.arange(6.0).view(2, 3).T)


def trained(seed: int = 0) -> tuple[Tied, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    system = Tied()
    optimizer = optim.build_optimizer(system, TrainConfig(lr=0.1))
    system.out(system.inner(system.words(torch.tensor([1, 2])))).pow(2).sum().backward()
    optimizer.step()
    return system, optimizer


def test_tied_and_overlapping_tensors_come_back(tmp_path):
    system, optimizer = trained()
    checkpoint.save(tmp_path, system, optimizer, State(3, 1.5), keep=2)
    tensors = checkpoint.load_tensors(tmp_path / "weights.safetensors")
    assert torch.equal(tensors["out.weight"], system.words.weight)
    assert tensors["high"].tolist() == [4, 5, 6, 7]
    assert torch.equal(tensors["turned"], system.turned)
    other, other_optimizer = trained(seed=1)
    state = checkpoint.load_checkpoint(tmp_path, other, other_optimizer)
    assert (state.step, state.seconds, state.order) == (3, 1.5, {})
    assert other.out.weight is other.words.weight
    for mine, theirs in zip(other.state_dict().values(), system.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_optimizer_goes_on_as_it_was(tmp_path):
    system, optimizer = trained()
    checkpoint.save(tmp_path, system, optimizer, State(1), keep=1)
    other, other_optimizer = trained(seed=1)
    checkpoint.load_checkpoint(tmp_path, other, other_optimizer)
    for each, its in ((system, optimizer), (other, other_optimizer)):
        its.zero_grad()
        each.out(each.inner(each.words(torch.tensor([3, 4])))).sum().backward()
        its.step()
    assert torch.equal(system.inner.weight, other.inner.weight)
    assert torch.equal(system.words.weight, other.words.weight)


def test_the_state_of_an_order_comes_back(tmp_path):
    system, optimizer = trained()
    order = {"plan": torch.tensor([2, 0, 1]), "held.entries": torch.tensor([2**40])}
    checkpoint.save(tmp_path, system, optimizer, State(4, order=order), keep=1)
    back = checkpoint.load_checkpoint(tmp_path, system, optimizer).order
    assert {name: values.tolist() for name, values in back.items()} == {"plan": [2, 0, 1], "held.entries": [2**40]}


@pytest.mark.parametrize("breaks", ["weights", "optimizer", "state.json", "rename", "link"])
def test_a_crash_at_any_moment_leaves_the_last_one_whole(tmp_path, monkeypatch, breaks):
    system, optimizer = trained()
    checkpoint.save(tmp_path, system, optimizer, State(1), keep=1)
    first = {name: tensor.clone() for name, tensor in system.state_dict().items()}
    with torch.no_grad():
        system.inner.weight.add_(1)

    def crash(real, when):
        def call(path, *rest):
            if when(path):
                raise KeyboardInterrupt
            return real(path, *rest)

        return call

    if breaks == "rename":
        monkeypatch.setattr(checkpoint.Path, "rename", crash(checkpoint.Path.rename, lambda path: True))
    elif breaks == "link":
        monkeypatch.setattr(os, "link", crash(os.link, lambda path: True))
    elif breaks == "state.json":
        monkeypatch.setattr(checkpoint, "write", crash(checkpoint.write, lambda path: True))
    else:
        real = crash(checkpoint.save_tensors, lambda path: path.name.startswith(breaks))
        monkeypatch.setattr(checkpoint, "save_tensors", real)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, system, optimizer, State(2), keep=1)
    monkeypatch.undo()

    fresh, fresh_optimizer = trained(seed=1)
    state = checkpoint.load_checkpoint(tmp_path, fresh, fresh_optimizer)
    done = breaks == "link"  # by then the new one is whole
    assert state.step == (2 if done else 1)
    assert torch.equal(fresh.inner.weight, system.inner.weight if done else first["inner.weight"])
    used = checkpoint.load_tensors(tmp_path / "weights.safetensors")
    assert torch.equal(used["inner.weight"], first["inner.weight"])
    checkpoint.save(tmp_path, system, optimizer, State(3), keep=1)
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["step-00000003"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state", "weights.safetensors"]


def test_the_newest_are_kept(tmp_path):
    system, optimizer = trained()
    for step in (5, 10, 15, 20):
        checkpoint.save(tmp_path, system, optimizer, State(step), keep=2)
    assert checkpoint.steps(tmp_path) == [15, 20]
    newest = tmp_path / "state/step-00000020/weights.safetensors"
    assert newest.read_bytes() == (tmp_path / "weights.safetensors").read_bytes()


def test_damaged_and_foreign_files_are_told(tmp_path):
    system, optimizer = trained()
    folder = checkpoint.save(tmp_path, system, optimizer, State(1), keep=1)
    weights = folder / "weights.safetensors"
    with pytest.raises(UserError, match=r"of another system or size: has high; .*inner\.weight.*9 diff"):
        checkpoint.load_weights(weights, nn.Linear(2, 2))
    weights.write_bytes(weights.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"{weights}: cannot be read"):
        checkpoint.load_checkpoint(tmp_path, system, optimizer)
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load_tensors(tmp_path / "none.safetensors")


def test_others_may_read_the_weights(tmp_path):
    system, optimizer = trained()
    checkpoint.save(tmp_path, system, optimizer, State(1), keep=1)
    (tmp_path / "plain").touch()
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
