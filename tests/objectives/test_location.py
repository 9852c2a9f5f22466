"""Boxes learned without gold: the SLAN card's targets by hand, regression and repulsion against loops."""

import pytest
import torch

from tuwen.nn.boxes import generalized_overlap, overlap
from tuwen.objectives.location import assign, progressive_regression, progressive_targets, repulsion


def boxes(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


START, END = boxes([0.2, 0.2, 0.2, 0.2]), boxes([0.5, 0.8, 0.8, 0.2])


def test_targets_by_hand():
    """Card, check 4."""
    found = progressive_targets(START, END, 3)
    torch.testing.assert_close(torch.cat(found), boxes([0.3, 0.4, 0.4, 0.2], [0.4, 0.6, 0.6, 0.2], END[0].tolist()))
    assert torch.equal(progressive_targets(START, END, 1)[0], END)


def test_who_follows_the_targets_loses_nothing_and_one_step_is_plain_regression():
    steps = [START[None], *(x[None] for x in progressive_targets(START, END, 3))]
    real = torch.ones(1, 1, dtype=torch.bool)
    assert float(progressive_regression(steps, END[None], real)) == pytest.approx(0, abs=1e-12)
    found = boxes([0.4, 0.7, 0.5, 0.3])
    one = progressive_regression([START[None], found[None]], END[None], real)
    want = 5 * float((found - END).abs().sum()) + 2 * (1 - float(generalized_overlap(found, END)))
    assert float(one) == pytest.approx(want)


def test_regression_is_a_loops_and_its_targets_take_no_gradient():
    """Card, check 8."""
    draw = torch.Generator().manual_seed(0)
    steps = [(torch.rand(3, 4, 4, dtype=torch.float64, generator=draw) * 0.5 + 0.2).requires_grad_() for _ in range(4)]
    wanted = (torch.rand(3, 4, 4, dtype=torch.float64, generator=draw) * 0.5 + 0.2).requires_grad_()
    real = torch.rand(3, 4, generator=draw) > 0.4
    loss = progressive_regression(steps, wanted, real)
    total, count = 0.0, int(real.sum())
    for step in range(1, 4):
        for r, n in real.nonzero().tolist():
            target = steps[0][r, n] + step / 3 * (wanted[r, n] - steps[0][r, n])
            apart = 5 * (steps[step][r, n] - target).abs().sum()
            apart = apart + 2 * (1 - generalized_overlap(steps[step][r, n], target))
            total += float(apart.detach()) / count / 3
    assert float(loss.detach()) == pytest.approx(total)
    found = torch.autograd.grad(loss, [*steps, wanted], allow_unused=True)
    assert found[0] is None
    assert found[-1] is None
    assert not found[2][~real].any()
    assert found[2][real].all()
    assert float(progressive_regression(steps, wanted, torch.zeros_like(real)).detach()) == 0


def test_a_box_is_given_the_reference_it_overlaps_most():
    held = boxes([0.5, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1], [0.6, 0.6, 0.4, 0.4])[None]
    references = boxes([0.55, 0.5, 0.4, 0.4], [0.62, 0.6, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1])[None]
    found, has = assign(held, references, torch.tensor([[True, True, False]]))
    assert has.tolist() == [[True, False, True]]
    assert torch.equal(found[0, 0], references[0, 0])
    assert torch.equal(found[0, 2], references[0, 1])


def test_repulsion_counts_what_passes_the_limit():
    held = boxes([0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.4], [0.52, 0.5, 0.4, 0.4])[None]
    near = float(overlap(held[0, 0], held[0, 2]))
    assert float(repulsion(held)) == pytest.approx((2 * 0.3 + 4 * (near - 0.7)) / 6)
    assert float(repulsion(held[:, :1])) == 0
    assert float(repulsion(boxes([0.2, 0.2, 0.1, 0.1], [0.7, 0.7, 0.1, 0.1])[None])) == 0
