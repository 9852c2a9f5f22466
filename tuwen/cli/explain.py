"""`tuwen explain`: where each word of a text is in a picture; how evenly a system looks at many."""

import sys
from pathlib import Path

from tuwen.cli.output import only_json, print_json, print_line, print_table
from tuwen.cli.parser import add_command
from tuwen.errors import UserError

EXAMPLES = """\
  tuwen explain runs/wukong photo.jpg "红色的连衣裙" --out words.png
  tuwen explain runs/albef photo.jpg "a red dress" --out words.png --how attention
  tuwen explain runs/vlmae --focus scenes --split val"""
FOCUS = ("coverage", "described", "undescribed", "bias", "entropy")


def add_to(commands) -> None:
    command = add_command(commands, "explain", run, "draw where each word of a text is in a picture", EXAMPLES)
    command.add_argument("run_folder", metavar="RUN", type=Path, help="folder written by `tuwen train`")
    command.add_argument("image", metavar="IMAGE", type=Path, nargs="?", help="a picture")
    command.add_argument("text", metavar="TEXT", nargs="?", help="what to look for")
    command.add_argument("--out", metavar="FILE", type=Path, help="PNG file to write")
    command.add_argument("--language", metavar="LANG", help="of the text (default: told from its script)")
    command.add_argument(
        "--how",
        choices=("tokens", "regions", "attention"),
        help="by tokens matched with words, by regions located for them, or by a cross encoder's attention "
        "(default: the first of these the system has)",
    )
    command.add_argument(
        "--focus",
        metavar="CORPUS",
        help="instead of a picture: how evenly the cross encoder looks at pictures of a corpus with boxes, at what the "
        "captions name and at what they leave out",
    )
    command.add_argument("--split", metavar="SPLIT", default="val", help="of --focus (default: val)")
    command.add_argument("--limit", metavar="N", type=int, default=100, help="pictures of --focus (default: 100)")
    command.add_argument("--json", action="store_true", help="print one JSON object with the maps or figures")


def run(args) -> None:
    if args.focus is not None:
        if args.image is not None or args.out is not None:
            args.parser.error("--focus measures a corpus: leave out IMAGE, TEXT and --out")
        focus(args)
        return
    missing = [name for name in ("image", "text", "out") if getattr(args, name) is None]
    if missing:
        args.parser.error(f"a picture needs IMAGE, TEXT and --out; {', '.join(missing)} missing")
    explain_one(args)


def focus(args) -> None:
    with only_json(args.json):
        from tuwen.data.open import open_corpus
        from tuwen.explain.focus import measure_focus
        from tuwen.model import load
        from tuwen.training.parallel import device

        model = load(args.run_folder, device=str(device("auto")))
        figures = measure_focus(model.predictor, open_corpus(args.focus, args.split, "skip"), limit=args.limit)
    if args.json:
        print_json(figures)
        return
    rows = [
        (language, *("-" if of[name] is None else f"{of[name]:.2f}" for name in FOCUS), str(of["pictures"]))
        for language, of in figures["languages"].items()
    ]
    title = f"{figures['corpus']}, {figures['split']}: percent of the patches in boxes that are looked at, and entropy"
    print_table(title, ("language", *FOCUS, "pictures"), rows)


def explain_one(args) -> None:
    if args.out.suffix.lower() != ".png":
        raise UserError(f"{args.out}: pictures are written as PNG; name a file that ends in .png")
    if not args.image.is_file():
        raise UserError(f"{args.image}: no such picture")
    with only_json(args.json):
        from tuwen.explain import explain
        from tuwen.explain.font import PACKAGE
        from tuwen.explain.picture import draw
        from tuwen.model import load
        from tuwen.training.parallel import device

        model = load(args.run_folder, device=str(device("auto")))
        explanation = explain(model.predictor, args.image, args.text, args.language, args.how)
        lacking = draw(explanation, args.text, args.out)
        if lacking:
            advice = f"no font on this machine has {lacking}: install one, as by `pip install {PACKAGE}`"
            print_line(f"tuwen: {advice} or `apt-get install fonts-noto-cjk`; drawn as boxes", sys.stderr)
    if args.json:
        drawn = {"words": explanation.words, "maps": explanation.maps.tolist(), "part": list(explanation.part)}
        if explanation.boxes is not None:
            drawn["boxes"] = explanation.boxes.tolist()
        print_json({"out": str(args.out), "how": explanation.how, "score": explanation.score, **drawn})
        return
    rows = [(word, *_best(heat)) for word, heat in zip(explanation.words, explanation.maps, strict=True)]
    print_table(
        f"by {explanation.how}, score {explanation.score:.3f}; picture: {args.out}",
        ("word", "row", "column", "value"),
        rows,
    )


def _best(heat) -> tuple[str, str, str]:
    """The strongest place of a map, counted from the top left, and its value."""
    place = int(heat.flatten().argmax())
    return str(place // heat.shape[1] + 1), str(place % heat.shape[1] + 1), f"{float(heat.max()):.3f}"
