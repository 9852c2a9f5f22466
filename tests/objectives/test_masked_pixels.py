"""Masked pixels by hand, and what must not count."""

import pytest
import torch

from tuwen.objectives.masked_pixels import masked_pixels, patches_of

# one picture of two patches of 2 x 2: the left one holds red 0 2 0 2 and nothing else, the right one is all 5
PIXELS = torch.zeros(1, 3, 2, 4, dtype=torch.float64)
PIXELS[0, 0, :, 1] = 2
PIXELS[0, :, :, 2:] = 5


def test_pixels_of_a_patch_stand_row_by_row_with_their_channels_together():
    picture = torch.arange(48.0).view(1, 3, 4, 4)  # channel c, row r, column k: 16 c + 4 r + k
    patches = patches_of(picture, 2)
    assert patches[0, 1].tolist() == [2, 18, 34, 3, 19, 35, 6, 22, 38, 7, 23, 39]
    assert patches[0, 2, :6].tolist() == [8, 24, 40, 9, 25, 41]


def test_by_hand():
    """Twelve numbers, two of them 2: mean 1/3, unbiased variance (2 (5/3)^2 + 10 (1/3)^2) / 11 = 20/33."""
    told = torch.zeros(1, 2, 12, dtype=torch.float64)
    first, second = torch.tensor([[True, False]]), torch.tensor([[False, True]])
    assert float(masked_pixels(told, PIXELS, first, 2)) == pytest.approx(11 / 12, abs=1e-5)
    assert float(masked_pixels(told, PIXELS, second, 2)) == 0  # one colour: all 0, and no division by 0
    assert float(masked_pixels(told + 1, PIXELS, second, 2)) == 1
    both = float(masked_pixels(told + 1, PIXELS, first | second, 2))
    assert both == pytest.approx((11 / 12 + 1 + 1) / 2, abs=1e-5)  # the mean of the target is 0
    right = torch.full((12,), -1 / 3, dtype=torch.float64)
    right[[3, 9]] = 5 / 3
    told[0, 0] = right / (20 / 33 + 1e-6) ** 0.5
    assert float(masked_pixels(told, PIXELS, first, 2)) == pytest.approx(0, abs=1e-15)


def test_zeros_cost_the_share_of_the_unbiased_variance():
    """VLMAE's card, check 4: 191/192 for patches of 8 x 8."""
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    loss = masked_pixels(torch.zeros(2, 4, 192), pixels, torch.ones(2, 4, dtype=torch.bool), 8)
    assert float(loss) == pytest.approx(191 / 192, abs=1e-5)


def test_patches_that_were_seen_take_no_gradient():
    told = torch.randn(1, 2, 12, dtype=torch.float64, requires_grad=True)
    loss = masked_pixels(told, PIXELS, torch.tensor([[True, False]]), 2)
    gradient = torch.autograd.grad(loss, told)[0]
    assert (gradient[0, 1] == 0).all()
    assert (gradient[0, 0] != 0).all()
    nothing = masked_pixels(told, PIXELS, torch.zeros(1, 2, dtype=torch.bool), 2)
    assert float(nothing.detach()) == 0
    assert (torch.autograd.grad(nothing, told)[0] == 0).all()
