"""Weakly supervised grounding by hand and against loops."""

import pytest
import torch

from tuwen.objectives.grounding import grounding_scores, weakly_supervised_grounding

TRUE, FALSE = torch.tensor([True]), torch.tensor([False])


def score(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64, requires_grad=True)


def test_by_hand():
    """MVPTR card, section 11, check 8."""
    assert float(weakly_supervised_grounding(score(0.6), score(0.5), TRUE).detach()) == pytest.approx(0.1)
    assert float(weakly_supervised_grounding(score(0.6), score(0.3), TRUE).detach()) == 0
    own = score(0.6)
    nothing = weakly_supervised_grounding(own, score(0.5), FALSE)
    assert float(nothing.detach()) == 0
    assert float(torch.autograd.grad(nothing, own)[0]) == 0
    both = weakly_supervised_grounding(torch.tensor([0.6, 0.1]), torch.tensor([0.5, 0.9]), torch.tensor([True, False]))
    assert float(both) == pytest.approx(0.1)


def numbers(*shape: int, seed: int) -> torch.Tensor:
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("regions", [5, 2, 1])
@pytest.mark.parametrize("drawn", [False, True])
def test_scores_are_the_loops_with_fewer_than_three_regions_too(regions, drawn):
    phrases, seen = numbers(4, 3, 6, seed=1).requires_grad_(), numbers(4, regions, 6, seed=2).requires_grad_()
    mask = torch.tensor([[True, True, True], [True, False, False], [False] * 3, [True, True, False]])
    which = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = grounding_scores(phrases, seen, mask, which if drawn else None)
    want = []
    for row in range(4):
        scores = []
        for p in range(3):
            if mask[row, p]:
                best = sorted(((phrases[row, p] * r).sum() for r in seen[row]), key=lambda x: -float(x.detach()))[:3]
                scores.append(best[int(float(which[row, p]) * len(best)) if drawn else 0])
        want.append(sum(scores) / len(scores) if scores else torch.zeros((), dtype=torch.float64))
    want = torch.stack(want)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-12)
    ours, theirs = (torch.autograd.grad(x.square().sum(), [phrases, seen]) for x in (found, want))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_draws_spread_over_the_three_nearest():
    phrases, seen = numbers(1, 1, 6, seed=1), numbers(1, 9, 6, seed=2)
    nearest = (phrases[0, 0] @ seen[0].T).sort(descending=True).values[:3]
    taken = [float(grounding_scores(phrases, seen, TRUE[None], torch.tensor([[d]]))) for d in (0.0, 0.34, 0.67, 0.99)]
    assert taken == pytest.approx([float(nearest[k]) for k in (0, 1, 2, 2)])
