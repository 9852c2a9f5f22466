"""Colours changed by chance: what stays, how often what changes, and hues by the standard library."""

import colorsys

import numpy as np
import torch
from PIL import Image

from tuwen.data import draws
from tuwen.data.colour import colour_changed, hue_turned


def coloured(side: int = 24) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, (3, side, side), dtype=np.uint8))


def test_the_same_draws_give_the_same_picture():
    picture = coloured()
    for n in range(8):
        one, other = (colour_changed(picture, draws.generator(1, n)) for _ in range(2))
        assert torch.equal(one, other)
        assert one.shape == picture.shape
        assert one.dtype == torch.uint8


def test_places_stay_where_they_are():
    """A dark square on light ground stays where it is, or is light on dark where solarised."""
    picture = torch.full((3, 40, 40), 200, dtype=torch.uint8)
    picture[:, 10:20, 25:35] = 30
    for n in range(60):
        told = colour_changed(picture, draws.generator(n)).float().mean(0)
        away = (told - told[0, 0]).abs() > 20
        assert away[12:18, 27:33].all(), n
        assert not away[:8].any(), n
        assert not away[22:].any(), n


def test_shares_are_those_of_the_papers():
    """Grey: 2 of 10, whatever else is done. As it was: not jittered, grey or solarised, nor blurred visibly."""
    picture, count = coloured(), 800
    made = [colour_changed(picture, draws.generator(n)) for n in range(count)]
    grey = np.mean([torch.equal(x[0], x[1]) and torch.equal(x[1], x[2]) for x in made])
    same = np.mean([torch.equal(x, picture) for x in made])
    assert abs(grey - 0.2) < 0.05
    assert 0.2 * 0.8 * 0.9 * 0.5 - 0.03 < same < 0.2 * 0.8 * 0.9 + 0.03


def test_a_blur_is_as_wide_for_the_picture_whatever_its_size():
    """At 224 pixels an edge of black and white is softened over some pixels, at 24 hardly."""
    softened = {}
    for side in (24, 224):
        edge = torch.zeros(3, side, side, dtype=torch.uint8)
        edge[:, :, side // 2 :] = 127  # below what solarising turns
        made = [colour_changed(edge, draws.generator(n))[0, side // 2].float() for n in range(60)]
        between = [((row > row.min() + 0.2 * (row.max() - row.min())) & (row < row.max() * 0.8)).sum() for row in made]
        softened[side] = max(map(int, between))
    assert softened[224] >= 2
    assert softened[24] <= 1


def test_hues_turn_as_the_standard_library_says():
    for colour in ((200, 30, 30), (10, 120, 240), (90, 200, 90), (77, 77, 77)):
        picture = Image.new("RGB", (1, 1), colour)
        hue, saturation, value = colorsys.rgb_to_hsv(*(x / 255 for x in colour))
        expected = [255 * x for x in colorsys.hsv_to_rgb((hue + 0.25) % 1, saturation, value)]
        assert np.allclose(hue_turned(picture, 0.25).getpixel((0, 0)), expected, atol=4)
        assert np.allclose(hue_turned(picture, 0.0).getpixel((0, 0)), colour, atol=4)
