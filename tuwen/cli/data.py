"""`tuwen data`: build a corpus as shards, check one, show one."""

from pathlib import Path

from tuwen.cli.parser import add_command, positive

CORPUS = (
    "`scenes` (made on the fly, no download), a folder written by `tuwen data build`, a folder with pairs.jsonl, "
    "a folder of pictures with .txt files beside them, or a .csv, .tsv, .parquet or .jsonl table"
)
BUILD = """\
  tuwen data build scenes --out data/scenes --count 20000
  tuwen data build photos --out data/photos --side 256
  tuwen data build goods.csv --out data/goods"""
CHECK = """\
  tuwen data check photos
  tuwen data check data/photos --json"""
SHOW = """\
  tuwen data show data/photos --out photos.jpg"""


def add_to(commands) -> None:
    summary = "build, check and show corpora"
    group = add_command(commands, "data", None, summary)
    actions = group.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    _add_build(actions)
    _add_check(actions)
    _add_show(actions)


def _add_build(actions) -> None:
    build = add_command(actions, "build", run_build, "write a corpus as shards of resized pictures", BUILD)
    build.add_argument("corpus", metavar="CORPUS", help=CORPUS)
    build.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write")
    build.add_argument("--side", metavar="PIXELS", type=positive, help="shorter side of the written pictures")
    build.add_argument("--count", metavar="N", type=positive, help="write at most so many rows (scenes: make so many)")
    build.add_argument("--seed", metavar="S", type=int, default=0, help="seed of made-up corpora (default 0)")
    build.add_argument("--strict", action="store_true", help="stop at the first bad row instead of skipping it")


def _add_check(actions) -> None:
    summary = "find broken pictures, empty or duplicate texts, leaks between splits (status 1 if any)"
    check = add_command(actions, "check", run_check, summary, CHECK)
    check.add_argument("corpus", metavar="DIR", help=CORPUS)
    check.add_argument("--json", action="store_true", help="print one JSON object")


def _add_show(actions) -> None:
    show = add_command(actions, "show", run_show, "draw a contact sheet of pictures with their texts", SHOW)
    show.add_argument("corpus", metavar="DIR", help=CORPUS)
    show.add_argument("--out", metavar="FILE", type=Path, default=Path("contact_sheet.jpg"), help="picture to write")
    show.add_argument("--split", default="train", help="split to show (default train)")
    show.add_argument("--count", metavar="N", type=positive, default=24, help="pictures to show (default 24)")


def run_build(args) -> None:
    raise NotImplementedError


def run_check(args) -> int:
    raise NotImplementedError


def run_show(args) -> None:
    raise NotImplementedError
