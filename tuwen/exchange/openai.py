"""Checkpoints of open_clip and cn_clip (Chinese-CLIP's own code), whose tensors have the names of OpenAI's CLIP."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from tuwen.data.text import Tokenizer
from tuwen.errors import UserError, quoted, refused
from tuwen.nn.published import openai, text
from tuwen.nn.published.files import json_if_there
from tuwen.nn.published.names import NameEntry, prefixed, same
from tuwen.nn.published.sizes import checked_settings
from tuwen.nn.published.tokenizer import byte_pairs, pieces_of, tokenizer_of
from tuwen.nn.sizes import CLIP_MEAN, CLIP_STD, ImageTowerConfig, TextTowerConfig
from tuwen.run import TOKENIZER

KINDS = ("open_clip", "cn_clip")
SETTINGS = "open_clip_config.json"
# in the order in which open_clip itself looks for them
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
KNOWN = {
    "logit_bias": "the bias of SigLIP's loss, which no ranking reads; kept in the run's provenance",
    "bert.pooler": "a pooling layer that this model does not use",
    "bert.embeddings.position_ids": "plain numbers",
    "attn_mask": "the causal mask",
    "text.attn_mask": "the causal mask",
}
_NO_SETTINGS = (
    f"no {SETTINGS} beside it: attention heads of width 64, GELU and CLIP's preprocessing are taken, as its own "
    'models have them; for OpenAI\'s weights and names with -quickgelu write {"quick_gelu": true} into such a file'
)
# settings of open_clip that the towers here have at these values alone
_VISION = {"no_ln_pre": False, "pos_embed_type": "learnable", "pool_type": "tok", "final_ln_after_pool": False}
_TEXT = {"no_causal_mask": False, "proj_bias": False, "proj_type": "linear", "embed_cls": False, "text_arch": "clip"}
_EITHER = {
    **dict.fromkeys(("ls_init_value", "act_kwargs", "block_type", "norm_type", "mlp_bias", "attention_bias"), None),
    **dict.fromkeys(("attentional_pool", "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner"), False),
    **dict.fromkeys(("scale_attn", "scale_fc", "timm_model_name", "hf_model_name"), False),
}
_WIDE_HEADS = {1280: 80}  # ViT-H's, as both projects have it


def layout_of(names: Mapping[str, Any]) -> str | None:
    """Which of the two a checkpoint with tensors of these names is."""
    plain = {name.removeprefix("module.") for name in names}
    if "visual.conv1.weight" not in plain:
        return None
    return "cn_clip" if any(name.startswith("bert.") for name in plain) else "open_clip"


def weights_file(folder: Path) -> Path | None:
    """The file of weights that open_clip itself would read from a folder."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def settings_of(folder: Path, kind: str) -> dict[str, Any]:
    """{"model_type": kind}, with what open_clip_config.json says, or a bare file of its model_configs by that name.

    Raises:
        UserError: a file that is not such a one, or a number in it that sizes nothing.
    """
    path = folder / SETTINGS
    content = (json_if_there(path) if kind == "open_clip" else None) or {}
    content = content if "model_cfg" in content or not content else {"model_cfg": content}
    return {"model_type": kind, **checked_settings(content, str(path))}


