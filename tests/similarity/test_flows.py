"""Flows by hand: the fixtures of the wukong and tokenflow cards (section 11), and what must never change them."""

import dataclasses
import itertools
import math

import ot
import pytest
import torch
from torch import Tensor

from tuwen.nn.encoded import Encoded
from tuwen.similarity.flows import MaxFlow, SoftFlow, Transport
from tuwen.similarity.token_wise import token_flow, token_scores, token_scores_slow

FLOWS = [
    MaxFlow(),
    MaxFlow("sum"),
    SoftFlow(),
    SoftFlow(5.0, "own"),
    SoftFlow(10.0, "uniform"),
    SoftFlow(signed=True),
    SoftFlow(normalize=True),
    Transport(0.1, 200),
]


def side(tokens: list, mask: list | None = None, whole: list | None = None) -> Encoded:
    """One picture or text of given numbers, in float64."""
    return Encoded(
        None if whole is None else torch.tensor([whole], dtype=torch.float64),
        torch.tensor([tokens], dtype=torch.float64),
        None if mask is None else torch.tensor([mask]),
    )


def fixture() -> tuple[Encoded, Encoded]:
    """TokenFlow's: c = [[1, .6], [0, .8]], d = (.8944, .4472), e = (.7071, .9899)."""
    half, t = 2**-0.5, torch.tensor([1.6, 0.8], dtype=torch.float64)
    whole = (t / t.norm()).tolist()
    return side([[1, 0], [0, 1]], whole=[half, half]), side([[1, 0], [0.6, 0.8]], whole=whole)


