"""What must change no score of a dual encoder: padding, the order of rows, a row said twice, the rows beside it."""

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.systems.common import build, example, shaken
from tuwen.data.batch import Batch, Spans, Texts
from tuwen.data.spans import KINDS

ARMS = [
    ("clip", {}),
    ("wukong", {"style": "clip"}),
    ("wukong", {"style": "filip"}),
    ("wukong", {"style": "wukong", "tokens": 3}),
    ("tokenflow", {}),
    ("tokenflow", {"exact": True, "regulariser": 0.2}),
    ("bagformer", {}),
    ("bagformer", {"bags": "phrase"}),
    ("bagformer", {"bags": "shuffled"}),
    ("cookie", {}),
    ("slan", {}),
]
PLACES = [(0, 1, 3), (0, 4, 7), (2, 1, 5), (4, 1, 4)]  # (text, start, end) of phrases and entities


def batch_of(rows: list[int]) -> Batch:
    batch = example(rows)
    kinds = [KINDS.index(kind) for kind in ("phrase", "entity")]
    found = [
        (k, start, end, -1, kind)
        for k, row in enumerate(rows)
        for text, start, end in PLACES
        if text == row
        for kind in kinds
    ]
    spans = Spans(*torch.tensor(found, dtype=torch.int64).reshape(-1, 5).unbind(1))
    return dataclasses.replace(batch, texts=dataclasses.replace(batch.texts, spans=spans))


def scores(system, batch: Batch, texts: Texts | None = None) -> tuple[Tensor, Tensor]:
    found = system.scores(system.encode_images(batch.images), system.encode_texts(texts or batch.texts))
    return found.i2t, found.t2i


def agree(found: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor], within: float = 1e-6) -> None:
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=within)


@pytest.fixture(params=ARMS, ids=str)
def system(request):
    name, changes = request.param
    return shaken(build(name, **changes)).eval()


@torch.no_grad()
def test_padding_rows_beside_it_their_order_and_repeats_change_no_score(system):
    batch = batch_of([0, 1, 2, 4, 5])
    want = scores(system, batch)
    assert all(float(one.std()) > 1e-4 for one in want)  # else nothing could differ

    more = torch.zeros(5, 6, dtype=torch.int64)
    ids, mask = torch.cat([batch.texts.ids, more], 1), torch.cat([batch.texts.mask, more.bool()], 1)
    agree(scores(system, batch, dataclasses.replace(batch.texts, ids=ids, mask=mask)), want)

    order = [3, 0, 4, 2, 1]
    moved = scores(system, batch_of([[0, 1, 2, 4, 5][k] for k in order]))
    agree(moved, tuple(one[order][:, order] for one in want))

    alone = scores(system, batch_of([2]))
    agree(alone, tuple(one[2:3, 2:3] for one in want))

    twice = scores(system, batch_of([0, 1, 2, 4, 5, 2]))
    agree(tuple(one[:5, :5] for one in twice), want)
    agree(tuple(one[5] for one in twice), tuple(one[2] for one in twice))
    agree(tuple(one[:, 5] for one in twice), tuple(one[:, 2] for one in twice))


@torch.no_grad()
def test_the_length_of_what_is_projected_changes_no_score(system):
    """Scores are of unit vectors: three times the projections are the same directions."""
    batch = batch_of([0, 1, 2, 4, 5])
    want = scores(system, batch)
    projections = [module for name, module in system.named_modules() if name.endswith("projection")]
    assert projections
    for module in projections:
        for parameter in module.parameters():
            parameter.mul_(3)
    agree(scores(system, batch), want, 1e-4 if getattr(system, "reduction", None) else 1e-6)  # its norm has an epsilon
