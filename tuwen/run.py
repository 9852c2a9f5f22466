"""A run folder: what its files are called, and how the small ones are read and written. No other file spells the names.

config.yaml            all settings, resolved; with it the folder holds a run
provenance.json        code, packages, machine, corpus, command; "finished" once the run has come to its end
tokenizer.json         how its texts become tokens
weights.safetensors    what use needs: a second name of the newest checkpoint's, or the averaged end
state/                 checkpoints (`tuwen.training.checkpoint`), and first weights that the end is averaged with
metrics.jsonl          losses and evaluations by step; tensorboard/ has the same
skipped.json           rows that could not be used, and why
score.json             the weight of the match in the final score, and how it was settled
retrieval.json         measured recalls, with ranks.safetensors, samples.json and samples/; TASK.json of other tasks
report.html            the page about it all
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuwen.errors import UserError, quoted, reason_of

CONFIG = "config.yaml"
PROVENANCE = "provenance.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "weights.safetensors"
STATE = "state"
START = "start.safetensors"  # in state/
METRICS = "metrics.jsonl"
EVENTS = "tensorboard"
SKIPPED = "skipped.json"
SCORE = "score.json"
RECALLS, RANKS, SAMPLES, THUMBNAILS = "retrieval.json", "ranks.safetensors", "samples.json", "samples"
REPORT = "report.html"
NAMES = (
    *(CONFIG, PROVENANCE, TOKENIZER, WEIGHTS, START, METRICS, SKIPPED, SCORE),
    *(RECALLS, RANKS, SAMPLES, REPORT),
)


def measured_name(task: str) -> str:
    """What the file is called that holds what a run was measured to have on a task."""
    return f"{task}.json"


def marks_name(task: str) -> str:
    """What the file beside it is called that holds what single rows earned."""
    return f"{task}.marks.safetensors"


def holds_run(folder: str | Path) -> bool:
    """Whether a folder holds a run, begun or done."""
    return (Path(folder) / CONFIG).exists()


def check_new(folder: str | Path, hint: str = "choose another --out") -> None:
    """A folder for a new run: what a run writes is not there yet, or was left by one that was killed as it began.

    Raises:
        UserError: it holds a run, or a file that the run would write over and no run made.
    """
    if holds_run(folder) or (Path(folder) / STATE).exists():
        raise UserError(f"{folder}: holds a run already; {hint}")
    names = [name for name in NAMES if (Path(folder) / name).exists()]
    if names and PROVENANCE not in names:  # which a run writes first
        raise UserError(f"{folder}: holds {quoted(names[0])}, which a run would write over; choose another --out")


def provenance(run: str | Path) -> dict[str, Any]:
    """Where a run comes from; "corpus" has at least "name", "fingerprint" and "languages".

    Raises:
        UserError: if the file is missing, damaged, or not as a run writes it.
    """
    path = Path(run) / PROVENANCE
    origin = read_json(path)
    corpus, done = origin.get("corpus"), origin.get("finished", {})
    languages = corpus.get("languages") if isinstance(corpus, dict) else None
    right = {
        "corpus.name": isinstance(corpus, dict) and isinstance(corpus.get("name"), str),
        "corpus.fingerprint": isinstance(corpus, dict) and isinstance(corpus.get("fingerprint"), str),
        "corpus.languages": isinstance(languages, list) and all(isinstance(name, str) for name in languages),
        "sources": _nested(origin.get("sources", {})),
        "resumed": isinstance(origin.get("resumed", []), list),
        "imported": isinstance(origin.get("imported", {}), dict),
        "finished": done == {} or _numbers(done, "step", "seconds", "pairs_per_second"),
    }
    if wrong := [name for name, well in right.items() if not well]:
        raise UserError(f"{path}: {', '.join(wrong)} is missing or not as a run writes it; restore the file")
    return origin


def write_provenance(run: str | Path, origin: Mapping[str, Any]) -> None:
    write(Path(run) / PROVENANCE, json.dumps(origin, indent=1, ensure_ascii=False) + "\n")


def finished(run: str | Path) -> bool:
    """Whether the folder holds a run that has come to its end.

    Raises:
        UserError: as `provenance`.
    """
    return (Path(run) / PROVENANCE).exists() and "finished" in provenance(run)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        UserError: if the file is missing, is damaged, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); restore it") from None
    except (ValueError, RecursionError) as error:  # also what is no UTF-8
        raise UserError(f"{path}: no valid JSON ({reason_of(error)}); restore it") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds {type(value).__name__} where names with values belong; restore it")
    return value


def write(path: Path, text: str) -> None:
    """Writes a text file in one move; half a pair of UTF-16, which UTF-8 has not, as JSON writes it."""
    fresh = path.with_name(f".{path.name}.tmp")
    fresh.write_text(text, encoding="utf-8", errors="backslashreplace")
    sync(fresh)
    fresh.replace(path)


def sync(path: Path) -> None:
    """Forces a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _nested(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(part, dict) for part in value.values())


def _numbers(value: Any, *names: str) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), int | float) and not isinstance(value[name], bool) for name in names
    )
