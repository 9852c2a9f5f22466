"""Boxes: the SLAN card's values by hand, pooling against grid_sample, choices and hot spots against loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.systems.common import random
from tuwen.nn.boxes import centred, choose_boxes, clipped, corners, generalized_overlap, hot_box, moved, overlap, pool


def boxes(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_update_by_hand():
    """Card, check 1."""
    found = moved(boxes([0.5, 0.5, 0.4, 0.2]), boxes([0.25, -0.5, math.log(0.5), math.log(2)]))
    torch.testing.assert_close(found, boxes([0.6, 0.4, 0.2, 0.4]))
    still = boxes([0.3, 0.6, 0.2, 0.4])
    torch.testing.assert_close(moved(still, torch.zeros(1, 4, dtype=torch.float64)), still)
    far = moved(still, torch.full((1, 4), 50.0, dtype=torch.float64))  # deltas are cut, and the box to the picture
    torch.testing.assert_close(far, moved(still, torch.ones(1, 4, dtype=torch.float64)))
    assert (corners(far) >= -1e-9).all()
    assert (corners(far) <= 1 + 1e-9).all()


def test_corners_and_back():
    held = boxes([0.5, 0.5, 0.4, 0.2], [0.1, 0.9, 0.2, 0.1])
    torch.testing.assert_close(corners(held)[0], boxes([0.3, 0.4, 0.7, 0.6])[0])
    torch.testing.assert_close(centred(corners(held)), held)
    torch.testing.assert_close(clipped(boxes([0.0, 0.5, 0.4, 2.0])), boxes([0.1, 0.5, 0.2, 1.0]))


def test_generalized_overlap_by_hand():
    """Card, check 3."""
    a, b = centred(boxes([0, 0, 2, 2])), centred(boxes([1, 1, 3, 3]))
    assert float(overlap(a, b)) == pytest.approx(1 / 7)
    assert float(generalized_overlap(a, b)) == pytest.approx(1 / 7 - 2 / 9)
    assert float(generalized_overlap(a, a)) == pytest.approx(1)
    apart = centred(boxes([5, 5, 6, 6])).requires_grad_()
    (slope,) = torch.autograd.grad(generalized_overlap(a, apart).sum(), apart)
    assert slope.abs().sum() > 0


@pytest.mark.parametrize("size", [1, 5, 7])
def test_pooling_is_grid_samples_value_and_gradient(size):
    """Also beyond the edges, on maps that are not square, at every level."""
    levels = [random(3, 5, 12, 10, seed=1), random(3, 5, 6, 5, seed=2)]
    held = torch.rand(3, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    held[..., 2:] = held[..., 2:] * 0.9 + 0.05
    span = held[..., 2:].prod(-1).sqrt()
    which = torch.stack([(span * level.shape[-1] / 4).log().abs() for level in levels]).argmin(0)
    assert 0 < which.sum() < which.numel()
    steps = (torch.arange(size, dtype=torch.float64) + 0.5) / size - 0.5

    def slowly(maps, one):
        rows = []
        for r in range(3):
            for n in range(9):
                x = one[r, n, 0] + steps * one[r, n, 2]
                y = one[r, n, 1] + steps * one[r, n, 3]
                grid = torch.stack([x.expand(size, size), y[:, None].expand(size, size)], -1) * 2 - 1
                level = maps[int(which[r, n])][r : r + 1]
                rows.append(F.grid_sample(level, grid[None], "bilinear", "border", align_corners=False).mean((0, 2, 3)))
        return torch.stack(rows).view(3, 9, 5)

    weight = random(3, 9, 5, seed=4)
    found = []
    for function in (lambda maps, one: pool(maps, one, size), slowly):
        leaves = [x.clone().requires_grad_() for x in (*levels, held)]
        value = function(leaves[:2], leaves[2])
        found.append((value, torch.autograd.grad((value * weight).sum(), leaves)))
    torch.testing.assert_close(found[0][0], found[1][0])
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b)


def test_pooling_a_slope_gives_the_centre_and_moves_with_it():
    """Card, check 2: on a map whose value is x, the mean is cx, d/dcx = 1, d/dw = 0; on x squared, d/dw > 0."""
    x = ((torch.arange(64, dtype=torch.float64) + 0.5) / 64).expand(64, 64)[None, None]
    held = boxes([[0.4, 0.5, 0.3, 0.2]]).requires_grad_()
    value = pool([x], held).sum()
    (slope,) = torch.autograd.grad(value, held)
    assert float(value.detach()) == pytest.approx(0.4, abs=1e-3)
    assert slope[0, 0].tolist() == pytest.approx([1, 0, 0, 0], abs=1e-3)
    (slope,) = torch.autograd.grad(pool([x**2], held).sum(), held)
    assert slope[0, 0, 2] > 0.01


def test_chosen_are_the_best_that_stand_apart():
    held = torch.rand(4, 30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.25
    scores = random(4, 30, seed=2)
    found = choose_boxes(scores, held, 6, 0.3)
    for row in range(4):
        kept: list[int] = []
        for k in scores[row].argsort(descending=True).tolist():
            if all(float(overlap(held[row, k], held[row, j])) <= 0.3 for j in kept):
                kept.append(k)
        assert found[row].tolist()[: len(kept)] == kept[:6]
        assert len(set(found[row].tolist())) == 6


def test_too_few_apart_are_filled_with_the_best_of_the_rest():
    held = boxes([0.5, 0.5, 0.4, 0.4]).expand(5, 4)[None]
    assert choose_boxes(torch.tensor([[0.1, 0.5, 0.2, 0.9, 0.3]]), held, 3).tolist() == [[3, 1, 4]]


def test_hot_box_is_the_spot_of_the_peak():
    heat = torch.zeros(2, 6, 8, dtype=torch.float64)
    heat[0, 1:3, 2:5] = 1.0
    heat[0, 2, 4] = 1.1
    heat[0, 4:, 6:] = 0.9  # another spot, not touching
    heat[0, 3, 5] = 1.0  # touches at a corner alone
    heat[1] = torch.arange(8.0)  # rises to the right: half way from 3.5 to 7 on
    found, share = hot_box(heat)
    torch.testing.assert_close(corners(found[0]), boxes([2 / 8, 1 / 6, 5 / 8, 3 / 6])[0])
    torch.testing.assert_close(corners(found[1]), boxes([6 / 8, 0, 1, 1])[0])
    assert share.tolist() == pytest.approx([6 / 48, 12 / 48])


def test_a_winding_spot_is_followed_to_its_end():
    heat = torch.zeros(1, 5, 5)
    for y, x in [
        (0, 0),
        (0, 1),
        (0, 2),
        (0, 3),
        (0, 4),
        (1, 4),
        (2, 4),
        (2, 3),
        (2, 2),
        (2, 1),
        (2, 0),
        (3, 0),
        (4, 0),
    ]:
        heat[0, y, x] = 1.0
    assert corners(hot_box(heat)[0]).tolist() == [[0, 0, 1, 1]]
