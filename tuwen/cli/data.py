"""`tuwen data`: list public corpora; build one as shards, check, clean and show one, select by clicks."""

import sys
from collections import Counter
from pathlib import Path

from tuwen.cli.output import only_json, print_json, print_line, print_table
from tuwen.cli.parser import add_columns, add_command, positive, ratio, share
from tuwen.errors import UserError
from tuwen.speech import spoken

CORPUS = (
    "`scenes` or `scenes:seed=1,noise=0.2` (made up, no download), a folder written by `tuwen data build`, a folder "
    "with pairs.jsonl, a folder of pictures with .txt files beside them, a .csv, .tsv, .xlsx, .parquet or .jsonl "
    "table, or NAME:DIR, a public corpus as it was downloaded (`tuwen data list`), or mix:A=2;B=1, of these with their "
    "weights"
)
BUILD = """\
  tuwen data build scenes --out data/scenes --count 20000
  tuwen data build photos --out data/photos --side 256
  tuwen data build goods.xlsx --columns 主图=image 品名=title --out data/goods
  tuwen data build coco-cn --from downloads/coco-cn --out data/coco-cn
  tuwen data build wukong --from downloads/wukong --out data/wukong --missing to_fetch.csv"""
LIST = """\
  tuwen data list
  tuwen data list coco-cn"""
CHECK = """\
  tuwen data check photos
  tuwen data check data/photos --json
  tuwen data check coco-cn:downloads --against data/zero --page findings.html --tokenizer vocab.txt --length 32"""
CLEAN = """\
  tuwen data clean photos --out data/photos --drop leak,small_picture,similar_picture
  tuwen data clean photos --out data/photos --drop similar_picture,other_language --simplify"""
CLICKS = """\
  tuwen data clicks log.csv --out pairs.jsonl --floor 10 --least 0.2
  tuwen data clicks scenes:clicks=true,noise=0.5 --out data/clicked --share 0.5"""
SHOW = """\
  tuwen data show data/photos --out photos.html
  tuwen data show data/photos --split test --all --count 100 --out photos.html"""


def add_to(commands):
    """Gives the group's actions, so that stages add theirs."""
    summary = "list, build, check, clean and show corpora, select pairs by clicks"
    group = add_command(commands, "data", None, summary)
    actions = group.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    _add_list(actions)
    _add_build(actions)
    _add_check(actions)
    _add_clean(actions)
    _add_clicks(actions)
    _add_show(actions)
    return actions


def _add_list(actions) -> None:
    summary = "name the public corpora that can be read: what each needs, where it is to be had, its licence, its size"
    listing = add_command(actions, "list", run_list, summary, LIST)
    listing.add_argument("name", metavar="NAME", nargs="?", help="one of them, in full")
    listing.add_argument("--json", action="store_true", help="print one JSON object")


def _add_build(actions) -> None:
    build = add_command(actions, "build", run_build, "write a corpus as shards of resized pictures", BUILD)
    build.add_argument("corpus", metavar="CORPUS", help=CORPUS + "; or a public corpus's NAME with --from")
    add_columns(build)
    build.add_argument("--from", dest="folder", metavar="DIR", type=Path, help="where the public corpus was downloaded")
    missing = "write addresses of pictures that are not there as CSV (url, caption, key), which img2dataset takes"
    build.add_argument("--missing", metavar="FILE", type=Path, help=missing)
    build.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write")
    side = "shrink pictures to this shorter side (default 288); scenes are drawn at it (default 128)"
    build.add_argument("--side", metavar="PIXELS", type=positive, help=side)
    build.add_argument("--count", metavar="N", type=positive, help="scenes: how many in the train split")
    build.add_argument("--seed", metavar="S", type=int, help="scenes: which ones; --fraction: which rows")
    build.add_argument("--fraction", metavar="F", type=share, help="this share of the train split, drawn by --seed")
    build.add_argument("--ids", metavar="FILE", type=Path, help="only the rows whose ids the file lists, one a line")
    build.add_argument("--strict", action="store_true", help="stop at the first bad row instead of skipping it")


