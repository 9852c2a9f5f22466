"""`tuwen eval`: one run measured on one task of one corpus."""

from pathlib import Path

from tuwen.cli.data import CORPUS
from tuwen.cli.parser import add_command

EXAMPLES = """\
  tuwen eval runs/r2d2 --corpus data/photos --task retrieval
  tuwen eval runs/r2d2 --corpus data/photos --task matching --split val --json"""


def add_to(commands) -> None:
    command = add_command(commands, "eval", run, "measure a run on a task", EXAMPLES)
    command.add_argument("run_folder", metavar="RUN", type=Path, help="folder written by `tuwen train`")
    command.add_argument("--corpus", metavar="DIR", required=True, help=CORPUS)
    command.add_argument("--task", required=True, choices=("retrieval", "matching"), help="what to measure")
    command.add_argument("--split", default="test", help="split to measure on (default test)")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args) -> None:
    raise NotImplementedError