def both(images: Encoded, texts: Encoded, flow) -> tuple[float, float]:
    """The scores of one picture with one text; the slow way must say the same."""
    fast, slow = token_scores(images, texts, flow), token_scores_slow(images, texts, flow)
    for a, b in zip(fast, slow, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    return float(fast[0]), float(fast[1])


# ---- Wukong, card section 11


def test_mean_of_best_leaves_padding_out_of_the_mean():
    images, texts = side([[1, 0], [0, 1]]), side([[1, 0], [0.6, 0.8], [9, 9]], [True, True, False])
    assert both(images, texts, MaxFlow()) == pytest.approx((0.9, 0.9))
    assert both(images, texts, MaxFlow("sum")) == pytest.approx((1.8, 1.8))


def test_discarding_padding_and_the_official_zeros():
    images, texts = side([[1, 0]]), side([[-0.6, 0.8], [5, 5]], [True, False])
    assert both(images, texts, MaxFlow())[0] == pytest.approx(-0.6)
    assert both(images, texts, MaxFlow(padding="zeros")) == pytest.approx((0.0, -0.6))
    alone = side([[-0.6, 0.8]], [True])
    assert both(images, alone, MaxFlow(padding="zeros"))[0] == pytest.approx(-0.6)  # no padding, no zero


def test_zeros_divide_by_the_real_length():
    images, texts = side([[1, 0], [0, 1]]), side([[1, 0], [0.6, 0.8], [3, 4]], [True, True, False])
    assert both(images, texts, MaxFlow(padding="zeros")) == pytest.approx((0.9, 0.9))


def test_directions_are_not_transposes_of_each_other():
    draw = torch.Generator().manual_seed(0)
    images = Encoded(tokens=torch.randn(6, 5, 4, generator=draw))
    texts = Encoded(tokens=torch.randn(6, 3, 4, generator=draw))
    to_text, to_image = token_scores(images, texts)
    assert not torch.equal(to_text.argsort(1), to_image.argsort(1))


# ---- TokenFlow, card section 11


@pytest.mark.parametrize(
    ("sharpness", "to_text", "to_image"), [(0, 0.4472, 0.5233), (20, 0.6092, 0.6532), (1e4, 0.6261, 0.6505)]
)
def test_tokenflow_by_hand(sharpness, to_text, to_image):
    assert both(*fixture(), SoftFlow(sharpness)) == pytest.approx((to_text, to_image), abs=6e-5)


@pytest.mark.parametrize("sharpness", [0, 1, 20, 1e3])
def test_one_marginal_holds_and_the_other_does_not(sharpness):
    images, texts = fixture()
    to_text, to_image = token_flow(images, texts, SoftFlow(sharpness))
    d = torch.tensor([0.8944, 0.4472], dtype=torch.float64) / 2
    e = torch.tensor([0.7071, 0.9899], dtype=torch.float64) / 2
    assert torch.allclose(to_text[0].sum(1), d, atol=5e-5)
    assert torch.allclose(to_image[0].sum(0), e, atol=5e-5)
    assert not torch.allclose(to_text[0].sum(0), e, atol=1e-2)


def test_equal_masses_and_infinite_sharpness_are_filip():
    images, texts = fixture()
    assert both(images, texts, SoftFlow(1e6, "uniform")) == pytest.approx((0.9, 0.9))


def test_one_token_each_scores_the_square_of_its_cosine():
    images, texts = side([[1, 0]], whole=[1, 0]), side([[0.6, 0.8]], whole=[0.6, 0.8])
    assert both(images, texts, SoftFlow()) == pytest.approx((0.36, 0.36))
    assert both(images, texts, SoftFlow(normalize=True)) == pytest.approx((0.6, 0.6))
    assert both(images, texts, SoftFlow(mass="uniform")) == pytest.approx((0.6, 0.6))  # CLIP's case


def test_own_masses_know_nothing_of_the_other_side():
    images, texts = fixture()
    half = 2**-0.5
    to_text, _ = token_flow(images, texts, SoftFlow(0.0, "own"))
    assert torch.allclose(to_text[0].sum(1), torch.tensor([half, half], dtype=torch.float64) / 2)


def test_a_contradicting_text_ships_nothing():
    images, texts = fixture()
    against = dataclasses.replace(texts, pooled=-texts.pooled)
    assert both(images, against, SoftFlow())[0] == 0.0
    v, w = images.tokens.clone().requires_grad_(), against.pooled.clone().requires_grad_()
    scores = token_scores(Encoded(images.pooled, v), Encoded(w, texts.tokens), SoftFlow())
    gradients = torch.autograd.grad(scores[0].sum() + scores[1].sum(), (v, w))
    assert all(torch.isfinite(g).all() for g in gradients)
    signed = [both(images, x, SoftFlow(0.0, signed=True))[0] for x in (texts, against)]
    assert signed[0] == pytest.approx(-signed[1])
    assert signed[0] > 0


def test_gradients_reach_the_whole_vectors_unless_detached():
    images, texts = fixture()
    for detach in (False, True):
        whole = [x.pooled.clone().requires_grad_() for x in (images, texts)]
        tokens = images.tokens.clone().requires_grad_()
        scores = token_scores(Encoded(whole[0], tokens), Encoded(whole[1], texts.tokens), SoftFlow(detach=detach))
        found = torch.autograd.grad(scores[0].sum() + scores[1].sum(), [*whole, tokens], allow_unused=True)
        reached = [g is not None and bool(g.abs().sum() > 1e-3) for g in found]
        assert reached == [not detach, not detach, True]


# ---- exact transport


def test_transport_on_the_fixture():
    images, texts = fixture()
    plan, same = token_flow(images, texts, Transport(0.01, 500))
    assert torch.equal(plan, same)
    exact = torch.tensor([[5 / 12, 1 / 4], [0, 1 / 3]], dtype=torch.float64)
    assert torch.allclose(plan[0], exact, atol=1e-3)
    found = [both(images, texts, Transport(r, 2000))[0] for r in (1.0, 0.3, 0.1, 0.03, 0.01)]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(found))
    assert found[-1] == pytest.approx(0.8333, abs=1e-4)
    assert all(score <= 0.8333 + 1e-4 for score in found)  # and so under both one-marginal bounds, 0.9333 and 0.8833


def test_transport_is_pots():
    draw = torch.Generator().manual_seed(3)  # tokens lean one way, so that every mass is positive
    v, w = (torch.nn.functional.normalize(torch.randn(1, n, 6, generator=draw).double() + 1, dim=-1) for n in (5, 4))
    images, texts = (Encoded(torch.nn.functional.normalize(x.sum(1), dim=-1), x) for x in (v, w))
    plan = token_flow(images, texts, Transport(0.2, 3000))[0][0]
    c = (v @ w.mT)[0]
    d, e = (v @ texts.pooled[0]).relu()[0], (w @ images.pooled[0]).relu()[0]
    theirs = ot.sinkhorn(
        (d / d.sum()).numpy(), (e / e.sum()).numpy(), -c.numpy(), 0.2, numItermax=10_000, stopThr=1e-12
    )
    assert torch.allclose(plan, torch.from_numpy(theirs), atol=1e-6)
    exact = ot.emd((d / d.sum()).numpy(), (e / e.sum()).numpy(), -c.numpy())
    near = float((token_flow(images, texts, Transport(0.003, 5000))[0][0] * c).sum())
    assert near == pytest.approx(float((torch.from_numpy(exact) * c).sum()), abs=2e-3)


