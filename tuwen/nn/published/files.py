"""A folder as transformers writes it: settings, tensors, preprocessing. Nothing in it is ever unpickled."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tuwen.data.given import json_of, refuse_pointer
from tuwen.data.images import Resample
from tuwen.errors import UserError, printable, quoted, reason_of, refused
from tuwen.nn.published.sizes import checked_settings
from tuwen.nn.published.vision import square_of
from tuwen.nn.sizes import CLIP_MEAN, CLIP_STD

_WRAPPERS = ("module.", "_orig_mod.", "model.", "state_dict.")
PILLOW = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of Pillow's numbers


def model_settings(folder: Path) -> dict[str, Any]:
    """The content of config.json, every number in it that sizes something within bounds.

    Raises:
        UserError: none there, not one of a model, or a number that can be none of its kind.
    """
    settings = json_if_there(folder / "config.json")
    if settings is None or "model_type" not in settings:
        raise UserError(f"{folder}: no config.json with a model_type there; give a folder of `save_pretrained`")
    return checked_settings(settings, str(folder / "config.json"))


def json_if_there(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file.

    Raises:
        UserError: as `json_of`.
    """
    return json_of(path) if path.is_file() else None


def tensors_of(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or of a folder's safetensors (one or several) or pytorch_model.bin.

    Raises:
        UserError: none there, damaged, a Git LFS pointer, or a pickle that holds more than tensors.
    """
    if path.is_file():
        return _safetensors(path) if path.suffix == ".safetensors" else _weights_only(path)
    for stem, read in (("model.safetensors", _safetensors), ("pytorch_model.bin", _weights_only)):
        index = json_if_there(path / f"{stem}.index.json")
        if index is not None:
            return {name: value for part in _parts(index, path, stem) for name, value in read(path / part).items()}
        if (path / stem).is_file():
            return read(path / stem)
    raise UserError(f"{path}: neither model.safetensors nor pytorch_model.bin there")


def _parts(index: Mapping[str, Any], folder: Path, stem: str) -> list[str]:
    """The names of the files that an index says the tensors are in."""
    where = folder / f"{stem}.index.json"
    places = index.get("weight_map", {})
    names = set(places.values()) if isinstance(places, dict) and all(map(_is_text, places.values())) else {""}
    if any(not name or "/" in name or name.startswith(".") for name in names):
        raise UserError(f"{where}: its weight_map names what is no file beside it")
    return sorted(names)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _safetensors(path: Path) -> dict[str, Tensor]:
    refuse_pointer(path)
    kinds = (OSError, SafetensorError, RuntimeError, ValueError, TypeError)
    with refused(f"{path}: cannot be read", kinds=kinds), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def _weights_only(path: Path) -> dict[str, Tensor]:
    """A .bin, .pt or .pth file by torch's loader that runs no code; a checkpoint's tensors may lie under "model"."""
    refuse_pointer(path)
    _refuse_bomb(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds on what it does not take
        asked = re.search(r"WeightsUnpickler error:\s*(.+?)(?: was not|\n|$)", str(error)[:10_000])
        why = printable(asked[1][:200]) if asked else reason_of(error)
        raise UserError(
            f"{path}: refused, it is damaged or holds more than tensors, and running what it holds is not safe "
            f"({why}); ask for a safetensors file, or convert it where you trust it"
        ) from None
    for name in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}, not tensors by name")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if sum(value.numel() * value.element_size() for value in tensors.values()) > 8 * path.stat().st_size:
        raise UserError(f"{path}: refused, its tensors are many times larger than the file")  # views over few numbers
    return tensors


def _refuse_bomb(path: Path) -> None:
    """Refuses a .bin that becomes larger when it is read: torch packs nothing, so its parts are as large as it is."""
    if not zipfile.is_zipfile(path):
        return
    kinds = (OSError, zipfile.BadZipFile, ValueError, NotImplementedError)
    with refused(f"{path}: damaged", kinds=kinds), zipfile.ZipFile(path) as archive:
        size = sum(part.file_size for part in archive.infolist())
    if size > path.stat().st_size:
        raise UserError(
            f"{path}: refused, its parts would be {size:,} bytes and the file has {path.stat().st_size:,}, which no "
            "file of weights does; ask for a safetensors file"
        )


def refuse_wrapped(tensors: Mapping[str, Tensor], where: str, fix: str) -> None:
    """Refuses tensors that are all named as a wrapper's inside.

    Raises:
        UserError: naming the prefix, and with `fix`, in which {} stands for it.
    """
    prefix = ""
    while rest := next((word for word in _WRAPPERS if all(n.startswith(prefix + word) for n in tensors)), ""):
        if not tensors:
            return
        prefix += rest
    if prefix:
        raise UserError(
            f"{where}: the names of all its tensors begin with {prefix}, as a wrapper (DataParallel, compile) writes "
            f"them; {fix.format(prefix)}"
        )


# ---- preprocessing


def picture_settings(folder: Path, side: int) -> dict[str, Any]:
    """Fields of `ImageTowerConfig` as preprocessor_config.json says; CLIP's where there is no such file.

    Raises:
        UserError: a step that is not done here, or a side that is not the tower's.
    """
    path = folder / "preprocessor_config.json"
    settings = json_if_there(path) or (json_if_there(folder / "processor_config.json") or {}).get("image_processor")
    if settings is None:
        return {"mean": CLIP_MEAN, "std": CLIP_STD}
    with refused(f"{path}: its settings are not those of a picture processor"):
        return _preprocessing(checked_settings(settings, str(path)), side, path)


def _preprocessing(settings: dict[str, Any], side: int, path: Path) -> dict[str, Any]:
    if settings.get("size_divisor") and settings.get("do_center_crop"):  # BridgeTower crops: no padding
        settings = settings | {"do_pad": False, "crop_size": {"height": settings["size"]["shortest_edge"]}}
    if "max_num_patches" in settings:  # NaFlex's, which keeps the aspect: here a square of as many patches
        patches = square_of(settings["max_num_patches"], settings.get("patch_size", 16), str(path))
        settings = {"resample": 2} | settings | {"size": {"height": patches, "width": patches}}
    for name, expected in (("do_resize", True), ("do_rescale", True), ("do_pad", False)):
        if bool(settings.get(name, expected)) != expected:
            raise UserError(f"{path}: {name} is {settings[name]}, which is not done here")
    if abs(float(settings.get("rescale_factor", 1 / 255)) - 1 / 255) > 1e-6 or settings.get("rescale_offset"):
        raise UserError(f"{path}: pixels scaled by {settings.get('rescale_factor')} instead of 1/255 are not read here")
    size = settings.get("size", side)
    size = {"shortest_edge": size} if isinstance(size, int) and settings.get("do_center_crop") else size
    size = {"height": size, "width": size} if isinstance(size, int) else size
    normalised = settings.get("do_normalize", True)
    for name in ("image_mean", "image_std") if normalised else ():
        values = settings.get(name, CLIP_MEAN)
        numbers = all(isinstance(value, int | float) and abs(value) < 1e6 for value in values)
        if len(values) != 3 or not numbers or (name == "image_std" and min(values) <= 0):
            raise UserError(f"{path}: {name} {quoted(values, 80)} is not that of three colours")
    out: dict[str, Any] = {
        "resample": _resample(settings.get("resample", 3), path),
        "mean": tuple(settings.get("image_mean", CLIP_MEAN)) if normalised else (0.0, 0.0, 0.0),
        "std": tuple(settings.get("image_std", CLIP_STD)) if normalised else (1.0, 1.0, 1.0),
    }
    return out | _geometry(settings, size, side, path)


def picture_notes(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """What is to be said of `picture_settings`: whether they are taken from nowhere."""
    if "resample" in settings:
        return ()
    return ("no preprocessor_config.json: pictures are resized to a square, with CLIP's mean and deviation",)


def _geometry(settings: dict[str, Any], size: dict[str, int], side: int, path: Path) -> dict[str, Any]:
    """shorter_side and side of a processor's sizes."""
    if not isinstance(size, dict) or not ("shortest_edge" in size or {"height", "width"} <= size.keys()):
        raise UserError(f"{path}: a size of {quoted(size, 80)} is not read here")
    crop = settings.get("crop_size")
    if isinstance(crop, dict):
        if crop.get("width", crop["height"]) != crop["height"]:
            raise UserError(f"{path}: crop {quoted(crop, 80)} is not square")
        crop = crop["height"]
    if "crop_pct" in settings and "shortest_edge" in size:  # ConvNeXt's: below 384 enlarged, then cropped
        square = size["shortest_edge"]
        short = int(square / settings["crop_pct"]) if square < 384 and settings["crop_pct"] else None
        return {"shorter_side": short, "side": _same(square, side, path)}
    if not settings.get("do_center_crop"):
        if "shortest_edge" in size:
            raise UserError(f"{path}: pictures keep their aspect and are not cropped, which no square tower reads")
        if size["height"] != size["width"]:
            raise UserError(f"{path}: size {quoted(size, 80)} is not square")
        return {"shorter_side": None, "side": _same(size["height"], side, path)}
    if "shortest_edge" in size:
        short = size["shortest_edge"]
        if crop is not None and short < crop:
            raise UserError(f"{path}: a shorter side of {short} would be padded to the crop {crop}, not done here")
        return {"shorter_side": short, "side": _same(crop or short, side, path)}
    if size["height"] != size["width"]:
        raise UserError(f"{path}: size {quoted(size, 80)} is not square")
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
        raise UserError(f"{path}: resample {quoted(value, 80)} is not known")
    return name
