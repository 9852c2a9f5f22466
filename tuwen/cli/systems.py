"""`tuwen systems`: the table of published systems, or one in full."""

import dataclasses
from typing import Any

from tuwen.cli.output import print_json, print_table
from tuwen.cli.parser import add_command

EXAMPLES = """\
  tuwen systems
  tuwen systems r2d2
  tuwen systems --task captioning
  tuwen systems --json"""


def add_to(commands) -> None:
    command = add_command(commands, "systems", run, "list the published systems, or show one in full", EXAMPLES)
    command.add_argument("name", nargs="?", metavar="NAME", help="show this system in full")
    summary = "only those that can do this; with NAME, the reason if it cannot"
    command.add_argument("--task", metavar="TASK", help=summary)
    command.add_argument("--json", action="store_true", help="print one JSON object")


def describe(name: str) -> dict[str, Any]:
    """Everything the registry knows of a system, ready for JSON."""
    from tuwen import tasks
    from tuwen.systems import find
    from tuwen.systems.survey.axes import DATASETS, OBJECTIVES

    system = find(name)
    about = {"name": name, **dataclasses.asdict(system.paper)}
    if system.paper.axes:
        objectives, data = system.paper.axes.objectives, system.paper.axes.data
        about["axes"]["objectives"] = {
            key: {"what": OBJECTIVES[key].what, "requires": sorted(OBJECTIVES[key].requires)} for key in objectives
        }
        about["axes"]["data"] = {key: DATASETS[key].what for key in data}
    return about | {"tasks": list(tasks.of_system(system)), "capabilities": list(system.capabilities())}


def run(args) -> None:
    from tuwen import tasks
    from tuwen.systems import names

    if args.task:
        tasks.find_task(args.task)
    if args.name:
        about = describe(args.name)
        if args.task:
            tasks.able(args.name, args.task)
        print_json(about) if args.json else _print_one(about)
        return
    every = [describe(name) for name in names()]
    every = [about for about in every if args.task is None or args.task in about["tasks"]]
    print_json({"systems": every}) if args.json else _print_all(every)


_PUBLISHED = "encoders and data as published; `tuwen systems NAME` says what a run builds"


def _print_all(every: list[dict[str, Any]]) -> None:
    head = ("name", "fidelity", "paper", "text", "vision", "interaction", "decoder", "objectives", "data", "tasks")
    rows = []
    for about in every:
        axes = about["axes"] or {}
        listed = (", ".join(axes.get(key, ())) for key in ("vision", "interaction"))
        ends = (", ".join(axes.get(key, ())) for key in ("objectives", "data"))
        own = (about["name"], about["fidelity"], about["venue"], axes.get("text", "?"))
        rows.append((*own, *listed, axes.get("decoder", "?"), *ends, ", ".join(about["tasks"])))
    print_table(_PUBLISHED, head, rows, whole=("name", "fidelity"))


def _print_one(about: dict[str, Any]) -> None:
    print_table("", ("", ""), [(key.replace("_", " "), _in_words(value)) for key, value in _flat(about)])


def _flat(about: dict[str, Any]) -> list[tuple[str, Any]]:
    """The entries one by one; the axes' as "axis: text" and so on."""
    axes = about["axes"] or {}
    plain = [(key, value) for key, value in about.items() if key != "axes"]
    return plain + [(f"axis: {key}", value) for key, value in axes.items() if value]


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_of(entry)}" for key, entry in value.items())
    return ", ".join(value) if isinstance(value, list | tuple) else value


def _of(entry: Any) -> str:
    if isinstance(entry, dict):
        needs = ", ".join(" or ".join(need.split("|")) for need in entry["requires"])
        return entry["what"] + (f" (requires {needs})" if needs else "")
    return entry
