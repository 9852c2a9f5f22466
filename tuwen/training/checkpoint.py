"""Checkpoints: all that a run needs to go on exactly, written so that a crash at any moment leaves the last one whole.

    state/step-00000500/weights.safetensors     the system as use needs it
                        training.safetensors    what only training needs: teachers, queues (`System.training_only`)
                        optimizer.safetensors   "exp_avg.NAME", "exp_avg_sq.NAME", "step.NAME"
                        order.safetensors       of a grouped order: its plan, and what it has collected for the next
                        memory.safetensors      what the system remembers from epoch to epoch (`System.memory`)
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

from tuwen.errors import UserError, quoted, reason_of
from tuwen.run import STATE, WEIGHTS, read_json, sync, write
from tuwen.systems.system import System

MEMORY_BYTES = 1 << 30  # of `System.memory`, which every checkpoint holds
MEMORY = "memory.safetensors"

TRAINING, OPTIMIZER, ORDER, ABOUT = (
    *("training.safetensors", "optimizer.safetensors"),
    *("order.safetensors", "state.json"),
)


@dataclass
class State:
    """Where a run stands, beside its weights: steps done, seconds trained, the state of an order that is data."""

    step: int = 0
    seconds: float = 0.0
    order: dict[str, Tensor] = field(default_factory=dict)


def save(run: Path, system: nn.Module, optimizer: torch.optim.Optimizer, state: State, keep: int) -> Path:
    """Writes the checkpoint of `state.step`, points the run's weights at it, and removes all but the `keep` newest.

    A checkpoint that is there already stays: it is the same.

    Raises:
        UserError: if the disk is full, or does not take it; the checkpoints before are whole.
    """
    folder = run / STATE / f"step-{state.step:08d}"
    if folder.exists():
        return folder
    filling = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(filling, ignore_errors=True)
        filling.mkdir(parents=True)
        _fill(filling, system, optimizer, state)
        filling.rename(folder)
        sync(folder.parent)
        settle(run, keep)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(filling, ignore_errors=True)
        raise UserError(
            f"{folder}: the checkpoint cannot be written ({reason_of(error)}); the one before is whole: make room on "
            f"the disk, then go on with `tuwen train --resume {run}`"
        ) from None
    return folder


def _fill(folder: Path, system: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
    use, own = parted(system)
    save_tensors(folder / WEIGHTS, use)
    if own:
        save_tensors(folder / TRAINING, own)
    save_tensors(folder / OPTIMIZER, _flat(optimizer))
    for name, tensors in ((ORDER, state.order), (MEMORY, _memory(system))):
        if tensors:
            save_tensors(folder / name, tensors)
    values = {"step": state.step, "seconds": state.seconds}
    write(folder / ABOUT, json.dumps(values, indent=1) + "\n")
    sync(folder)


def parted(system: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A system's tensors: those that use needs, and those that only training needs."""
    prefixes = training_only(system)
    use: dict[str, Tensor] = {}
    own: dict[str, Tensor] = {}
    for name, tensor in system.state_dict().items():
        (own if name.startswith(prefixes) else use)[name] = tensor
    return use, own


def settle(run: Path, keep: int) -> None:
    """Points the run's weights at the newest checkpoint, and removes older ones and what a crash left half done."""
    for step in steps(run)[-1:]:
        _point_weights(run, _folder(run, step) / WEIGHTS)
    for step in steps(run)[:-keep]:
        folder = _folder(run, step)
        doomed = folder.with_name(f".{folder.name}.old")
        folder.rename(doomed)  # so that a crash while removing leaves no folder that looks complete
        shutil.rmtree(doomed, ignore_errors=True)
    for path in (run / STATE).glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in [*run.glob(".*.tmp"), *(run / STATE).glob(".*.tmp")]:
        path.unlink(missing_ok=True)


