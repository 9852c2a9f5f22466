"""Several things in one picture, each searched for by its own part: boxes that are given, or that a system finds."""

import torch
from torch import Tensor

from tuwen.data.batch import Images
from tuwen.data.fit import on_whole
from tuwen.data.images import load
from tuwen.errors import UserError, quoted
from tuwen.predictor import Picture, Predictor

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 as shares of width and height


def checked_box(numbers: object) -> Box:
    """Four numbers in 0..1, each pair in order.

    Raises:
        UserError: they are not.
    """
    several = list(numbers) if isinstance(numbers, list | tuple) else []
    if not (len(several) == 4 and all(isinstance(x, int | float) and not isinstance(x, bool) for x in several)):
        raise UserError(f"a box is x0, y0, x1, y1 as shares of width and height, got {quoted(numbers, 60)}")
    x0, y0, x1, y1 = map(float, several)
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise UserError(f"a box lies in 0..1 with x0 < x1 and y0 < y1, got {quoted(several, 60)}")
    return x0, y0, x1, y1


def cropped(picture: Picture, box: Box) -> Tensor:
    """[3, h, w] uint8: the part of a picture, of whole pixels that the box touches.

    Raises:
        BrokenImage: the picture cannot be read.
    """
    pixels = load(picture)
    x0, y0, x1, y1 = checked_box(box)
    height, width = pixels.shape[1:]
    rows = slice(int(y0 * height), max(int(y0 * height) + 1, -int(-y1 * height // 1)))
    return pixels[:, rows, int(x0 * width) : max(int(x0 * width) + 1, -int(-x1 * width // 1))].contiguous()


@torch.no_grad()
def boxes_named(predictor: Predictor, picture: Picture, names: list[str]) -> list[Box]:
    """The best box of each name in a picture, by a system that locates (`slan`).

    Raises:
        UserError: the system cannot, or gives no boxes.
        BrokenImage: the picture cannot be read.
    """
    system = predictor.system
    if not system.can("locate"):
        raise system.lacks("locate", "it points at no part of a picture; give boxes")
    whole = load(picture)
    part = torch.tensor([predictor.fit.part(*whole.shape[1:])])
    with predictor.evaluating():
        pixels = predictor.pixels(whole)[None].expand(len(names), -1, -1, -1)
        images, texts = Images(pixels.contiguous()).to(predictor.device), predictor.tokens(names)
        boxes = system.locate(images, texts).boxes
    if boxes is None:
        raise system.lacks("locate boxes", "it gives heat alone; give boxes")
    return [_spread(box) for box in on_whole(boxes[:, 0].float().cpu(), part.expand(len(names), -1)).tolist()]


def _spread(box: list[float]) -> Box:
    """The box within the picture, at least a hundredth wide and high."""
    x0, y0, x1, y1 = (min(max(x, 0.0), 1.0) for x in box)
    x0, y0 = min(x0, 0.99), min(y0, 0.99)
    return x0, y0, max(x1, x0 + 0.01), max(y1, y0 + 0.01)
