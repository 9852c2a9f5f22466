"""A folder as transformers writes it: settings, tensors, preprocessing. Nothing in it is ever unpickled."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tuwen.data.images import Resample
from tuwen.errors import UserError
from tuwen.nn.published.vision import square_of
from tuwen.nn.sizes import CLIP_MEAN, CLIP_STD

PILLOW = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of Pillow's numbers


def settings_of(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        UserError: none there, or not one of a model.
    """
    found = read_json(folder / "config.json")
    if found is None or "model_type" not in found:
        raise UserError(f"{folder}: no config.json with a model_type there; give a folder of `save_pretrained`")
    return found


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file.

    Raises:
        UserError: not JSON, or no object.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected names with values")
    return found


def tensors_of(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or of a folder's safetensors (one or several) or pytorch_model.bin.

    Raises:
        UserError: none there, damaged, or a pickle that holds more than tensors.
    """
    if path.is_file():
        return _safetensors(path) if path.suffix == ".safetensors" else _weights_only(path)
    for stem, read in (("model.safetensors", _safetensors), ("pytorch_model.bin", _weights_only)):
        index = read_json(path / f"{stem}.index.json")
        if index is not None:
            names = sorted(set(index.get("weight_map", {}).values()))
            if any("/" in name or name.startswith(".") for name in names):
                raise UserError(f"{path / stem}.index.json: names files outside its folder")
            return {name: value for part in names for name, value in read(path / part).items()}
        if (path / stem).is_file():
            return read(path / stem)
    raise UserError(f"{path}: neither model.safetensors nor pytorch_model.bin there")


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _weights_only(path: Path) -> dict[str, Tensor]:
    """A .bin, .pt or .pth file by torch's loader that runs no code; a checkpoint's tensors may lie under "model"."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds on what it does not take
        asked = re.search(r"WeightsUnpickler error:\s*(.+?)(?: was not|\n|$)", str(error))
        why = asked[1] if asked else (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path}: refused, it is damaged or holds more than tensors, and running what it holds is not safe "
            f"({why}); ask for a safetensors file, or convert it where you trust it"
        ) from None
    for name in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds {type(found).__name__}, not tensors by name")
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}


# ---- preprocessing


def picture_settings(folder: Path, side: int) -> dict[str, Any]:
    """Fields of `ImageTowerConfig` as preprocessor_config.json says; CLIP's where there is no such file.

    Raises:
        UserError: a step that is not done here, or a side that is not the tower's.
    """
    path = folder / "preprocessor_config.json"
    found = read_json(path) or (read_json(folder / "processor_config.json") or {}).get("image_processor")
    if found is None:
        return {"mean": CLIP_MEAN, "std": CLIP_STD}
    if found.get("size_divisor") and found.get("do_center_crop"):  # BridgeTower's: what is cropped needs no padding
        found = found | {"do_pad": False, "crop_size": {"height": found["size"]["shortest_edge"]}}
    if "max_num_patches" in found:  # NaFlex's, which keeps the aspect: here a square of as many patches
        patches = square_of(found["max_num_patches"], found.get("patch_size", 16), str(path))
        found = {"resample": 2} | found | {"size": {"height": patches, "width": patches}}
    for name, wanted in (("do_resize", True), ("do_rescale", True), ("do_pad", False)):
        if bool(found.get(name, wanted)) != wanted:
            raise UserError(f"{path}: {name} is {found[name]}, which is not done here")
    if abs(float(found.get("rescale_factor", 1 / 255)) - 1 / 255) > 1e-6 or found.get("rescale_offset"):
        raise UserError(f"{path}: pixels scaled by {found.get('rescale_factor')} instead of 1/255 are not read here")
    size = found.get("size", side)
    size = {"shortest_edge": size} if isinstance(size, int) and found.get("do_center_crop") else size
    size = {"height": size, "width": size} if isinstance(size, int) else size
    normalised = found.get("do_normalize", True)
    for name in ("image_mean", "image_std") if normalised else ():
        if len(values := found.get(name, CLIP_MEAN)) != 3 or (name == "image_std" and min(values) <= 0):
            raise UserError(f"{path}: {name} {values} is not that of three colours")
    out: dict[str, Any] = {
        "resample": _resample(found.get("resample", 3), path),
        "mean": tuple(found.get("image_mean", CLIP_MEAN)) if normalised else (0.0, 0.0, 0.0),
        "std": tuple(found.get("image_std", CLIP_STD)) if normalised else (1.0, 1.0, 1.0),
    }
    return out | _geometry(found, size, side, path)


def picture_notes(found: Mapping[str, Any]) -> tuple[str, ...]:
    """What is to be said of `picture_settings`: whether they are taken from nowhere."""
    if "resample" in found:
        return ()
    return ("no preprocessor_config.json: pictures are resized to a square, with CLIP's mean and deviation",)


def _geometry(found: dict[str, Any], size: dict[str, int], side: int, path: Path) -> dict[str, Any]:
    """shorter_side and side of a processor's sizes."""
    if not isinstance(size, dict) or not ("shortest_edge" in size or {"height", "width"} <= size.keys()):
        raise UserError(f"{path}: a size of {size!r} is not read here")
    crop = found.get("crop_size")
    if isinstance(crop, dict):
        if crop.get("width", crop["height"]) != crop["height"]:
            raise UserError(f"{path}: crop {crop} is not square")
        crop = crop["height"]
    if "crop_pct" in found and "shortest_edge" in size:  # ConvNeXt's: below 384 enlarged, then cropped
        square = size["shortest_edge"]
        short = int(square / found["crop_pct"]) if square < 384 and found["crop_pct"] else None
        return {"shorter_side": short, "side": _same(square, side, path)}
    if not found.get("do_center_crop"):
        if "shortest_edge" in size:
            raise UserError(f"{path}: pictures keep their aspect and are not cropped, which no square tower reads")
        if size["height"] != size["width"]:
            raise UserError(f"{path}: size {size} is not square")
        return {"shorter_side": None, "side": _same(size["height"], side, path)}
    if "shortest_edge" in size:
        short = size["shortest_edge"]
        if crop is not None and short < crop:
            raise UserError(f"{path}: a shorter side of {short} would be padded to the crop {crop}, not done here")
        return {"shorter_side": short, "side": _same(crop or short, side, path)}
    if size["height"] != size["width"]:
        raise UserError(f"{path}: size {size} is not square")
    if crop is not None and crop != size["height"]:
        raise UserError(f"{path}: resized to {size} and cropped to {crop}, which is not done here")
    return {"shorter_side": None, "side": _same(size["height"], side, path)}


def _same(given: int, side: int, path: Path) -> int:
    if given != side:
        raise UserError(f"{path}: gives pictures of {given} pixels, but config.json's tower reads {side}")
    return side


def _resample(value: Any, path: Path) -> Any:
    name = PILLOW[value] if isinstance(value, int) and 0 <= value < len(PILLOW) else str(value).lower()
    if name not in get_args(Resample):
        raise UserError(f"{path}: resample {value!r} is not known")
    return name