def _add_check(actions) -> None:
    summary = (
        "find broken pictures, empty texts, leaks between splits (status 1 if any); remark on copies, other languages, "
        "small, extreme, grey and empty pictures"
    )
    check = add_command(actions, "check", run_check, summary, CHECK)
    _add_what_is_checked(check)
    check.add_argument("--page", metavar="FILE", type=Path, help="write a page with examples of each finding")
    check.add_argument("--json", action="store_true", help="print one JSON object")


def _add_what_is_checked(command) -> None:
    command.add_argument("corpus", metavar="DIR", help=CORPUS)
    add_columns(command)
    other = "another corpus in which its pictures are looked for; may be given again"
    command.add_argument("--against", metavar="DIR", action="append", default=[], help=other)
    command.add_argument("--tokenizer", metavar="FILE", help="a tokenizer.json, vocab.txt or run: count tokens")
    command.add_argument("--length", metavar="N", type=positive, help="most tokens a text: remark on longer ones")
    command.add_argument("--min-side", metavar="PIXELS", type=positive, default=64, help="small picture (default 64)")
    command.add_argument("--max-aspect", metavar="R", type=ratio, default=3.0, help="extreme picture (default 3)")


def _add_clean(actions) -> None:
    summary = "check a corpus and write it as shards without chosen findings; removed.jsonl there lists what went"
    clean = add_command(actions, "clean", run_clean, summary, CLEAN)
    _add_what_is_checked(clean)
    clean.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write")
    kinds = "findings to act on, joined by commas, as `tuwen data check` calls them (blanks may be _)"
    clean.add_argument("--drop", metavar="KINDS", default="", help=kinds)
    clean.add_argument(
        "--simplify", action="store_true", help="write traditional Chinese characters as simplified ones"
    )
    clean.add_argument("--half-width", action="store_true", help="write full-width letters, digits and signs as ASCII")
    clean.add_argument("--side", metavar="PIXELS", type=positive, default=288, help="shrink pictures (default 288)")


def _add_clicks(actions) -> None:
    summary = "keep the pairs that users clicked: impressions floor, Wilson lower bound, best pictures a query"
    clicks = add_command(actions, "clicks", run_clicks, summary, CLICKS)
    log = "a click log (.csv, .tsv, .jsonl: query, image, impressions, clicks), or a corpus with a column clicks"
    clicks.add_argument("log", metavar="LOG", help=log)
    out = "for a log: the .jsonl table to write, in the folder its picture paths start at; for a corpus: a folder"
    clicks.add_argument("--out", metavar="FILE", type=Path, required=True, help=out)
    clicks.add_argument("--floor", metavar="N", type=positive, default=5, help="fewest impressions (default 5)")
    clicks.add_argument("--least", metavar="RATE", type=float, default=0.0, help="lowest Wilson bound (default 0)")
    clicks.add_argument("--top", metavar="K", type=positive, help="at most so many pictures a query")
    clicks.add_argument("--share", metavar="F", type=share, help="only this share of all pairs, the best")


def _add_show(actions) -> None:
    show = add_command(actions, "show", run_show, "write a contact sheet: a page of pictures with their texts", SHOW)
    show.add_argument("corpus", metavar="DIR", help=CORPUS)
    add_columns(show)
    show.add_argument("--out", metavar="FILE", type=Path, default=Path("contact_sheet.html"), help="page to write")
    show.add_argument("--split", help="split to show (default train, or the first there is)")
    show.add_argument("--count", metavar="N", type=positive, default=48, help="pictures to show (default 48)")
    everything = "show every row in order, --count a page: FILE, and -2, -3, ... before its ending"
    show.add_argument("--all", action="store_true", help=everything)


