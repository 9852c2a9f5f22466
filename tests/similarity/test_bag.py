"""Bags of tokens: the BagFormer card's values by hand, against loops, and what must not move them."""

import pytest
import torch
from torch import Tensor

from tests.systems.common import random
from tuwen.data.batch import Spans
from tuwen.nn.encoded import Encoded
from tuwen.similarity.bag import bag_of, shuffled_bag_of, sum_bags
from tuwen.similarity.flows import MaxFlow
from tuwen.similarity.token_wise import token_scores


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def spans(*places: tuple[int, int, int]) -> Spans:
    """(sequence, start, end) of each."""
    table = torch.tensor(places, dtype=torch.int64).reshape(-1, 3)
    return Spans(table[:, 0], table[:, 1], table[:, 2], -torch.ones(len(table)).long(), torch.zeros(len(table)).long())


SPANS = spans((0, 1, 3), (0, 3, 6), (1, 2, 5))  # two that touch; one; none
MASK = torch.arange(9) < ints(8, 6, 3)[:, None]
IDS = torch.where(MASK, torch.arange(27).view(3, 9) % 11 + 5, 0)


def test_bags_are_spans_and_single_tokens():
    assert bag_of(SPANS, MASK).tolist() == [
        [0, 1, 1, 2, 2, 2, 3, 4, 9],
        [0, 1, 2, 2, 2, 3, 9, 9, 9],
        [0, 1, 2, 9, 9, 9, 9, 9, 9],
    ]


def test_sums_are_a_loops_and_partition_the_tokens():
    """Card, check 2: whatever the bags, they add up to the tokens."""
    states, masked = random(3, 9, 4, seed=1), int(IDS[0, 0]) == IDS
    for bag in (bag_of(SPANS, MASK), shuffled_bag_of(SPANS, IDS, MASK)):
        sums, real = sum_bags(states, bag, masked)
        for row in range(3):
            for number in range(9):
                members = [k for k in range(9) if int(bag[row, k]) == number]
                want = sum((states[row, k] for k in members), torch.zeros(4, dtype=torch.float64))
                torch.testing.assert_close(sums[row, number], want, rtol=0, atol=1e-12)
                assert bool(real[row, number]) == any(not masked[row, k] for k in members)
        torch.testing.assert_close(sums.sum(1), (states * MASK[..., None]).sum(1))


def test_no_spans_give_every_token_its_own_bag():
    bag = bag_of(spans(), MASK)
    assert bag.tolist() == torch.where(MASK, torch.arange(9), 9).tolist()


def test_gradient_of_a_bag_reaches_each_of_its_tokens_alike():
    states = random(3, 9, 4, seed=2).requires_grad_()
    sums, _ = sum_bags(states, bag_of(SPANS, MASK), torch.zeros_like(MASK))
    (found,) = torch.autograd.grad(sums[0, 2].sum(), states)
    want = torch.zeros_like(found)
    want[0, 3:6] = 1
    assert torch.equal(found, want)


def test_padding_and_batch_mates_move_no_bag():
    wide = torch.nn.functional.pad(IDS, (0, 5))
    mask = torch.nn.functional.pad(MASK, (0, 5))
    for row in range(3):
        alone = SPANS.select(ints(row))
        length = int(MASK[row].sum())
        ids, real = IDS[row : row + 1, :length], MASK[row : row + 1, :length]
        assert bag_of(alone, real)[0].tolist() == bag_of(SPANS, mask)[row, :length].tolist()
        together = shuffled_bag_of(SPANS, wide, mask)[row, :length]
        assert shuffled_bag_of(alone, ids, real)[0].tolist() == together.tolist()


def test_shuffled_bags_have_the_lengths_of_the_entities_in_orders_of_their_own():
    rows = 60
    many = Spans(*(torch.cat([x] * rows) for x in (ints(0, 0), ints(1, 3), ints(3, 7), ints(0, 0), ints(0, 0))))
    many = Spans(torch.arange(rows).repeat_interleave(2), many.start, many.end, many.id, many.kind)
    mask = torch.ones(rows, 11, dtype=torch.bool)
    ids = torch.randint(5, 99, (rows, 11), generator=torch.Generator().manual_seed(0))
    orders = set()
    for row in shuffled_bag_of(many, ids, mask).tolist():
        assert row == sorted(row)
        lengths = [row.count(k) for k in range(row[-1] + 1)]
        assert lengths[0] == lengths[-1] == 1  # [CLS] and [SEP]
        assert sorted(lengths[1:-1]) == [1, 1, 1, 2, 4]
        orders.add(tuple(lengths))
    assert len(orders) > 12  # of 20


def test_card_example_by_hand():
    """Card, check 5: merging two tokens lowers the sum from 2 to 0.7071, the mean from 1 to 0.7071."""
    images = Encoded(tokens=torch.eye(2, dtype=torch.float64)[None])
    states, mask = torch.eye(2, dtype=torch.float64)[None], torch.ones(1, 2, dtype=torch.bool)
    for found, reduce, to_text, to_image in (
        (spans((0, 0, 2)), "sum", 2**0.5, 0.5**0.5),
        (spans(), "sum", 2.0, 2.0),
        (spans((0, 0, 2)), "mean", 0.5**0.5, 0.5**0.5),
        (spans(), "mean", 1.0, 1.0),
    ):
        sums, real = sum_bags(states, bag_of(found, mask), ~mask)
        texts = Encoded(tokens=torch.nn.functional.normalize(sums, dim=-1), token_mask=real)
        scores = [float(x) for x in token_scores(images, texts, MaxFlow(reduce))]
        assert scores == pytest.approx([to_text, to_image])


def test_a_masked_bag_counts_nothing_and_in_the_codes_form_can_be_the_best_at_zero():
    """Card, check 6."""
    images = Encoded(tokens=torch.tensor([[[1.0, 0.0]]]))
    tokens = torch.tensor([[[-0.6, 0.8], [0.0, 0.0]]])
    texts = Encoded(tokens=tokens, token_mask=torch.tensor([[True, False]]))
    assert [float(x) for x in token_scores(images, texts, MaxFlow("sum"))] == pytest.approx([-0.6, -0.6])
    assert [float(x) for x in token_scores(images, texts, MaxFlow("sum", "zeros"))] == pytest.approx([0.0, -0.6])
