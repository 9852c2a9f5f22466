"""What locked towers give, computed once and kept on disk for this run and all after it."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tuwen.config import to_dict
from tuwen.data.corpus import BrokenImage, Corpus
from tuwen.data.features import ImageFeatures
from tuwen.data.text import Tokenizer
from tuwen.nn.backbones import ImageBackbone, TextBackbone
from tuwen.nn.features import FeatureStore, TextFeatures
from tuwen.nn.locked import Lockable
from tuwen.nn.towers import ImageTower, TextTower
from tuwen.speech import spoken
from tuwen.training.config import RunConfig
from tuwen.training.towers import Say


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
    """Tokens of every picture of a corpus by a locked image tower, computed now where they are not on disk yet; rows of
    one picture (its questions) share them.

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
    keys = first_rows(corpus)
    missing = [row for row in np.unique(keys).tolist() if row not in store]
    if missing and store.writes:
        count = len(missing) * corpus.pictures * corpus.frames
        say(f"features of {count} pictures by the locked image tower, kept in {store.folder}")
        _compute(tower, config, corpus, store, missing)
    return ImageFeatures(store, keys, corpus.pictures * corpus.frames)


def first_rows(corpus: Corpus) -> np.ndarray:
    """[rows] int64 the first row of the same picture, or pictures."""
    _, first, same = np.unique(corpus.image_ids(), return_index=True, return_inverse=True)
    return first[same]


@torch.no_grad()
def _compute(tower: Lockable, config: RunConfig, corpus: Corpus, store: FeatureStore, rows: list[int]) -> None:
    from rich.console import Console
    from rich.progress import track

    device = next(tower.parameters()).device
    fit = config.model.image.fit
    size = max(1, 32 // (corpus.pictures * corpus.frames))
    console = Console(stderr=True)
    chunks = [rows[k : k + size] for k in range(0, len(rows), size)]
    for chunk in track(chunks, spoken("features"), console=console, transient=True, disable=not console.is_terminal):
        pixels, read = [], []
        for row in chunk:
            try:
                pixels.append(torch.stack([fit(picture) for picture in corpus.shown(row)]))
                read.append(row)
            except BrokenImage:
                continue  # the loader meets it again, and says why
        if read:
            tokens = tower(torch.cat(pixels).to(device)).float().cpu().numpy()
            store.write(read, list(tokens.reshape(len(read), -1, tokens.shape[2])))


def fingerprint(tower: nn.Module) -> str:
    """Of a tower's weights and of the settings that its features depend on: other ones, other features."""
    settings = {name: value for name, value in to_dict(tower.config).items() if name not in ("dropout", "projection")}
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8)
    for name, value in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
