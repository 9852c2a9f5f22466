"""FLAVA and BridgeTower of transformers: what their config.json is here, and what our configs are there."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from tuwen.errors import UserError
from tuwen.nn.patch_codes import CodesConfig
from tuwen.nn.published import bridgetower, flava
from tuwen.nn.published.names import NameEntry, prefixed
from tuwen.nn.published.vision import activation
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig

KINDS = ("flava", "bridgetower")
CLASSES = {"flava": "FlavaForPreTraining", "bridgetower": "BridgeTowerForImageAndTextRetrieval"}
# names by which a file is known to hold a part; an export holds them all
MARKS = {
    "flava": ("flava.logit_scale", "image_codebook.blocks.input.weight"),
    "bridgetower": ("bridgetower.cross_modal_text_transform.weight", "mlm_score.bias", "itm_score.fc.weight"),
}
CONTRAST = "itc_text_head.fc.weight"  # BridgeTower's that search by vectors have it too
_FLAVA_HEADS = ("patch_head.", "word_head.", "joint_patch_head.", "joint_word_head.", "match_pooler.", "match_head.")
_CONTRAST_PARTS = ("encoders.image_projection.", "encoders.text_projection.", "temperature")
Parts = tuple[dict[str, Any], list[NameEntry], tuple[str, ...]]  # fields of a config, names, beginnings of what is new


def flava_parts(settings: Mapping[str, Any], weights: Mapping[str, Tensor], picture: Mapping[str, Any]) -> Parts:
    """`FlavaModel` or `FlavaForPreTraining`, the latter with or without its codebook.

    Raises:
        UserError: a setting that the system does not have.
    """
    seen, read, joint, codes = (
        settings.get(f"{name}_config") or {} for name in ("image", "text", "multimodal", "image_codebook")
    )
    for part in (seen, read, joint):
        if not part.get("qkv_bias", True):
            raise UserError("flava: attention without biases (qkv_bias false) is not read")
    if not joint.get("use_cls_token", True) or codes.get("num_groups", 4) != 4:
        raise UserError("flava: without use_cls_token, or with a codebook of other than 4 groups, it is not read")
    image = ImageTowerConfig(seen.get("image_size", 224), seen.get("patch_size", 16), **_layers(seen, 12))
    image = replace(image, **picture)
    text = TextTowerConfig(kind="flava", length=read.get("max_position_embeddings", 512), **_layers(read, 12))
    fusion = CrossEncoderConfig(**_layers(joint, 6))
    tokenizer = CodesConfig(
        codes.get("hidden_size", 256), codes.get("num_blocks_per_group", 2), codes.get("vocab_size", 8192)
    )
    config = {"image": image, "text": text, "fusion": fusion, "codes": tokenizer}
    config["embed"] = settings.get("projection_dim", 768)
    whole, coded = (mark in weights for mark in MARKS["flava"])
    if not whole:
        return config, flava.entries(image, text, fusion), (*_FLAVA_HEADS, "codes.")
    entries = flava.pretraining(image, text, fusion)
    if coded:
        entries += prefixed(flava.codebook(tokenizer), "codes.", "image_codebook.")
    return config, entries, () if coded else ("codes.",)


def bridgetower_parts(settings: Mapping[str, Any], weights: Mapping[str, Tensor], picture: Mapping[str, Any]) -> Parts:
    """`BridgeTowerModel`, or one of its classes with heads; heads that the file has not start anew.

    Raises:
        UserError: a setting that the system does not have.
    """
    seen, read = settings.get("vision_config") or {}, settings.get("text_config") or {}
    if settings.get("link_tower_type", "add") != "add" or not seen.get("share_layernorm", True):
        raise UserError("bridgetower: only link_tower_type add with share_layernorm is read")
    width = seen.get("hidden_size", 768)
    image = ImageTowerConfig(
        side=seen.get("image_size", 288),
        patch=seen.get("patch_size", 16),
        width=width,
        layers=seen.get("num_hidden_layers", 12),
        heads=width // 64,
        activation="quick_gelu",
        pre_norm=True,
        eps=seen.get("layer_norm_eps", 1e-5),
        patch_bias=False,
    )
    image = replace(image, **picture)
    offset = read.get("pad_token_id", 1) + 1
    parts = {"eps": 1e-5} | _layers(read, 12)
    text = TextTowerConfig(length=read.get("max_position_embeddings", 514) - offset, **parts)
    fusion = CrossEncoderConfig(**parts | {"layers": settings.get("num_hidden_layers", 6)})
    contrast = CONTRAST in weights
    config: dict[str, Any] = {"image": image, "text": text, "fusion": fusion, "contrast": contrast}
    config["embed"] = settings.get("contrastive_hidden_size", 256)
    prefix, words, match = (mark in weights for mark in MARKS["bridgetower"])
    entries = prefixed(bridgetower.entries(image, text, fusion, offset), "", "bridgetower." if prefix else "")
    entries += bridgetower.heads(words, match, contrast)
    new = (() if words else ("word_",)) + (() if match else ("match_head.",)) + (() if contrast else _CONTRAST_PARTS)
    return config, entries, new


def _layers(settings: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """What all stacks have, by our names."""
    width = settings.get("hidden_size", 768)
    hidden = settings.get("intermediate_size", 3072)
    return {
        "width": width,
        "layers": settings.get("num_hidden_layers", layers),
        "heads": settings.get("num_attention_heads", 12),
        "activation": activation(settings.get("hidden_act", "gelu"), "config.json"),
        "eps": settings.get("layer_norm_eps", 1e-12),
        "hidden": None if hidden == 4 * width else hidden,
    }


# ---- out


def flava_settings(config: Any, ids: Mapping[str, int], words: int) -> dict[str, Any]:
    """The config.json of `FlavaForPreTraining` with its codebook."""
    plain = ImageTowerConfig(side=config.image.side, patch=config.image.patch)
    _only("flava", config, plain, TextTowerConfig(kind="flava"))
    codes = config.codes
    image = {"image_size": config.image.side, "patch_size": config.image.patch, "vocab_size": codes.vocabulary}
    text = {"vocab_size": words, "max_position_embeddings": config.text.length, **ids}
    book = {"hidden_size": codes.width, "num_blocks_per_group": codes.blocks, "vocab_size": codes.vocabulary}
    return {
        "model_type": "flava",
        "image_config": _stack(config.image) | image,
        "text_config": _stack(config.text) | text,
        "multimodal_config": _stack(config.fusion),
        "image_codebook_config": book,
        "hidden_size": config.fusion.width,
        "projection_dim": config.embed,
        "layer_norm_eps": config.fusion.eps,
    }


def bridgetower_settings(config: Any, ids: Mapping[str, int], words: int) -> dict[str, Any]:
    """The config.json of BridgeTower's classes.

    Raises:
        UserError: without bridges, or with towers and cross layers of unlike widths, heads or activations.
    """
    image, text, fusion = config.image, config.text, config.fusion
    plain = ImageTowerConfig(activation="quick_gelu", pre_norm=True, patch_bias=False)
    _only("bridgetower", config, plain, TextTowerConfig())
    alike = _stack(text) | {"num_hidden_layers": 0} == _stack(fusion) | {"num_hidden_layers": 0}
    square = image.heads * 64 == image.width and image.hidden in (None, 4 * image.width)
    if not (alike and square and image.activation == "quick_gelu" and config.bridges):
        raise UserError(
            "BridgeTower of transformers has bridges, cross layers as its text layers (width, heads, eps, activation), "
            "and an image tower of quick_gelu with heads of width 64; this run is another"
        )
    seen = _stack(image) | {"image_size": image.side, "patch_size": image.patch}
    read = _stack(text) | {"vocab_size": words, "max_position_embeddings": text.length + ids["pad_token_id"] + 1, **ids}
    return {
        "model_type": "bridgetower",
        "vision_config": seen,
        "text_config": read | {"type_vocab_size": 1},
        "hidden_size": fusion.width,
        "num_hidden_layers": fusion.layers,
        "num_attention_heads": fusion.heads,
        "layer_norm_eps": fusion.eps,
        "contrastive_hidden_size": config.embed,
        "logit_scale_init_value": 2.6592,
    }


def _stack(part: Any) -> dict[str, Any]:
    theirs = {"gelu_tanh": "gelu_pytorch_tanh"}
    return {
        "hidden_size": part.width,
        "num_hidden_layers": part.layers,
        "num_attention_heads": part.heads,
        "intermediate_size": part.hidden or 4 * part.width,
        "hidden_act": theirs.get(part.activation, part.activation),
        "layer_norm_eps": part.eps,
    }


def _only(kind: str, config: Any, image: ImageTowerConfig, text: TextTowerConfig) -> None:
    """Refuses settings of the towers that the architecture has no place for."""
    asked = {"image": image, "text": text}
    names = {"image": ("pool", "pre_norm", "final_norm", "registers", "patch_bias"), "text": ("kind", "transform")}
    for side, plain in asked.items():
        tower = getattr(config, side)
        for name in (*names[side], "pooler", "projection", "backbone"):
            if getattr(tower, name) != getattr(plain, name):
                raise UserError(
                    f"transformers' {kind} has no place for model.{side}.{name}={getattr(tower, name)}; train with "
                    f"{getattr(plain, name)} to export"
                )
    if config.text.pool not in ("auto", "first"):
        raise UserError(f"transformers' {kind} has no place for model.text.pool={config.text.pool}; train with auto")
