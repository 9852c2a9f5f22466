"""What a stage was made of, and whether it is done: `stage.json` in its folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuwen.config import to_dict
from tuwen.data.beside import TABLE, digest_of
from tuwen.data.corpus import Corpus
from tuwen.data.lexicons.files import VECTORS
from tuwen.errors import UserError, quoted
from tuwen.run import STATE, WEIGHTS, read_json, write
from tuwen.training.once import weighty
from tuwen.training.stages.recipe import TRAIN, Planned

RECORD = "stage.json"
_PLACES = ("init", "data.beside", "data.teachers")  # settings that say where inputs lie, which are known by digest
_TOLD = 3  # differences in a message


def made_of(planned: Planned, corpus: Corpus) -> dict[str, Any]:
    """Everything that a stage's outcome hangs on, by name; an input that is not there yet is None."""
    settings = weighty(to_dict(planned.config))
    places = (*_PLACES, "tokenizer.lexicon") if "lexicon" in planned.needs else _PLACES
    own = {name: value for name, value in settings.items() if not name.startswith(places)}
    if str(settings.get("init")).endswith(f":{STATE}"):
        own[f"init:{STATE}"] = True
    inputs = {name: _digest(path) for name, path in planned.needs.items()}
    about = {"do": planned.stage.do, "corpus": corpus.fingerprint, "seed": planned.seed}
    return json.loads(json.dumps({**about, **own, **inputs}))


def _digest(path: Path) -> str | None:
    """Of what a stage takes from a run, of a lexicon's vectors, or of a table."""
    files = [path / name for name in (WEIGHTS, VECTORS, TABLE)] if path.is_dir() else [path]
    return next((digest_of(file) for file in files if file.exists()), None)


def read_record(folder: Path) -> dict[str, Any]:
    """{"made_of", perhaps "finished": {"seconds", "bytes"}} of a stage; empty where it has not begun.

    Raises:
        UserError: a damaged file.
    """
    path = folder / RECORD
    if not path.exists():
        return {}
    record = read_json(path)
    done = record.get("finished", {})
    numbers = isinstance(done, dict) and all(isinstance(done.get(k), int | float) for k in ("seconds", "bytes"))
    if not isinstance(record.get("made_of"), dict) or not (done == {} or numbers):
        raise UserError(f"{path}: not as `tuwen run` writes it; restore it, or remove the folder to do the stage again")
    return record


def write_record(folder: Path, parts: Mapping[str, Any], seconds: float | None = None) -> None:
    """seconds: that the stage took, where it is done."""
    record: dict[str, Any] = {"made_of": parts}
    if seconds is not None:
        record["finished"] = {"seconds": round(seconds, 3), "bytes": size_of_folder(folder)}
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def is_done(folder: Path) -> bool:
    return "finished" in read_record(folder)


def refuse_changed(planned: Planned, parts: Mapping[str, Any], later: Sequence[Planned], sure: bool) -> None:
    """A stage begun or done from other inputs than those of now is told, not kept; one that has made nothing may begin
    anew. later: the stages after it.

    sure: whether all its inputs are there; else those that are not are passed over.

    Raises:
        UserError: naming what has changed, and what to remove.
    """
    before = read_record(planned.folder).get("made_of")
    if before is None or others_in(planned.folder) == [RECORD]:
        return
    names = dict.fromkeys((*before, *parts))
    changed = [name for name in names if before.get(name) != parts.get(name)]
    changed = [name for name in changed if sure or name not in planned.needs or parts.get(name) is not None]
    if not changed:
        return
    what = "; ".join(_difference(planned, name, before.get(name), parts.get(name)) for name in changed[:_TOLD])
    more = f" and {len(changed) - _TOLD} more" if len(changed) > _TOLD else ""
    after = [other.folder.name for other in later if other.folder.exists() and _hangs_on(other, planned.folder, later)]
    also = f", and those that follow from it: {', '.join(after)}" if after else ""
    raise UserError(
        f"{planned.folder}: was made of something else than is asked for now ({what}{more}); remove this folder to "
        f"make it again{also}; or choose another --out"
    )


def _difference(planned: Planned, name: str, then: Any, now: Any) -> str:
    if name in planned.needs:
        return f"{planned.needs[name].name} has changed since"
    return "the corpus has changed" if name == "corpus" else f"{name} {quoted(then, 40)} then, {quoted(now, 40)} now"


def _hangs_on(stage: Planned, folder: Path, stages: Sequence[Planned]) -> bool:
    """Whether a stage needs a folder, itself or by others."""
    by_folder = {other.folder: other for other in stages}
    return any(
        path == folder or (path in by_folder and _hangs_on(by_folder[path], folder, stages))
        for path in stage.needs.values()
    )


def others_in(folder: Path) -> list[str]:
    """The names of what lies in a folder, if there is one, but for what a crash left half written."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [name for name in names if not (name.startswith(".") and name.endswith(".tmp"))]


def size_of_folder(folder: Path) -> int:
    """Bytes of the files in it, those with several names once."""
    files = [path.stat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum({(info.st_dev, info.st_ino): info.st_size for info in files}.values())


def is_training(planned: Planned) -> bool:
    return planned.stage.do == TRAIN
