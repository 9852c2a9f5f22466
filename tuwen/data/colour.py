"""Colours of a picture changed by chance, so that what two views of it share is what it shows."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from tuwen.data.images import to_pillow

BLUR_SIDE = 224  # pixels of the published pictures, of which the blur is told


def colour_changed(image: Tensor, generator: np.random.Generator) -> Tensor:
    """[3, H, W] uint8 with other colours (SimCLR, BYOL and DINO, arXiv 2104.14294, after BYOL's appendix B).

    Of 10 pictures 8 are jittered: brightness, contrast and saturation by a factor in 1 +- 0.4, 0.4, 0.2, hue by 0.1 of
    the circle, in an order drawn anew; then 2 lose their colour, 5 are blurred (deviation 0.1 to 2 pixels of 224) and
    1 is solarised. The papers blur one of two large views always and the other of 10 once, and solarise 2 of 10 of the
    latter; here all views are alike.
    """
    picture = to_pillow(image)
    jittered, grey, blurred, solarised = (float(draw) for draw in generator.random(4))
    factors = 1 + generator.uniform(-1, 1, 3) * (0.4, 0.4, 0.2)
    turn, deviation = generator.uniform(-0.1, 0.1), generator.uniform(0.1, 2.0)
    changes: list[Callable[[Image.Image], Image.Image]] = [
        lambda x: ImageEnhance.Brightness(x).enhance(float(factors[0])),
        lambda x: ImageEnhance.Contrast(x).enhance(float(factors[1])),
        lambda x: ImageEnhance.Color(x).enhance(float(factors[2])),
        lambda x: hue_turned(x, turn),
    ]
    order = generator.permutation(len(changes))
    for place in order if jittered < 0.8 else ():
        picture = changes[place](picture)
    if grey < 0.2:
        picture = ImageOps.grayscale(picture).convert("RGB")
    if blurred < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(deviation * min(picture.size) / BLUR_SIDE))
    if solarised < 0.1:
        picture = ImageOps.solarize(picture)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def hue_turned(picture: Image.Image, turn: float) -> Image.Image:
    """turn: share of the circle of hues."""
    hue, saturation, value = picture.convert("HSV").split()
    moved = (np.asarray(hue, dtype=np.int32) + round(256 * turn)) % 256
    return Image.merge("HSV", (Image.fromarray(moved.astype(np.uint8)), saturation, value)).convert("RGB")
