"""`tuwen export --to hf`: a run as transformers reads it, where the architecture exists there, with a model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuwen.errors import UserError
from tuwen.exchange import foundation
from tuwen.exchange.card import card
from tuwen.exchange.models import model_of
from tuwen.model import Model, load
from tuwen.nn.published.files import PILLOW
from tuwen.nn.published.names import NameEntry, outward
from tuwen.nn.published.tokenizer import ROLES
from tuwen.nn.sizes import CLIP_MEAN, ImageTowerConfig, TextTowerConfig
from tuwen.run import TOKENIZER, provenance
from tuwen.training import checkpoint

_THEIRS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu", "relu": "relu"}
SIGLIP = ("siglip", "siglip2")
_CLASSES = {
    "clip": "CLIPModel",
    "chinese_clip": "ChineseCLIPModel",
    "altclip": "AltCLIPModel",
    "siglip": "SiglipModel",
    "siglip2": "Siglip2Model",
    "vision-text-dual-encoder": "VisionTextDualEncoderModel",
    "blip": "BlipForImageTextRetrieval",
    **foundation.CLASSES,
}


def export_model(run: str | Path, out: str | Path) -> str:
    """Writes config.json, model.safetensors, preprocessor_config.json, the tokenizer and README.md; gives the class.

    Raises:
        UserError: a system or a setting that no architecture of transformers has, or `out` holds files already.
    """
    folder = empty_folder(out)
    model = load(run)
    origin = provenance(run)
    imported = origin.get("imported", {})
    settings = architecture_settings(model, imported.get("architecture") == "siglip2")
    kind = settings["model_type"]
    ours = model.system.state_dict()
    published = model_of(settings, _names_held(kind, model.config.model), model.tokenizer.vocabulary, {})
    tensors = outward(published.entries, ours)
    if kind in SIGLIP:
        bias = float(imported.get("logit_bias", -10.0))
        tensors["logit_bias"] = ours["log_scale"].new_tensor([bias])
    refuse_left_over(ours, published.entries, run, _CLASSES[kind], published.new)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", settings | {"architectures": [_CLASSES[kind]]})
    write_json(folder / "preprocessor_config.json", _pictures(model.config.model.image, kind))
    write_tokenizer(model, folder, kind)
    checkpoint.save_tensors(folder / "model.safetensors", tensors)
    checkpoint.write(folder / "README.md", card(Path(run), model, origin, _CLASSES[kind]))
    return _CLASSES[kind]


def empty_folder(out: str | Path) -> Path:
    """The folder of an export, not made yet.

    Raises:
        UserError: it holds files already.
    """
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; choose another --out")
    return folder


def refuse_left_over(
    ours: Mapping[str, Any], entries: list[NameEntry], run: str | Path, target: str, new: tuple[str, ...] = ()
) -> None:
    """Refuses an export that would leave out a tensor that use needs.

    Raises:
        UserError: naming them.
    """
    named = {mine for entry in entries for mine in entry.ours}
    left = [name for name in ours if not _told(name, named) and not name.startswith(new)]
    if left:
        raise UserError(f"{run}: {target} has no place for {', '.join(left[:4])} ({len(left)} tensors)")


def architecture_settings(model: Model, naflex: bool = False) -> dict[str, Any]:
    """The config.json of the architecture that a run's config is.

    naflex: the run is an imported SigLIP 2 that reads any aspect there; a run tuned here knows squares alone, SigLIP's.

    Raises:
        UserError: none has all its settings.
    """
    config: Any = model.config.model
    name = model.config.system
    if name not in ("clip", "blip", *foundation.KINDS):
        known = ", ".join(("clip", "blip", *foundation.KINDS))
        raise UserError(f"transformers has no architecture of {name}; {known} are exported")
    image, text = config.image, config.text
    words = model.tokenizer.vocabulary
    roles = {"pad_token_id": words.pad, "bos_token_id": words.cls, "eos_token_id": words.sep}
    ids: dict[str, Any] = {name: None if i < 0 else i for name, i in roles.items()}
    if name == "flava":
        return foundation.flava_settings(config, ids, words.size)
    if name == "bridgetower":
        return foundation.bridgetower_settings(config, ids, words.size)
    if name == "blip":
        inner = {"vision_config": _vision(image), "text_config": _bert(text, words.size) | ids}
        inner["text_config"]["encoder_hidden_size"] = image.width
        return {"model_type": "blip", **inner, "image_text_hidden_size": config.embed, "projection_dim": config.embed}
    kind = two_tower_kind(image, text)
    seen = dict(image.backbone) if image.backbone else _vision(image)
    read = dict(text.backbone) if text.backbone else _bert(text, words.size)
    if kind == "vision-text-dual-encoder":
        seen.setdefault("model_type", "clip_vision_model" if image.pre_norm else _vit_kind(image))
        read.setdefault("model_type", "bert")
    elif kind == "altclip":
        read |= {"project_dim": text.transform, "max_position_embeddings": text.length + 2, "pad_token_id": words.pad}
    elif kind == "siglip":
        read["projection_size"] = config.embed
        if naflex:
            kind = "siglip2"
            seen["num_patches"] = (seen.pop("image_size") // image.patch) ** 2
    read |= ids | {"vocab_size": words.size}
    return {"model_type": kind, "vision_config": seen, "text_config": read, "projection_dim": config.embed}


# what towers must be to be those of CLIP; sizes of `tuwen.nn.sizes` that are
_CLIP_IMAGE = {"projection": "unbiased", "pre_norm": True, "patch_bias": False, "pool": "class", "final_norm": True}
_CLIP_IMAGE |= {"pooler": False, "backbone": None}
_CLIP_TEXT = {"projection": "unbiased", "pooler": False, "backbone": None}
_CLIP_SIZES = "clip-small, clip-b32 (text as CLIP) or chinese-clip-small, chinese-clip-b16 (as BERT)"


def two_tower_kind(image: ImageTowerConfig, text: TextTowerConfig) -> str:
    """The model_type of a two-tower model of transformers with such towers.

    Raises:
        UserError: none has, with every setting to change.
    """
    if image.pool == "map" and text.kind == "siglip" and image.projection == "none" and text.projection == "linear":
        return "siglip"
    lacking = [*_other("image", image, _CLIP_IMAGE), *_other("text", text, _CLIP_TEXT)]
    pools = ("auto", "first") if text.kind == "bert" else ("auto",)
    lacking += [] if text.pool in pools else ["model.text.pool=auto"]
    if not lacking and text.kind in ("clip", "bert"):
        return "clip" if text.kind == "clip" else "altclip" if text.transform else "chinese_clip"
    poolers = image.pooler or image.pre_norm or image.backbone, text.pooler or text.backbone
    unbiased = (image.projection, text.projection) == ("unbiased", "unbiased")
    if all(poolers) and unbiased and image.final_norm and image.pool in ("class", "mean") and text.kind == "bert":
        return "vision-text-dual-encoder"
    if text.kind not in ("clip", "bert"):
        lacking.append("model.text.kind=bert")
    raise UserError(
        f"no architecture of transformers has these towers; train with --size {_CLIP_SIZES}, or with --set "
        f"{' '.join(lacking)}"
    )


def _other(side: str, tower: Any, expected: dict[str, Any]) -> list[str]:
    """The settings of a tower that are other than expected, as --set takes them."""
    return [
        f"model.{side}.{name}={'null' if value is None else str(value).lower()}"
        for name, value in expected.items()
        if getattr(tower, name) != value
    ]


def _vit_kind(image: ImageTowerConfig) -> str:
    return "deit" if image.registers else "vit"


def _vision(image: ImageTowerConfig) -> dict[str, Any]:
    return {
        "hidden_size": image.width,
        "intermediate_size": image.hidden or 4 * image.width,
        "num_hidden_layers": image.layers,
        "num_attention_heads": image.heads,
        "image_size": image.side,
        "patch_size": image.patch,
        "hidden_act": _THEIRS[image.activation],
        "layer_norm_eps": image.eps,
    }


def _bert(text: TextTowerConfig, words: int) -> dict[str, Any]:
    return {
        "vocab_size": words,
        "hidden_size": text.width,
        "intermediate_size": text.hidden or 4 * text.width,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "max_position_embeddings": text.length,
        "hidden_act": _THEIRS[text.activation],
        "layer_norm_eps": text.eps,
    } | ({} if text.transform else {"type_vocab_size": 2})


def _names_held(kind: str, config: Any) -> dict[str, Any]:
    """Names that tell `model_of` of poolers and heads, as a file's tensors would."""
    out: dict[str, Any] = dict.fromkeys(foundation.MARKS.get(kind, ()))
    if kind == "bridgetower" and config.contrast:
        out[foundation.CONTRAST] = None
    if config.image.pooler:
        out["vision_model.pooler.dense.weight"] = None
    if config.text.pooler:
        out["text_model.pooler.dense.weight"] = None
    return out


