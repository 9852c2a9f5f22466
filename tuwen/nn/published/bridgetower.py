"""BridgeTower's names in transformers and ours, for `tuwen.nn.published.names`."""

import torch
from torch import Tensor

from tuwen.nn.published.names import NameEntry, both, prefixed, same
from tuwen.nn.published.text import bert_layer
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig

# what transformers holds and nothing here reads
KNOWN = {
    "text_model.pooler": "no loss uses it",
    "bridgetower.text_model.pooler": "no loss uses it",
    "itc_cross_modal_head": "a later variant's, not the paper's",
}


def entries(
    image: ImageTowerConfig, text: TextTowerConfig, fusion: CrossEncoderConfig, offset: int = 2
) -> list[NameEntry]:
    """All of `BridgeTowerModel`, without a prefix.

    offset: the row of the first position: RoBERTa counts from behind the padding's id.
    """
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
        NameEntry(
            ("positions",),
            ("embeddings.position_embeddings.weight", types),
            lambda t: [t[0][offset:] + t[1][0]],
            # one token type of zero: it is part of our positions
            lambda o: [torch.cat([o[0].new_zeros(offset, text.width), o[0]]), o[0].new_zeros(1, text.width)],
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
    kinds = NameEntry(
        ("fusion.types.weight",),
        ("token_type_embeddings.weight",),
        lambda t: [torch.cat([t[0], t[0][1:]])],  # the second picture's type starts as the first's
        lambda o: [o[0][:2]],
    )
    return [*out, kinds]


def heads(words: bool = False, match: bool = False, contrast: bool = False) -> list[NameEntry]:
    """The heads of `BridgeTowerForMaskedLM`, `...ForImageAndTextRetrieval`, `...ForContrastiveLearning`."""
    out: list[NameEntry] = []
    if words:
        out += both("word_dense", "mlm_score.transform.dense") + both("word_norm", "mlm_score.transform.LayerNorm")
        out += [same("word_decoder.weight", "mlm_score.decoder.weight"), same("word_decoder.bias", "mlm_score.bias")]
    if match:
        out += both("match_head", "itm_score.fc")
    if contrast:
        out += both("encoders.text_projection", "itc_text_head.fc")
        out += [_picture_head("bridgetower."), NameEntry(("temperature",), ("logit_scale",), _inverse, _scale_out)]
    return out


def _picture_head(prefix: str) -> NameEntry:
    """Theirs reads the picture's state through the cross encoder's transform and type; ours reads the state itself, so
    the three linear maps are made one. Outwards the transform is undone (by least squares, where it has no inverse)."""
    head = "itc_image_head.fc"
    shift = ("cross_modal_image_transform.weight", "cross_modal_image_transform.bias", "token_type_embeddings.weight")
    ours = ("fusion.image_transform.weight", "fusion.image_transform.bias", "fusion.types.weight")

    def inward(t: list[Tensor]) -> list[Tensor]:
        weight, bias, transform, added, types = (x.double() for x in t)
        return [(weight @ transform).float(), (weight @ (added + types[1]) + bias).float()]

    def outward(o: list[Tensor]) -> list[Tensor]:
        weight, bias, transform, added, types = (x.double() for x in o)
        back = weight @ torch.linalg.pinv(transform)
        return [back.float(), (bias - back @ (added + types[1])).float()]

    mine = ("encoders.image_projection.weight", "encoders.image_projection.bias")
    theirs = (f"{head}.weight", f"{head}.bias")
    return NameEntry(mine, theirs, inward, outward, read=(tuple(prefix + x for x in shift), ours))


def _scale_out(o: list[Tensor]) -> list[Tensor]:
    return [-o[0].log()]


def _inverse(t: list[Tensor]) -> list[Tensor]:
    """The temperature of the logarithm of a scale."""
    return [(-t[0]).exp()]
