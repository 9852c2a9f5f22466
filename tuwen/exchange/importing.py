"""`tuwen import`: a published model becomes a run folder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tuwen import systems
from tuwen.config import dump
from tuwen.data.given import json_of
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError, quoted
from tuwen.exchange import openai
from tuwen.exchange.models import LAYOUTS, PublishedModel, known_kind, model_of, tower_settings
from tuwen.nn.initial import copy_students, initialise
from tuwen.nn.published import vision
from tuwen.nn.published.files import model_settings, picture_notes, picture_settings, refuse_wrapped, tensors_of
from tuwen.nn.published.languages import LANGUAGES
from tuwen.nn.published.names import Report, inward, refuse_broken_weights
from tuwen.nn.published.text import word_rows
from tuwen.nn.published.tokenizer import longest, tokenizer_of
from tuwen.nn.published.towers import fitting, located, shapes
from tuwen.run import CONFIG, TOKENIZER, WEIGHTS, check_new, write_provenance
from tuwen.training import checkpoint
from tuwen.training.config import RunConfig

# settings of a second stage that was trained elsewhere
AS_PUBLISHED = {"hardness": 1.0, "score": "published", "enhanced": True}
# parts of a system that no published file has: they start anew, teachers as copies of their students
_ANEW = ("teacher.", "queue.", "pace.", "word_head.")


def import_model(
    where: str, out: str | Path, layout: str | None = None, tokenizer: str | None = None, prefix: str = ""
) -> Report:
    """Writes the run folder of a published model, and gives the report of its tensors.

    where: a folder of transformers or open_clip, a name on their hub, a file of open_clip or cn_clip, or with `layout`
    ("albef", "r2d2", "prd2") a file of that paper's code or a folder with one. tokenizer: where such a file's is.
    prefix: with which the names of its tensors begin there, and not here.

    Raises:
        UserError: nothing there, unknown, unsafe, or not whole; or `out` holds a run.
    """
    run = Path(out)
    check_new(run)
    source = Path(where) if layout or Path(where).is_file() else located(where)
    layout = layout or _layout_of(source)
    file = _weights_file(source) if layout or source.is_file() else source
    tensors = tensors_of(file)
    layout = layout or openai.layout_of(tensors)
    if layout is None and source.is_file():
        raise UserError(
            f"{where}: no checkpoint of open_clip or cn_clip; give its folder, or say what it is by --layout"
        )
    settings = _layout_settings(source, layout) if layout else model_settings(source)
    kind = known_kind(settings["model_type"])
    prefix = prefix or ("module." if kind in openai.KINDS else "")  # both projects take it off themselves
    weights = {name.removeprefix(prefix): value for name, value in tensors.items()}
    refuse_wrapped(weights, where, "give --prefix " + prefix + "{}")
    words = _tokenizer(source, settings, tokenizer, weights)
    folder = source if source.is_dir() else source.parent
    with fitting(where, kind):
        picture = _picture(folder, settings, weights)
        published = model_of(settings, weights, words.vocabulary, picture)
        make, config = _system(published, words, where)
        every = shapes(make)
    expected = {name: shape for name, shape in every.items() if not _starts_anew(name, published)}
    ours, report = inward(published.entries, weights, expected, published.known)
    report.refuse(where)
    refuse_broken_weights(ours, where)
    system = make()  # of sizes that the file's own tensors have
    initialise(system, 0)
    report = replace(report, notes=published.notes + picture_notes(picture) + _cut(folder, config))
    _fill(system, ours)
    imported: dict[str, Any] = {"source": where, "architecture": kind, "report": report.lines()}
    if "logit_bias" in weights:
        imported["logit_bias"] = float(weights["logit_bias"].float().mean())
    origin = {
        "imported": imported,
        "corpus": {"name": f"imported from {where}", "languages": list(LANGUAGES), "fingerprint": "imported"},
    }
    run.mkdir(parents=True, exist_ok=True)
    write_provenance(run, origin)
    words.save(run / TOKENIZER)
    checkpoint.save_tensors(run / WEIGHTS, checkpoint.parted(system)[0])
    checkpoint.write(run / CONFIG, dump(config))
    return report


def _cut(folder: Path, config: RunConfig) -> tuple[str, ...]:
    """A line where the tokenizer's own length is less than the model's."""
    length, theirs = config.model.text.length, longest(folder)
    return (f"texts are cut at the model's {length} tokens, not its tokenizer's {theirs}",) if theirs < length else ()


def _system(published: PublishedModel, words: Tokenizer, where: str) -> tuple[Callable[[], Any], RunConfig]:
    """What makes the system, and the config of its run."""
    kind: Any = systems.find(published.system)
    sized = kind.Config.sized("base")
    own: dict[str, Any] = {name: value for name, value in AS_PUBLISHED.items() if hasattr(sized, name)}
    model = replace(sized, **{**own, **published.config})
    config = RunConfig(published.system, "base", f"imported from {where}", model)
    return lambda: kind(model, words.vocabulary), config


def _starts_anew(name: str, published: PublishedModel) -> bool:
    """Whether a tensor of ours has no source by its nature; a towers' own mean and deviation come from the config."""
    if name.endswith(("image.mean", "image.std")):
        return True
    named = {ours for entry in published.entries for ours in entry.ours}
    return (
        name.startswith(published.new)
        or (name.startswith(_ANEW) and name not in named)
        or (name == "temperature" and name not in named)
    )


