"""FLAVA's names in transformers (`FlavaForPreTraining`, `FlavaModel`) and ours, for `tuwen.nn.published.names`."""

import torch
from torch import Tensor

from tuwen.nn.patch_codes import CodesConfig, published_name
from tuwen.nn.published.names import NameEntry, both, packed, prefixed, same, shaped
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig

# what transformers holds and nothing here reads: poolers that no loss uses, buffers, biases tied to the decoders'
KNOWN = {
    **{
        f"{prefix}{side}_model.pooler": "no loss uses it"
        for prefix in ("flava.", "")
        for side in ("image", "text", "multimodal")
    },
    "mim_head.bias": "the decoder's",
    "mlm_head.bias": "the decoder's",
    "mmm_image_head.bias": "the decoder's",
    "mmm_text_head.bias": "the decoder's",
    "image_codebook": "the patch tokenizer (model.tokenizer)",
}


def layer(ours: str, theirs: str) -> list[NameEntry]:
    """One pre-norm layer."""
    names = {
        "attention.out": "attention.output.dense",
        "attention_norm": "layernorm_before",
        "feed_forward.0": "intermediate.dense",
        "feed_forward.2": "output.dense",
        "feed_forward_norm": "layernorm_after",
    }
    parts = [f"{theirs}.attention.attention.{part}" for part in ("query", "key", "value")]
    out = packed(f"{ours}.attention.query_key_value", parts)
    return out + [entry for mine, other in names.items() for entry in both(f"{ours}.{mine}", f"{theirs}.{other}")]


def entries(image: ImageTowerConfig, text: TextTowerConfig, fusion: CrossEncoderConfig) -> list[NameEntry]:
    """All of `FlavaModel`, without a prefix."""
    vision = both("patches", "embeddings.patch_embeddings.projection")
    vision += [
        shaped("class_token", "embeddings.cls_token", 2),
        shaped("positions", "embeddings.position_embeddings", 1),
    ]
    vision += [e for k in range(image.layers) for e in layer(f"stack.blocks.{k}", f"encoder.layer.{k}")]
    vision += both("stack.norm", "layernorm")
    words = [
        same("words.weight", "embeddings.word_embeddings.weight"),
        NameEntry(
            ("positions",),
            ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"),
            lambda t: [t[0] + t[1][0]],
            _positions_out,
        ),
        *both("embedding_norm", "embeddings.LayerNorm"),
    ]
    words += [e for k in range(text.layers) for e in layer(f"stack.blocks.{k}", f"encoder.layer.{k}")]
    words += both("stack.norm", "layernorm")
    joint = [e for k in range(fusion.layers) for e in layer(f"fusion.blocks.{k}", f"encoder.layer.{k}")]
    joint += [*both("fusion.norm", "layernorm"), shaped("class_token", "cls_token", 2)]
    out = prefixed(vision, "encoders.image.", "image_model.") + prefixed(words, "encoders.text.", "text_model.")
    out += [*prefixed(joint, "", "multimodal_model."), shaped("mask_token", "image_model.embeddings.mask_token", 2)]
    for mine, other in (("image_to_fusion", "image_to_mm_projection"), ("text_to_fusion", "text_to_mm_projection")):
        out += both(mine, other)
    out += both("encoders.image_projection", "image_projection") + both("encoders.text_projection", "text_projection")
    return [*out, same("log_scale", "logit_scale")]


def pretraining(image: ImageTowerConfig, text: TextTowerConfig, fusion: CrossEncoderConfig) -> list[NameEntry]:
    """All of `FlavaForPreTraining` but the codebook."""
    out = prefixed(entries(image, text, fusion), "", "flava.")
    heads = {
        "patch_head": "mim_head",
        "word_head": "mlm_head",
        "joint_patch_head": "mmm_image_head",
        "joint_word_head": "mmm_text_head",
    }
    for mine, other in heads.items():
        out += both(f"{mine}.dense", f"{other}.transform.dense") + both(f"{mine}.norm", f"{other}.transform.LayerNorm")
        out += both(f"{mine}.decoder", f"{other}.decoder")
    return out + both("match_pooler", "itm_head.pooler.dense") + both("match_head", "itm_head.seq_relationship")


def codebook(codes: CodesConfig) -> list[NameEntry]:
    """`FlavaImageCodebook`, without a prefix of either side."""
    names = [f"{part}.{kind}" for part in ("first", "logits") for kind in ("weight", "bias")]
    widths = [codes.width, *(codes.width * factor for factor in (1, 2, 4, 8))]
    for group in range(4):
        for block in range(codes.blocks):
            paths = [f"path.{k}" for k in range(4)]
            if block == 0 and widths[group] != widths[group + 1]:
                paths.append("skip")
            names += [f"groups.{group}.{block}.{path}.{kind}" for path in paths for kind in ("weight", "bias")]
    return [same(name, f"blocks.{published_name(name)}") for name in names]


def _positions_out(ours: list[Tensor]) -> list[Tensor]:
    """Positions, and token types of zero: the first type is part of our positions."""
    return [ours[0], torch.zeros(2, ours[0].shape[1], dtype=ours[0].dtype)]
