"""Checkpoints: all that a run needs to go on exactly, written so that a crash at any moment leaves the last one whole.

    state/step-00000500/weights.safetensors     the system: weights, teachers, queues
                        optimizer.safetensors   "exp_avg.NAME", "exp_avg_sq.NAME", "step.NAME"
                        order.safetensors       "plan" and "column.NAME", where the system made any
                        state.json              step, seconds trained

A folder of that name is complete: it is filled under another name, synced, and renamed. The run's own
weights.safetensors is a second name (a hard link) of the newest weights. Nothing is pickled.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tuwen.errors import UserError
from tuwen.run import STATE, WEIGHTS, sync, write
from tuwen.systems.system import Columns, Plan


@dataclass
class State:
    """Where a run stands, beside its weights: steps done, seconds trained, the order and columns its system made."""

    step: int = 0
    seconds: float = 0.0
    plan: Plan | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)

    def take(self, made: Plan | Columns | None) -> None:
        """Takes in what a system's `end_epoch` gave; a plan holds for the next epoch alone."""
        self.plan = made if isinstance(made, Plan) else None
        if isinstance(made, Columns):
            self.columns.update(made.values)


def save(run: Path, system: nn.Module, optimizer: torch.optim.Optimizer, state: State, keep: int) -> Path:
    """Writes the checkpoint of `state.step`, points the run's weights at it, and removes all but the `keep` newest.

    A checkpoint that is there already stays: it is the same.
    """
    folder = run / STATE / f"step-{state.step:08d}"
    if folder.exists():
        return folder
    filling = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(filling, ignore_errors=True)
    filling.mkdir(parents=True)
    save_tensors(filling / WEIGHTS, system.state_dict())
    save_tensors(filling / "optimizer.safetensors", _flat(optimizer))
    order = {f"column.{name}": values for name, values in state.columns.items()}
    if state.plan is not None:
        order["plan"] = state.plan.rows
    if order:
        save_tensors(filling / "order.safetensors", order)
    values = {"step": state.step, "seconds": state.seconds}
    write(filling / "state.json", json.dumps(values, indent=1) + "\n")
    sync(filling)
    filling.rename(folder)
    sync(folder.parent)
    point_weights(run, folder / WEIGHTS)
    _clean(run, keep)
    return folder


def point_weights(run: Path, weights: Path) -> None:
    """Makes the run's weights.safetensors the given file, in one move: a hard link, or a copy where there are none."""
    fresh = run / f".{WEIGHTS}.tmp"
    fresh.unlink(missing_ok=True)
    try:
        os.link(weights, fresh)
    except OSError:
        shutil.copyfile(weights, fresh)
    fresh.replace(run / WEIGHTS)
    sync(run)


def steps(run: Path) -> list[int]:
    """Steps of the complete checkpoints, rising."""
    return sorted(int(path.name[5:]) for path in (run / STATE).glob("step-*") if path.name[5:].isdigit())


def load(run: Path, system: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Puts the newest checkpoint into system and optimizer; a `State` of step 0 where there is none yet.

    Raises:
        UserError: if a file is damaged or is not of this system.
    """
    done = steps(run)
    if not done:
        return State()
    folder = run / STATE / f"step-{done[-1]:08d}"
    values = json.loads((folder / "state.json").read_text())
    order = load_tensors(folder / "order.safetensors") if (folder / "order.safetensors").exists() else {}
    load_weights(folder / WEIGHTS, system)
    _unflatten(load_tensors(folder / "optimizer.safetensors"), optimizer)
    plan = Plan(order.pop("plan")) if "plan" in order else None
    columns = {name.removeprefix("column."): tensor for name, tensor in order.items()}
    return State(values["step"], values["seconds"], plan, columns)


def load_weights(path: Path, system: nn.Module) -> None:
    """Puts the weights of a file into a system of the same shape.

    Raises:
        UserError: if the file is missing or damaged, or its names or shapes are others.
    """
    held, wanted = load_tensors(path), system.state_dict()
    faults = [f"lacks {name}" for name in wanted.keys() - held.keys()]
    faults += [f"has {name}" for name in held.keys() - wanted.keys()]
    for name in wanted.keys() & held.keys():
        if held[name].shape != wanted[name].shape:
            faults.append(f"{name} is {list(held[name].shape)}, not {list(wanted[name].shape)}")
    if faults:
        listed = "; ".join(sorted(faults)[:5])
        raise UserError(f"{path}: these weights are of another system or size: {listed} ({len(faults)} differences)")
    system.load_state_dict(held)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as safetensors, in one move; those that share their memory are written once, with a note."""
    unique: dict[tuple, str] = {}
    ties: dict[str, str] = {}
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        same = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        first = unique.setdefault(same, name) if tensor.numel() else name
        if first != name:
            ties[name] = first
            continue
        plain = tensor.detach().cpu().contiguous()
        whole = plain.numel() * plain.element_size() == plain.untyped_storage().nbytes()
        stored[name] = plain if whole else plain.clone()  # a view would share memory, which safetensors refuses
    fresh = path.with_name(f".{path.name}.tmp")
    fresh.touch()
    mode = fresh.stat().st_mode
    save_file(stored, fresh, metadata={"ties": json.dumps(ties)})
    fresh.chmod(mode)  # safetensors lets no one else read its files
    sync(fresh)
    fresh.replace(path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file written by `save_tensors`, on the CPU.

    Raises:
        UserError: if the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            ties = json.loads((file.metadata() or {}).get("ties", "{}"))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); restore it, or go back to an older checkpoint") from None
    return tensors | {name: tensors[first] for name, first in ties.items()}


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors by the names of their parameters: "exp_avg.image.class_token"."""
    return {
        f"{kind}.{name}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def _unflatten(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    named = [name for group in optimizer.param_groups for name in group["names"]]
    place = {name: k for k, name in enumerate(named)}
    state: dict[int, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        kind, _, name = full.partition(".")
        if name not in place:
            raise UserError(f"the optimizer's state has a parameter {name} that this system does not train")
        state.setdefault(place[name], {})[kind] = tensor
    optimizer.load_state_dict({STATE: state, "param_groups": optimizer.state_dict()["param_groups"]})


def _clean(run: Path, keep: int) -> None:
    """Removes all but the newest checkpoints, and what a crash left half written."""
    for step in steps(run)[:-keep]:
        folder = run / STATE / f"step-{step:08d}"
        doomed = folder.with_name(f".{folder.name}.old")
        folder.rename(doomed)  # so that a crash while removing leaves no folder that looks complete
        shutil.rmtree(doomed, ignore_errors=True)
    for left in (run / STATE).glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)
