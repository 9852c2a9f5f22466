"""EGE-CMP's contrast over both sides and its rankings: the card's values by hand, scalars in float64 with gradients."""

import math

import pytest
import torch

from tests.reference import ege_cmp as slow
from tests.systems.common import random, units
from tuwen.objectives.entity_graph import cohesion, drawn_from, node_ranking, released_ranking, subgraph_ranking
from tuwen.objectives.unimodal import two_sided_contrastive


def contrast(first, second, same, real=None, temperature=0.07):
    real = torch.ones(len(first), dtype=torch.bool) if real is None else real
    return two_sided_contrastive((first, second), (first, second), same, real, real, temperature)


def test_card_values_of_the_contrast():
    """Card, check 4: four equal vectors leave three logits a row; orthogonal pairs by the formula."""
    equal = torch.tensor([[1.0, 0.0]] * 2, dtype=torch.float64)
    assert float(contrast(equal, equal, torch.eye(2, dtype=torch.bool))) == pytest.approx(math.log(3))
    apart = torch.eye(2, dtype=torch.float64)
    near = math.exp(1 / 0.07)
    loss = contrast(apart, apart, torch.eye(2, dtype=torch.bool))
    assert float(loss) == pytest.approx(-math.log(near / (near + 2)), rel=1e-9)


@pytest.mark.parametrize("real", [[True] * 5, [True, False, True, True, False], [False, False, True, False, False]])
def test_contrast_against_scalars_with_repeated_identities(real):
    ids = [4, 9, 4, 7, 8]
    first, second = (units(5, 6, seed).requires_grad_() for seed in (1, 2))
    same = torch.tensor(ids)[:, None] == torch.tensor(ids)
    ours = contrast(first, second, same, torch.tensor(real), 0.3)
    theirs = slow.contrast_of_both(first, second, ids, real, 0.3)
    assert float(ours.detach()) == pytest.approx(float(theirs), abs=1e-12)
    for a, b in zip(*(torch.autograd.grad(x, (first, second)) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_nobody_has_a_second_side():
    first = units(3, 4, 1).requires_grad_()
    loss = contrast(first, first, torch.eye(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool))
    assert float(loss) == 0
    assert bool(torch.isfinite(torch.autograd.grad(loss, first)[0]).all())


def graph(count: int, seed: int) -> torch.Tensor:
    """[U, U] likeness with all three kinds of pairs, and unknown ones."""
    likeness = torch.rand(count, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    likeness = (likeness + likeness.T) / 2
    likeness = torch.where(likeness > 0.6, 0.9, likeness)
    likeness.fill_diagonal_(1)
    likeness[-1], likeness[:, -1] = torch.nan, torch.nan  # in no graph
    return likeness


@pytest.mark.parametrize("seed", range(4))
def test_rankings_against_scalars(seed):
    features, likeness = random(14, 6, seed=seed).requires_grad_(), graph(14, seed)
    draws = torch.rand(14, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for fast, reference in ((node_ranking, slow.node_ranking), (subgraph_ranking, slow.subgraph_ranking)):
        ours = fast(features, likeness, draws, 0.2)
        theirs = reference(features, likeness.tolist(), draws.tolist(), 0.2)
        assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-12)
        a, b = (torch.autograd.grad(x, features)[0] for x in (ours, theirs))
        torch.testing.assert_close(a, b)
        assert a[:-1].abs().sum() > 0
        assert a[-1].abs().sum() == 0  # nothing is known of it


def test_subgraphs_of_the_card():
    """Card, check 6: row sums 3, 3, 3 of one direction thrice, 1, 1, 1 of three orthogonal ones."""
    whole = torch.ones(1, 3, dtype=torch.bool)
    tight, loose = torch.tensor([[[1.0, 0, 0]] * 3]), torch.eye(3)[None]
    assert cohesion(tight, whole).tolist() == [[3, 3, 3]]
    assert cohesion(loose, whole).tolist() == [[1, 1, 1]]
    likeness = torch.zeros(6, 6)
    likeness[:3, :3], likeness[3:, 3:] = 1, 1
    likeness[0, 3] = likeness[3, 0] = 0.6  # neither
    features = torch.cat([tight[0], loose[0]])
    asked = torch.full((6, 6), torch.nan)
    asked[1] = likeness[1]  # entity 1 alone: neighbours are the tight ones, others the loose ones
    for margin, value in ((0.2, 0.0), (2.0, 0.0), (2.5, 0.5)):
        assert float(subgraph_ranking(features, asked, torch.zeros(6, 2), margin)) == pytest.approx(value)
    asked = torch.full((6, 6), torch.nan)
    asked[4] = likeness[4]  # and entity 4: the other way round
    for margin in (0.0, 0.2):
        assert float(subgraph_ranking(features, asked, torch.zeros(6, 2), margin)) == pytest.approx(2 + margin)


def test_what_is_drawn_is_allowed_and_every_allowed_one_is_drawn():
    """Card, check 8, and its pitfall 4: an empty set draws nothing."""
    likeness = graph(9, 7)
    likeness[2] = torch.nan
    choice, met = likeness < 0.5, torch.zeros(9, 9, dtype=torch.bool)
    for draw in torch.linspace(0, 0.999, 60):
        which, real = drawn_from(choice, torch.full((9,), float(draw)), 2)
        for row in range(9):
            mine = which[row][real[row]].tolist()
            assert len(set(mine)) == len(mine) == min(2, int(choice[row].sum()))
            assert bool(choice[row, mine].all())
            met[row, mine] = True
    assert torch.equal(met, choice)
    assert not choice[2].any()


def test_the_released_form_gives_no_gradient():
    features = random(14, 6, seed=1).requires_grad_()
    node, subgraph = released_ranking(features, graph(14, 1), torch.rand(14, 2, dtype=torch.float64))
    assert not node.requires_grad
    assert not subgraph.requires_grad
    assert float(node) > 0
