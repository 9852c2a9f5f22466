"""Attention, blocks and stacks against loops over single numbers: forward and gradient, masks, uneven sizes."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from tests.reference import transformer as slow
from tuwen.nn.relations import recorded
from tuwen.nn.transformer import Attention, Block, QuickGELU, Stack, attend


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shaken(module: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """Every parameter drawn anew in float64, norms and biases too, so that no term hides behind a 0 or a 1."""
    module = module.double()
    with torch.no_grad():
        for k, parameter in enumerate(module.parameters()):
            parameter.copy_(0.5 * numbers(*parameter.shape, seed=seed * 1000 + k))
    return module


def linear(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    rows = [torch.stack([slow.dot(w, row) for w in layer.weight]) for row in x.reshape(-1, x.shape[-1])]
    return torch.stack(rows).view(*x.shape[:-1], -1) + layer.bias


def slow_attention(module: Attention, x: Tensor, memory=None, mask=None, causal=False) -> Tensor:
    if module.cross:
        q = linear(module.query, x)
        k, v = linear(module.key_value, memory).chunk(2, -1)
    else:
        q, k, v = linear(module.query_key_value, x).chunk(3, -1)
    q, k, v = (slow.heads_of(y, module.heads) for y in (q, k, v))
    return linear(module.out, slow.joined(slow.attention(q, k, v, mask, causal)))


def slow_block(block: Block, x: Tensor, mask=None, memory=None, memory_mask=None, causal=False, activation=slow.gelu):
    parts = [(block.attention_norm, lambda y: slow_attention(block.attention, y, None, mask, causal))]
    if memory is not None:
        parts.append((block.cross_norm, lambda y: slow_attention(block.cross, y, memory, memory_mask)))
    first, _, last = block.feed_forward
    parts.append((block.feed_forward_norm, lambda y: linear(last, activation(linear(first, y)))))
    for norm, function in parts:
        if block.post:
            x = slow.layer_norm(x + function(x), norm.weight, norm.bias, norm.eps)
        else:
            x = x + function(slow.layer_norm(x, norm.weight, norm.bias, norm.eps))
    return x


def same_with_gradients(fast: Tensor, reference: Tensor, wanted: list[Tensor]) -> None:
    torch.testing.assert_close(fast, reference, rtol=0, atol=1e-11)
    direction = numbers(*fast.shape, seed=7)
    ours = torch.autograd.grad((fast * direction).sum(), wanted)
    theirs = torch.autograd.grad((reference * direction).sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


MASK = torch.tensor([[True, True, True, False, False], [True, True, True, True, True]])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_the_naive_one(fused, causal, masked):
    q, k, v = (numbers(2, 3, 5, 4, seed=s).requires_grad_() for s in range(3))
    mask = MASK if masked else None
    allowed = None if mask is None else mask[:, None, None, :]
    if causal:
        order = torch.ones(5, 5, dtype=torch.bool).tril()
        allowed = order if allowed is None else allowed & order
    out, _ = attend(q, k, v, allowed, 0.0, fused)
    same_with_gradients(out, slow.attention(q, k, v, mask, causal), [q, k, v])


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_self_attention(watched, causal):
    module = shaken(Attention(6, 3))
    x = numbers(2, 5, 6).requires_grad_()
    with recorded(module) if watched else nullcontext():
        fast = module(x, mask=MASK, causal=causal)
    same_with_gradients(fast, slow_attention(module, x, None, MASK, causal), [x, *module.parameters()])


@pytest.mark.parametrize("watched", [False, True])
def test_cross_attention_over_a_memory_of_another_width_and_length(watched):
    module = shaken(Attention(6, 2, memory_width=8))
    x, memory = numbers(2, 3, 6).requires_grad_(), numbers(2, 5, 8, seed=3).requires_grad_()
    with recorded(module) if watched else nullcontext():
        fast = module(x, memory, MASK)
    same_with_gradients(fast, slow_attention(module, x, memory, MASK), [x, memory, *module.parameters()])


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("cross", [False, True])
def test_block(norm, activation, cross):
    block = shaken(Block(6, 2, norm, activation, 1e-5, memory_width=4 if cross else None))
    x, memory = numbers(2, 5, 6).requires_grad_(), numbers(2, 3, 4, seed=3).requires_grad_()
    memory_mask = torch.tensor([[True, False, True], [True, True, True]])
    extra = (memory, memory_mask) if cross else (None, None)
    function = slow.gelu if activation == "gelu" else slow.quick_gelu
    fast = block(x, MASK, *extra)
    wanted = [x, *block.parameters(), *([memory] if cross else [])]
    same_with_gradients(fast, slow_block(block, x, MASK, *extra, activation=function), wanted)


def test_stack_is_its_blocks_in_order_then_a_norm_when_pre():
    for norm in ("pre", "post"):
        stack = shaken(Stack(6, 2, 3, norm, eps=1e-5, causal=True))
        x, layers = numbers(2, 5, 6), []
        out = stack(x, MASK, layers=layers)
        first = slow_block(stack.blocks[0], x, MASK, causal=True)
        second = slow_block(stack.blocks[1], first, MASK, causal=True)
        torch.testing.assert_close(layers[0], first)
        torch.testing.assert_close(layers[1], second)
        last = stack.norm
        want = second if norm == "post" else slow.layer_norm(second, last.weight, last.bias, last.eps)
        torch.testing.assert_close(out, want)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_columns_change_nothing(causal):
    stack = shaken(Stack(6, 2, 2, "post", causal=causal, memory_width=4))
    x, memory = numbers(2, 5, 6), numbers(2, 3, 4)
    plain = stack(x, MASK, memory, None)
    longer = torch.cat([x, 50 * numbers(2, 4, 6, seed=9)], 1)
    mask = torch.cat([MASK, torch.zeros(2, 4, dtype=torch.bool)], 1)
    seen = torch.cat([memory, 50 * numbers(2, 2, 4, seed=8)], 1)
    memory_mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    padded = stack(longer, mask, seen, memory_mask)[:, :5]
    torch.testing.assert_close(padded[MASK], plain[MASK], rtol=0, atol=1e-11)


def test_what_stands_under_the_mask_changes_nothing():
    stack = shaken(Stack(6, 2, 2, "pre"))
    x = numbers(2, 5, 6)
    other = torch.where(MASK[..., None], x, 100 * numbers(2, 5, 6, seed=5))
    torch.testing.assert_close(stack(other, MASK)[MASK], stack(x, MASK)[MASK], rtol=0, atol=1e-11)


def test_rows_do_not_see_each_other():
    stack = shaken(Stack(6, 2, 2, "post", memory_width=4))
    x, memory = numbers(4, 5, 6), numbers(4, 3, 4)
    mask = torch.cat([MASK, MASK.flip(0)])
    order = torch.tensor([2, 0, 3, 1])
    out = stack(x, mask, memory, None)
    torch.testing.assert_close(stack(x[order], mask[order], memory[order], None), out[order], rtol=0, atol=1e-12)
    torch.testing.assert_close(stack(x[1:2], mask[1:2], memory[1:2], None), out[1:2], rtol=0, atol=1e-12)


def test_causal_queries_never_see_ahead():
    stack = shaken(Stack(6, 2, 2, "pre", causal=True))
    x = numbers(1, 5, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(stack(x)[0, 2].sum(), x)
    assert gradient[0, 3:].abs().max() == 0
    assert (gradient[0, :3].abs().amax(-1) > 0).all()


def test_bfloat16_short_path_is_the_fused_one_within_its_precision():
    module = shaken(Attention(32, 4)).float()
    x = numbers(2, 5, 32).float()
    with torch.autocast("cpu", torch.bfloat16):
        short = module(x, mask=MASK)
    assert (short.float() - module(x, mask=MASK)).abs().max() < 0.03 * module(x, mask=MASK).abs().max()


def test_quick_gelu_by_hand():
    x = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    want = torch.tensor([0.0, 0.8457957659328212, -0.06434137685579186], dtype=torch.float64)
    torch.testing.assert_close(QuickGELU()(x), want, rtol=0, atol=1e-9)
    torch.testing.assert_close(slow.quick_gelu(x), want, rtol=0, atol=1e-9)


def test_dropout_only_while_training():
    module = Attention(6, 2, dropout=0.5)
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    module.eval()
    assert torch.equal(module(x), module(x))
    module.train()
    torch.manual_seed(0)
    assert not torch.equal(module(x), module(x))


def test_pooling_by_class_token_mean_and_greatest():
    from tuwen.nn.sizes import ImageTowerConfig
    from tuwen.nn.towers import ImageTower

    tokens = torch.tensor([[[1.0, 5.0], [3.0, -1.0], [2.0, 2.0]]])
    expected = {"class": [[1.0, 5.0]], "mean": [[2.0, 2.0]], "max": [[3.0, 5.0]]}
    for pool, value in expected.items():
        tower = ImageTower(ImageTowerConfig(side=8, patch=4, width=2, layers=1, heads=1, pool=pool))
        assert torch.equal(tower.pool(tokens), torch.tensor(value))


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("causal", [False, True])
def test_one_position_alone_is_that_position_of_the_whole_stack(norm, causal):
    stack = shaken(Stack(6, 2, 2, norm, eps=1e-5, memory_width=4, causal=causal))
    x, memory = numbers(2, 5, 6).requires_grad_(), numbers(2, 3, 4, seed=3).requires_grad_()
    place = torch.tensor([2, 4])  # the last real position of each row
    alone = stack(x, MASK, memory, None, only=place)
    assert alone.shape == (2, 1, 6)
    whole = stack(x, MASK, memory, None)[torch.arange(2), place][:, None]
    # a key's bias shifts all scores of a query alike and so has no gradient but rounding
    wanted = [x, memory, *(p for p in stack.parameters())]
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-12)
    direction = numbers(2, 1, 6, seed=7)
    ours = torch.autograd.grad((alone * direction).sum(), wanted)
    theirs = torch.autograd.grad((whole * direction).sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
