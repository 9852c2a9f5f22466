"""`tuwen index`, `search` and `embed`: pictures made searchable, searched, and turned into vectors in bulk."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from tuwen.cli.data import CORPUS
from tuwen.cli.output import only_json, print_json, print_line, print_table
from tuwen.cli.parser import add_columns, add_command, positive
from tuwen.errors import UserError
from tuwen.speech import spoken

INDEX = """\
  tuwen index runs/r2d2 photos --out photos.index
  tuwen index runs/r2d2 goods.csv --out goods.index --tokens int8 --prune
  tuwen index --remove 1047 1048 --out goods.index
  tuwen index --refit --out goods.index"""
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
    _add_index(commands)
    _add_search(commands)
    _add_recall(commands)
    _add_embed(commands)


def _add_index(commands) -> None:
    index = add_command(commands, "index", run_index, "make pictures searchable, or bring an index up to date", INDEX)
    index.add_argument("run_folder", metavar="RUN", nargs="?", type=Path, help="folder written by `tuwen train`")
    index.add_argument("pictures", metavar="PICTURES", nargs="?", help=f"{CORPUS}; texts are not needed")
    add_columns(index)
    place = "folder or object-store URL (s3://...) of the index"
    index.add_argument("--out", metavar="INDEX", required=True, help=place)
    index.add_argument("--split", help="take this split alone (default: all there are)")
    apart = "set this before every id, to keep two folders apart"
    index.add_argument("--prefix", metavar="TEXT", default="", help=apart)
    index.add_argument(
        "--tokens", choices=("float32", "float16", "int8"), help="how picture tokens are kept (default float16)"
    )
    budget = "keep at most N tokens a picture, pooled; 0: none, encode again at each query (default: all)"
    index.add_argument("--token-budget", metavar="N", type=whole, help=budget)
    by = "what an entry is found by: its picture (default), its title (the texts beside it), or both"
    index.add_argument("--by", choices=("picture", "title", "both"), help=by)
    index.add_argument("--prune", action="store_true", help="take out pictures that are not among PICTURES")
    refit = "embed all its pictures again as the run fits pictures now; from the files they came from, or PICTURES"
    index.add_argument("--refit", action="store_true", help=refit)
    exact = "search vectors exactly in memory up to so many pictures, by Lance's index beyond (default 1000000)"
    index.add_argument("--exact", metavar="N", type=positive, default=1_000_000, help=exact)
    few = "search codes of N bytes a picture first, then re-score the nearest by whole vectors; 0: no codes"
    index.add_argument("--first-bytes", metavar="N", type=whole, help=few)
    form = "what the codes hold: the first N numbers (int8, default), or the signs of the first 8 N (binary)"
    index.add_argument("--first-code", choices=("int8", "binary"), help=form)
    index.add_argument(
        "--milvus", metavar="URL", help="put the vectors into this Milvus server, e.g. http://host:19530"
    )
    _add_token(index)
    index.add_argument("--remove", metavar="ID", nargs="+", help="take these pictures out; nothing else is done")
    index.add_argument("--batch-size", metavar="N", type=positive, default=64, help="pictures embedded at once")
    index.add_argument("--json", action="store_true", help="print one JSON object")


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
    import dataclasses

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
    _add_token(command)


def open_index(args):
    """The index that a command is about."""
    from tuwen.search.index import Index
    from tuwen.training.parallel import device

    return Index.open(args.index, run=args.run_folder, device=str(device("auto")), token=args.token)


def _add_token(command) -> None:
    token = "token of the Milvus server, user:password (default: environment TUWEN_MILVUS_TOKEN)"
    command.add_argument("--token", metavar="T", help=token)


def whole(text: str) -> int:
    """A whole number of at least 0."""
    return 0 if text == "0" else positive(text)


def run_index(args) -> int:
    from tuwen.search.build import build_index
    from tuwen.search.index import Index
    from tuwen.search.refit import refit
    from tuwen.training.parallel import device

    if args.remove:
        if args.run_folder or args.pictures:
            args.parser.error("--remove goes with --out alone")
        gone = Index.open(args.out, token=args.token).remove(args.remove)
        print_json({"removed": gone}) if args.json else print_line(f"{gone} of {len(args.remove)} pictures taken out")
        return 0
    if args.pictures is None and not args.refit:
        args.parser.error("give RUN and PICTURES")
    given = ("tokens", "token_budget", "by", "first_bytes", "first_code", "milvus")
    settings = {name: getattr(args, name) for name in given}
    if args.refit and any(value is not None for value in settings.values()):
        args.parser.error("--refit keeps --tokens, --token-budget, --by, --first-bytes and --milvus as they are")
    options = {name: getattr(args, name) for name in ("split", "prefix", "prune", "exact", "token", "batch_size")}
    options |= {"device": str(device("auto")), "progress": True, "say": print_line}
    with only_json(args.json):
        if args.refit:
            index = refit(args.out, args.pictures, args.run_folder, **options)
        else:
            index = build_index(args.run_folder, args.pictures, args.out, **settings, **options)
    _print_built(index.built, args.json)
    return _status(index.built)


def _status(built) -> int:
    """1 where a row was left out for its values, or most were."""
    from tuwen.search.ingest import BAD_ROW

    odd = any(picture["reason"].startswith(BAD_ROW) for picture in built.broken)
    taken = sum(count for state, count in built.counts.items() if state != "removed")
    return 1 if odd or 2 * built.counts.get("broken", 0) > taken else 0


def _print_built(built, as_json: bool) -> None:
    import dataclasses

    from tuwen.search.build import readable

    if as_json:
        print_json(dataclasses.asdict(built))
        return
    states = ", ".join(f"{count:,} {spoken(state)}" for state, count in built.counts.items()) or spoken("no pictures")
    place = "" if built.bytes is None else spoken(f", {readable(built.bytes)} on disk")
    print_line(f"{states}; " + spoken(f"{built.pictures:,} pictures in the index") + f"{place}; {built.seconds:.1f} s")
    if built.skipped:
        skipped = ", ".join(f"{count:,} {spoken(reason)}" for reason, count in built.skipped.items())
        print_line(f"left out: {skipped}")
    for picture in built.broken[:20]:
        print_line(f"left out: {picture['id']}: {picture['reason']}")
    if len(built.broken) > 20:
        print_line(f"... and {len(built.broken) - 20:,} more; --json lists all")


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
    import dataclasses

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
