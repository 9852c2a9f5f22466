"""`tuwen run`: a recipe of stages; and each kind of stage that is not training as a command of `tuwen data`."""

import argparse
from pathlib import Path

from tuwen.cli.data import CORPUS
from tuwen.cli.output import print_line
from tuwen.cli.parser import add_columns, add_command, positive
from tuwen.cli.train import evaluation, measure_finished, setting

PAGE = "suspects.html"
RUN = """\
  tuwen run recipes/nlip.yaml --corpus data/photos --out runs/nlip --also CLEAN=data/captions
  tuwen run recipes/nlip.yaml --corpus scenes:noise=0.4 --also CLEAN=scenes --out runs/small --size tiny"""
SUMMARIES = {
    "noise": "estimate by a run how likely each text is wrong, and show the most suspect pairs",
    "concepts": "find by a run the names of what each picture shows, among those that the texts use",
    "caption": "write a text for every picture by a run that captions",
}
EXAMPLES = {
    "noise": "  tuwen data noise runs/warm --corpus data/photos --out tables/noise",
    "concepts": "  tuwen data concepts runs/warm --corpus data/photos --out tables/concepts --set count=5",
    "caption": "  tuwen data caption runs/speaker --corpus data/photos --out tables/captions --set how.top_p=0.8",
}


def also(text: str) -> tuple[str, str]:
    """("CLEAN", "data/captions") of "CLEAN=data/captions"."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=CORPUS")
    return name, value


def add_to(commands) -> None:
    command = add_command(commands, "run", run_stages, "do every stage of a recipe, or go on with it", RUN)
    command.add_argument("recipe", metavar="RECIPE", type=Path, help="a YAML file that lists stages")
    command.add_argument("--corpus", metavar="DIR", required=True, help=CORPUS)
    add_columns(command)
    command.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="folder; a finished stage in it is kept"
    )
    command.add_argument(
        "--also", metavar="NAME=CORPUS", type=also, nargs="+", action="extend", default=[], help="what stages call NAME"
    )
    command.add_argument("--size", metavar="SIZE", help="of all runs, as of `tuwen train`")
    command.add_argument("--seed", metavar="S", type=int, help="stages draw their own from it (default the recipe's)")
    of_runs = "settings of all runs (train.steps=50), or of one stage (main.train.steps=50, concepts.count=5)"
    command.add_argument(
        "--set", metavar="NAME=VALUE", dest="sets", type=setting, nargs="+", action="extend", default=[], help=of_runs
    )
    command.add_argument(
        "--no-rehearsal", action="store_true", help="start at once; nothing is said of time and disk before"
    )


def add_kinds(actions) -> None:
    """The commands of `tuwen data` that make tables."""
    for kind, summary in SUMMARIES.items():
        command = add_command(actions, kind, run_kind, summary, EXAMPLES[kind])
        command.set_defaults(kind=kind)
        command.add_argument("run_folder", metavar="RUN", type=Path, help="folder written by `tuwen train`")
        command.add_argument("--corpus", metavar="DIR", required=True, help=CORPUS)
        add_columns(command)
        out = "folder; begun there before, it goes on"
        command.add_argument("--out", metavar="DIR", type=Path, required=True, help=out)
        command.add_argument("--split", default="train", help="whose rows (default train)")
        command.add_argument("--beside", metavar="TABLE", nargs="+", default=[], help="tables laid over the corpus")
        if kind == "noise":
            command.add_argument("--page", metavar="FILE", type=Path, help=f"of the suspects (default {PAGE} in --out)")
            command.add_argument("--count", metavar="N", type=positive, default=60, help="suspects shown (default 60)")
        command.add_argument("--seed", metavar="S", type=int, default=0, help="of its draws (default 0)")
        command.add_argument(
            "--set", metavar="NAME=VALUE", dest="sets", type=setting, nargs="+", action="extend", default=[]
        )


def run_stages(args) -> None:
    from tuwen.training.stages.go import run_recipe
    from tuwen.training.stages.recipe import read_recipe
    from tuwen.training.stages.record import is_training

    recipe = read_recipe(args.recipe, dict(args.sets), args.size, args.seed)
    evaluate_of = lambda config: evaluation() if config.task is None else None  # noqa: E731
    stages = run_recipe(recipe, args.corpus, args.out, dict(args.also), evaluate_of, rehearsal=not args.no_rehearsal)
    runs = [planned.folder for planned in stages if is_training(planned)]
    if runs:
        measure_finished(runs[-1])


def run_kind(args) -> None:
    from tuwen.training.stages.alone import stage_alone

    changes, beside = dict(args.sets), args.beside
    path = stage_alone(args.kind, args.run_folder, args.corpus, args.split, beside, changes, args.seed, args.out)
    print_line(f"table: {path}")
    if args.kind == "noise":
        print_line(f"page: {suspects_page(args, path)}")


def suspects_page(args, table: Path) -> Path:
    """The most suspect pairs, beside their table or where it is asked for."""
    from tuwen.data.beside import Beside, SideTable
    from tuwen.data.curate.suspects import write_suspects
    from tuwen.data.open import open_corpus

    corpus = Beside(open_corpus(args.corpus, args.split, "skip"), [SideTable.read(table)])
    return write_suspects(corpus, args.page or args.out / PAGE, args.count)
