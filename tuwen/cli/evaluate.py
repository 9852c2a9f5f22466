"""`tuwen eval`: one run measured on one task of one corpus."""

from pathlib import Path
from typing import Any

from tuwen import tasks
from tuwen.cli.data import CORPUS
from tuwen.cli.output import only_json, print_json, print_line, print_table
from tuwen.cli.parser import add_command, positive
from tuwen.errors import UserError

EXAMPLES = """\
  tuwen eval runs/r2d2 --corpus data/photos --task retrieval
  tuwen eval runs/r2d2 --corpus data/photos --task matching --split val --json
  tuwen eval runs/wukong --corpus data/caltech101 --task zero_shot --classes names.json
  tuwen eval runs/r2d2 --corpus data/photos --fit-score val
  tuwen eval runs/unix2 --corpus data/photos --task captioning --languages zh
  tuwen eval runs/unix2 --corpus data/photos/mmt.jsonl --task translation --languages en de"""


def add_to(commands) -> None:
    command = add_command(commands, "eval", run, "measure a run on a task", EXAMPLES)
    command.add_argument("run_folder", metavar="RUN", type=Path, help="folder written by `tuwen train`")
    command.add_argument("--corpus", metavar="DIR", required=True, help=CORPUS)
    command.add_argument("--task", choices=tasks.names(), help="what to measure")
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
        "--classes", metavar="FILE", type=Path, help="names and prompts of classes for --task zero_shot (zeroshot.json)"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args) -> None:
    if not (args.task or args.fit_score):
        args.parser.error("give --task, --fit-score, or both")
    options = {name: getattr(args, name) for name in ("languages", "limit") if getattr(args, name) is not None}
    if args.top_k:
        if args.task not in ("retrieval", None):
            args.parser.error(f"--top-k has no meaning for --task {args.task}")
        options["top_k"] = args.top_k
    if args.classes:
        if args.task != "zero_shot":
            args.parser.error(f"--classes has no meaning for --task {args.task}")
        options["classes"] = args.classes
    with only_json(args.json):
        score = fit(args) if args.fit_score else None
        found = measure(args.run_folder, args.corpus, args.split, args.task, options) if args.task else None
    if args.json:
        print_json(found or score or {})
    elif found:
        print_found(found)


def fit(args) -> dict[str, Any]:
    """Settles a run's final score, and prints it in a line."""
    from tuwen.benchmark.score import fit_score, score_line
    from tuwen.tasks.retrieval import TOP_K

    score = fit_score(args.run_folder, args.corpus, args.fit_score, top_k=args.top_k or TOP_K, limit=args.limit)
    print(score_line(score))
    return score


