"""`tuwen generate`: captions of pictures and translations of texts by a run with a decoder."""

from pathlib import Path
from typing import Any

from tuwen.cli.output import only_json, print_json
from tuwen.cli.parser import add_command, positive

EXAMPLES = """\
  tuwen generate runs/unix2 cat.jpg dog.png --language zh
  tuwen generate runs/unix2 --texts "一只猫" --language en
  tuwen generate runs/unix2 cat.jpg --texts "an animal" --language zh
  tuwen generate runs/unix2 cat.jpg --language en --method nucleus --seed 1 --json"""


def add_to(commands) -> None:
    command = add_command(
        commands, "generate", run, "caption pictures, translate texts, with their pictures or without", EXAMPLES
    )
    command.add_argument("run_folder", metavar="RUN", type=Path, help="folder written by `tuwen train`")
    command.add_argument("pictures", metavar="PICTURE", nargs="*", type=Path, help="pictures to caption or to look at")
    command.add_argument("--texts", metavar="TEXT", nargs="+", help="texts to translate, one for each picture if any")
    command.add_argument("--language", metavar="LANG", required=True, help="of the texts to make")
    methods = ("beam", "greedy", "nucleus")
    command.add_argument("--method", choices=methods, default="beam", help="how words are chosen (default beam)")
    command.add_argument("--beams", metavar="K", type=positive, default=5, help="of beam search (default 5)")
    command.add_argument("--seed", metavar="N", type=int, default=0, help="of the nucleus's draws (default 0)")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args) -> None:
    if not args.pictures and not args.texts:
        args.parser.error("give pictures, --texts, or both")
    with only_json(args.json):
        made = captions_and_translations(args)
    if args.json:
        print_json({"language": args.language, "results": made})
        return
    for row in made:
        print("\t".join(str(row[name]) for name in ("picture", "text", "made") if name in row))


def captions_and_translations(args) -> list[dict[str, Any]]:
    """What was given and made, one a picture or text."""
    from tuwen.model import load
    from tuwen.nn.generation import Generation
    from tuwen.training.parallel import device

    model = load(args.run_folder, device=str(device("auto")))
    how = Generation(args.method, args.beams, seed=args.seed)
    made = model.generate(args.language, args.pictures or None, args.texts, how)
    rows: list[dict[str, Any]] = [{} for _ in made]
    for name, given in (("picture", [str(path) for path in args.pictures]), ("text", args.texts or []), ("made", made)):
        for row, value in zip(rows, given, strict=False):
            row[name] = value
    return rows
