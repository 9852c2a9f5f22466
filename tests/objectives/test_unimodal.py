"""Contrast within a side: the COOKIE card's values by hand, and against a loop."""

import math

import pytest
import torch

from tests.systems.common import units
from tuwen.objectives.contrastive import contrastive
from tuwen.objectives.unimodal import view_contrastive

EYE = torch.eye(2, dtype=torch.float64)


def test_card_value_of_two_orthonormal_pairs():
    """Card, check 6: ln(1 + 2 e^-2) over the 3 others; with itself it would be ln(2 + 2 e^-2)."""
    views = torch.cat([EYE, EYE])
    positive = torch.eye(2, dtype=torch.bool).repeat(2, 2)
    itself = torch.eye(4, dtype=torch.bool)
    loss = view_contrastive(views, views, positive, itself, 0.5)
    assert float(loss) == pytest.approx(0.2395, abs=5e-5)
    assert float(loss) == pytest.approx(math.log(1 + 2 * math.exp(-2)))
    across = contrastive(EYE, EYE, EYE, EYE, torch.eye(2, dtype=torch.bool), 0.5)
    assert float(across) == pytest.approx(math.log(1 + math.exp(-2)))  # 0.1269: two views, itself not among them


def test_against_a_loop_with_repeated_identities():
    identity = [4, 9, 4, 7]
    first, second = units(4, 5, 1).requires_grad_(), units(4, 5, 2).requires_grad_()
    views, ids = torch.cat([first, second]), torch.tensor(identity * 2)
    loss = view_contrastive(views, views, ids[:, None] == ids, torch.eye(8, dtype=torch.bool), 0.3)
    total = views.new_zeros(())
    for i in range(8):
        others = [j for j in range(8) if j != i]
        log_p = torch.stack([views[i] @ views[j] / 0.3 for j in others]).log_softmax(0)
        right = [log_p[k] for k, j in enumerate(others) if ids[j] == ids[i]]
        total = total - sum(right) / len(right) / 8
    assert float(loss.detach()) == pytest.approx(float(total.detach()))
    ours, theirs = (torch.autograd.grad(x, (first, second), retain_graph=True) for x in (loss, total))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_swapping_the_views_changes_nothing():
    """Card, check 7."""
    first, second = units(5, 6, 3), units(5, 6, 4)
    positive, itself = torch.eye(5, dtype=torch.bool).repeat(2, 2), torch.eye(10, dtype=torch.bool)
    one, other = (torch.cat(x) for x in ((first, second), (second, first)))
    forth = view_contrastive(one, one, positive, itself, 0.2)
    back = view_contrastive(other, other, positive, itself, 0.2)
    assert float(forth) == pytest.approx(float(back), abs=1e-12)


def test_texts_of_one_picture_are_drawn_together():
    """Card, check 8: a step down the gradient raises the cosine of two texts of one picture, where a diagonal target
    would lower it."""
    ids = torch.tensor([1, 1, 2] * 2)
    views = torch.cat([units(3, 4, 5), units(3, 4, 6)]).requires_grad_()
    itself = torch.eye(6, dtype=torch.bool)
    diagonal = torch.eye(3, dtype=torch.bool).repeat(2, 2)
    moved = []
    for positive in (ids[:, None] == ids, diagonal):
        (slope,) = torch.autograd.grad(view_contrastive(views, views, positive, itself, 0.2), views)
        after = torch.nn.functional.normalize(views.detach() - 1e-3 * slope, dim=1)
        moved.append(float(after[0] @ after[1] - views.detach()[0] @ views.detach()[1]))
    assert moved[1] < 0 < moved[0]
