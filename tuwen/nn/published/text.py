"""Text encoders of transformers: their settings as our config, their names as ours."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tuwen.nn.published.names import NameEntry, both, packed, same
from tuwen.nn.published.vision import activation, divided
from tuwen.nn.sizes import TextTowerConfig

ROBERTA = ("roberta", "xlm-roberta", "camembert", "altclip_text_model")
BERT = ("bert", "chinese_clip_text_model", "blip_text_model", *ROBERTA)
SIGLIP = ("siglip_text_model", "siglip2_text_model")
KINDS = (*BERT, "clip_text_model", *SIGLIP)


def config(settings: Mapping[str, Any], source: str) -> TextTowerConfig:
    """The tower of a text config.

    Raises:
        UserError: an activation that the tower does not have.
    """
    kind = settings["model_type"]
    siglip, clip = kind in SIGLIP, kind == "clip_text_model"
    width = settings.get("hidden_size", 512 if clip else 1024 if kind.startswith("altclip") else 768)
    hidden = settings.get("intermediate_size", 4 * width)
    heads = 8 if clip else 16 if kind.startswith("altclip") else 12
    offset = 2 if kind in ROBERTA else 0
    length = settings.get("max_position_embeddings", 77 if clip else 64 if siglip else 512 + offset)
    default = "gelu_pytorch_tanh" if siglip else "quick_gelu" if clip else "gelu"
    eps = 1e-6 if siglip else 1e-5 if clip or kind in ROBERTA else 1e-12
    return TextTowerConfig(
        kind="clip" if clip else "siglip" if siglip else "bert",
        length=length - offset,
        width=width,
        layers=settings.get("num_hidden_layers", 12),
        heads=divided(settings.get("num_attention_heads", heads), width, source),
        activation=activation(settings.get("hidden_act", default), source),
        eps=settings.get("layer_norm_eps", eps),
        hidden=None if hidden == 4 * width else hidden,
        transform=settings.get("project_dim", 768) if kind == "altclip_text_model" else None,
    )


def entries(kind: str, tower: TextTowerConfig) -> list[NameEntry]:
    """Names without any prefix."""
    if kind in ("clip_text_model", *SIGLIP):
        return _clip(tower)
    stem = "roberta." if kind == "altclip_text_model" else ""
    out = _embeddings(kind, tower, stem)
    for k in range(tower.layers):
        out += bert_layer(f"stack.blocks.{k}", f"{stem}encoder.layer.{k}")
    if tower.pooler:
        out += both("pooler", "pooler.dense")
    if tower.transform:
        out += both("transform.0", "pre_LN") + both("transform.1", "transformation")
    return out


def word_rows(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> int:
    """Rows of a model's word embeddings. A config.json may leave out what is its class's default."""
    ends = ("word_embeddings.weight", "token_embedding.weight")
    rows = (len(value) for name, value in tensors.items() if name.endswith(ends) and value.dim())
    return next(rows, settings.get("vocab_size", 0))


def _embeddings(kind: str, tower: TextTowerConfig, stem: str) -> list[NameEntry]:
    """Words, positions and norm; the first token type is part of our positions."""
    positions = f"{stem}embeddings.position_embeddings.weight"
    types = f"{stem}embeddings.token_type_embeddings.weight"
    offset = 2 if kind in ROBERTA else 0  # RoBERTa counts from behind the padding's position
    rows = 2 if kind in ("bert", "chinese_clip_text_model") else 1

    def inward(theirs: list[Tensor]) -> list[Tensor]:
        places = theirs[0][offset:]
        return [places if kind == "blip_text_model" else places + theirs[1][0]]

    def outward(ours: list[Tensor]) -> list[Tensor]:
        places = torch.cat([ours[0].new_zeros(offset, ours[0].shape[1]), ours[0]])
        return [places] if kind == "blip_text_model" else [places, ours[0].new_zeros(rows, ours[0].shape[1])]

    theirs = (positions,) if kind == "blip_text_model" else (positions, types)
    return [
        same("words.weight", f"{stem}embeddings.word_embeddings.weight"),
        NameEntry(("positions",), theirs, inward, outward),
        *both("embedding_norm", f"{stem}embeddings.LayerNorm"),
    ]


def bert_layer(ours: str, theirs: str, cross: bool = False) -> list[NameEntry]:
    """One of BERT's layers; cross: with the attention over a memory that ALBEF, BLIP and R2D2 give it."""
    parts = [f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")]
    out = packed(f"{ours}.attention.query_key_value", parts)
    names = {
        "attention.out": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "feed_forward.0": "intermediate.dense",
        "feed_forward.2": "output.dense",
        "feed_forward_norm": "output.LayerNorm",
    }
    if cross:
        out += packed(f"{ours}.cross.key_value", [f"{theirs}.crossattention.self.{part}" for part in ("key", "value")])
        names |= {
            "cross.query": "crossattention.self.query",
            "cross.out": "crossattention.output.dense",
            "cross_norm": "crossattention.output.LayerNorm",
        }
    return out + [entry for mine, other in names.items() for entry in both(f"{ours}.{mine}", f"{theirs}.{other}")]


def _clip(tower: TextTowerConfig) -> list[NameEntry]:
    out = [
        same("words.weight", "embeddings.token_embedding.weight"),
        same("positions", "embeddings.position_embedding.weight"),
    ]
    names = {
        "attention.out": "self_attn.out_proj",
        "attention_norm": "layer_norm1",
        "feed_forward.0": "mlp.fc1",
        "feed_forward.2": "mlp.fc2",
        "feed_forward_norm": "layer_norm2",
    }
    for k in range(tower.layers):
        mine, other = f"stack.blocks.{k}", f"encoder.layers.{k}"
        out += packed(f"{mine}.attention.query_key_value", [f"{other}.self_attn.{part}_proj" for part in "qkv"])
        out += [entry for ours, theirs in names.items() for entry in both(f"{mine}.{ours}", f"{other}.{theirs}")]
    return out + both("stack.norm", "final_layer_norm")