# ---- what must change nothing


def drawn(rows: int, tokens: int, seed: int) -> Encoded:
    draw = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(rows, tokens, 6, dtype=torch.float64, generator=draw), dim=-1)
    whole = torch.nn.functional.normalize(x.sum(1), dim=-1)
    real = torch.arange(tokens) < torch.randint(1, tokens + 1, (rows, 1), generator=draw)
    return Encoded(whole, x, real)


def padded(x: Encoded, more: int) -> Encoded:
    rubbish = torch.full((len(x), more, x.tokens.shape[2]), 7.0, dtype=x.tokens.dtype)
    unreal = torch.zeros(len(x), more, dtype=torch.bool)
    return Encoded(x.pooled, torch.cat([x.tokens, rubbish], 1), torch.cat([x.token_mask, unreal], 1))


@pytest.mark.parametrize("flow", FLOWS, ids=str)
class TestUnchanged:
    def test_by_padding(self, flow):
        images, texts = drawn(3, 4, 1), drawn(5, 6, 2)
        before, after = token_scores(images, texts, flow), token_scores(padded(images, 2), padded(texts, 3), flow)
        for a, b in zip(before, after, strict=True):
            assert torch.equal(a.float(), b.float())
        flows = token_flow(images.select(torch.arange(3)), texts.select(torch.arange(3)), flow)
        more = token_flow(padded(images, 2), padded(texts.select(torch.arange(3)), 3), flow)
        for a, b in zip(flows, more, strict=True):
            assert torch.allclose(a, b[:, :4, :6], atol=1e-12)
            assert float(b[:, 4:].abs().sum()) == 0
            assert float(b[:, :, 6:].abs().sum()) == 0

    def test_by_the_order_of_tokens(self, flow):
        images, texts = drawn(3, 4, 1), drawn(3, 6, 2)
        i, t = torch.tensor([2, 0, 3, 1]), torch.tensor([5, 1, 0, 4, 2, 3])
        shuffled = [Encoded(x.pooled, x.tokens[:, k], x.token_mask[:, k]) for x, k in ((images, i), (texts, t))]
        for a, b in zip(token_scores(images, texts, flow), token_scores(*shuffled, flow), strict=True):
            assert torch.allclose(a, b, atol=1e-12)
        for a, b in zip(token_flow(images, texts, flow), token_flow(*shuffled, flow), strict=True):
            assert torch.allclose(a[:, i][:, :, t], b, atol=1e-12)

    def test_by_batch_mates(self, flow):
        images, texts = drawn(4, 4, 1), drawn(5, 6, 2)
        whole = token_scores(images, texts, flow)
        one = token_scores(images.select(torch.tensor([2])), texts.select(torch.tensor([3])), flow)
        assert [float(x) for x in one] == pytest.approx([float(x[2, 3]) for x in whole], abs=1e-12)
        twice = token_scores(images.select(torch.tensor([2, 2])), texts, flow)
        assert all(torch.equal(x[0], x[1]) for x in twice)

    def test_by_saying_every_token_twice(self, flow):
        images, texts = drawn(3, 4, 1), drawn(5, 6, 2)
        doubled = [Encoded(x.pooled, x.tokens.repeat(1, 2, 1), x.token_mask.repeat(1, 2)) for x in (images, texts)]
        factor = 2 if flow == MaxFlow("sum") else 1  # a sum counts tokens
        before, after = token_scores(images, texts, flow), token_scores(*doubled, flow)
        for a, b in zip(before, after, strict=True):
            assert torch.allclose(factor * a, b, atol=1e-12)

    def test_the_score_is_the_flow_times_the_similarity(self, flow):
        images, texts = drawn(4, 4, 1), drawn(4, 6, 2)
        c = images.tokens @ texts.tokens.mT
        for scores, flows in zip(token_scores(images, texts, flow), token_flow(images, texts, flow), strict=True):
            assert torch.allclose(scores.diagonal(), (flows * c).sum((1, 2)), atol=1e-12)

    def test_nothing_at_all_scores_nothing(self, flow):
        images, texts = drawn(2, 4, 1), drawn(2, 6, 2)
        empty = dataclasses.replace(texts, token_mask=texts.token_mask & torch.tensor([[True], [False]]))
        tokens = texts.tokens.clone().requires_grad_()
        for found in (token_scores, token_scores_slow):
            scores = found(images, dataclasses.replace(empty, tokens=tokens), flow)
            assert all((x[:, 1] == 0).all() and torch.isfinite(x).all() for x in scores)
            (gradient,) = torch.autograd.grad(scores[0].sum() + scores[1].sum(), tokens)
            assert torch.isfinite(gradient).all()
            assert float(gradient[1].abs().sum()) == 0


