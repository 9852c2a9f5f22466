"""`tuwen index`: pictures made searchable, and an index brought up to date."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from tuwen.cli.data import CORPUS
from tuwen.cli.output import only_json, print_json, print_line
from tuwen.cli.parser import add_columns, add_command, positive, whole
from tuwen.cli.search import add_token
from tuwen.search.stamp import Request
from tuwen.speech import readable, spoken

INDEX = """\
  tuwen index runs/r2d2 photos --out photos.index
  tuwen index runs/r2d2 goods.csv --out goods.index --tokens int8 --prune
  tuwen index --remove 1047 1048 --out goods.index
  tuwen index --refit --out goods.index"""


def add_to(commands) -> None:
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
    add_token(index)
    index.add_argument("--remove", metavar="ID", nargs="+", help="take these pictures out; nothing else is done")
    index.add_argument("--batch-size", metavar="N", type=positive, default=64, help="pictures embedded at once")
    index.add_argument("--json", action="store_true", help="print one JSON object")


def run_index(args) -> int:
    if args.remove:
        _remove(args)
        return 0
    if args.pictures is None and not args.refit:
        args.parser.error("give RUN and PICTURES")
    given = ("tokens", "token_budget", "by", "first_bytes", "first_code", "milvus")
    settings = {name: getattr(args, name) for name in given}
    if args.refit and any(value is not None for value in settings.values()):
        args.parser.error("--refit keeps --tokens, --token-budget, --by, --first-bytes and --milvus as they are")
    options = {name: getattr(args, name) for name in ("split", "prefix", "prune", "exact")}
    began = time.monotonic()
    built = None if args.refit else Request(args.run_folder, args.pictures, args.out, settings | options).answer()
    if built is None:
        built = dataclasses.asdict(_build(args, settings, options))
    else:  # known before torch is imported
        built["seconds"] = time.monotonic() - began
    _print_built(built, args.json)
    return _status(built)


def _remove(args) -> None:
    from tuwen.search.index import Index

    if args.run_folder or args.pictures:
        args.parser.error("--remove goes with --out alone")
    gone = Index.open(args.out, token=args.token).remove(args.remove)
    print_json({"removed": gone}) if args.json else print_line(f"{gone} of {len(args.remove)} pictures taken out")


def _build(args, settings: dict[str, Any], options: dict[str, Any]) -> Any:
    """What was done, a `tuwen.search.ingest.Built`."""
    from tuwen.search.build import build_index
    from tuwen.search.refit import refit
    from tuwen.training.parallel import device

    options = {**options, "token": args.token, "batch_size": args.batch_size}
    options |= {"device": str(device("auto")), "progress": True, "say": print_line}
    with only_json(args.json):
        if args.refit:
            index = refit(args.out, args.pictures, args.run_folder, **options)
        else:
            index = build_index(args.run_folder, args.pictures, args.out, **settings, **options)
    return index.built


def _status(built: dict[str, Any]) -> int:
    """1 where a row was left out for its values, or most were."""
    if not built["broken"]:
        return 0
    from tuwen.search.ingest import BAD_ROW

    odd = any(picture["reason"].startswith(BAD_ROW) for picture in built["broken"])
    taken = sum(count for state, count in built["counts"].items() if state != "removed")
    return 1 if odd or 2 * built["counts"].get("broken", 0) > taken else 0


def _print_built(built: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(built)
        return
    states = ", ".join(f"{count:,} {spoken(state)}" for state, count in built["counts"].items())
    place = "" if built["bytes"] is None else spoken(f", {readable(built['bytes'])} on disk")
    total, seconds = spoken(f"{built['pictures']:,} pictures in the index"), built["seconds"]
    print_line(f"{states or spoken('no pictures')}; {total}{place}; {seconds:.1f} s")
    if built["skipped"]:
        skipped = ", ".join(f"{count:,} {spoken(reason)}" for reason, count in built["skipped"].items())
        print_line(f"left out: {skipped}")
    for picture in built["broken"][:20]:
        print_line(f"left out: {picture['id']}: {picture['reason']}")
    if len(built["broken"]) > 20:
        print_line(f"... and {len(built['broken']) - 20:,} more; --json lists all")
