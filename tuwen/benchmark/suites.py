"""Suites: lists of tasks on corpora, measured as far as the corpora are there.

A suite is YAML, one of ours (`tuwen/tasks/suites`) or a file of one's own:

    what: a line
    entries:
      - {name: ICR, corpus: icr, folder: zero, task: retrieval, split: val, metric: languages.zh.first.mean_recall,
         group: retrieval, set: {top_k: 64}}

corpus is a public format read from DIR/folder (by default DIR/corpus), a folder DIR/folder, or one that is drawn
(scenes). metric is the path of one figure in what the task gives (`tuwen.benchmark.figures`). What is not there is
listed with where to ask for it, and a group's mean is taken only where all of the group was measured.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from tuwen import tasks
from tuwen.benchmark.figures import figure_of
from tuwen.benchmark.listed import listed, listed_file
from tuwen.config import read_yaml
from tuwen.data.corpora.published import formats
from tuwen.errors import UserError, quoted
from tuwen.outputs import PAGE_MARK, check_free
from tuwen.speech import chosen_language, spoken

FOLDER = Path(tasks.__file__).parent / "suites"
DRAWN = ("scenes", "moving")  # corpora that need no folder
_NEEDED = ("name", "corpus", "task", "split", "metric", "group")
Measure = Callable[[str, str, str, dict[str, Any]], dict[str, Any]]  # location, split, task, options


@dataclass(frozen=True)
class SuiteEntry:
    """One task on one split of one corpus, and which figure of it counts."""

    name: str
    corpus: str
    task: str
    split: str
    metric: str
    group: str
    folder: str = ""
    set: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    name: str
    what: str
    entries: tuple[SuiteEntry, ...]


def suite_names() -> list[str]:
    return listed(FOLDER)


def read_suite(name: str) -> Suite:
    """A suite of ours by name, or of a YAML file.

    Raises:
        UserError: there is none, or it is not of the form above.
    """
    path = listed_file("suite", name, FOLDER)
    content = read_yaml(path)
    listed = content.get("entries")
    if not isinstance(listed, list) or not listed or set(content) - {"what", "entries"}:
        raise UserError(f"{path}: a suite has `what`, a line, and `entries`, a list")
    entries = tuple(_entry(path, number, value) for number, value in enumerate(listed, 1))
    names = [entry.name for entry in entries]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: two entries are called {quoted(twice)}; give each a name of its own")
    return Suite(path.stem, str(content.get("what", "")), entries)


def _entry(path: Path, number: int, value: Any) -> SuiteEntry:
    known = {*_NEEDED, "folder", "set"}
    if not isinstance(value, dict) or set(value) - known or set(_NEEDED) - set(value):
        raise UserError(f"{path}, entry {number}: has {', '.join(_NEEDED)}, and may have folder, set")
    if not all(isinstance(value.get(key, ""), str) and len(value.get(key, "")) < 500 for key in known - {"set"}):
        raise UserError(f"{path}, entry {number}: all but set are short texts")
    options = value.get("set") or {}
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise UserError(f"{path}, entry {number}: set is {quoted(options, 80)}; write it as {{top_k: 64}}")
    tasks.find_task(value["task"])
    return SuiteEntry(**{**value, "set": options})


def suite_location(entry: SuiteEntry, folder: Path) -> str | None:
    """Where the entry's corpus is; None: not there."""
    if entry.corpus.partition(":")[0] in DRAWN:
        return entry.corpus
    path = folder / (entry.folder or entry.corpus)
    if not path.is_dir():
        return None
    built = (path / "corpus.json").is_file()
    return f"{entry.corpus}:{path}" if entry.corpus in formats() and not built else str(path)


def where_to_ask(entry: SuiteEntry, folder: Path) -> str:
    """What is missing, where to ask for it, and where to put it."""
    path = folder / (entry.folder or entry.corpus)
    known = formats().get(entry.corpus)
    if known is None:
        return f"put a table with a column cls and its zeroshot.json (docs/data.md) into {path}"
    return f"put {known.needs} into {path}; ask {known.ask}"


