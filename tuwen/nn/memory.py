"""How much memory a config asks for at least, before anything of that size is made.

What the layers keep of a batch for the way back is not counted: how much that is depends on what a system hides or
freezes, on precision and on lengths of texts, and a bound that is below all of it is a small part of the truth. Where
a batch is too large, memory runs out in its first step, and that is a line (`tuwen.cli.main`).
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from tuwen.errors import UserError

FLOAT = 4  # bytes
TRAINED = 4  # floats a weight while it is trained: itself, its gradient, and AdamW's two moments
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # what a container may take


def refuse_beyond_memory(config: Any, vocabulary: int, place: torch.device, trained: bool = False) -> None:
    """config: a system's. vocabulary: entries of the tokenizer. trained: weights are not only used.

    Raises:
        UserError: the weights alone would not fit; it names the largest part.
    """
    parts = {part: FLOAT * numbers for part, numbers in least_numbers(config, vocabulary, trained)}
    total, memory = sum(parts.values()), memory_of(place)
    if total > memory:
        part = max(parts, key=lambda name: parts[name])
        trainings = " with gradients and moments" if trained else ""
        raise UserError(
            f"the weights{trainings} would take at least {total / 2**30:,.0f} GiB, of which {part} is the "
            f"largest part, and there are {memory / 2**30:,.0f} GiB; lower its width, layers or other sizes"
        )


def least_numbers(
    config: Any, vocabulary: int, trained: bool = False, name: str = "model"
) -> Iterator[tuple[str, int]]:
    """(part of the config, how many numbers its matrices, embeddings and queue have at least), every part its own.

    A lower bound by width and layers alone: what else a system is made of comes on top. trained: gradients and moments
    of what is not locked count too. A config may name parts in `not_built` of which its system makes nothing.
    """
    if is_dataclass(config):
        values = {field.name: getattr(config, field.name) for field in fields(config)}
        times = TRAINED if trained and not values.get("locked") else 1
        yield name, times * (_blocks(values) + _ends(values, vocabulary)) + _queue(values)
        for field, value in values.items():
            if field not in getattr(config, "not_built", ()):
                yield from least_numbers(value, vocabulary, trained, f"{name}.{field}")


def _blocks(values: Mapping[str, Any]) -> int:
    """Of a stack of transformer blocks: attention's four matrices and two of the feed-forward."""
    backbone = values.get("backbone")
    if backbone is not None:
        names = ("hidden_size", "num_hidden_layers", "intermediate_size")
        width, layers, hidden = (_whole(backbone.get(field)) for field in names)
    else:
        width, layers, hidden = (_whole(values.get(field)) for field in ("width", "layers", "hidden"))
        hidden = hidden or 4 * width
    return layers * width * (4 * width + 2 * hidden)


def _ends(values: Mapping[str, Any], vocabulary: int) -> int:
    """Of what stands before the blocks: words, patches, positions."""
    width = _whole(values.get("width"))
    side, patch, length = (_whole(values.get(field)) for field in ("side", "patch", "length"))
    if values.get("backbone") is not None:
        return 0
    words = (vocabulary + length) * width if length else 0
    patches = (3 * patch**2 + (side // patch) ** 2) * width if patch else 0
    return words + patches


def _queue(values: Mapping[str, Any]) -> int:
    """Of a queue of pairs."""
    return 2 * _whole(values.get("queue")) * _whole(values.get("embed"))


def _whole(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def memory_of(place: torch.device) -> float:
    """Bytes that a device has in all; of the CPU, what the machine has and this process may take of it."""
    if place.type == "cuda":
        return float(torch.cuda.get_device_properties(place).total_memory)
    try:
        known = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    except (AttributeError, ValueError, OSError):  # a machine that does not say
        known = [float("inf")]
    for path in map(Path, _CGROUPS):
        if path.is_file() and (text := path.read_text().strip()).isdecimal():
            known.append(float(text))
    return min(known)
