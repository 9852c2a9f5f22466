"""`tuwen export`: a run for engines other than torch."""

from pathlib import Path

from tuwen.cli.output import only_json, print_json, print_table
from tuwen.cli.parser import add_command

EXAMPLES = """\
  tuwen export runs/photos --format onnx
  tuwen export runs/photos --format onnx --int8 --json"""


def add_to(commands) -> None:
    command = add_command(commands, "export", run, "write a run's towers and re-ranker as ONNX", EXAMPLES)
    command.add_argument("run_folder", metavar="RUN", type=Path, help="folder of a run; RUN/onnx is written")
    command.add_argument("--format", choices=("onnx",), default="onnx", help="onnx, which OpenVINO reads as well")
    command.add_argument("--int8", action="store_true", help="also with 8-bit weights")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args) -> None:
    from tuwen.exchange.onnx import export_onnx

    with only_json(args.json):
        found = export_onnx(args.run_folder, args.int8)
    if args.json:
        print_json(found)
        return
    rows = [
        (name, f"{part['difference']:.1e}", f"{part['torch_per_second']:.1f}", f"{part['onnx_per_second']:.1f}")
        for name, part in found["parts"].items()
    ]
    head = ("part", "difference", "torch rows/s", "onnx rows/s")
    print_table(f"{args.run_folder}/onnx, compared with torch in float32", head, rows)
