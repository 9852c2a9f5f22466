"""`tuwen compare` and `tuwen report`: systems under one budget, and the page about it."""

from pathlib import Path

from tuwen.cli.data import CORPUS
from tuwen.cli.parser import add_command, positive
from tuwen.cli.train import add_config_options

EXAMPLES = """\
  tuwen compare clip albef r2d2 --corpus scenes --size demo --config recipes/demo.yaml --out runs/demo
  tuwen compare clip r2d2 --corpus data/photos --budget steps=2000 --seeds 3 --out runs/photos --json"""


def add_to(commands) -> None:
    command = add_command(commands, "compare", run_compare, "train systems alike and compare them", EXAMPLES)
    command.add_argument("systems", metavar="SYSTEM", nargs="+", help="names from `tuwen systems`")
    command.add_argument("--corpus", metavar="DIR", required=True, help=CORPUS)
    command.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder; finished runs in it are kept")
    command.add_argument("--budget", metavar="steps=N", help="what every system may spend, as in steps=2000")
    command.add_argument("--seeds", metavar="K", type=positive, default=1, help="runs a system (default 1)")
    add_config_options(command)
    command.add_argument("--json", action="store_true", help="print one JSON object")
    report = add_command(commands, "report", run_report, "write the report of a run or comparison again")
    report.add_argument("folder", metavar="DIR", type=Path, help="folder of a run or of a comparison")


def run_compare(args) -> None:
    raise NotImplementedError


def run_report(args) -> None:
    raise NotImplementedError