def measure(run_folder: Path, location: str, split: str | None, task: str, options: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a task on a corpus. split: None: test, or the one split of a corpus that is not split."""
    from tuwen.data.open import open_corpus, splits_of
    from tuwen.model import load
    from tuwen.progress import bars
    from tuwen.systems import refuse_impossible
    from tuwen.training.parallel import device

    evaluate = tasks.find(task)
    model = load(run_folder, device=str(device("auto")))
    refuse_impossible(model.config.system, task)
    try:
        corpus = open_corpus(location, split or "test", "skip")
    except UserError:
        splits = splits_of(location) if split is None else ()
        if len(splits) != 1 or splits == ("test",):
            raise
        corpus = open_corpus(location, splits[0], "skip")
    with bars():
        found = evaluate(model.predictor, corpus, **options)
    unknown = [language for language in corpus.languages if language not in model.languages]
    if unknown and not options.get("languages") and task != "zero_shot":  # that is in the languages of its class names
        what = f"not measured: texts in {', '.join(unknown)}, which the run was not trained on"
        found["note"] = "\n".join(filter(None, (found.get("note"), what)))
    return found


def print_found(found: dict[str, Any]) -> None:
    """A task's figures as a table; those of a task without one as JSON."""
    printers = {
        "retrieval": print_retrieval,
        "matching": print_matching,
        "zero_shot": print_zero_shot,
        "grounding": print_grounding,
        "captioning": print_captioning,
        "translation": print_translation,
    }
    printer = printers.get(found.get("task", ""))
    if printer is None:
        print_json(found)
        return
    printer(f"{found['system']} on {found['corpus']}, {found['split']} split: {found['task']}", found)
    if found["broken"]:
        print("left out: " + ", ".join(f"{count} {reason}" for reason, count in found["broken"].items()))
    for line in filter(None, (found.get("note") or "").split("\n")):
        print_line(line)


def print_retrieval(title: str, found: dict[str, Any]) -> None:
    cuts = ("r1", "r5", "r10")
    head = ("language", "stage", *(f"{way} R@{cut[1:]}" for way in ("i2t", "t2i") for cut in cuts), "mean")
    rows = []
    for language, stages in found["languages"].items():
        for stage in ("first", "reranked", "chance"):
            if stage in stages:
                ways = [stages[stage].get(way, {}) for way in ("image_to_text", "text_to_image")]
                recalls = [f"{way[cut]:.1f}" if cut in way else "-" for way in ways for cut in cuts]
                rows.append((language, stage, *recalls, f"{stages[stage]['mean_recall']:.1f}"))
    print_table(f"{title}, {found['images']} images, {found['texts']} texts, recall in percent", head, rows)
    if "second_stage" in found:
        languages = found["languages"].items()
        gains = ", ".join(f"{stages['gain']:+.1f} {language}" for language, stages in languages if "gain" in stages)
        print(f"{rule_line(found['second_stage'])}; gain in points of mean recall: {gains or '-'}")


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


def print_matching(title: str, found: dict[str, Any]) -> None:
    rows = [(language, f"{one['auc']:.3f}", str(one["pairs"])) for language, one in found["languages"].items()]
    print_table(f"{title}, by {found['score']}; {found['labels']}", ("language", "ROC-AUC", "pairs"), rows)


def print_zero_shot(title: str, found: dict[str, Any]) -> None:
    cells = ("top1", "top5", "mean_per_class", "chance")
    rows = [
        (language, *(f"{one[cell]:.1f}" for cell in cells), str(one["prompts"]))
        for language, one in found["languages"].items()
    ]
    head = ("language", "top-1", "top-5", "mean per class", "chance", "prompts")
    print_table(f"{title}, {found['images']} images of {found['classes']} classes, percent", head, rows)


def print_captioning(title: str, found: dict[str, Any]) -> None:
    scores = ("cider_d", "bleu_4", "rouge_l")
    rows = []
    for language, one in found["languages"].items():
        rows.append((language, "made", *(f"{one[name]:.3f}" for name in scores), f"{100 * one['exact']:.1f}%"))
        rows.append((language, "shuffled", *(f"{one['shuffled'][name]:.3f}" for name in scores), ""))
    head = ("language", "captions", "CIDEr-D", "BLEU-4", "ROUGE-L", "word for word")
    print_table(f"{title}, {found['images']} pictures, {found['method']}", head, rows)


def print_translation(title: str, found: dict[str, Any]) -> None:
    rows = [
        (pair, name.replace("_", " "), f"{one[name]['bleu']:.1f}", f"{one[name]['chrf']:.1f}")
        for pair, one in found["pairs"].items()
        for name in ("with_picture", "without_picture", "wrong_picture")
    ]
    print_table(f"{title}, {found['method']}", ("languages", "read", "BLEU", "chrF"), rows)


def print_grounding(title: str, found: dict[str, Any]) -> None:
    rows = []
    for language, one in found["languages"].items():
        for name, marks in ((found["system"], one), ("centre box", one["centre"]), ("whole picture", one["whole"])):
            rows.append((language, name, *(f"{marks[key]:.1f}" for key in ("pointing", "iou", "iou50"))))
    head = ("language", "box", "pointing", "IoU", "IoU >= 0.5")
    print_table(f"{title}, {found['images']} images, in percent", head, rows)
