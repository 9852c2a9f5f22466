"""One way to open any corpus: by its location."""

import inspect
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuwen.data.built import open_shards
from tuwen.data.corpora import asked_lines, files, published
from tuwen.data.corpora.clips import LAYOUTS, open_clips
from tuwen.data.corpora.clips import SPLITS as CLIP_SPLITS
from tuwen.data.corpora.columns import parse_renames
from tuwen.data.corpora.folder import FolderSource
from tuwen.data.corpora.huggingface import PicturesInside, holds_pictures
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpora.scenes.corpus import SPLITS
from tuwen.data.corpora.scenes.moving import Moving
from tuwen.data.corpora.table import NAMES, table_source
from tuwen.data.corpora.texts import SPLITS as TEXT_SPLITS
from tuwen.data.corpora.texts import TextLines
from tuwen.data.corpus import Corpus
from tuwen.data.subset import MixedCorpus
from tuwen.errors import UserError

_SHARDS = "corpus.json"
COLUMNS = "columns"  # what a table's location begins with where its columns have other names


def open_corpus(
    location: str | Path,
    split: str,
    on_bad: str = "stop",
    missing: files.Missing | None = None,
    progress: bool = False,
) -> Corpus:
    """One split of the corpus at a location.

    location: "scenes", or "scenes:count=1000,seed=1" with any option of `Scenes`; "moving", clips, likewise;
        "msrvtt:DIR", "msvd:DIR" or "lsmdc:DIR", videos (`tuwen.data.corpora.clips`); a folder of shards
        (corpus.json); a folder with pairs.jsonl, pairs.csv, pairs.tsv or pairs.parquet; such a table by its own path,
        or what is asked of its pictures (`corpora.asked_lines`);
        a folder of pictures with texts beside them, or of pictures alone; a .txt file of texts alone, one a line;
        "columns:主图=image,品名=title:TABLE", a table whose columns are to be called otherwise;
        "NAME:DIR", a public corpus as it was downloaded (`tuwen data list`); or "mix:A=2;B=1", of any of these with
        their weights.
    on_bad: for tables and folders, "stop" at the first faulty row or "skip" and count them (`skipped`); so too for
        boxes of phrases, when these are asked for.
    missing: is told of rows whose pictures are not there. progress: whether to show a bar while pictures are read.

    Raises:
        UserError: nothing there that is a corpus, no such split, or what the corpus itself finds wrong.
    """
    corpus: Corpus
    if reader := _reader_of(location):
        corpus = reader.open(str(location), split, on_bad)
    elif (Path(location) / _SHARDS).is_file():
        corpus = open_shards(location, split)
    elif _is_text(location):
        corpus = TextLines(location, split, on_bad)
    else:
        corpus = files.FileCorpus(source_of(location), split, on_bad, missing, progress)
    corpus.on_bad = on_bad
    return corpus


def splits_of(location: str | Path) -> tuple[str, ...]:
    """The splits `open_corpus` can open there. For a table or folder, faulty rows are passed over.

    Raises:
        UserError: as `open_corpus`.
    """
    if reader := _reader_of(location):
        return reader.splits(str(location))
    if (Path(location) / _SHARDS).is_file():
        return _built_splits(Path(location) / _SHARDS)
    if _is_text(location):
        return TEXT_SPLITS
    return files.splits_of(source_of(location))


def _built_splits(path: Path) -> tuple[str, ...]:
    try:
        splits = json.loads(path.read_bytes())["splits"]
        return tuple(sorted({**splits}))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: damaged; build the corpus again") from None


@dataclass(frozen=True)
class _Reader:
    """What opens a location that begins with a word: split and `on_bad` beside it; and which splits there are."""

    open: Callable[[str, str, str], Corpus]
    splits: Callable[[str], tuple[str, ...]]


def _reader_of(location: str | Path) -> _Reader | None:
    """The reader that the word before the first colon names; None for a path, and for a public corpus."""
    word, colon, _ = str(location).partition(":")
    reader = _READERS.get(word) if colon or word in _DRAWN else None
    return None if reader is None or Path(location).exists() else reader


def _is_text(location: str | Path) -> bool:
    return Path(location).is_file() and Path(location).suffix.lower() == ".txt"


