"""`tuwen import` and `tuwen export`: published weights in, and a run's out."""

from pathlib import Path

from tuwen.cli.output import only_json, print_json, print_line, print_table
from tuwen.cli.parser import add_command

IMPORTS = """\
  tuwen import OFA-Sys/chinese-clip-vit-base-patch16 --out runs/chinese-clip
  tuwen import clip_cn_vit-b-16.pt --tokenizer vocab.txt --out runs/cn-clip
  tuwen import checkpoints/r2d2.pth --layout r2d2 --tokenizer vocab.txt --out runs/r2d2-released"""
EXPORTS = """\
  tuwen export runs/photos --to hf --out exported/photos
  tuwen export runs/photos --to open_clip --out exported/photos
  tuwen export runs/photos --to onnx --int8 --json"""


def add_to(commands) -> None:
    into = add_command(commands, "import", run_import, "make a run folder of published weights", IMPORTS)
    into.add_argument(
        "source", metavar="DIR_OR_HUB_ID", help="folder of transformers or open_clip, a name on the hub, or a file"
    )
    into.add_argument("--out", metavar="RUN", type=Path, required=True, help="folder of the run; must hold none yet")
    layouts = ("albef", "r2d2", "prd2", "open_clip", "cn_clip")
    into.add_argument("--layout", choices=layouts, help="the file is of that paper's or project's own code")
    into.add_argument(
        "--tokenizer", metavar="FILE", help="tokenizer.json, vocab.txt or bpe_simple_vocab_16e6.txt.gz of such a file"
    )
    into.add_argument(
        "--prefix", metavar="TEXT", default="", help="what the names of its tensors begin with, taken off"
    )
    into.add_argument("--json", action="store_true", help="print one JSON object")
    out = add_command(commands, "export", run_export, "write a run as others read it", EXPORTS)
    out.add_argument("run_folder", metavar="RUN", type=Path, help="folder written by `tuwen train` or `tuwen import`")
    out.add_argument(
        "--to",
        choices=("hf", "open_clip", "cn_clip", "onnx"),
        required=True,
        help="hf, open_clip, cn_clip: as transformers and those projects read it, with a model card; onnx: towers and "
        "re-ranker, which OpenVINO reads as well",
    )
    out.add_argument("--out", metavar="DIR", type=Path, help="folder to write; onnx goes into the run's own")
    out.add_argument("--int8", action="store_true", help="of onnx: also with 8-bit weights")
    out.add_argument("--json", action="store_true", help="print one JSON object")


def run_import(args) -> None:
    from tuwen.exchange.importing import import_model

    with only_json(args.json):
        report = import_model(args.source, args.out, args.layout, args.tokenizer, args.prefix)
        if not args.json:
            for line in (*report.lines(), f"run: {args.out}"):
                print_line(line)
    if args.json:
        read = {"taken": len(report.taken), "not_taken": dict(report.unexpected), "notes": report.notes}
        print_json({"run": str(args.out), **read})


def run_export(args) -> None:
    if args.to != "onnx" and (args.int8 or not args.out):
        args.parser.error(f"--to {args.to} needs --out DIR, and has no --int8")
    if args.to == "onnx" and args.out:
        args.parser.error("--to onnx writes into the run's own folder; leave out --out")
    {"hf": _to_transformers, "onnx": _to_onnx}.get(args.to, _to_openai)(args)


def _to_transformers(args) -> None:
    from tuwen.exchange.exporting import export_model

    with only_json(args.json):
        architecture = export_model(args.run_folder, args.out)
        if not args.json:
            print_line(f"{architecture} written to {args.out}")
    if args.json:
        print_json({"architecture": architecture, "out": str(args.out)})


def _to_openai(args) -> None:
    from tuwen.exchange.openai_out import export_openai

    with only_json(args.json):
        load = export_openai(args.run_folder, args.out, args.to)
        if not args.json:
            print_line(f"written to {args.out}; it is read by {load}")
    if args.json:
        print_json({"out": str(args.out), "load": load})


def _to_onnx(args) -> None:
    from tuwen.exchange.onnx import export_onnx

    with only_json(args.json):
        about = export_onnx(args.run_folder, args.int8)
    if args.json:
        print_json(about)
        return
    rows = [
        (name, f"{part['difference']:.1e}", f"{part['torch_per_second']:.1f}", f"{part['onnx_per_second']:.1f}")
        for name, part in about["parts"].items()
    ]
    head = ("part", "difference", "torch rows/s", "onnx rows/s")
    print_table(f"{args.run_folder}/onnx, compared with torch in float32", head, rows)
