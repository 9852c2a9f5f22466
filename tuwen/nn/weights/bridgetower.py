"""BridgeTower's names in transformers and ours, for `tuwen.nn.weights.names`."""

import torch
from torch import Tensor

from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig
from tuwen.nn.weights.names import Entry, both, packed, prefixed, same

OFFSET = 2  # RoBERTa counts positions from behind the padding's
# what transformers holds and nothing here reads
KNOWN = {
    "text_model.pooler": "no loss uses it",
    "bridgetower.text_model.pooler": "no loss uses it",
    "itc_cross_modal_head": "a later variant's, not the paper's",
    "logit_scale": "the inverse of the temperature",
}


def entries(image: ImageTowerConfig, text: TextTowerConfig, fusion: CrossEncoderConfig) -> list[Entry]:
    """All of `BridgeTowerModel`, without a prefix."""
    vision = [
        same("patches.weight", "embeddings.patch_embedding.weight"),
        same("class_token", "embeddings.class_embedding"),
        same("positions", "embeddings.position_embedding.weight"),
        *both("pre_norm", "ln_pre"),
        *both("stack.norm", "ln_post"),
    ]
    clip = {"attention.out": "attn.out_proj", "attention_norm": "ln_1", "feed_forward_norm": "ln_2"}
    clip |= {"feed_forward.0": "mlp.c_fc", "feed_forward.2": "mlp.c_proj"}
    for k in range(image.layers):
        mine, other = f"stack.blocks.{k}", f"transformer.resblocks.{k}"
        vision += [
            same(f"{mine}.attention.query_key_value.{x}", f"{other}.attn.in_proj_{x}") for x in ("weight", "bias")
        ]
        vision += [entry for ours, theirs in clip.items() for entry in both(f"{mine}.{ours}", f"{other}.{theirs}")]
    types = "embeddings.token_type_embeddings.weight"
    words = [
        same("words.weight", "embeddings.word_embeddings.weight"),
        Entry(
            ("positions",),
            ("embeddings.position_embeddings.weight", types),
            lambda t: [t[0][OFFSET:] + t[1][0]],
            _positions_out,
        ),
        *both("embedding_norm", "embeddings.LayerNorm"),
    ]
    words += [e for k in range(text.layers) for e in bert_layer(f"stack.blocks.{k}", f"encoder.layer.{k}")]
    out = prefixed(vision, "encoders.image.", "vision_model.visual.") + prefixed(words, "encoders.text.", "text_model.")
    for side in ("text", "image"):
        out += both(f"fusion.{side}_transform", f"cross_modal_{side}_transform")
        out += both(f"{side}_pooler", f"cross_modal_{side}_pooler.dense")
        out += both(f"fusion.{side}_norms.0", f"cross_modal_{side}_layernorm")
        for k in range(fusion.layers):
            out += bert_layer(f"fusion.{side}_layers.{k}", f"cross_modal_{side}_layers.{k}", cross=True)
            if k:
                out += both(f"fusion.{side}_norms.{k}", f"cross_modal_{side}_link_tower.{k - 1}.LayerNorm")
    kinds = Entry(
        ("fusion.types.weight",),
        ("token_type_embeddings.weight",),
        lambda t: [torch.cat([t[0], t[0][1:]])],  # the second picture's type starts as the first's
        lambda o: [o[0][:2]],
    )
    return [*out, kinds]


def heads(words: bool = False, match: bool = False, contrast: bool = False) -> list[Entry]:
    """The heads of `BridgeTowerForMaskedLM`, `...ForImageAndTextRetrieval`, `...ForContrastiveLearning`."""
    out: list[Entry] = []
    if words:
        out += both("word_dense", "mlm_score.transform.dense") + both("word_norm", "mlm_score.transform.LayerNorm")
        out += [same("word_decoder.weight", "mlm_score.decoder.weight"), same("word_decoder.bias", "mlm_score.bias")]
    if match:
        out += both("match_head", "itm_score.fc")
    if contrast:
        out += both("encoders.text_projection", "itc_text_head.fc")
        out += both("encoders.image_projection", "itc_image_head.fc")
    return out


def bert_layer(ours: str, theirs: str, cross: bool = False) -> list[Entry]:
    """One post-norm layer, with the attention over the other stream where there is one."""
    out: list[Entry] = []
    own = packed(
        f"{ours}.attention.query_key_value", [f"{theirs}.attention.self.{x}" for x in ("query", "key", "value")]
    )
    names = {
        "attention.out": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "feed_forward.0": "intermediate.dense",
        "feed_forward.2": "output.dense",
        "feed_forward_norm": "output.LayerNorm",
    }
    if cross:
        out += packed(f"{ours}.cross.key_value", [f"{theirs}.crossattention.self.{x}" for x in ("key", "value")])
        names |= {
            "cross.query": "crossattention.self.query",
            "cross.out": "crossattention.output.dense",
            "cross_norm": "crossattention.output.LayerNorm",
        }
    return own + out + [entry for mine, other in names.items() for entry in both(f"{ours}.{mine}", f"{theirs}.{other}")]


def _positions_out(ours: list[Tensor]) -> list[Tensor]:
    """Positions with the padding's before them, and one token type of zero: it is part of our positions."""
    width = ours[0].shape[1]
    return [torch.cat([ours[0].new_zeros(OFFSET, width), ours[0]]), ours[0].new_zeros(1, width)]
