"""Runs that start from published towers: their configs, their weights, and the features of locked ones."""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tuwen.config import to_dict
from tuwen.data.corpus import BrokenImage, Corpus
from tuwen.data.features import ImageFeatures
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.nn.backbones import ImageBackbone, TextBackbone
from tuwen.nn.features import FeatureStore, TextFeatures
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
    raise UserError(f"{type(system).__name__} has no tower that published weights could go into")


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


# ---- features of locked towers, kept on disk


def cache_folder() -> Path:
    """Where features are kept: $TUWEN_CACHE, or tuwen in the user's cache folder."""
    given = os.environ.get("TUWEN_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tuwen"


def text_features(system: nn.Module, tokenizer: Tokenizer) -> None:
    """Lets a locked text tower keep the states of the texts it meets, for this run and all after it."""
    towers = [m for m in system.modules() if isinstance(m, TextTower | TextBackbone) and m.locked]
    if not towers:
        return
    folder = cache_folder() / "features" / f"text-{fingerprint(towers[0])}"
    store = FeatureStore(folder, towers[0].config.width)
    for tower in towers:
        tower.features = TextFeatures(store, tokenizer.vocabulary.mask)


def image_features(
    system: nn.Module, config: RunConfig, corpus: Corpus, views: Mapping[str, Any], say: Say
) -> ImageFeatures | None:
    """Tokens of every picture of a corpus by a locked image tower, computed now where they are not on disk yet.

    None where the tower is not locked, pictures are augmented, or `views` of them are asked for beside.
    """
    towers = [m for m in system.modules() if isinstance(m, ImageTower | ImageBackbone)]
    if not towers or not all(tower.locked for tower in towers) or config.data.augment != "none" or views:
        return None
    tower = towers[0]
    name = f"image-{fingerprint(tower)}-{corpus.name}-{corpus.split}-{corpus.fingerprint}".replace("/", "_")
    with torch.no_grad():
        blank = torch.zeros(1, 3, tower.config.side, tower.config.side, dtype=torch.uint8)
        width = tower(blank.to(next(tower.parameters()).device)).shape[2]
    store = FeatureStore(cache_folder() / "features" / name[:200], width)
    missing = [row for row in range(len(corpus)) if row not in store]
    if missing and store.writes:
        say(f"features of {len(missing)} pictures by the locked image tower, kept in {store.folder}")
        _compute(tower, config, corpus, store, missing)
    return ImageFeatures(store)


@torch.no_grad()
def _compute(tower: Lockable, config: RunConfig, corpus: Corpus, store: FeatureStore, rows: list[int]) -> None:
    from rich.console import Console
    from rich.progress import track

    device = next(tower.parameters()).device
    fit = config.model.image.fit
    size = 32
    console = Console(stderr=True)
    chunks = [rows[k : k + size] for k in range(0, len(rows), size)]
    for chunk in track(chunks, "features", console=console, transient=True, disable=not console.is_terminal):
        pixels, read = [], []
        for row in chunk:
            try:
                pixels.append(fit(corpus.image(row)))
                read.append(row)
            except BrokenImage:
                continue  # the loader meets it again, and says why
        if read:
            tokens = tower(torch.stack(pixels).to(device)).float().cpu().numpy()
            store.write(read, list(tokens))


def fingerprint(tower: nn.Module) -> str:
    """Of a tower's weights and of the settings that its features depend on: other ones, other features."""
    settings = {name: value for name, value in to_dict(tower.config).items() if name not in ("dropout", "projection")}
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8)
    for name, value in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
