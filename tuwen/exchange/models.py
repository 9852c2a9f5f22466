"""Which system a published model is here: its config from theirs, and the names of all its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from tuwen.data.text import Vocabulary
from tuwen.errors import UserError, quoted
from tuwen.exchange import foundation, openai
from tuwen.nn.published import bridgetower, flava, text, vision
from tuwen.nn.published.names import NameEntry, both, prefixed, same, shaped
from tuwen.nn.published.text import bert_layer
from tuwen.nn.published.towers import image_plan, text_plan
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig

DUAL = ("clip", "chinese_clip", "altclip", "siglip", "siglip2", "vision-text-dual-encoder")
LAYOUTS = ("albef", "r2d2", "prd2", *openai.KINDS)  # files of the papers' own code, and of other projects
# what is left out on purpose, by how the name begins
KNOWN = {
    "logit_bias": "the bias of SigLIP's loss, which no ranking reads; kept in the run's provenance",
    "text_model.embeddings.position_ids": "plain numbers",
    "vision_model.embeddings.position_ids": "plain numbers",
    "text_model.pooler": "a pooling layer that this model does not use",
    "visual_encoder.embeddings.position_ids": "plain numbers",
    "text_encoder.embeddings.position_ids": "plain numbers",
    "text_encoder.pooler": "a pooling layer that this model does not use",
    "visual_encoder_m.": "the momentum teacher, which starts again from the student",
    "vision_proj_m.": "the momentum teacher, which starts again from the student",
    "text_encoder_m.": "the momentum teacher, which starts again from the student",
    "text_proj_m.": "the momentum teacher, which starts again from the student",
    "image_queue": "the queue, which fills anew",
    "text_queue": "the queue, which fills anew",
    "idx_queue": "the queue, which fills anew",
    "queue_ptr": "the queue, which fills anew",
}


@dataclass(frozen=True)
class PublishedModel:
    """A published model as a system here: the fields of its config, and the names of its tensors.

    known: beginnings of names that are left out on purpose, with the reason. new: beginnings of ours without a source.
    notes: what is otherwise here than there, a line each.
    """

    system: str
    config: Mapping[str, Any]
    entries: list[NameEntry]
    known: Mapping[str, str] = field(default_factory=lambda: KNOWN)
    new: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def known_kind(kind: str) -> str:
    """The model_type of a config.json.

    Raises:
        UserError: an architecture that no system here is.
    """
    known = (*DUAL, "blip", *foundation.KINDS, *LAYOUTS)
    if kind not in known:
        names = ", ".join(known)
        raise UserError(
            f"no system here is a {quoted(kind, 80)}; known are {names} (towers: see `tuwen train --image-weights`)"
        )
    return kind


def model_of(
    settings: Mapping[str, Any], weights: Mapping[str, Tensor], vocabulary: Vocabulary, picture: Mapping[str, Any]
) -> PublishedModel:
    """What a config.json, of a `known_kind`, and the tensors beside it are here.

    picture: preprocessing fields of `ImageTowerConfig`.

    Raises:
        UserError: a setting that no system here has.
    """
    kind = settings["model_type"]
    if kind in DUAL:
        return _dual(settings, weights, vocabulary, picture)
    if kind == "blip":
        return _blip(settings, picture)
    if kind == "flava":
        return PublishedModel(kind, *_known(foundation.flava_parts(settings, weights, picture), flava.KNOWN))
    if kind == "bridgetower":
        return PublishedModel(
            kind, *_known(foundation.bridgetower_parts(settings, weights, picture), bridgetower.KNOWN)
        )
    return _layout(kind, settings, weights, picture)


def _known(parts: foundation.Parts, known: Mapping[str, str]):
    config, entries, new = parts
    return config, entries, known, new


def tower_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Vision and text settings, each with its model_type."""
    parts = []
    for name, end in (("vision_config", "vision_model"), ("text_config", "text_model")):
        part = dict(settings.get(name) or {})
        if settings["model_type"] != "vision-text-dual-encoder":
            part["model_type"] = f"{settings['model_type']}_{end}"
        parts.append(part)
    return parts[0], parts[1]


