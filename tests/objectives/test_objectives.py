"""Losses as pure functions: values worked out by hand, the slow versions, and what must change nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import albef as slow_albef
from tests.reference import r2d2 as slow_r2d2
from tests.reference.scalars import cross_entropy as slow_cross_entropy
from tests.systems.common import random, units
from tuwen.data.batch import same_pair
from tuwen.objectives.contrastive import contrastive, soft_cross_entropy, softened, targets_of
from tuwen.objectives.distillation import cosine_distance
from tuwen.objectives.masked_language import masked_language, masked_positions
from tuwen.objectives.matching import (
    IGNORED,
    drawn_pairs,
    hard_negatives,
    log_odds,
    matching_labels,
    matching_loss,
    one_wrong,
)

TEMPERATURE = torch.tensor(0.3, dtype=torch.float64)
NUMBERS = st.integers(0, 2**31 - 1)


def test_targets_share_one_unit_over_what_is_right():
    """A picture with two of its captions in the batch, a caption of two pictures, a row with nothing right."""
    same = same_pair(*(torch.tensor(x) for x in ([1, 2, 1, 3], [7, 8, 9, 8], [1, 2, 1, 3], [7, 8, 9, 8])))
    assert targets_of(same).tolist() == [[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5], [0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]]
    assert targets_of(torch.tensor([[False, False], [True, True]])).tolist() == [[0, 0], [0.5, 0.5]]


def test_soft_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0]], dtype=torch.float64)
    targets = torch.tensor([[1.0, 0.0], [0.25, 0.75]], dtype=torch.float64)
    assert float(soft_cross_entropy(logits, targets)) == pytest.approx((math.log(4) + math.log(2)) / 2)
    weights = torch.tensor([1.0, 0.5], dtype=torch.float64)
    weighted = float(soft_cross_entropy(logits, targets, weights))
    assert weighted == pytest.approx((math.log(4) + (0.25 + 0.375) * math.log(2)) / 2)


@settings(max_examples=15)
@given(NUMBERS)
def test_columns_that_do_not_exist_take_no_probability_and_no_gradient(seed):
    logits = random(3, 5, seed=seed)
    real = torch.tensor([True, False, True, True, False])
    targets = softened(torch.eye(3, 5, dtype=torch.float64) * real, logits, 0.3, real)
    assert targets[:, ~real].abs().max() == 0
    full = (logits * 1e6 * ~real + logits * real).requires_grad_()
    short = logits[:, real].clone().requires_grad_()
    weights = 0.5 + torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    a = soft_cross_entropy(full, targets, weights, real)
    b = soft_cross_entropy(short, targets[:, real], weights[real])
    assert float(a.detach()) == pytest.approx(float(b.detach()), abs=1e-12)
    assert float(a.detach()) == pytest.approx(
        sum(
            float(sum(-w * t * p for w, t, p in zip(weights[real], row_t, row_p, strict=True)))
            for row_t, row_p in zip(targets[:, real], logits[:, real].log_softmax(1), strict=True)
        )
        / 3
    )
    (ga,), (gb,) = torch.autograd.grad(a, full), torch.autograd.grad(b, short)
    torch.testing.assert_close(ga[:, real], gb, rtol=0, atol=1e-12)
    assert ga[:, ~real].abs().max() == 0


@settings(max_examples=10)
@given(NUMBERS)
def test_contrast_is_the_slow_one_and_no_row_knows_its_place(seed):
    u, t = units(5, 4, seed).requires_grad_(), units(5, 4, seed + 1).requires_grad_()
    image_id, text_id = torch.tensor([1, 2, 1, 3, 4]), torch.tensor([7, 8, 9, 8, 6])
    loss = contrastive(u, t, u, t, same_pair(image_id, text_id, image_id, text_id), TEMPERATURE)
    want = slow_r2d2.global_contrast(u, t, image_id.tolist(), text_id.tolist(), TEMPERATURE)
    assert float(loss.detach()) == pytest.approx(float(want.detach()), abs=1e-12)
    for a, b in zip(torch.autograd.grad(loss, (u, t)), torch.autograd.grad(want, (u, t)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    i, w = image_id[order], text_id[order]
    moved = contrastive(u[order], t[order], u[order], t[order], same_pair(i, w, i, w), TEMPERATURE)
    assert float(moved.detach()) == pytest.approx(float(loss.detach()), abs=1e-12)


def test_a_repeated_pair_is_no_negative_of_itself():
    """Two copies of one row share the target; the loss is that of the row, plus ln 2 for the split."""
    u = units(3, 4, 0)
    ids = torch.tensor([1, 2, 3])
    once = contrastive(u[:1], u[:1], u[:1], u[:1], torch.ones(1, 1, dtype=torch.bool), TEMPERATURE)
    twice = ids[[0, 0]]
    both = contrastive(u[[0, 0]], u[[0, 0]], u[[0, 0]], u[[0, 0]], same_pair(twice, twice, twice, twice), TEMPERATURE)
    assert float(once) == 0
    assert float(both) == pytest.approx(math.log(2))


# ---- matching


def test_matching_weights_by_hand():
    """R2D2 card, check 1: zero logits give ln 2; one match a against two others b, c gives (2a + b + c) / 4."""
    labels = torch.tensor([1, 0, 0])
    assert float(matching_loss(torch.zeros(3, 2), labels, 2.0)) == pytest.approx(math.log(2))
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    a, b, c = (math.log(1 + math.exp(x)) for x in (-1.0, -2.0, 3.0))
    assert float(matching_loss(logits, labels, 2.0)) == pytest.approx((2 * a + b + c) / 4)
    assert float(matching_loss(logits, labels)) == pytest.approx((a + b + c) / 3)
    assert float(slow_r2d2.fine_ranking(logits, logits, [1, 0, 0])) == pytest.approx((2 * a + b + c) / 4)
    assert float(slow_albef.matching(logits, [1, 0, 0])) == pytest.approx((a + b + c) / 3)


def test_matching_rows_without_a_negative_do_not_count():
    logits = random(6, 2, seed=1)
    labels = matching_labels(2, torch.tensor([True, False]), torch.tensor([False, True]))
    assert labels.tolist() == [1, 1, 0, IGNORED, IGNORED, 0]
    kept = [0, 1, 2, 5]
    want = slow_albef.matching(logits[kept], [1, 1, 0, 0])
    assert float(matching_loss(logits, labels)) == pytest.approx(float(want))
    want = slow_r2d2.fine_ranking(logits[kept], logits[kept], [1, 1, 0, 0])
    assert float(matching_loss(logits, labels, 2.0)) == pytest.approx(float(want))


def test_double_softmax_of_the_official_matching_script_is_not_repeated():
    """R2D2 card, check 11: there a certain, right answer still costs 0.3133; here it costs nothing."""
    certain = torch.tensor([[0.0, 1.0]])
    assert float(matching_loss(certain, torch.tensor([1]))) == pytest.approx(0.3133, abs=5e-5)
    assert float(matching_loss(torch.tensor([[-40.0, 40.0]]), torch.tensor([1]))) == 0


def test_log_odds_are_those_of_the_two_class_probability():
    logits = random(5, 2, seed=2)
    torch.testing.assert_close(log_odds(logits).sigmoid(), logits.softmax(1)[:, 1])


def test_hard_negatives_follow_softmax_over_what_is_wrong():
    """ALBEF card, check 5: never the diagonal, never the same identity, frequencies as the softmax says."""
    scores = torch.tensor([[2.0, 0.5, -1.0, 1.0, 3.0]]).expand(40_000, 5)
    same = torch.tensor([[True, False, False, False, True]]).expand(40_000, 5)
    draws = torch.rand(40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chosen, exists = hard_negatives(scores, same, draws)
    assert exists.all()
    share = torch.bincount(chosen, minlength=5) / 40_000
    want = torch.tensor([0.5, -1.0, 1.0]).softmax(0)
    assert share[[0, 4]].tolist() == [0, 0]
    assert (share[1:4] - want).abs().max() < 4 * 0.5 / 200  # four deviations of a share


@settings(max_examples=40)
@given(NUMBERS, st.integers(1, 7), st.floats(0, 1, exclude_max=True), st.floats(0.1, 300))
def test_hard_negatives_are_the_slow_sampler(seed, columns, draw, spread):
    scores = random(1, columns, seed=seed) * spread
    same = torch.rand(1, columns, generator=torch.Generator().manual_seed(seed + 1)) < 0.5
    chosen, exists = hard_negatives(scores, same, torch.tensor([draw], dtype=torch.float64))
    want = slow_albef.draw(list(scores[0]), same[0].tolist(), draw)
    assert bool(exists[0]) == (want is not None)
    if want is not None:
        assert not same[0, chosen[0]]
        assert int(chosen[0]) == want


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_hard_negatives_at_the_edges_of_the_draw(draw):
    scores = torch.tensor([[0.0, -3e4, 1.0, -3e4, 50.0]])
    same = torch.tensor([[True, False, False, False, False]])
    chosen, _ = hard_negatives(scores, same, torch.tensor([draw], dtype=torch.float64))
    assert int(chosen[0]) == (2 if draw == 0 else 4)  # columns whose probability is 0 are never drawn


def test_hard_negatives_give_no_gradient_and_depend_on_the_draw():
    scores = random(4, 4, seed=3).requires_grad_()
    same = torch.eye(4, dtype=torch.bool)
    many = [hard_negatives(scores, same, torch.full((4,), u))[0].tolist() for u in (0.05, 0.5, 0.95)]
    assert len({tuple(x) for x in many}) == 3


# ---- masked words and distillation


@settings(max_examples=10)
@given(NUMBERS, st.sampled_from([0.0, 0.4, 1.0]))
def test_masked_words_are_the_slow_ones(seed, alpha):
    logits, taught = random(2, 3, 5, seed=seed).requires_grad_(), random(2, 3, 5, seed=seed + 1)
    labels = torch.tensor([[IGNORED, 4, 0], [IGNORED, IGNORED, 2]])
    index, words = masked_positions(labels)
    assert index.tolist() == [1, 2, 5]
    assert words.tolist() == [4, 0, 2]
    ours = masked_language(logits.flatten(0, 1)[index], words, taught.flatten(0, 1)[index], alpha)
    want = slow_albef.masked_words(logits, taught, labels, alpha)
    assert float(ours.detach()) == pytest.approx(float(want.detach()), abs=1e-12)
    (a,), (b,) = torch.autograd.grad(ours, logits), torch.autograd.grad(want, logits)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert a[labels == IGNORED].abs().max() == 0


def test_nothing_masked_costs_nothing_and_still_has_a_gradient():
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = masked_language(logits, torch.zeros(0, dtype=torch.int64), logits, 0.4)
    loss.backward()
    assert float(loss.detach()) == 0


def test_cosine_distance_is_the_slow_one():
    h, g = random(3, 4, 5, seed=1).requires_grad_(), random(3, 4, 5, seed=2).requires_grad_()
    mask = torch.tensor([[True] * 4, [True, False, False, False], [True, True, True, False]])
    ours, want = cosine_distance(h, g, mask), slow_r2d2.feature_guided(h, g, mask)
    assert float(ours.detach()) == pytest.approx(float(want.detach()), abs=1e-12)
    a, none = torch.autograd.grad(ours, (h, g), allow_unused=True)
    assert none is None
    torch.testing.assert_close(a, torch.autograd.grad(want, h)[0], rtol=0, atol=1e-12)


def test_distillation_gradient_is_that_of_the_kullback_leibler_divergence():
    """ALBEF card 4.1: mixture cross entropy and the paper's KL differ by the teacher's entropy, a constant."""
    logits, teacher = random(1, 5, seed=4).requires_grad_(), random(1, 5, seed=5)
    hard, alpha = torch.eye(5, dtype=torch.float64)[2:3], 0.4
    q = teacher.softmax(1)
    mixture = soft_cross_entropy(logits, softened(hard, teacher, alpha))
    kl = (q * (q.log() - logits.log_softmax(1))).sum()
    paper = (1 - alpha) * soft_cross_entropy(logits, hard) + alpha * kl
    a, b = torch.autograd.grad(mixture, logits)[0], torch.autograd.grad(paper, logits)[0]
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    entropy = float(-(q * q.log()).sum())
    assert float((mixture - paper).detach()) == pytest.approx(alpha * entropy)


def test_slow_cross_entropy_by_hand():
    row = [torch.tensor(x, dtype=torch.float64) for x in (0.0, math.log(3.0))]
    assert float(slow_cross_entropy(row, [1.0, 0.0])) == pytest.approx(math.log(4))


def test_similarities_keep_float32_inside_a_bfloat16_region():
    from tuwen.objectives.contrastive import logits_of

    rows = torch.nn.functional.normalize(torch.randn(5, 64, generator=torch.Generator().manual_seed(1)), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = logits_of(rows, rows, 0.07)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, rows @ rows.T / 0.07)


def test_drawn_pairs_by_hand():
    """Sharp scores leave one wrong partner each; of rows 0 and 2, one picture, neither is the other's."""
    same = torch.eye(3, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    scores = torch.tensor([[9.0, 1, 500], [0, 9, 500], [400, 3, 9]])
    pairs = drawn_pairs(scores, scores.T, same, torch.full((3, 2), 0.5))
    assert pairs.images.tolist() == [0, 1, 2, 1, 2, 1, 0, 1, 2]
    assert pairs.texts.tolist() == [0, 1, 2, 0, 1, 2, 1, 2, 1]
    assert pairs.labels.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    every = drawn_pairs(scores[:2], scores[:2], torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 2), first=1)
    assert every.images[:2].tolist() == every.texts[:2].tolist() == [1, 2]  # where this process's rows begin
    assert every.labels.tolist() == [1, 1, *[IGNORED] * 4]


def test_one_wrong_takes_every_wrong_column_alike():
    same = torch.tensor([[True, False, False, True], [False, True, False, False], [True, True, True, True]])
    draws = (torch.arange(12, dtype=torch.float64) + 0.5) / 12
    columns = [one_wrong(same, draw.expand(3)).tolist() for draw in draws]
    assert [row[0] for row in columns] == [1] * 6 + [2] * 6
    assert [row[1] for row in columns] == [0] * 4 + [2] * 4 + [3] * 4
    assert {row[2] for row in columns} == {0}
