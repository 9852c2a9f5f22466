"""`tuwen explain`: where each word of a text is in a picture."""

import sys
from pathlib import Path

from tuwen.cli.output import only_json, print_json, print_table
from tuwen.cli.parser import add_command
from tuwen.errors import UserError

EXAMPLES = """\
  tuwen explain runs/wukong photo.jpg "红色的连衣裙" --out words.png
  tuwen explain runs/albef photo.jpg "a red dress" --out words.png --how attention"""


def add_to(commands) -> None:
    command = add_command(commands, "explain", run, "draw where each word of a text is in a picture", EXAMPLES)
    command.add_argument("run_folder", metavar="RUN", type=Path, help="folder written by `tuwen train`")
    command.add_argument("image", metavar="IMAGE", type=Path, help="a picture")
    command.add_argument("text", metavar="TEXT", help="what to look for")
    command.add_argument("--out", metavar="FILE", type=Path, required=True, help="PNG file to write")
    command.add_argument("--language", metavar="LANG", help="of the text (default: told from its script)")
    command.add_argument(
        "--how",
        choices=("tokens", "regions", "attention"),
        help="by tokens matched with words, by regions located for them, or by a cross encoder's attention "
        "(default: the first of these the system has)",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object with the maps")


def run(args) -> None:
    if args.out.suffix.lower() != ".png":
        raise UserError(f"{args.out}: pictures are written as PNG; name a file that ends in .png")
    if not args.image.is_file():
        raise UserError(f"{args.image}: no such picture")
    with only_json(args.json):
        from tuwen.data import images
        from tuwen.explain import explain
        from tuwen.explain.font import PACKAGE
        from tuwen.explain.picture import draw
        from tuwen.model import load
        from tuwen.training.parallel import device

        model = load(args.run_folder, device=str(device("auto")))
        explanation = explain(model.predictor, args.image, args.text, args.language, args.how)
        whole = model.config.model.image.shorter_side is None  # else what was read is a part from the middle
        lacking = draw(explanation, args.text, args.out, images.load(args.image) if whole else None)
        if lacking:
            advice = f"no font on this machine has {lacking}: install one, as by `pip install {PACKAGE}`"
            print(f"tuwen: {advice} or `apt-get install fonts-noto-cjk`; drawn as boxes", file=sys.stderr)
    if args.json:
        drawn = {"words": explanation.words, "maps": explanation.maps.tolist()}
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