@torch.no_grad()
def _fill(system, ours) -> None:
    state = system.state_dict()
    for name, value in ours.items():
        state[name].copy_(value)
    copy_students(system)


def _layout_of(source: Path) -> str | None:
    """open_clip's, where a folder is of that project alone."""
    alone = source.is_dir() and (source / openai.SETTINGS).is_file() and not (source / "model.safetensors").is_file()
    return "open_clip" if alone else None


def _weights_file(source: Path) -> Path:
    if source.is_file():
        return source
    if (best := openai.weights_file(source)) is not None:
        return best
    files = [path for end in ("safetensors", "pth", "pt", "bin") for path in sorted(source.glob(f"*.{end}"))]
    if len(files) != 1:
        raise UserError(f"{source}: {len(files)} files of weights there; name the one to import")
    return files[0]


def _layout_settings(source: Path, layout: str) -> dict[str, Any]:
    if layout not in LAYOUTS:
        raise UserError(f"no layout {layout!r}; there is {', '.join(LAYOUTS)}")
    folder = source if source.is_dir() else source.parent
    settings = openai.settings_of(folder, layout) if layout in openai.KINDS else {"model_type": layout}
    path = folder / "heads.json"  # {"image": 12, "text": 12}, where heads are not of width 64
    heads = json_of(path) if path.is_file() else {}
    if any(not isinstance(count, int) or not 1 <= count <= 1_024 for count in heads.values()):
        raise UserError(f"{path}: {quoted(heads)} are not numbers of heads")
    return settings | {"heads": heads}


def _tokenizer(source: Path, settings, given: str | None, weights) -> Tokenizer:
    kind = settings["model_type"]
    if given and kind not in openai.KINDS:
        return Tokenizer.load(given)
    folder = source if source.is_dir() else source.parent
    words = word_rows(weights, settings.get("text_config") or {})
    if not words:
        raise UserError(f"{source}: no word embeddings there; these are not the weights of {kind}")
    if kind in openai.KINDS:
        return openai.tokenizer(folder, kind, words, given)
    return tokenizer_of(folder, words, settings["model_type"])


def _picture(folder: Path, settings, weights) -> dict[str, Any]:
    """Preprocessing fields of `ImageTowerConfig`."""
    if settings["model_type"] in openai.KINDS:
        return openai.pictures(settings, openai.picture_side(weights), str(folder / openai.SETTINGS))
    return picture_settings(folder, _side(settings, weights))


def _side(settings, weights) -> int:
    """Pixels that the image tower reads."""
    if settings["model_type"] in LAYOUTS:
        positions = next(v for name, v in weights.items() if name.endswith(("pos_embed", "position_embedding.weight")))
        patch = next(v.shape[-1] for name, v in weights.items() if v.dim() == 4)
        return round((positions.shape[-2] - 1) ** 0.5) * patch
    kind = settings["model_type"]
    if kind == "siglip2":
        return vision.config(tower_settings(settings)[0], "vision_config").side
    usual = {"blip": 384, "bridgetower": 288}.get(kind, 224)
    size = settings.get("image_config" if kind == "flava" else "vision_config", {}).get("image_size", usual)
    return size[0] if isinstance(size, list) else size
