"""`tuwen weights`: published weights in and out."""

from pathlib import Path

from tuwen.cli.output import only_json, print_json, print_line
from tuwen.cli.parser import Parser, add_command

EXAMPLES = """\
  tuwen weights import OFA-Sys/chinese-clip-vit-base-patch16 --out runs/chinese-clip
  tuwen weights import checkpoints/r2d2.pth --layout r2d2 --tokenizer vocab.txt --out runs/r2d2-released
  tuwen weights export runs/photos --out exported/photos"""


def add_to(commands) -> None:
    command = add_command(commands, "weights", None, "bring published weights in, and write a run's out", EXAMPLES)
    verbs = command.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    into = add_command(verbs, "import", run_import, "make a run folder of published weights")
    into.add_argument("source", metavar="DIR_OR_HUB_ID", help="folder of transformers, hub name, or a file (--layout)")
    into.add_argument("--out", metavar="RUN", type=Path, required=True, help="folder of the run; must hold none yet")
    into.add_argument("--layout", choices=("albef", "r2d2", "prd2"), help="the file is of that paper's own code")
    into.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json or vocab.txt of such a file")
    into.add_argument(
        "--prefix", metavar="TEXT", default="", help="what the names of its tensors begin with, taken off"
    )
    into.add_argument("--json", action="store_true", help="print one JSON object")
    out = add_command(verbs, "export", run_export, "write a run as transformers reads it, with a model card")
    out.add_argument("run_folder", metavar="RUN", type=Path, help="folder written by `tuwen train` or an import")
    out.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write")
    out.add_argument("--json", action="store_true", help="print one JSON object")


def run_import(args) -> None:
    from tuwen.exchange.importing import import_model

    with only_json(args.json):
        report = import_model(args.source, args.out, args.layout, args.tokenizer, args.prefix)
        if not args.json:
            for line in (*report.lines(), f"run: {args.out}"):
                print_line(line)
    if args.json:
        told = {"taken": len(report.taken), "not_taken": dict(report.unexpected), "notes": report.notes}
        print_json({"run": str(args.out), **told})


def run_export(args) -> None:
    from tuwen.exchange.exporting import export_model

    with only_json(args.json):
        architecture = export_model(args.run_folder, args.out)
        if not args.json:
            print_line(f"{architecture} written to {args.out}")
    if args.json:
        print_json({"architecture": architecture, "out": str(args.out)})