def parts(
    settings: Mapping[str, Any], weights: Mapping[str, Tensor], heads: Mapping[str, int], picture: Mapping[str, Any]
) -> tuple[dict[str, Any], list[NameEntry], tuple[str, ...]]:
    """(fields of `clip`'s config, names of tensors, notes) of a checkpoint; all sizes are those of its tensors.

    heads: by tower, where they are not as these projects have them.

    Raises:
        UserError: a tower that is no ViT, or a setting that the towers here do not have.
    """
    chinese = settings["model_type"] == "cn_clip"
    model = settings.get("model_cfg") or {}
    seen, read = model.get("vision_cfg") or {}, model.get("text_cfg") or {}
    _refuse(seen, _VISION | _EITHER, "vision_cfg")
    _refuse(read, _TEXT | _EITHER, "text_cfg")
    quick = chinese or bool(model.get("quick_gelu", False))
    for name in ("visual.conv1.weight", "visual.positional_embedding", "visual.proj"):
        if name not in weights or weights[name].dim() < 2:
            raise UserError(f"no tensor {name} there: its picture tower is no ViT of CLIP's, and is not read here")
    width, _, patch, _ = weights["visual.conv1.weight"].shape
    activation: Any = "quick_gelu" if quick else "gelu"
    image = ImageTowerConfig(
        side=picture_side(weights),
        patch=patch,
        width=width,
        layers=_count(weights, "visual.transformer.resblocks."),
        heads=heads.get("image") or max(1, width // seen.get("head_width", _WIDE_HEADS.get(width, 64))),
        hidden=_hidden(weights, "visual.transformer.resblocks.0.mlp.c_fc.weight", width),
        activation=activation,
        eps=(seen.get("norm_kwargs") or {}).get("eps", 1e-5),
        pre_norm=True,
        patch_bias=False,
        projection="unbiased",
        **picture,
    )
    entries = prefixed(openai.image_entries(image), "encoders.image.", "visual.")
    entries += [openai.turned("encoders.image_projection.weight", "visual.proj"), same("log_scale", "logit_scale")]
    make = _chinese if chinese else _causal
    tower, text_entries = make(weights, read, heads, activation)
    notes = () if chinese or model else (_NO_SETTINGS,)
    return {"image": image, "text": tower, "embed": weights["visual.proj"].shape[1]}, entries + text_entries, notes


def _causal(weights, read, heads, activation) -> tuple[TextTowerConfig, list[NameEntry]]:
    """OpenAI's text tower, at the top of the model or, as newer files have it, under "text."."""
    stem = "text." if "text.token_embedding.weight" in weights else ""
    if f"{stem}positional_embedding" not in weights or read.get("pool_type", "argmax") not in ("argmax", "eos"):
        raise UserError("its text tower is not CLIP's causal one with an end token, and is not read here")
    length, width = weights[f"{stem}positional_embedding"].shape
    tower = TextTowerConfig(
        kind="clip",
        length=length,
        width=width,
        layers=_count(weights, f"{stem}transformer.resblocks."),
        heads=heads.get("text") or read.get("heads", max(1, width // 64)),
        hidden=_hidden(weights, f"{stem}transformer.resblocks.0.mlp.c_fc.weight", width),
        activation=activation,
        eps=(read.get("norm_kwargs") or {}).get("eps", 1e-5),
        projection="unbiased",
    )
    entries = prefixed(openai.text_entries(tower), "encoders.text.", stem)
    return tower, [*entries, openai.turned("encoders.text_projection.weight", f"{stem}text_projection")]


def _chinese(weights, read, heads, activation) -> tuple[TextTowerConfig, list[NameEntry]]:
    """cn_clip's BERT, read at its first token."""
    name = "bert.embeddings.position_embeddings.weight"
    if name not in weights:
        raise UserError(f"no tensor {name} there: these are not the weights of cn_clip")
    length, width = weights[name].shape
    tower = TextTowerConfig(
        length=length,
        width=width,
        layers=_count(weights, "bert.encoder.layer."),
        heads=heads.get("text") or max(1, width // 64),
        hidden=_hidden(weights, "bert.encoder.layer.0.intermediate.dense.weight", width),
        projection="unbiased",
    )
    entries = prefixed(text.entries("bert", tower), "encoders.text.", "bert.")
    return tower, [*entries, openai.turned("encoders.text_projection.weight", "text_projection")]


def picture_side(weights: Mapping[str, Tensor]) -> int:
    """Pixels that the picture tower reads.

    Raises:
        UserError: no such tensors.
    """
    try:
        patch, places = weights["visual.conv1.weight"].shape[-1], weights["visual.positional_embedding"].shape[0]
    except (KeyError, IndexError):
        raise UserError("no ViT of CLIP's under visual. there (a ResNet, or a tower of timm, is not read)") from None
    return round((places - 1) ** 0.5) * patch


def pictures(settings: Mapping[str, Any], side: int, where: str) -> dict[str, Any]:
    """Fields of `ImageTowerConfig` as preprocess_cfg says; without it open_clip's own, or cn_clip's, which squashes.

    Raises:
        UserError: a step that is not done here.
    """
    asked = settings.get("preprocess_cfg") or {}
    squashed = settings["model_type"] == "cn_clip" or asked.get("resize_mode") == "squash"
    if asked.get("resize_mode", "shortest") not in ("shortest", "squash"):
        raise UserError(
            f"{where}: resize_mode {quoted(asked['resize_mode'], 40)} pads pictures, which is not done here"
        )
    resample = asked.get("interpolation") or "bicubic"
    if resample not in ("bicubic", "bilinear"):
        raise UserError(f"{where}: interpolation {quoted(resample, 40)} is not known; bicubic and bilinear are")
    with refused(f"{where}: preprocess_cfg is not as open_clip writes it"):
        mean, std = (tuple(map(float, asked.get(name) or usual)) for name, usual in _COLOURS)
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError("mean and std are not those of three colours")
    return {"mean": mean, "std": std, "resample": resample, "shorter_side": None if squashed else side}


_COLOURS = (("mean", CLIP_MEAN), ("std", CLIP_STD))


def tokenizer(folder: Path, kind: str, words: int, given: str | None) -> Tokenizer:
    """The tokenizer given, or beside the weights, or of the project's own package where that is installed.

    Raises:
        UserError: none of them, naming the file to fetch.
    """
    own = {"open_clip": ("open_clip", "bpe_simple_vocab_16e6.txt.gz"), "cn_clip": ("cn_clip", "clip/vocab.txt")}
    package, name = own[kind]
    path = Path(given) if given else folder / Path(name).name
    if not given and any((folder / file).is_file() for file in (TOKENIZER, "vocab.json")):
        return tokenizer_of(folder, words, "clip")
    if not given and not path.is_file():
        spec = find_spec(package)
        path = Path(next(iter(spec.submodule_search_locations or ("",)))) / name if spec else path
    if not path.is_file():
        ask = f"`pip download --no-deps {package.replace('_', '-')}`" if kind == "cn_clip" else "github.com/openai/CLIP"
        raise UserError(
            f"{folder}: no tokenizer there; give --tokenizer {Path(name).name} (in {ask}, or where the package "
            f"{package} is installed), or a tokenizer.json"
        )
    if path.suffix == ".gz":
        return byte_pairs(path, words)
    return pieces_of(path, words) if path.suffix == ".txt" else Tokenizer.load(path)


def _refuse(settings: Mapping[str, Any], usual: Mapping[str, Any], part: str) -> None:
    for name, value in usual.items():
        if settings.get(name, value) != value and settings[name]:
            raise UserError(f"{part}.{name} is {quoted(settings[name], 40)}, which the towers here do not have")


def _hidden(weights: Mapping[str, Tensor], name: str, width: int) -> int | None:
    hidden = len(weights[name]) if name in weights else 4 * width
    return None if hidden == 4 * width else hidden


def _count(weights: Mapping[str, Tensor], stem: str) -> int:
    numbers = [name[len(stem) :].split(".")[0] for name in weights if name.startswith(stem)]
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