def run_list(args) -> None:
    from dataclasses import fields

    from tuwen.data.corpora import published

    chosen = [published.find_format(args.name)] if args.name else list(published.formats().values())
    about = [
        {field.name: getattr(form, field.name) for field in fields(form) if field.name != "read"} for form in chosen
    ]
    if args.json:
        print_json({"corpora": about})
    elif args.name:
        called = {"title": "corpus", "records": "full copy", "ask": "to be had at"}
        print_table(
            "",
            ("", ""),
            [
                (spoken(called.get(name, name)), spoken(value if isinstance(value, str) else " ".join(value)))
                for name, value in about[0].items()
            ],
        )
    else:
        rows = [
            tuple(spoken(str(corpus[name])) for name in ("name", "title", "records", "needs", "ask", "licence"))
            for corpus in about
        ]
        print_table("", ("name", "corpus", "full copy", "needs", "to be had at", "licence"), rows, whole=("name",))


def run_build(args) -> None:
    from tuwen.data.corpora.fetched import MissingList
    from tuwen.data.corpora.files import EVERY
    from tuwen.data.open import source_of, splits_of
    from tuwen.data.shards import write_shards

    if args.folder is not None:
        args.corpus = f"{args.corpus}:{args.folder}"
    locations = {split: location_of(args, split) for split in splits_of(args.corpus) or (EVERY,)}  # EVERY tells why
    if args.missing is None:
        corpora = _opened(args, locations, None)
    else:
        with MissingList(args.missing) as missing:
            try:
                for url, caption in source_of(args.corpus).absent():
                    missing.write(url, caption)
                corpora = _opened(args, locations, missing.add)
            finally:  # at first nothing may be there but the list
                print_line(f"{args.missing}: {missing.count:,} pictures to fetch", sys.stderr)
    common = _common_faults(corpora)
    corpora = _chosen(args, corpora)
    if any(corpus.weights for corpus in corpora.values()):
        print_line("the weights of a mixture are for training on it; here each row is written once", sys.stderr)
    written = write_shards(
        corpora, args.out, **({"side": args.side} if args.side else {}), progress=sys.stderr.isatty()
    )
    rows = []
    for split, corpus in corpora.items():
        left_out = Counter(corpus.skipped) - common + Counter(written[split]["broken"])
        rows.append((split, str(written[split]["count"]), ", ".join(corpus.languages), _counts(left_out)))
    if common:
        rows.append((spoken("of no split"), "", "", _counts(common)))
    print_table(f"{args.out}", ("split", "rows", "languages", "left out"), rows)


def _common_faults(corpora: dict) -> Counter:
    """By reason, lines of which every split tells, since what is wrong with them hides their own."""
    first, *others = [dict.fromkeys(corpus.faults) for corpus in corpora.values()]
    return Counter(fault.reason for fault in first if others and all(fault in other for other in others))


def _counts(counts: Counter) -> str:
    return ", ".join(f"{count} {spoken(reason)}" for reason, count in counts.items()) or "-"


def _chosen(args, corpora: dict) -> dict:
    """What --ids and --fraction leave."""
    from tuwen.data.subset import by_ids, fraction

    if args.ids is not None:
        try:
            ids = set(filter(None, map(str.strip, args.ids.read_text(encoding="utf-8-sig").splitlines())))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{args.ids}: cannot be read: {error}; a text file with an id a line") from None
        corpora = by_ids(corpora, ids)
    if args.fraction is not None:
        if "train" not in corpora:
            raise UserError(f"--fraction is of the split train; there are: {', '.join(corpora)}")
        corpora = corpora | {"train": fraction(corpora["train"], args.fraction, args.seed or 0)}
    return corpora


def _opened(args, locations: dict[str, str], missing) -> dict:
    """Every split that has a usable row."""
    from tuwen.data.corpora.files import NoRows
    from tuwen.data.open import open_corpus

    on_bad = "stop" if args.strict else "skip"
    corpora = {}
    empty = {}
    for split, location in locations.items():
        try:
            corpora[split] = open_corpus(location, split, on_bad, missing, progress=sys.stderr.isatty())
        except NoRows as error:
            empty[split] = error
    if not corpora and empty:
        raise next(iter(empty.values()))
    for split, why in empty.items():
        print_line(f"split {split} is left out: {why}", sys.stderr)
    return corpora