def run_suite(suite: Suite, folder: Path, measure: Measure) -> dict[str, Any]:
    """{"suite", "what", "entries": [{..., "value", "status", "reason", "measured"}], "groups": {name: {"mean", ...}}}.

    status: "measured", "missing" (no corpus) or "left out" (the run cannot do it, or has not learnt it).
    """
    entries = [_measured(entry, folder, measure) for entry in suite.entries]
    return {"suite": suite.name, "what": suite.what, "entries": entries, "groups": group_means(entries)}


def _measured(entry: SuiteEntry, folder: Path, measure: Measure) -> dict[str, Any]:
    named = {key: getattr(entry, key) for key in _NEEDED} | {"set": dict(entry.set)}
    location = suite_location(entry, folder)
    if location is None:
        return named | {"status": "missing", "value": None, "reason": where_to_ask(entry, folder), "measured": None}
    try:
        measured = measure(location, entry.split, entry.task, dict(entry.set))
        value = figure_of(measured, entry.metric)
    except UserError as error:
        return named | {"status": "left out", "value": None, "reason": str(error), "measured": None}
    return named | {"status": "measured", "value": value, "reason": "", "measured": measured}


def group_means(entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The mean of each group whose entries were all measured; None over a hole."""
    groups: dict[str, list[Any]] = {}
    for entry in entries:
        groups.setdefault(entry["group"], []).append(entry["value"])
    return {
        name: {
            "mean": None if None in values else sum(values) / len(values),
            "measured": sum(value is not None for value in values),
            "of": len(values),
        }
        for name, values in groups.items()
    }


HEADS = ("group", "set", "corpus", "split", "task", "figure", "value")


def table_of(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row an entry, and a row a group with more than one."""
    rows: list[tuple[str, ...]] = []
    for name, group in result["groups"].items():
        for entry in (entry for entry in result["entries"] if entry["group"] == name):
            figure = entry["metric"].split("|")[0].split(".")[-1]
            value = spoken(entry["status"]) if entry["value"] is None else f"{entry['value']:.3f}"
            rows.append((name, entry["name"], entry["corpus"], entry["split"], entry["task"], figure, value))
        if group["of"] > 1:
            measured = f"{group['measured']} of {group['of']} measured"
            whole = measured if group["mean"] is None else f"mean of {group['of']}"
            mean = "-" if group["mean"] is None else f"{group['mean']:.3f}"
            rows.append((name, spoken(whole), "", "", "", spoken("mean"), mean))
    return rows


def unmeasured(result: Mapping[str, Any]) -> list[str]:
    """A line for each entry that was not measured."""
    return [
        f"{entry['name']}{spoken(', ')}{spoken(entry['status'])}{spoken(': ')}{spoken(entry['reason'])}"
        for entry in result["entries"]
        if entry["status"] != "measured"
    ]


def write_suite_page(result: Mapping[str, Any], out: str | Path) -> Path:
    """One page that needs no other file.

    Raises:
        UserError: something that is not ours is there, or it cannot be written.
    """
    path = check_free(out, PAGE_MARK)
    head = "".join(f"<th>{escape(spoken(name))}</th>" for name in HEADS)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in table_of(result))
    missing = "".join(f"<li>{escape(line)}</li>\n" for line in unmeasured(result))
    title = escape(spoken(f"{result['run']}: suite {result['suite']}"))
    lang = chosen_language()
    page = f"""<!doctype html>
<html lang="{lang}"><head><meta charset="utf-8">{PAGE_MARK}<meta name="viewport" content="width=device-width">
<title>{title}</title><style>{_STYLE}</style></head>
<body><h1>{title}</h1><p>{escape(spoken(result["what"]))}</p>
<table><thead><tr>{head}</tr></thead><tbody>
{rows}</tbody></table>
{f"<h2>{spoken('Not measured')}</h2><ul>{missing}</ul>" if missing else ""}
</body></html>
"""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; choose another file") from None
    return path


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; background: #fff }
h1 { font-size: 1.4em } h2 { font-size: 1.1em }
table { border-collapse: collapse } td, th { padding: .15em .9em .15em 0; text-align: left }
td:last-child, th:last-child { text-align: right } th { border-bottom: 1px solid #ccc }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } th { border-color: #444 } }
"""
