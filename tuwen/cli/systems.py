"""`tuwen systems`: the table of published systems, or one in full."""

import dataclasses
from typing import Any

from tuwen.cli.output import print_json, print_table
from tuwen.cli.parser import add_command

EXAMPLES = """\
  tuwen systems
  tuwen systems r2d2
  tuwen systems --json"""


def add_to(commands) -> None:
    command = add_command(commands, "systems", run, "list the published systems, or show one in full", EXAMPLES)
    command.add_argument("name", nargs="?", metavar="NAME", help="show this system in full")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def describe(name: str) -> dict[str, Any]:
    """Everything the registry knows of a system, ready for JSON."""
    from tuwen.systems import find

    system = find(name)
    return {"name": name, **dataclasses.asdict(system.paper), "capabilities": list(system.capabilities())}


def run(args) -> None:
    from tuwen.systems import names

    if args.name:
        found = describe(args.name)
        print_json(found) if args.json else _print_one(found)
        return
    every = [describe(name) for name in names()]
    print_json({"systems": every}) if args.json else _print_all(every)


def _print_all(every: list[dict[str, Any]]) -> None:
    head = ("name", "fidelity", "paper", "towers", "interaction", "objectives", "can")
    rows = [
        (
            found["name"],
            found["fidelity"],
            found["venue"],
            f"{found['image_encoder']}; {found['text_encoder']}",
            found["interaction"],
            ", ".join(found["objectives"]),
            ", ".join(name for name in found["capabilities"] if not name.startswith("encode_")) or "encode",
        )
        for found in every
    ]
    print_table("", head, rows, whole=("name", "fidelity"))


def _print_one(found: dict[str, Any]) -> None:
    rows = [
        (key.replace("_", " "), ", ".join(value) if isinstance(value, list | tuple) else value)
        for key, value in found.items()
    ]
    print_table("", ("", ""), rows)