def _dual(settings, weights, vocabulary, picture) -> PublishedModel:
    seen, read = tower_settings(settings)
    kind = settings["model_type"]
    siglip = kind in ("siglip", "siglip2")
    image, image_names = image_plan(seen, "vision_config")
    tower, text_names = text_plan(read, "text_config", vocabulary)
    projection: Any = "none" if siglip else "unbiased"
    image = replace(image, projection=projection, **picture)
    tower = replace(tower, projection="linear" if siglip else "unbiased")
    stems = {side: _stem(weights, side) for side in ("vision_model.", "text_model.")}
    if kind == "vision-text-dual-encoder":
        if f"{stems['vision_model.']}pooler.dense.weight" in weights:
            image = replace(image, pooler=True)
            image_names = _with_pooler(image_names, image.backbone is None and seen["model_type"] in vision.KINDS)
        if f"{stems['text_model.']}pooler.dense.weight" in weights:
            tower = replace(tower, pooler=True)
            text_names = _with_pooler(text_names, read["model_type"] in text.KINDS)
    entries = prefixed(image_names, "encoders.image.", stems["vision_model."])
    entries += prefixed(text_names, "encoders.text.", stems["text_model."])
    if siglip:
        entries += both("encoders.text_projection", "text_model.head")
        entries.append(shaped("log_scale", "logit_scale", 1))
        embed = image.width
    else:
        entries += [
            same("encoders.image_projection.weight", "visual_projection.weight"),
            same("encoders.text_projection.weight", "text_projection.weight"),
            same("log_scale", "logit_scale"),
        ]
        embed = settings.get("projection_dim", 768 if kind == "altclip" else 512)
    notes = vision.notes(seen["model_type"], image)
    return PublishedModel("clip", {"image": image, "text": tower, "embed": embed}, entries, notes=notes)


def _with_pooler(entries: list[NameEntry], native: bool) -> list[NameEntry]:
    """With the pooling layer, which a backbone's plan has no place for yet."""
    unpooled = [entry for entry in entries if not entry.ours[0].startswith(("pooler", "model.pooler"))]
    return unpooled + both("pooler", "pooler.dense") if native or unpooled else unpooled


def _stem(weights: Mapping[str, Tensor], stem: str) -> str:
    """The stem of a tower's tensors; older files repeat it."""
    return stem * 2 if any(name.startswith(stem * 2) for name in weights) else stem


def _blip(settings, picture) -> PublishedModel:
    seen, read = tower_settings(settings)
    image = replace(vision.config(seen, "vision_config"), **picture)
    tower = text.config(read, "text_config")
    entries = prefixed(vision.entries("blip_vision_model", image), "encoders.image.", "vision_model.")
    entries += prefixed(text.entries("blip_text_model", tower), "encoders.text.", "text_encoder.")
    cross = [bert_layer(f"stack.blocks.{k}", f"encoder.layer.{k}", cross=True) for k in range(tower.layers)]
    own = {name for entry in entries for name in entry.ours}
    entries += [
        entry
        for layer in cross
        for entry in prefixed(layer, "encoders.text.", "text_encoder.")
        if entry.ours[0] not in own
    ]
    entries += both("encoders.image_projection", "vision_proj") + both("encoders.text_projection", "text_proj")
    entries += both("match_head", "itm_head")
    embed = settings.get("image_text_hidden_size", 256)
    # no temperature in transformers' class
    return PublishedModel("blip", {"image": image, "text": tower, "embed": embed}, entries, new=("temperature",))


# ---- the papers' own files


def _layout(kind: str, settings, weights, picture) -> PublishedModel:
    """Files of the projects' own code. Heads are of width 64, which no tensor tells; `settings` may say otherwise."""
    heads = settings.get("heads", {})
    if kind in openai.KINDS:
        config, entries, notes = openai.parts(settings, weights, heads, picture)
        return PublishedModel("clip", config, entries, openai.KNOWN, notes=notes)
    if kind == "albef":
        return _albef(weights, heads, picture)
    return _r2d2(kind, weights, heads, picture)


