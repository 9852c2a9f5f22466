"""`tuwen data`: list public corpora; build one as shards, check one, show one."""

import sys
from pathlib import Path

from tuwen.cli.output import only_json, print_json, print_table
from tuwen.cli.parser import add_command, positive
from tuwen.errors import UserError

CORPUS = (
    "`scenes` or `scenes:seed=1,noise=0.2` (made up, no download), a folder written by `tuwen data build`, a folder "
    "with pairs.jsonl, a folder of pictures with .txt files beside them, a .csv, .tsv, .parquet or .jsonl table, or "
    "NAME:DIR, a public corpus as it was downloaded (`tuwen data list`)"
)
BUILD = """\
  tuwen data build scenes --out data/scenes --count 20000
  tuwen data build photos --out data/photos --side 256
  tuwen data build goods.csv --out data/goods
  tuwen data build coco-cn --from downloads/coco-cn --out data/coco-cn
  tuwen data build wukong --from downloads/wukong --out data/wukong --missing to_fetch.csv"""
LIST = """\
  tuwen data list
  tuwen data list coco-cn"""
CHECK = """\
  tuwen data check photos
  tuwen data check data/photos --json"""
SHOW = """\
  tuwen data show data/photos --out photos.html"""


def add_to(commands) -> None:
    summary = "list, build, check and show corpora"
    group = add_command(commands, "data", None, summary)
    actions = group.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    _add_list(actions)
    _add_build(actions)
    _add_check(actions)
    _add_show(actions)


def _add_list(actions) -> None:
    summary = "name the public corpora that can be read: what each needs, where it is to be had, its licence, its size"
    listing = add_command(actions, "list", run_list, summary, LIST)
    listing.add_argument("name", metavar="NAME", nargs="?", help="one of them, in full")
    listing.add_argument("--json", action="store_true", help="print one JSON object")


def _add_build(actions) -> None:
    build = add_command(actions, "build", run_build, "write a corpus as shards of resized pictures", BUILD)
    build.add_argument("corpus", metavar="CORPUS", help=CORPUS + "; or a public corpus's NAME with --from")
    build.add_argument("--from", dest="folder", metavar="DIR", type=Path, help="where the public corpus was downloaded")
    missing = "write addresses of pictures that are not there as CSV (url, caption, key), which img2dataset takes"
    build.add_argument("--missing", metavar="FILE", type=Path, help=missing)
    build.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write")
    side = "shrink pictures to this shorter side (default 288); scenes are drawn at it (default 128)"
    build.add_argument("--side", metavar="PIXELS", type=positive, help=side)
    build.add_argument("--count", metavar="N", type=positive, help="scenes: how many in the train split")
    build.add_argument("--seed", metavar="S", type=int, help="scenes: which ones")
    build.add_argument("--strict", action="store_true", help="stop at the first bad row instead of skipping it")


def _add_check(actions) -> None:
    summary = "find broken pictures, empty or duplicate texts, leaks between splits (status 1 if any)"
    check = add_command(actions, "check", run_check, summary, CHECK)
    check.add_argument("corpus", metavar="DIR", help=CORPUS)
    check.add_argument("--json", action="store_true", help="print one JSON object")


def _add_show(actions) -> None:
    show = add_command(actions, "show", run_show, "write a contact sheet: a page of pictures with their texts", SHOW)
    show.add_argument("corpus", metavar="DIR", help=CORPUS)
    show.add_argument("--out", metavar="FILE", type=Path, default=Path("contact_sheet.html"), help="page to write")
    show.add_argument("--split", default="train", help="split to show (default train)")
    show.add_argument("--count", metavar="N", type=positive, default=48, help="pictures to show (default 48)")


def run_list(args) -> None:
    from dataclasses import fields

    from tuwen.data.corpora import published

    chosen = [published.find(args.name)] if args.name else list(published.formats().values())
    told = [{field.name: getattr(one, field.name) for field in fields(one) if field.name != "read"} for one in chosen]
    if args.json:
        print_json({"corpora": told})
    elif args.name:
        print_table(
            "",
            ("", ""),
            [(name, value if isinstance(value, str) else " ".join(value)) for name, value in told[0].items()],
        )
    else:
        rows = [
            tuple(str(one[name]) for name in ("name", "title", "records", "needs", "ask", "licence")) for one in told
        ]
        print_table("", ("name", "corpus", "full copy", "needs", "to be had at", "licence"), rows, whole=("name",))


def run_build(args) -> None:
    from tuwen.data.corpora.fetched import MissingList
    from tuwen.data.open import source_of, splits_of
    from tuwen.data.shards import write

    if args.folder is not None:
        args.corpus = f"{args.corpus}:{args.folder}"
    locations = {split: location_of(args, split) for split in splits_of(args.corpus)}
    if args.missing is None:
        corpora = _opened(args, locations, None)
    else:
        with MissingList(args.missing) as missing:
            corpora = _opened(args, locations, missing.add)
            for url, caption in source_of(args.corpus).absent():
                missing.write(url, caption)
        print(f"{args.missing}: {missing.count:,} pictures to fetch", file=sys.stderr)
    written = write(corpora, args.out, **({"side": args.side} if args.side else {}), progress=sys.stderr.isatty())
    rows = []
    for split, corpus in corpora.items():
        left_out = dict(getattr(corpus, "skipped", {}))
        for reason, count in written[split]["broken"].items():
            left_out[reason] = left_out.get(reason, 0) + count
        told = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        rows.append((split, str(written[split]["count"]), ", ".join(corpus.languages), told or "-"))
    print_table(f"{args.out}", ("split", "rows", "languages", "left out"), rows)


def _opened(args, locations: dict[str, str], missing) -> dict:
    """Every split that has a usable row."""
    from tuwen.data.corpora.files import NoRows
    from tuwen.data.open import open_corpus

    on_bad = "stop" if args.strict else "skip"
    corpora = {}
    nothing = None
    for split, location in locations.items():
        try:
            corpora[split] = open_corpus(location, split, on_bad, missing, progress=sys.stderr.isatty())
        except NoRows as error:
            nothing = error
            print(f"split {split} is left out: {error}", file=sys.stderr)
    if not corpora and nothing:
        raise nothing
    return corpora


def location_of(args, split: str) -> str:
    """The corpus to build, with the command line's options for made-up scenes in it; --count is of the train split."""
    if args.corpus.split(":")[0] != "scenes" or Path(args.corpus).exists():
        if args.count is not None or args.seed is not None:
            raise UserError("--count and --seed are for scenes; a corpus of your own is written whole")
        return args.corpus
    given = {"count": args.count if split == "train" else None, "seed": args.seed, "side": args.side}
    options = [f"{name}={value}" for name, value in given.items() if value is not None]
    return args.corpus + ("," if ":" in args.corpus else ":") + ",".join(options) if options else args.corpus


def run_check(args) -> int:
    from tuwen.data.check import check

    with only_json(args.json):
        findings = check(args.corpus)
    if args.json:
        print_json(findings.to_json())
    else:
        from rich.console import Console

        Console(highlight=False, soft_wrap=True).print(findings)  # a fault stays one line
    return 1 if findings else 0


def run_show(args) -> None:
    from tuwen.data.open import open_corpus
    from tuwen.data.show import contact_sheet

    print(contact_sheet(open_corpus(args.corpus, args.split, "skip"), args.out, args.count))