def source_of(location: str | Path, wordless: bool = False) -> files.Source:
    """The rows of a table, a folder, or a public corpus. wordless: pictures without texts are rows too.

    Raises:
        UserError: nothing there that is a corpus.
    """
    path = Path(location)
    name, colon, folder = str(location).partition(":")
    if name == COLUMNS and colon and not path.exists():
        renames, _, table = folder.partition(":")
        return table_source(table, wordless, parse_renames(renames.split(",")))
    if colon and not path.exists() and name.replace("-", "").isalnum():
        return published.find_format(name).source(folder)
    if path.is_file():
        return _table(path, wordless)
    if str(location) in published.formats() and not path.exists():
        raise UserError(f"{location} is a public corpus; say where it was downloaded, {location}:DIR")
    if not path.is_dir():
        raise UserError(
            f"{location}: no such file or folder; name a folder of pictures, shards or pairs.jsonl, a table, or scenes"
        )
    if any((path / name).is_file() for name in NAMES):
        return _table(path, wordless)
    pictures = FolderSource(path, wordless)
    if not len(pictures):
        looked = ", ".join((_SHARDS, *NAMES))
        raise UserError(f"{path}: no corpus in this folder: neither {looked} nor a picture; put one there")
    return pictures


def _table(path: Path, wordless: bool) -> files.Source:
    if path.name in asked_lines.FILES.values() and path.is_file():
        return asked_lines.AskedLines(path)
    source = table_source(path, wordless)
    inside = source.file.suffix.lower() == ".parquet" and holds_pictures(source.file)
    return PicturesInside(source.file, source.name, wordless) if inside else source


def _parts(location: str) -> list[tuple[str, float]]:
    """(location, weight) of the corpora of "mix:A=2;B=1"."""
    parts = []
    for part in location.removeprefix("mix:").split(";"):
        name, _, weight = part.rpartition("=")
        try:
            parts.append((name, float(weight)))
        except ValueError:
            name = ""
        if not name:
            raise UserError(f"{location}: {part!r} is no corpus with its weight; write mix:data/a=2;data/b=1")
    return parts


def _mixture(location: str, split: str, on_bad: str) -> Corpus:
    """Those of the corpora that have the split."""
    parts = [(part, weight) for part, weight in _parts(location) if split in splits_of(part)]
    if not parts:
        raise UserError(f"{location}: no split {split!r}; there are: {', '.join(splits_of(location))}")
    return MixedCorpus([open_corpus(part, split, on_bad) for part, _ in parts], [weight for _, weight in parts])


def _mixture_splits(location: str) -> tuple[str, ...]:
    return tuple(sorted({split for part, _ in _parts(location) for split in splits_of(part)}))


def _drawn(location: str, split: str, on_bad: str) -> Corpus:
    return _DRAWN[location.partition(":")[0]](split, **_options(location))


def _drawn_splits(location: str) -> tuple[str, ...]:
    _options(location)
    return SPLITS


def _options(location: str) -> dict[str, Any]:
    """Options of `Scenes` or `Moving` from "scenes:count=1000,seed=1"."""
    kind = location.split(":", 1)[0]
    known = inspect.signature(_DRAWN[kind]).parameters
    options: dict[str, Any] = {}
    for part in filter(None, location.partition(":")[2].split(",")):
        name, _, value = part.partition("=")
        if name not in known or name == "split":
            names = ", ".join(name for name in known if name != "split")
            raise UserError(f"{location}: {kind} has no option {name!r}; it has {names}")
        options[name] = _value(location, name, value, known[name].annotation)
    return options


def _value(location: str, name: str, value: str, kind: Any) -> Any:
    kinds = typing.get_args(kind) or (kind,)
    if str in kinds:
        return value
    if bool in kinds:
        if value not in ("true", "false"):
            raise UserError(f"{location}: {name}={value!r} is neither true nor false")
        return value == "true"
    try:
        return int(value) if int in kinds else float(value)
    except ValueError:
        raise UserError(f"{location}: {name}={value!r} is no number; write e.g. {name}=1") from None


_DRAWN: dict[str, Callable[..., Corpus]] = {"scenes": Scenes, "moving": Moving}
_READERS: dict[str, _Reader] = {
    "mix": _Reader(_mixture, _mixture_splits),
    **dict.fromkeys(_DRAWN, _Reader(_drawn, _drawn_splits)),
    **dict.fromkeys(
        LAYOUTS, _Reader(lambda location, split, on_bad: open_clips(location, split), lambda _: CLIP_SPLITS)
    ),
}
