"""Prefixes of vectors as vectors of their own: by hand, against the definition, in every system with a contrast."""

import pytest
import torch
import torch.nn.functional as F

from tests.systems.common import PROGRESS, build, example, shaken, units
from tests.systems.test_cookie import twofold
from tests.systems.test_unchanged import batch_of
from tuwen.errors import UserError
from tuwen.objectives.contrastive import contrastive, distilled_contrastive, prefix
from tuwen.objectives.gather import global_contrast

BATCHES = dict.fromkeys(("clip", "albef", "blip", "bridgetower", "r2d2", "prd2", "tokenflow"), example)
BATCHES |= {"slan": lambda: batch_of([0, 1, 2, 3]), "bagformer": lambda: batch_of([0, 1, 2, 3]), "cookie": twofold}


def test_a_prefix_by_hand():
    assert torch.allclose(prefix(torch.tensor([[3.0, 4.0, 12.0]]) / 13, 2), torch.tensor([[0.6, 0.8]]))
    for width in (0, 3, 4):
        with pytest.raises(UserError, match="no width within vectors of 3"):
            prefix(torch.ones(1, 3), width)


def test_the_loss_is_the_mean_over_the_whole_and_its_prefixes():
    rows, columns, same = units(5, 8, 1), units(5, 8, 2), torch.eye(5, dtype=torch.bool)
    parts = [contrastive(rows, columns, rows, columns, same, 0.1)]
    for width in (2, 4):
        a, b = (F.normalize(x[:, :width], dim=1) for x in (rows, columns))
        parts.append(contrastive(a, b, a, b, same, 0.1))
    assert torch.allclose(global_contrast(rows, columns, same, 0.1, (2, 4)), sum(parts) / 3)
    assert torch.equal(global_contrast(rows, columns, same, 0.1), parts[0])


def test_the_distilled_loss_too():
    vectors = [units(4, 6, seed) for seed in range(6)]
    same, alpha, temperature = torch.eye(4, dtype=torch.bool), 0.3, torch.tensor(0.2)

    def loss(x, **options):
        return distilled_contrastive((x[0], x[1]), (x[2], x[3]), (x[4], x[5]), same, temperature, alpha, **options)

    short = loss([F.normalize(x[:, :3], dim=1) for x in vectors])
    assert torch.allclose(loss(vectors, nested=(3,)), (loss(vectors) + short) / 2)


@pytest.mark.parametrize("name", BATCHES)
def test_the_first_numbers_of_every_system_learn(name):
    """With `model.nested` the contrast changes and nothing else does."""
    losses = {}
    for nested in ((), (2,)):
        system = shaken(build(name, nested=nested, whole=0.5))
        torch.manual_seed(0)
        losses[nested] = system(BATCHES[name](), PROGRESS).terms
    changed = [term for term in losses[()] if not torch.equal(losses[()][term], losses[(2,)][term])]
    assert changed == ["contrast" if "contrast" in losses[()] else "across"]