def location_of(args, split: str) -> str:
    """The corpus to build, with the command line's options for made-up scenes in it; --count is of the train split."""
    if args.corpus.split(":")[0] != "scenes" or Path(args.corpus).exists():
        if args.count is not None or (args.seed is not None and args.fraction is None):
            raise UserError("--count and --seed are for scenes; for part of a corpus of your own give --fraction")
        return args.corpus
    given = {"count": args.count if split == "train" else None, "seed": args.seed, "side": args.side}
    options = [f"{name}={value}" for name, value in given.items() if value is not None]
    return args.corpus + ("," if ":" in args.corpus else ":") + ",".join(options) if options else args.corpus


def run_check(args) -> int:
    with only_json(args.json):
        findings = _checked(args)
    if args.page:
        from tuwen.data.curate.check_page import write_page

        print_line(str(write_page(findings, args.page)), sys.stderr)
    if args.json:
        print_json(findings.to_json())
    else:
        from rich.console import Console

        Console(highlight=False, soft_wrap=True).print(findings)  # a fault stays one line
    return 1 if findings else 0


def _checked(args):
    from tuwen.data.curate.check import check
    from tuwen.data.curate.quality import QualityLimits
    from tuwen.data.text import Tokenizer

    tokenizer = Tokenizer.load(args.tokenizer) if args.tokenizer else None
    if args.length and tokenizer is None:
        raise UserError("--length counts tokens; give the --tokenizer too")
    limits = QualityLimits(side=args.min_side, aspect=args.max_aspect)
    return check(args.corpus, tokenizer, length=args.length, against=args.against, limits=limits)


def run_clean(args) -> None:
    from tuwen.data.curate.clean import clean

    kinds = [kind.strip().replace("_", " ") for kind in args.drop.split(",") if kind.strip()]
    if not kinds and not args.simplify and not args.half_width:
        raise UserError("nothing to do; give --drop KINDS, --simplify or --half-width")
    findings = _checked(args)
    progress = sys.stderr.isatty()
    removed = clean(findings, args.out, kinds, args.simplify, args.half_width, args.side, progress)
    rows = [(split or spoken("of no split"), _counts(counts)) for split, counts in removed.items()]
    print_table(f"{args.out}", ("split", "removed"), rows)


def run_clicks(args) -> None:
    from tuwen.data.clicked import Rule
    from tuwen.data.curate.clicks import by_clicks, select_log
    from tuwen.data.open import open_corpus, splits_of
    from tuwen.data.shards import write_shards

    rule = Rule(args.floor, args.least, args.top, args.share)
    if Path(args.log).suffix.lower() in (".csv", ".tsv", ".jsonl", ".json") and Path(args.log).is_file():
        seen, chosen, faulty = select_log(args.log, args.out, rule)
        left_out = spoken(f"; lines left out: {_counts(Counter(faulty))}") if faulty else ""
        print_line(f"{args.out}: " + spoken(f"{chosen:,} of {seen:,} pairs") + left_out)
        return
    corpora = {split: by_clicks(open_corpus(args.log, split, "skip"), rule) for split in splits_of(args.log)}
    written = write_shards(corpora, args.out, progress=sys.stderr.isatty())
    print_table(f"{args.out}", ("split", "rows"), [(split, str(about["count"])) for split, about in written.items()])


def run_show(args) -> None:
    from tuwen.data.curate.show import contact_sheet, contact_sheets
    from tuwen.data.open import open_corpus, splits_of

    there = splits_of(args.corpus)
    split = args.split or ("train" if "train" in there or not there else there[0])
    corpus = open_corpus(args.corpus, split, "skip")
    pages = contact_sheets(corpus, args.out, args.count) if args.all else [contact_sheet(corpus, args.out, args.count)]
    for page in pages:
        print_line(str(page))