def _told(name: str, named: set[str]) -> bool:
    """Whether a tensor goes out by its name, or stands in config files, or is what only training needs."""
    return (
        name in named or name.endswith(("image.mean", "image.std")) or name.startswith(("teacher.", "queue.", "pace."))
    )


def _pictures(image: ImageTowerConfig, kind: str) -> dict[str, Any]:
    values = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
        "do_resize": True,
        "resample": PILLOW.index(image.resample),
    }
    if kind == "siglip2":
        count = (image.side // image.patch) ** 2
        sizes = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": image.patch, "max_num_patches": count}
        return sizes | values
    short = image.shorter_side
    classes = {"siglip": "Siglip", "blip": "Blip", "chinese_clip": "ChineseCLIP"}
    processor = classes.get(kind, "CLIP" if short or image.mean == CLIP_MEAN else "ViT") + "ImageProcessor"
    square = {"height": image.side, "width": image.side}
    size = {"shortest_edge": short} if short else square
    return {
        "image_processor_type": processor,
        "do_convert_rgb": True,
        "size": size,
        "do_center_crop": short is not None,
        "crop_size": square,
    } | values


def write_tokenizer(model: Model, folder: Path, kind: str) -> None:
    model.tokenizer.save(folder / TOKENIZER)
    (folder / "tokenizer_rules.json").unlink(missing_ok=True)
    inner, words = model.tokenizer._inner, model.tokenizer.vocabulary
    names = {role: inner.id_to_token(i) for role in ROLES if (i := getattr(words, role)) >= 0}
    keys = {"pad": ["pad_token"], "unknown": ["unk_token"], "sep": ["sep_token", "eos_token"], "mask": ["mask_token"]}
    keys["cls"] = ["cls_token", "bos_token"]
    settings: dict[str, Any] = {key: names[role] for role, those in keys.items() if role in names for key in those}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model.config.model.text.length}
    if kind in SIGLIP:
        settings["model_input_names"] = ["input_ids"]  # padding is read as text, so no mask is given
    write_json(folder / "tokenizer_config.json", settings | {"padding_side": "right"})


def write_json(path: Path, value: Any) -> None:
    checkpoint.write(path, json.dumps(value, indent=2, ensure_ascii=False, default=list) + "\n")
