"""`tuwen search`, `recall` and `embed`: pictures searched, a search measured, pictures turned into vectors in bulk."""

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

from tuwen.cli.data import CORPUS
from tuwen.cli.output import only_json, print_json, print_line, print_table
from tuwen.cli.parser import add_command, positive, whole
from tuwen.errors import UserError
from tuwen.speech import spoken

SEARCH = """\
  tuwen search goods.index "一只红色的鸟"
  tuwen search goods.index "a red bird" --top 5 --where category=toys price=..20 --json
  tuwen search goods.index --image query.jpg
  tuwen search goods.index "like this, but blue" --image query.jpg --budget-ms 200
  tuwen search goods.index --image shelf.jpg --box 0,0,0.5,1 --box 0.5,0,1,1
  tuwen search goods.index --image shelf.jpg --find "red apple" milk"""

RECALL = """\
  tuwen recall goods.index
  tuwen recall goods.index --queries 200 --json"""
EMBED = """\
  tuwen embed runs/r2d2 data/shop --out vectors
  tuwen embed runs/r2d2 data/shop --out vectors --cluster auto"""


def add_to(commands) -> None:
    _add_search(commands)
    _add_recall(commands)
    _add_embed(commands)


def _add_search(commands) -> None:
    search = add_command(commands, "search", run_search, "search an index by text, picture, or both", SEARCH)
    search.add_argument("index", metavar="INDEX", help="made by `tuwen index`")
    search.add_argument("query", metavar="QUERY", nargs="?", help="in any language the model knows")
    search.add_argument("--image", metavar="FILE", type=Path, help="a picture to search by")
    box = "the part X0,Y0,X1,Y1 of --image, as shares of width and height; each --box is searched for by itself"
    search.add_argument("--box", metavar="BOX", dest="boxes", type=box_argument, action="append", default=[], help=box)
    find = "find each of these in --image by a system that locates (slan), and search for it by its part"
    search.add_argument("--find", metavar="NAME", nargs="+", default=[], help=find)
    search.add_argument("--similar", metavar="ID", help="pictures like this one of the index")
    search.add_argument("--top", metavar="N", type=positive, default=10, help="results (default 10)")
    help = "how many of the first stage are re-ranked (default 64); 0: first stage alone"
    search.add_argument("--candidates", metavar="K", type=whole, default=64, help=help)
    search.add_argument("--budget-ms", metavar="MS", type=positive, help="stop re-ranking when this time is up")
    where = "metadata: name=value, name=a|b (one of them; a value's own | is written \\|), name=5..10, 5.. or ..10 "
    where += "(numbers, and dates as 2024-05-31)"
    search.add_argument("--where", metavar="NAME=VALUE", nargs="+", default=[], help=where)
    add_opening(search)
    search.add_argument("--json", action="store_true", help="print one JSON object")


def _add_recall(commands) -> None:
    summary = "measure what a search loses by re-ranking only some candidates, and how long each number takes"
    recall = add_command(commands, "recall", run_recall, summary, RECALL)
    recall.add_argument("index", metavar="INDEX", help="made by `tuwen index` of pictures with texts")
    recall.add_argument(
        "--queries", metavar="N", type=positive, default=50, help="of the index's own texts (default 50)"
    )
    add_opening(recall)
    recall.add_argument("--json", action="store_true", help="print one JSON object")