def _point_weights(run: Path, weights: Path) -> None:
    """Makes the run's weights.safetensors the given file, in one move: a hard link, or a copy where there are none."""
    if (run / WEIGHTS).exists() and weights.samefile(run / WEIGHTS):
        return
    fresh = run / f".{WEIGHTS}.tmp"
    fresh.unlink(missing_ok=True)
    try:
        os.link(weights, fresh)
    except OSError:
        shutil.copyfile(weights, fresh)
        sync(fresh)
    fresh.replace(run / WEIGHTS)
    sync(run)


def steps(run: Path) -> list[int]:
    """Steps of the complete checkpoints, rising."""
    return sorted(int(path.name[5:]) for path in (run / STATE).glob("step-*") if path.name[5:].isdecimal())


def load_checkpoint(run: Path, system: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Puts the newest checkpoint into system and optimizer; a `State` of step 0 where there is none yet.

    Raises:
        UserError: if a file is damaged or is not of this system.
    """
    done = steps(run)
    if not done:
        return State()
    folder = _folder(run, done[-1])
    values = read_json(folder / ABOUT)
    step, seconds = values.get("step"), values.get("seconds")
    if step != done[-1] or isinstance(step, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e12:
        raise UserError(
            f"{folder / ABOUT}: step {quoted(step, 20)} and seconds {quoted(seconds, 20)} are not of this checkpoint; "
            "restore the file, or remove the folder to go on from the one before"
        )
    order = load_tensors(folder / ORDER) if (folder / ORDER).exists() else {}
    tensors = newest(run)
    if lone := sorted(in_new_names(tensors, system).keys() - in_new_names(tensors, system, split=False).keys()):
        raise UserError(
            f"{folder}: an older version began this run, without a {lone[0]} of its own, so that it cannot go on "
            f"exactly; start a new run with --init {run}"
        )
    put_weights(tensors, system, folder)
    _unflatten(_moments_in_new_names(load_tensors(folder / OPTIMIZER), system), optimizer, folder / OPTIMIZER)
    if (folder / MEMORY).exists() and isinstance(system, System):
        system.remember(load_tensors(folder / MEMORY))
    return State(step, float(seconds), order)


def newest(run: Path) -> dict[str, Tensor]:
    """All tensors of the newest checkpoint's system, teachers and queues included; older ones have them in one file.

    Raises:
        UserError: if there is no checkpoint, or a damaged one.
    """
    done = steps(run)
    if not done:
        raise UserError(f"{run}: holds no checkpoint in {STATE}/; train it first, or leave out :{STATE}")
    folder = _folder(run, done[-1])
    own = load_tensors(folder / TRAINING) if (folder / TRAINING).exists() else {}
    return load_tensors(folder / WEIGHTS) | own


def _memory(system: nn.Module) -> Mapping[str, Tensor]:
    """What a system remembers.

    Raises:
        UserError: more than `MEMORY_BYTES`.
    """
    memory = system.memory() if isinstance(system, System) else {}
    size = sum(tensor.numel() * tensor.element_size() for tensor in memory.values())
    if size > MEMORY_BYTES:
        raise UserError(f"the system remembers {size:,} bytes ({', '.join(memory)}); at most {MEMORY_BYTES:,} are kept")
    return memory


def load_weights(path: Path, system: nn.Module) -> None:
    """Puts the weights of a file into a system of the same shape, which may lack what only training needs.

    Raises:
        UserError: if the file is missing or damaged, its names or shapes are others, or a number is not finite.
    """
    put_weights(load_tensors(path), system, path)


def put_weights(tensors: Mapping[str, Tensor], system: nn.Module, path: Path) -> None:
    """`load_weights` of tensors read from `path`."""
    expected, tensors = system.state_dict(), in_new_names(tensors, system)
    lost = tuple(part for part in training_only(system) if not any(name.startswith(part) for name in expected))
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(lost)}
    faults = [f"lacks {name}" for name in expected.keys() - tensors.keys()]
    faults += [f"has {name}" for name in tensors.keys() - expected.keys()]
    for name in expected.keys() & tensors.keys():
        if tensors[name].shape != expected[name].shape:
            faults.append(f"{name} is {list(tensors[name].shape)}, not {list(expected[name].shape)}")
    if faults:
        listed = "; ".join(quoted(fault)[1:-1] for fault in sorted(faults)[:5])
        raise UserError(f"{path}: these weights are of another system or size: {listed} ({len(faults)} differences)")
    refuse_broken_checkpoint(tensors, path)
    system.load_state_dict(tensors)


def in_new_names(tensors: Mapping[str, Tensor], system: nn.Module, split: bool = True) -> dict[str, Tensor]:
    """An older run's tensors under the names that the system's parts have now (`System.renamed`).

    split: whether a part that came out of another, which is still there, is given what that one has.
    """
    tensors, expected = dict(tensors), system.state_dict().keys()
    for new, old in getattr(system, "renamed", {}).items():
        own = [name for name in expected if name.startswith(f"{new}.")]
        if own and not any(name.startswith(f"{new}.") for name in tensors):
            for name in own:
                before = f"{old}.{name.removeprefix(f'{new}.')}"
                if before in tensors and (split or before not in expected):
                    tensors[name] = tensors[before] if before in expected else tensors.pop(before)
    return tensors


def _moments_in_new_names(moments: Mapping[str, Tensor], system: nn.Module) -> dict[str, Tensor]:
    """An older run's moments under the names that parameters have now."""
    kinds: dict[str, dict[str, Tensor]] = {}
    for full, tensor in moments.items():
        kind, _, name = full.partition(".")
        kinds.setdefault(kind, {})[name] = tensor
    renamed = {kind: in_new_names(named, system, split=False) for kind, named in kinds.items()}
    return {f"{kind}.{name}": tensor for kind, named in renamed.items() for name, tensor in named.items()}


def refuse_broken_checkpoint(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """
    Raises:
        UserError: if a number is not finite, naming the first tensor that holds one.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise UserError(
                f"{path}: {name} holds {count} numbers that are not finite (NaN or infinite), of {tensor.numel()}; "
                "restore the file, or take an older checkpoint's"
            )


def training_only(system: nn.Module) -> tuple[str, ...]:
    """What the names of tensors begin with that only training needs."""
    return tuple(f"{part}." for part in getattr(system, "training_only", ()))


def _folder(run: Path, step: int) -> Path:
    return run / STATE / f"step-{step:08d}"


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
    mend = "restore it, or go back to an older checkpoint"
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            ties = json.loads((file.metadata() or {}).get("ties", "{}"))
    except (OSError, SafetensorError, ValueError, RecursionError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)}); {mend}") from None
    if not isinstance(ties, dict) or not all(isinstance(first, str) and first in tensors for first in ties.values()):
        raise UserError(f"{path}: its note of tied tensors names others than it holds ({quoted(ties)}); {mend}")
    return tensors | {name: tensors[first] for name, first in ties.items()}


_KINDS = ("exp_avg", "exp_avg_sq", "step")  # of AdamW, a parameter


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors by the names of their parameters: "exp_avg.image.class_token"."""
    return {
        f"{kind}.{name}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def _unflatten(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, path: Path) -> None:
    named = [name for group in optimizer.param_groups for name in group["names"]]
    shapes = {
        name: p.shape
        for group in optimizer.param_groups
        for name, p in zip(group["names"], group["params"], strict=True)
    }
    place = {name: k for k, name in enumerate(named)}
    state: dict[int, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        kind, _, name = full.partition(".")
        if name not in place:
            raise UserError(f"{path}: has a parameter {quoted(name)} that this system does not train")
        if kind not in _KINDS:
            raise UserError(f"{path}: has {quoted(full)}, and of a parameter there are {', '.join(_KINDS)}")
        shape = torch.Size([]) if kind == "step" else shapes[name]
        if tensor.shape != shape:
            raise UserError(f"{path}: {full} is {list(tensor.shape)}, not {list(shape)}")
        state.setdefault(place[name], {})[kind] = tensor
    if lacking := [
        name for name in named if len(state.get(place[name], _KINDS)) < len(_KINDS)
    ]:  # none: it had no gradient yet
        raise UserError(f"{path}: lacks moments of {lacking[0]} ({len(lacking)} parameters); restore the file")
    refuse_broken_checkpoint(tensors, path)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