@pytest.mark.parametrize("flow", [MaxFlow(), MaxFlow("sum"), MaxFlow(padding="zeros")], ids=str)
def test_longer_tokens_score_in_proportion(flow):
    """The best partner does not hang on the length of a side's tokens."""
    images, texts = drawn(4, 4, 1), drawn(5, 6, 2)
    longer = Encoded(images.pooled, 2.5 * images.tokens, images.token_mask)
    for a, b in zip(token_scores(images, texts, flow), token_scores(longer, texts, flow), strict=True):
        assert torch.allclose(2.5 * a, b, atol=1e-12)
    c = images.select(torch.tensor([0])), texts.select(torch.tensor([1])), longer.select(torch.tensor([0]))
    for a, b in zip(token_flow(c[0], c[1], flow), token_flow(c[2], c[1], flow), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mass", ["cross", "own"])
def test_longer_whole_vectors_change_no_score_by_shares_of_mass(mass):
    """Scaled masses are the same shares; the softmax they sharpen is made as sharp again."""
    images, texts = drawn(4, 4, 1), drawn(5, 6, 2)
    longer = [dataclasses.replace(x, pooled=4 * x.pooled) for x in (images, texts)]
    before = token_scores(images, texts, SoftFlow(20.0, mass, normalize=True))
    after = token_scores(*longer, SoftFlow(5.0, mass, normalize=True))
    for a, b in zip(before, after, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    for a, b in zip(token_scores(images, texts, Transport()), token_scores(*longer, Transport()), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_equal_bests_share_the_flow():
    images, texts = side([[1, 0]]), side([[1, 0], [0, 1], [1, 0]])
    to_text, to_image = token_flow(images, texts, MaxFlow())
    assert to_text[0].tolist() == [[0.5, 0, 0.5]]
    assert to_image[0].tolist() == [[pytest.approx(1 / 3)] * 3]
    assert math.isclose(float(to_text.sum()), 1)


def gradients_of(scores: tuple[Tensor, Tensor], inputs: list[Tensor]) -> list[Tensor]:
    weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(k)).to(x) for k, x in enumerate(scores)]
    total = sum((x * w).sum() for x, w in zip(scores, weights, strict=True))
    found = torch.autograd.grad(total, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


@pytest.mark.parametrize("flow", [*FLOWS, MaxFlow(padding="zeros"), SoftFlow(detach=True)], ids=str)
@pytest.mark.parametrize("budget", [1, 3, 24, 100, 1 << 20])
def test_blocks_change_nothing_forward_and_gradient(flow, budget):
    images, texts = drawn(5, 4, 1), drawn(7, 6, 2)
    inputs = [x.clone().requires_grad_() for x in (images.tokens, texts.tokens, images.pooled, texts.pooled)]
    sides = Encoded(inputs[2], inputs[0], images.token_mask), Encoded(inputs[3], inputs[1], texts.token_mask)
    fast, slow = token_scores(*sides, flow, budget), token_scores_slow(*sides, flow)
    for a, b in zip(fast, slow, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    for a, b in zip(gradients_of(fast, inputs), gradients_of(slow, inputs), strict=True):
        assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("flow", [MaxFlow(), SoftFlow()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lower_precision_keeps_to_the_slow_way(flow, dtype):
    images, texts = (
        x.map(lambda y: y.to(dtype) if y.is_floating_point() else y) for x in (drawn(5, 4, 1), drawn(7, 6, 2))
    )
    inputs = [x.clone().requires_grad_() for x in (images.tokens, texts.tokens)]
    sides = Encoded(images.pooled, inputs[0], images.token_mask), Encoded(texts.pooled, inputs[1], texts.token_mask)
    with torch.autocast("cpu", torch.bfloat16):
        fast = token_scores(*sides, flow, 60)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    slow = token_scores_slow(
        Encoded(images.pooled.double(), exact[0], images.token_mask),
        Encoded(texts.pooled.double(), exact[1], texts.token_mask),
        flow,
    )
    assert fast[0].dtype == torch.float32
    for a, b in zip(fast, slow, strict=True):
        assert torch.allclose(a.double(), b, atol=1e-6)
    for a, b in zip(gradients_of(fast, inputs), gradients_of(slow, exact), strict=True):
        assert a.dtype == dtype
        assert torch.allclose(a.double(), b, atol=1e-5 if dtype == torch.float32 else 2e-2)
