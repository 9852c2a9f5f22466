"""ViTs of transformers and of timm: their settings as our config, their names as ours."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tuwen.errors import UserError, quoted
from tuwen.nn.published.names import NameEntry, both, packed, same, shaped
from tuwen.nn.sizes import ImageTowerConfig

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
CLIP_LIKE = ("clip_vision_model", "chinese_clip_vision_model", "altclip_vision_model")
KINDS = (*CLIP_LIKE, "siglip_vision_model", "siglip2_vision_model", "blip_vision_model", "vit", "deit")


def config(settings: Mapping[str, Any], source: str) -> ImageTowerConfig:
    """The tower of a vision config.

    SigLIP 2's NaFlex (siglip2_vision_model) reads pictures of any aspect within a number of patches; here it is a tower
    of the one square of that number, so pictures are squashed and the aspect is not kept.

    Raises:
        UserError: an activation or a setting that the tower does not have.
    """
    kind = settings["model_type"]
    if kind in ("vit", "deit") and not settings.get("qkv_bias", True):
        raise UserError(f"{source}: attention without biases (qkv_bias false) is not read")
    siglip, clip = kind.startswith("siglip"), kind in CLIP_LIKE
    defaults = {"hidden_act": "gelu_pytorch_tanh" if siglip else "quick_gelu" if clip else "gelu"}
    eps = 1e-6 if siglip else 1e-5 if clip or kind == "blip_vision_model" else 1e-12
    width = settings.get("hidden_size", 768)
    hidden = settings.get("intermediate_size", 3072)
    heads = divided(settings.get("num_attention_heads", 12), width, source)
    patch = _square(settings.get("patch_size", 32 if clip else 16), source)
    side = settings.get("image_size", 384 if kind.startswith("blip") else 224)
    naflex = kind == "siglip2_vision_model"
    return ImageTowerConfig(
        side=square_of(settings.get("num_patches", 256), patch, source) if naflex else _square(side, source),
        patch=patch,
        width=width,
        layers=settings.get("num_hidden_layers", 12),
        heads=heads,
        pool="map" if siglip else "class",
        activation=activation(settings.get("hidden_act", defaults["hidden_act"]), source),
        pre_norm=clip,
        eps=settings.get("layer_norm_eps", eps),
        hidden=None if hidden == 4 * width else hidden,
        registers=1 if kind == "deit" else 0,
        patch_bias=not clip,
    )


def entries(kind: str, tower: ImageTowerConfig) -> list[NameEntry]:
    """Names without any prefix, of a tower without pooler."""
    if kind in ("vit", "deit"):
        return _vit(kind, tower)
    if kind == "timm":
        return _timm(tower)
    return _clip(kind, tower)


def notes(kind: str, tower: ImageTowerConfig) -> tuple[str, ...]:
    """What the tower does otherwise than the published one, a line each."""
    if kind != "siglip2_vision_model":
        return ()
    return (f"pictures are squashed to {tower.side}x{tower.side}; NaFlex's aspect ratio is not kept",)


def activation(name: str, source: str) -> str:
    """Our name of an activation."""
    if name not in ACTIVATIONS:
        raise UserError(f"{source}: activation {quoted(name, 80)} is not known; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def divided(heads: int, width: int, source: str) -> int:
    """The heads of an attention, which its width must divide by."""
    if width % heads:
        raise UserError(f"{source}: a width of {width} does not divide by {heads} heads")
    return heads


def square_of(patches: int, patch: int, source: str) -> int:
    """Pixels along the side of a square of so many patches."""
    grid = math.isqrt(patches)
    if grid * grid != patches:
        raise UserError(f"{source}: {patches} patches make no square")
    return grid * patch


def _square(value: Any, source: str) -> int:
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) > 1:
        raise UserError(f"{source}: pictures or patches of {quoted(value, 80)} are not square")
    return int(sides.pop())


def _block(ours: str, theirs: str, names: Mapping[str, str]) -> list[NameEntry]:
    return [entry for mine, other in names.items() for entry in both(f"{ours}.{mine}", f"{theirs}.{other}")]


def _clip(kind: str, tower: ImageTowerConfig) -> list[NameEntry]:
    """CLIP, Chinese-CLIP, AltCLIP, SigLIP and BLIP: one layout with small differences."""
    blip, siglip = kind.startswith("blip"), kind.startswith("siglip")
    layers = "layer" if kind.startswith("altclip") else "layers"
    out = [same("patches.weight", "embeddings.patch_embedding.weight")]
    if kind == "siglip2_vision_model":
        out = [_flat_patches("patches.weight", "embeddings.patch_embedding.weight", tower.patch)]
    if tower.patch_bias:
        out.append(same("patches.bias", "embeddings.patch_embedding.bias"))
    if not siglip:
        out.append(shaped("class_token", "embeddings.class_embedding", 2 if blip else 0))
    position = "embeddings.position_embedding"
    out.append(shaped("positions", position, 1) if blip else same("positions", f"{position}.weight"))
    if tower.pre_norm:
        out += both("pre_norm", "pre_layrnorm")
    names = {
        "attention.out": "self_attn.projection" if blip else "self_attn.out_proj",
        "attention_norm": "layer_norm1",
        "feed_forward.0": "mlp.fc1",
        "feed_forward.2": "mlp.fc2",
        "feed_forward_norm": "layer_norm2",
    }
    for k in range(tower.layers):
        mine, other = f"stack.blocks.{k}", f"encoder.{layers}.{k}"
        joined = f"{mine}.attention.query_key_value"
        parts = [f"{other}.self_attn.{part}_proj" for part in "qkv"]
        out += both(joined, f"{other}.self_attn.qkv") if blip else packed(joined, parts)
        out += _block(mine, other, names)
    if tower.final_norm:
        out += both("stack.norm", "post_layernorm")
    return out + (_map_head() if tower.pool == "map" else [])


def _flat_patches(ours: str, theirs: str, patch: int) -> NameEntry:
    """NaFlex's linear layer over a patch [W, rows, columns, colours], flattened, is a convolution [W, colours, ...]."""
    return NameEntry(
        (ours,),
        (theirs,),
        lambda t: [t[0].unflatten(1, (patch, patch, -1)).permute(0, 3, 1, 2)],
        lambda o: [o[0].permute(0, 2, 3, 1).flatten(1)],
    )


