"""Runs that start from published towers: what is read of them, their configs and their weights."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from tuwen.config import to_dict
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.nn.backbones import ImageBackbone, TextBackbone
from tuwen.nn.initial import copy_students
from tuwen.nn.locked import Lockable
from tuwen.nn.published.names import Report
from tuwen.nn.published.tokenizer import rows_of
from tuwen.nn.published.towers import image_weights, text_weights
from tuwen.nn.towers import ImageTower, TextTower, fitted_positions
from tuwen.training.config import RunConfig

read_image = functools.lru_cache(maxsize=2)(image_weights)
read_text = functools.lru_cache(maxsize=2)(text_weights)
Say = Callable[[str], None]


class Published(NamedTuple):
    """Towers that runs start from: where their weights are (None: drawn), and which are locked ("image", "text")."""

    image: str | None = None
    text: str | None = None
    lock: tuple[str, ...] = ()

    def changes(self, model: Any) -> dict[str, Any]:
        """Settings by dotted name that give a run these towers; none where it has none of them.

        Raises:
            UserError: nothing there, or a system without such a tower in its config.
        """
        if not any(self):
            return {}
        changes = model_changes(model, self.image, self.text, self.lock)
        return {"image_weights": self.image, "text_weights": self.text, **changes}


def model_changes(model: Any, image: str | None, text: str | None, lock: tuple[str, ...] = ()) -> dict[str, Any]:
    """Settings by dotted name that give a system's config the towers of published weights.

    image, text: where they are (see `tuwen.nn.published.towers`). lock: "image", "text". A cross encoder over the
    text's states takes the text tower's width.

    Raises:
        UserError: nothing there, or a system without such a tower in its config.
    """
    for name, replaced in (("image", image or "image" in lock), ("text", text or "text" in lock)):
        if replaced and not hasattr(model, name):
            raise UserError(f"this system has no {name} tower to give weights to")
    changes: dict[str, Any] = {f"model.{name}.locked": True for name in lock}
    if image:
        config = replace(read_image(image).config, dropout=model.image.dropout, locked="image" in lock)
        changes |= {f"model.image.{name}": value for name, value in to_dict(config).items()}
    if text:
        text_config = read_text(text).config
        length = min(text_config.length, model.text.length)
        text_config = replace(text_config, length=length, dropout=model.text.dropout, locked="text" in lock)
        changes |= {f"model.text.{name}": value for name, value in to_dict(text_config).items()}
        if hasattr(model, "fusion"):
            changes |= {"model.fusion.width": text_config.width, "model.fusion.heads": text_config.heads}
    return changes


@torch.no_grad()
def take_towers(system: nn.Module, config: RunConfig, tokenizer: Tokenizer, say: Say) -> None:
    """Fills the towers of a new run with the published weights its config names; teachers copy them.

    Raises:
        UserError: if the system has no such tower, or shapes differ.
    """
    if config.image_weights:
        tower = first_tower(system, (ImageTower, ImageBackbone))
        seen = read_image(config.image_weights)
        fill(tower, dict(seen.tensors), config.image_weights)
        _tell("image", config.image_weights, seen.report, say)
    if config.text_weights:
        published = read_text(config.text_weights)
        tensors = dict(published.tensors)
        words = next(name for name in tensors if name.endswith(("words.weight", "word_embeddings.weight")))
        if tokenizer.vocabulary.size != published.tokenizer.vocabulary.size:
            tensors[words] = rows_of(tensors[words], published.tokenizer, tokenizer)
        fill(first_tower(system, (TextTower, TextBackbone)), tensors, config.text_weights)
        _tell("text", config.text_weights, published.report, say)
    if config.image_weights or config.text_weights:
        copy_students(system)


def first_tower(system: nn.Module, kinds: tuple[type[Lockable], ...]) -> Lockable:
    """The system's own tower of a kind: those of its teachers come after it.

    Raises:
        UserError: none there.
    """
    for module in system.modules():
        if isinstance(module, kinds):
            return module
    name = type(system).__module__.rpartition(".")[2]
    side = "image" if issubclass(kinds[0], ImageTower) else "text"
    raise UserError(f"system {name} has no {side} tower of its own that could give or take weights")


def _tell(tower: str, source: str, report: Report, say: Say) -> None:
    say(f"{tower} tower from {source}: {'; '.join(report.lines())}")


def fill(tower: Lockable, tensors: dict, source: str) -> None:
    """Puts a tower's weights into it; positions of another size are fitted.

    Raises:
        UserError: if names or shapes differ.
    """
    state = tower.state_dict()
    if "positions" in tensors:
        tensors["positions"] = fitted_positions(tensors["positions"], state["positions"], tower)
    faults = [
        f"{name} is {list(value.shape)}, not {list(state[name].shape) if name in state else 'here'}"
        for name, value in tensors.items()
        if name not in state or state[name].shape != value.shape
    ]
    added = (".cross.", ".cross_norm.")  # attention to pictures, which a text tower alone never has
    lacking = [
        name
        for name in state
        if name not in tensors and name not in ("mean", "std") and not any(part in name for part in added)
    ]
    if faults or lacking:
        raise UserError(f"{source} does not fit the tower: {'; '.join([*faults, *lacking][:4])}; take its own settings")
    for name, value in tensors.items():
        state[name].copy_(value)