def run_recall(args) -> None:
    from tuwen.search.query import Query, Searcher
    from tuwen.search.recall import CANDIDATES, own_texts, two_stage_recall

    with only_json(args.json):
        searcher = Searcher(open_index(args))
        texts, right = own_texts(searcher, args.queries)
        if not texts or not searcher.reranks:
            raise UserError(f"{args.index}: recall needs pictures with texts and a system that re-ranks")
        counts = [k for k in CANDIDATES if k < len(searcher.index)]
        recalls = two_stage_recall(searcher, texts, right, counts, tracked("texts", len(texts)))
        for k in counts:
            times = [searcher.search([Query(text)], candidates=k)[0].ms for text in texts[:10]]
            recalls["two_stage"][str(k)]["ms"] = sorted(times)[len(times) // 2]
    if args.json:
        print_json(recalls)
        return
    head = ("candidates", "R@1", "R@5", "R@10", "of full's 1", "its 5", "its 10", "ms")
    names = ("r1", "r5", "r10", "kept1", "kept5", "kept10", "ms")
    rows = [(k, *(f"{row[name]:.1f}" for name in names)) for k, row in recalls["two_stage"].items()]
    full = recalls["full"]
    rows.append(("all", *(f"{full[name]:.1f}" for name in names[:3]), "100.0", "100.0", "100.0", "-"))
    print_table(f"{recalls['queries']} texts, {len(searcher.index):,} pictures; percent", head, rows)


def tracked(what: str, total: int):
    """Shows a progress bar over what it is called with, where someone may be watching."""

    def track(items):
        if not sys.stderr.isatty():
            return iter(items)
        from rich import progress
        from rich.console import Console

        return progress.track(items, spoken(what), total=total, console=Console(stderr=True), transient=True)

    return track


def _add_embed(commands) -> None:
    embed = add_command(commands, "embed", run_embed, "write first-stage vectors of very many pictures", EMBED)
    embed.add_argument("run_folder", metavar="RUN", type=Path, help="folder written by `tuwen train`")
    embed.add_argument("pictures", metavar="SHARDS", help=f"written by `tuwen data build`, or else {CORPUS}")
    embed.add_argument(
        "--out", metavar="VECTORS", type=Path, required=True, help="folder of Parquet files, one a shard"
    )
    embed.add_argument("--split", help="take this split alone (default: all there are)")
    embed.add_argument("--batch-size", metavar="N", type=positive, default=64, help="pictures embedded at once")
    cluster = "work on this Ray cluster: auto, HOST:PORT or ray://HOST:PORT; its nodes see the same paths"
    embed.add_argument("--cluster", metavar="ADDRESS", help=cluster)
    refit = "make vectors anew that were made of pictures fitted otherwise than the run does now"
    embed.add_argument("--refit", action="store_true", help=refit)
    embed.add_argument("--json", action="store_true", help="print one JSON object")


def run_embed(args) -> None:
    from tuwen.search.embed import embed
    from tuwen.training.parallel import device

    options = {"split": args.split, "batch_size": args.batch_size, "cluster": args.cluster, "refit": args.refit}
    with only_json(args.json):
        done = embed(args.run_folder, args.pictures, args.out, device=str(device("auto")), progress=True, **options)
    if args.json:
        print_json(dataclasses.asdict(done))
        return
    left_out = "".join(f", {count:,} {spoken(reason)}" for reason, count in done.broken.items())
    made = spoken(f"{done.pictures:,} vectors in {done.parts:,} files, {done.made:,} of them made now")
    print_line(f"{made}{left_out}; {args.out}")


def add_opening(command) -> None:
    """What `open_index` reads besides `args.index`."""
    moved = "where the run is, if it moved since the index was built"
    command.add_argument("--run", dest="run_folder", metavar="RUN", type=Path, help=moved)
    add_token(command)


def open_index(args):
    """The index that a command is about."""
    from tuwen.search.index import Index
    from tuwen.training.parallel import device

    return Index.open(args.index, run=args.run_folder, device=str(device("auto")), token=args.token)


def add_token(command) -> None:
    token = "token of the Milvus server, user:password (default: environment TUWEN_MILVUS_TOKEN)"
    command.add_argument("--token", metavar="T", help=token)


def run_search(args) -> None:
    from tuwen.search.query import Query, Searcher

    if (args.similar is not None) == (args.query is not None or args.image is not None):
        args.parser.error("give a QUERY, --image, or both; or else --similar")
    if (args.boxes or args.find) and (args.image is None or args.query is not None):
        args.parser.error("--box and --find are parts of --image, without a QUERY")
    with only_json(args.json):
        index = open_index(args)
        searcher = Searcher(index)
        filters = parse_where(args.where, index.columns())
        if args.boxes or args.find:
            parts = _by_parts(searcher, args, filters)
        elif args.similar is not None:
            answer = _similar(searcher, args.similar, args.top, filters)
        else:
            query = Query(args.query, args.image)
            answer = searcher.search([query], args.top, args.candidates, args.budget_ms, filters)[0]
    if args.boxes or args.find:
        _print_parts(parts, args.json)
    else:
        print_json(as_json(args.query, answer)) if args.json else _print_answer(answer, args.query or "")


def _by_parts(searcher, args, filters) -> list[tuple[str, Any, Any]]:
    """(name or "", box, answer) of every part of the picture."""
    from tuwen.data.corpus import BrokenImage
    from tuwen.search.query import Query
    from tuwen.search.within import boxes_named

    try:
        boxes = boxes_named(searcher.predictor, args.image, args.find) if args.find else []
    except BrokenImage as error:
        raise UserError(f"the picture asked about: {error}") from None
    named = [*(("", box) for box in args.boxes), *zip(args.find, boxes, strict=True)]
    queries = [Query(image=args.image, box=box) for _, box in named]
    answers = searcher.search(queries, args.top, args.candidates, args.budget_ms, filters)
    return [(name, box, answer) for (name, box), answer in zip(named, answers, strict=True)]


def _print_parts(parts: list[tuple[str, Any, Any]], as_one: bool) -> None:
    if as_one:
        print_json(
            {"parts": [{"name": name, "box": list(box), **as_json(None, answer)} for name, box, answer in parts]}
        )
        return
    for name, box, answer in parts:
        print_line(f"{name or spoken('part')}: " + ", ".join(f"{share:.2f}" for share in box))
        _print_answer(answer, name)


def box_argument(text: str) -> tuple[float, float, float, float]:
    """The box of four numbers with commas between."""
    from tuwen.search.within import checked_box

    try:
        return checked_box([float(part) for part in text.split(",")])
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not X0,Y0,X1,Y1: shares of width and height") from None


def _similar(searcher, id: str, top: int, filters):
    try:
        return searcher.similar(id, top, filters)
    except KeyError:
        raise UserError(f"no picture {id!r} in {searcher.index.path}") from None


def as_json(query: str | None, answer) -> dict[str, Any]:
    """What `tuwen search --json` prints."""
    results = [dataclasses.asdict(result) for result in answer.results]
    about = {name: getattr(answer, name) for name in ("reranked", "complete", "unknown", "ms")}
    return {"query": query, "results": results, **about}


def _print_answer(answer, query: str) -> None:
    """The results with one text each, in the language of the query where there is one."""
    from tuwen.data.corpora.scripts import language_by_script

    asked, rows = language_by_script(query), []
    for place, result in enumerate(answer.results, 1):
        several = sorted(result.texts.items(), key=lambda pair: pair[0] != asked)
        text = next((text for _, texts in several for text in texts), "")
        rows.append((str(place), result.id, f"{result.first:.3f}", f"{result.score:.3f}", text, result.image))
    print_table("", ("", "id", "first", "score", "text", "picture"), rows, whole=("id",))
    late = spoken(f"; out of time: {answer.reranked} re-ranked, the rest by the first stage")
    note = "" if answer.complete else late
    note += spoken(f"; not in the model's vocabulary: {', '.join(answer.unknown[:8])}") if answer.unknown else ""
    print_line(f"{answer.ms:.0f} ms{note}", sys.stderr)


def parse_where(words: list[str], columns: dict[str, str]) -> dict[str, Any]:
    """Filters of `Searcher.search` from NAME=VALUE.

    Raises:
        UserError: not of that form, no such column, or no number where one is needed.
    """
    from tuwen.search.filters import column_called

    filters: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--where {word!r}: write name=value, name=a|b (one of them) or name=10..20")
        name = column_called(name, columns)
        if name in filters:
            raise UserError(f"--where {word!r}: {name} is asked about twice; write one condition, a|b or 10..20")
        kind = columns[name]
        if kind in ("number", "text") and ".." in value:
            ends = zip(("min", "max"), value.split("..", 1), strict=True)
            filters[name] = {end: _parse(word, kind, bound) for end, bound in ends if bound}
        else:
            parts = re.split(r"(?<!\\)\|", value)  # a value's own sign is written \|
            filters[name] = [_parse(word, kind, part.replace(r"\|", "|")) for part in parts]
    return filters


def _parse(word: str, kind: str, value: str) -> Any:
    if kind in ("text", "tags"):
        return value
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = None
    right = isinstance(parsed, bool) if kind == "flag" else isinstance(parsed, int | float)
    if right:
        return parsed
    forms = "numbers: write 20, 10|20 (one of them), 10..20, 10.. or ..20"
    raise UserError(f"--where {word!r}: this column holds {'true or false' if kind == 'flag' else forms}")
