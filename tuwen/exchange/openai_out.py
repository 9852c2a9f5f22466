"""`tuwen export --to open_clip` and `--to cn_clip`: a run of CLIP's towers as those projects read it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuwen.errors import UserError
from tuwen.exchange import openai
from tuwen.exchange.card import card
from tuwen.exchange.exporting import empty_folder, refuse_left_over, two_tower_kind, write_json, write_tokenizer
from tuwen.model import Model, load
from tuwen.nn.published import text
from tuwen.nn.published.names import NameEntry, outward, prefixed, same
from tuwen.nn.published.openai import image_entries, text_entries, turned
from tuwen.run import provenance
from tuwen.training import checkpoint

CHECKPOINT = "clip_cn.pt"
_ARCHITECTURES = {"open_clip": "clip", "cn_clip": "chinese_clip"}
_SIZES = {"open_clip": "clip-b32, clip-small", "cn_clip": "chinese-clip-b16, chinese-clip-small"}


def export_openai(run: str | Path, out: str | Path, kind: str) -> str:
    """Writes a folder of open_clip, or cn_clip's checkpoint with its settings and vocabulary; gives how it is loaded.

    Raises:
        UserError: a system or a setting that the project does not have, or `out` holds files already.
    """
    folder = empty_folder(out)
    model = load(run)
    image, words = model.config.model.image, model.config.model.text
    if model.config.system != "clip" or two_tower_kind(image, words) != _ARCHITECTURES[kind]:
        raise UserError(f"{run}: {kind} has no such towers; a `clip` of --size {_SIZES[kind]} goes there")
    ours = model.system.state_dict()
    entries = _entries(model, kind)
    refuse_left_over(ours, entries, run, kind)
    write = _open_clip if kind == "open_clip" else _cn_clip
    how = write(model, folder, outward(entries, ours))
    checkpoint.write(folder / "README.md", card(Path(run), model, provenance(run), "CLIP", kind))
    return how


def _entries(model: Model, kind: str) -> list[NameEntry]:
    config: Any = model.config.model
    out = prefixed(image_entries(config.image), "encoders.image.", "visual.")
    out += [turned("encoders.image_projection.weight", "visual.proj"), same("log_scale", "logit_scale")]
    if kind == "open_clip":
        out += prefixed(text_entries(config.text), "encoders.text.", "")
    else:
        out += prefixed(text.entries("bert", config.text), "encoders.text.", "bert.")
    return [*out, turned("encoders.text_projection.weight", "text_projection")]


def _open_clip(model: Model, folder: Path, tensors: dict[str, Tensor]) -> str:
    config: Any = model.config.model
    image, words, vocabulary = config.image, config.text, model.tokenizer.vocabulary
    if {image.activation, words.activation} not in ({"gelu"}, {"quick_gelu"}):
        raise UserError("open_clip has one activation for both towers, gelu or quick_gelu; this run has others")
    seen = {"image_size": image.side, "layers": image.layers, "width": image.width, "patch_size": image.patch}
    seen |= {"head_width": image.width // image.heads, "mlp_ratio": (image.hidden or 4 * image.width) / image.width}
    read: dict[str, Any] = {"context_length": words.length, "vocab_size": vocabulary.size, "width": words.width}
    read |= {"heads": words.heads, "layers": words.layers, "mlp_ratio": (words.hidden or 4 * words.width) / words.width}
    read["hf_tokenizer_name"] = folder.name  # that of the folder itself
    for part, tower in ((seen, image), (read, words)):
        if tower.eps != 1e-5:
            part["norm_kwargs"] = {"eps": tower.eps}
    settings = {"embed_dim": config.embed, "quick_gelu": image.activation == "quick_gelu"}
    if vocabulary.sep != vocabulary.size - 1:  # open_clip reads a text at its highest id unless told
        read |= {"pool_type": "eos", "eos_id": vocabulary.sep}
        settings["custom_text"] = True
        tensors = {_under_text(name): value for name, value in tensors.items()}
    pictures = {"mean": list(image.mean), "std": list(image.std), "interpolation": image.resample}
    pictures["resize_mode"] = "shortest" if image.shorter_side else "squash"
    if image.resample not in ("bicubic", "bilinear") or image.shorter_side not in (None, image.side):
        raise UserError("open_clip resizes to the tower's side, bicubic or bilinear; this run does otherwise")
    folder.mkdir(parents=True, exist_ok=True)
    settings |= {"vision_cfg": seen, "text_cfg": read}
    write_json(folder / openai.SETTINGS, {"model_cfg": settings, "preprocess_cfg": pictures})
    checkpoint.save_tensors(folder / openai.FILES[0], tensors)
    write_tokenizer(model, folder, "clip")
    return f"open_clip.create_model_and_transforms('local-dir:{folder}')"


def _under_text(name: str) -> str:
    """A tensor's name where the text tower is a module of its own."""
    return name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}"


def _cn_clip(model: Model, folder: Path, tensors: dict[str, Tensor]) -> str:
    config: Any = model.config.model
    image, words, tokenizer = config.image, config.text, model.tokenizer
    fixed = {"model.image.activation": (image.activation, "quick_gelu"), "model.image.eps": (image.eps, 1e-5)}
    fixed |= {"model.text.eps": (words.eps, 1e-12), "model.image.hidden": (image.hidden, None)}
    fixed |= {"model.image.shorter_side": (image.shorter_side, None)}
    other = [f"{name}={'null' if value is None else value}" for name, (own, value) in fixed.items() if own != value]
    if other:
        raise UserError(f"cn_clip reads such a run with {' '.join(other)} alone; train with --size {_SIZES['cn_clip']}")
    pieces = [tokenizer._inner.id_to_token(i) or f"[unused{i}]" for i in range(tokenizer.vocabulary.size)]
    if type(tokenizer._inner.model).__name__ != "WordPiece":
        raise UserError("cn_clip reads texts by a WordPiece vocabulary (vocab.txt); this run has another tokenizer")
    folder.mkdir(parents=True, exist_ok=True)
    seen = {"embed_dim": config.embed, "image_resolution": image.side, "vision_layers": image.layers}
    seen |= {"vision_width": image.width, "vision_patch_size": image.patch}
    seen |= {"vision_head_width": image.width // image.heads}
    read = {"vocab_size": tokenizer.vocabulary.size, "text_hidden_act": words.activation}
    read |= {"text_attention_probs_dropout_prob": 0.1, "text_hidden_dropout_prob": 0.1, "text_initializer_range": 0.02}
    read |= {"text_hidden_size": words.width, "text_intermediate_size": words.hidden or 4 * words.width}
    read |= {"text_max_position_embeddings": words.length, "text_num_attention_heads": words.heads}
    read |= {"text_num_hidden_layers": words.layers, "text_type_vocab_size": 2}
    write_json(folder / "tuwen-image.json", seen)
    write_json(folder / "tuwen-text.json", read)
    checkpoint.write(folder / "vocab.txt", "\n".join(pieces) + "\n")
    named = {f"module.{name}": value.clone() for name, value in tensors.items()}
    torch.save({"epoch": 0, "step": 0, "name": folder.name, "state_dict": named}, folder / CHECKPOINT)
    return (
        f"load_from_name('{folder / CHECKPOINT}', vision_model_name='tuwen-image', text_model_name='tuwen-text', "
        f"input_resolution={image.side}), with the two .json copied into cn_clip/clip/model_configs and vocab.txt into "
        "cn_clip/clip"
    )