def _albef(weights, heads, picture) -> PublishedModel:
    stem = "text_encoder.bert." if "text_encoder.bert.embeddings.LayerNorm.weight" in weights else "text_encoder."
    image = _vision_size(weights, "visual_encoder.pos_embed", "visual_encoder.patch_embed.proj.weight", "blocks", heads)
    image = replace(image, **picture)
    layers = _count(weights, f"{stem}encoder.layer.")
    crossed = [k for k in range(layers) if f"{stem}encoder.layer.{k}.crossattention.self.query.weight" in weights]
    tower = _bert_size(weights, stem, layers - len(crossed), heads)
    fusion = CrossEncoderConfig(tower.width, len(crossed), tower.heads, hidden=tower.hidden)
    entries = prefixed(vision.entries("timm", image), "encoders.image.", "visual_encoder.")
    entries += prefixed(text.entries("bert", tower), "encoders.text.", stem)
    for k, layer in enumerate(crossed):
        entries += bert_layer(f"fusion.stack.blocks.{k}", f"{stem}encoder.layer.{layer}", cross=True)
    entries += both("encoders.image_projection", "vision_proj") + both("encoders.text_projection", "text_proj")
    entries += [*both("match_head", "itm_head"), same("temperature", "temp")]
    if "text_encoder.cls.predictions.bias" in weights:
        predictions = "text_encoder.cls.predictions"
        entries += both("word_head.dense", f"{predictions}.transform.dense")
        entries += both("word_head.norm", f"{predictions}.transform.LayerNorm")
        entries.append(same("word_head.bias", f"{predictions}.bias"))
    config = {"image": image, "text": tower, "fusion": fusion, "embed": len(weights["vision_proj.weight"])}
    return PublishedModel("albef", config, entries)


def _r2d2(kind, weights, heads, picture) -> PublishedModel:
    position = "visual_encoder.embeddings.position_embedding.weight"
    patch = "visual_encoder.embeddings.patch_embedding.weight"
    image = _vision_size(weights, position, patch, "encoder.layers", heads)
    image = replace(
        image, activation="quick_gelu", pre_norm=True, patch_bias=False, eps=1e-5, final_norm=False, **picture
    )
    tower = _bert_size(weights, "text_encoder.", _count(weights, "text_encoder.encoder.layer."), heads)
    entries = prefixed(vision.entries("clip_vision_model", image), "encoders.image.", "visual_encoder.")
    entries += prefixed(text.entries("bert", tower), "encoders.text.", "text_encoder.")
    entries += both("encoders.image_projection", "vision_proj") + both("encoders.text_projection", "text_proj")
    entries.append(same("temperature", "temp"))
    config = {"image": image, "text": tower, "embed": len(weights["vision_proj.weight"])}
    if kind == "prd2":
        return PublishedModel("prd2", config, entries)
    layers = _count(weights, "text_joint_layer.encoder.layer.")
    for ours, theirs in (("text_queries", "text_joint_layer"), ("image_queries", "img_joint_layer")):
        for k in range(layers):
            entries += bert_layer(f"{ours}.stack.blocks.{k}", f"{theirs}.encoder.layer.{k}", cross=True)
    entries += both("image_to_fusion", "img_joint_proj")
    entries += both("text_match_head", "itm_head") + both("image_match_head", "itm_head_i")
    fusion = CrossEncoderConfig(tower.width, layers, tower.heads, hidden=tower.hidden)
    # what was not released cannot be taken: masked words and the distillation terms start anew when trained on
    return PublishedModel("r2d2", config | {"fusion": fusion, "masked_words": False, "enhanced": False}, entries)


def _vision_size(weights, positions: str, patches: str, layers: str, heads) -> ImageTowerConfig:
    for name in (positions, patches):
        if name not in weights:
            raise UserError(f"no tensor {name}: these are not the weights of this layout")
    width, _, patch, _ = weights[patches].shape
    grid = round((weights[positions].shape[-2] - 1) ** 0.5)
    count = _count(weights, f"visual_encoder.{layers}.")
    heads = heads.get("image", max(1, width // 64))
    hidden = len(weights.get(f"visual_encoder.{layers}.0.mlp.fc1.weight", ())) or 4 * width
    hidden = None if hidden == 4 * width else hidden
    return ImageTowerConfig(side=grid * patch, patch=patch, width=width, layers=count, heads=heads, hidden=hidden)


def _bert_size(weights, stem: str, layers: int, heads) -> TextTowerConfig:
    length, width = weights[f"{stem}embeddings.position_embeddings.weight"].shape
    hidden = len(weights[f"{stem}encoder.layer.0.intermediate.dense.weight"])
    heads = heads.get("text", max(1, width // 64))
    return TextTowerConfig(
        length=length, width=width, layers=layers, heads=heads, hidden=None if hidden == 4 * width else hidden
    )


def _count(weights, stem: str) -> int:
    return 1 + max((int(name[len(stem) :].split(".")[0]) for name in weights if name.startswith(stem)), default=-1)