def _map_head() -> list[NameEntry]:
    """SigLIP's head holds queries, keys and values as one; ours queries apart from keys and values."""
    out = [shaped("map.probe", "head.probe", 2)]
    for kind in ("weight", "bias"):
        ours = tuple(f"map.attention.{part}.{kind}" for part in ("query", "key_value"))
        theirs = (f"head.attention.in_proj_{kind}",)
        out.append(NameEntry(ours, theirs, _query_and_rest, lambda o: [torch.cat(o)]))
    out += both("map.attention.out", "head.attention.out_proj")
    out += both("map.norm", "head.layernorm")
    return out + both("map.feed_forward.0", "head.mlp.fc1") + both("map.feed_forward.2", "head.mlp.fc2")


def _query_and_rest(theirs: list[Tensor]) -> list[Tensor]:
    query, key, value = theirs[0].chunk(3)
    return [query, torch.cat([key, value])]


def _vit(kind: str, tower: ImageTowerConfig) -> list[NameEntry]:
    out = both("patches", "embeddings.patch_embeddings.projection")
    out += [shaped("class_token", "embeddings.cls_token", 2), shaped("positions", "embeddings.position_embeddings", 1)]
    if kind == "deit":
        out.append(shaped("register_tokens", "embeddings.distillation_token", 1))
    names = {
        "attention.out": "attention.output.dense",
        "attention_norm": "layernorm_before",
        "feed_forward.0": "intermediate.dense",
        "feed_forward.2": "output.dense",
        "feed_forward_norm": "layernorm_after",
    }
    for k in range(tower.layers):
        mine, other = f"stack.blocks.{k}", f"encoder.layer.{k}"
        parts = [f"{other}.attention.attention.{part}" for part in ("query", "key", "value")]
        out += packed(f"{mine}.attention.query_key_value", parts) + _block(mine, other, names)
    out += both("stack.norm", "layernorm")
    return out + (both("pooler", "pooler.dense") if tower.pooler else [])


def _timm(tower: ImageTowerConfig) -> list[NameEntry]:
    """timm's ViT, as ALBEF keeps it."""
    out = both("patches", "patch_embed.proj")
    out += [shaped("class_token", "cls_token", 2), shaped("positions", "pos_embed", 1)]
    names = {
        "attention.query_key_value": "attn.qkv",
        "attention.out": "attn.proj",
        "attention_norm": "norm1",
        "feed_forward.0": "mlp.fc1",
        "feed_forward.2": "mlp.fc2",
        "feed_forward_norm": "norm2",
    }
    for k in range(tower.layers):
        out += _block(f"stack.blocks.{k}", f"blocks.{k}", names)
    return out + both("stack.norm", "norm")
