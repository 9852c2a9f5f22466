"""`tuwen eval`: one run measured on one task of one corpus."""

from pathlib import Path
from typing import Any

from tuwen import tasks
from tuwen.cli.data import CORPUS
from tuwen.cli.output import only_json, print_json, print_line, print_table
from tuwen.cli.parser import add_columns, add_command, positive
from tuwen.cli.suite import run_suite_of
from tuwen.speech import spoken

EXAMPLES = """\
  tuwen eval runs/r2d2 --corpus data/photos --task retrieval
  tuwen eval runs/r2d2 --corpus data/photos --task matching --split val --json
  tuwen eval runs/wukong --corpus data/caltech101 --task zero_shot --classes names.json
  tuwen eval runs/wukong --corpus imagenet:downloads/imagenet --split val --task zero_shot --classes imagenet
  tuwen eval runs/r2d2 --corpus data/photos --task retrieval --protocol published
  tuwen eval runs/r2d2 --corpus data/photos --fit-score val
  tuwen eval runs/albef-vqa --corpus data/photos --predictions answers.json
  tuwen eval runs/unix2 --corpus data/photos --task captioning --languages zh
  tuwen eval runs/unix2 --corpus data/photos/mmt.jsonl --task translation --languages en de"""

FORMS = (".json", ".jsonl", ".csv")  # of files of predictions


def add_to(commands) -> None:
    command = add_command(commands, "eval", run, "measure a run on a task", EXAMPLES)
    command.add_argument("run_folder", metavar="RUN", type=Path, help="folder written by `tuwen train`")
    command.add_argument("--corpus", metavar="DIR", help=CORPUS)
    add_columns(command)
    command.add_argument("--suite", help="a list of tasks instead: scenes, wukong, zero, or a .yaml file")
    command.add_argument("--data", metavar="DIR", type=Path, default=Path("data"), help="where the suite's corpora lie")
    command.add_argument("--page", metavar="FILE", type=Path, help="write the suite's table as a page too")
    command.add_argument(
        "--task", choices=tasks.task_names(), help="what to measure (default: the task a run has learnt)"
    )
    command.add_argument(
        "--predictions", metavar="FILE", type=Path, help="write what is predicted too (.json, .jsonl or .csv)"
    )
    command.add_argument(
        "--fit-score",
        metavar="SPLIT",
        help="settle on this split how much the match weighs in the run's final score, and keep that; trains nothing",
    )
    command.add_argument("--split", help="split to measure on (default test, or the only one there is)")
    command.add_argument("--languages", metavar="LANG", nargs="+", help="measure these alone (default: all)")
    command.add_argument("--limit", metavar="N", type=positive, help="at most so many pictures")
    command.add_argument("--top-k", metavar="K", type=positive, help="candidates a query that are re-ranked")
    command.add_argument(
        "--protocol",
        choices=("merged", "published"),
        help="of --task retrieval: equal texts are one, right for all their pictures (default), or as papers count, "
        "each text apart and right for its own picture alone",
    )
    command.add_argument(
        "--classes",
        metavar="FILE",
        type=Path,
        help="names and prompts of classes for --task zero_shot (zeroshot.json), or imagenet: its 1,000 names and 80 "
        "prompts in English and Chinese; of findings for --task findings",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args) -> None:
    from tuwen.benchmark.measure import measure_task

    if args.suite:
        return run_suite_of(args)
    if not args.corpus:
        args.parser.error("give --corpus, or --suite with --data")
    args.task = args.task or (None if args.fit_score else learnt(args.run_folder))
    if not (args.task or args.fit_score):
        args.parser.error("give --task, --fit-score, or both")
    if args.predictions and args.predictions.suffix not in FORMS:
        args.parser.error(f"--predictions {args.predictions}: its name must end in {', '.join(FORMS)}")
    options = {name: getattr(args, name) for name in ("languages", "limit") if getattr(args, name) is not None}
    if args.top_k:
        if args.task not in ("retrieval", None):
            args.parser.error(f"--top-k has no meaning for --task {args.task}")
        options["top_k"] = args.top_k
    if args.protocol:
        if args.task != "retrieval":
            args.parser.error(f"--protocol has no meaning for --task {args.task}")
        options["protocol"] = args.protocol
    if args.classes:
        if args.task not in ("zero_shot", "findings"):
            args.parser.error(f"--classes has no meaning for --task {args.task}")
        options["classes"] = args.classes
    with only_json(args.json):
        score = fit(args) if args.fit_score else None
        place = args.run_folder, args.corpus, args.split, args.task
        measured = measure_task(*place, options, args.predictions) if args.task else None
    if args.json:
        print_json(measured or score or {})
    elif measured:
        print_measured(measured)


def fit(args) -> dict[str, Any]:
    """Settles a run's final score, and prints it in a line."""
    from tuwen.benchmark.score import fit_score, score_line
    from tuwen.tasks.retrieval import TOP_K

    score = fit_score(args.run_folder, args.corpus, args.fit_score, top_k=args.top_k or TOP_K, limit=args.limit)
    print_line(score_line(score))
    return score


def learnt(run_folder: Path) -> str | None:
    """The task that a run has learnt."""
    from tuwen.run import CONFIG
    from tuwen.training.config import RunConfig

    return RunConfig.read(run_folder).task_name if (run_folder / CONFIG).exists() else None


def print_measured(measured: dict[str, Any]) -> None:
    """A task's figures as a table."""
    if "unmeasured" in measured:
        print_line(f"{measured['task']} not measured: {spoken(measured['unmeasured'])}")
        return
    remark, head, rows = tasks.find_task(measured["task"])().table(measured)
    about = f"{measured['system']} on {measured['corpus']}, {measured['split']} split: {measured['task']}, "
    print_table(spoken(about) + spoken(remark), head, [tuple(map(spoken, row)) for row in rows])
    if "second_stage" in measured:
        gained = {name: by["gain"] for name, by in measured["languages"].items() if "gain" in by}
        gains = ", ".join(f"{points:+.1f} {language}" for language, points in gained.items())
        rule = spoken(rule_line(measured["second_stage"]))
        print_line(rule + spoken(f"; gain in points of mean recall: {gains or '-'}"))
    if measured.get("broken"):
        broken = ", ".join(f"{count} {spoken(reason)}" for reason, count in measured["broken"].items())
        print_line(f"left out: {broken}")
    for line in filter(None, (measured.get("note") or "").split("\n")):
        print_line(line)


def rule_line(second: dict[str, Any]) -> str:
    """How the final score is made, and what it costs, for people."""
    if second["score"] == "published":
        rule = "final score as published"
    elif not second["weight"]:
        return "final score: the first stage alone (weight 0: the match was not asked; --fit-score settles it anew)"
    else:
        weight = second["weight"]
        rule = "final score: the match alone" if weight == "match" else f"final score: first stage + {weight:g} x match"
    return f"{rule}, {second['ms_a_query']:.1f} ms a query"
