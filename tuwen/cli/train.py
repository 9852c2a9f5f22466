"""`tuwen train`: pre-train, fine-tune, resume."""

from pathlib import Path

from tuwen.cli.data import CORPUS
from tuwen.cli.parser import add_command, positive

EXAMPLES = """\
  tuwen train clip --corpus scenes --out runs/clip --size tiny --steps 200
  tuwen train r2d2 --corpus data/photos --out runs/r2d2 --size small --set train.batch_size=128
  tuwen train r2d2 --corpus data/photos --out runs/tuned --init runs/r2d2 --preset finetune
  tuwen train --resume runs/r2d2
  torchrun --nproc-per-node 4 -m tuwen train r2d2 --corpus data/photos --out runs/r2d2 --size base"""


def add_to(commands) -> None:
    command = add_command(commands, "train", run, "train a system on a corpus, or resume a run", EXAMPLES)
    command.add_argument("system", metavar="SYSTEM", nargs="?", help="a name from `tuwen systems`")
    command.add_argument("--corpus", metavar="DIR", help=CORPUS)
    command.add_argument("--out", metavar="RUN", type=Path, help="folder of the run; must be new")
    command.add_argument("--steps", metavar="N", type=positive, help="optimizer steps")
    add_config_options(command)
    command.add_argument("--init", metavar="RUN", type=Path, help="start from the weights of this run")
    command.add_argument("--preset", choices=("finetune",), help="named settings; `finetune` needs --init")
    command.add_argument("--resume", metavar="RUN", type=Path, help="go on with a run that was stopped")


def add_config_options(command) -> None:
    """The options that `tuwen train` and `tuwen compare` share."""
    command.add_argument("--size", metavar="SIZE", help="tiny, demo, small, base or large")
    command.add_argument("--config", metavar="FILE", type=Path, help="recipe: a YAML file of differences")
    command.add_argument(
        "--set",
        metavar="NAME=VALUE",
        dest="sets",
        nargs="+",
        action="extend",
        default=[],
        help="change settings by dotted name, as in --set train.batch_size=64 optim.rate=1e-4",
    )


def run(args) -> None:
    raise NotImplementedError
