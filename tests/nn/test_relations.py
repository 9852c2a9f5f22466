"""Looking into attention, against attention worked out one number at a time; gradients through it; nobody looking."""

import pytest
import torch

from tests.nn.test_attention import MASK, linear, numbers, shaken
from tests.reference import transformer as slow
from tests.reference.scalars import dot, softmax
from tests.systems.common import build
from tests.systems.test_survey import spanned
from tuwen import systems
from tuwen.errors import UserError
from tuwen.nn import transformer
from tuwen.nn.relations import recorded
from tuwen.nn.transformer import Stack


def by_hand(attention, x, memory=None, mask=None, causal=False):
    """Queries [B, H, L, d], keys [B, H, S, d] and shares [B, H, L, S], one query at a time."""
    if attention.cross:
        q, k = linear(attention.query, x), linear(attention.key_value, memory).chunk(2, -1)[0]
    else:
        q, k, _ = linear(attention.query_key_value, x).chunk(3, -1)
    q, k = slow.heads_of(q, attention.heads), slow.heads_of(k, attention.heads)
    shares = torch.zeros(*q.shape[:3], k.shape[2], dtype=q.dtype)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                seen = [j for j in range(k.shape[2]) if (mask is None or mask[b, j]) and not (causal and j > i)]
                logits = [dot(q[b, h, i], k[b, h, j]) / q.shape[3] ** 0.5 for j in seen]
                for j, share in zip(seen, softmax(logits), strict=True):
                    shares[b, h, i, j] = share
    return q, k, shares


@pytest.mark.parametrize("causal", [False, True])
def test_every_layer_gives_its_queries_keys_and_shares_with_gradients(causal):
    stack = shaken(Stack(6, 2, 2, "post", eps=1e-5, memory_width=4, causal=causal))
    x, memory = numbers(2, 5, 6).requires_grad_(), numbers(2, 3, 4, seed=3).requires_grad_()
    real = torch.tensor([[True, False, True], [True, True, True]])
    between: list[torch.Tensor] = []
    with recorded(stack) as relations:
        out = stack(x, MASK, memory, real, layers=between)
    assert list(relations) == [f"blocks.{k}.{part}" for k in (0, 1) for part in ("attention", "cross")]
    torch.testing.assert_close(stack(x, MASK, memory, real), out, rtol=0, atol=1e-12)  # the fused kernel, unwatched
    y = x
    for number, block in enumerate(stack.blocks):
        own = by_hand(block.attention, y, None, MASK, causal)
        z = block.attention_norm(y + block.attention(y, None, MASK, causal))
        other = by_hand(block.cross, z, memory, real)
        for part, theirs in (("attention", own), ("cross", other)):
            for ours, slowly in zip(relations[f"blocks.{number}.{part}"], theirs, strict=True):
                torch.testing.assert_close(ours, slowly, rtol=0, atol=1e-11)
                direction, weights = numbers(*slowly.shape, seed=7), [x, memory, *stack.parameters()]
                pair = [
                    torch.autograd.grad((value * direction).sum(), weights, retain_graph=True, allow_unused=True)
                    for value in (ours, slowly)
                ]
                assert any(g is not None and g.abs().max() > 0 for g in pair[1])
                for a, b in zip(*pair, strict=True):
                    assert (a is None) == (b is None)
                    if a is not None:
                        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
        y = between[number]


def test_shares_are_those_before_dropout_and_masked_keys_get_none():
    stack = shaken(Stack(6, 1, 2, dropout=0.5)).train()
    with recorded(stack) as relations:
        stack(numbers(2, 5, 6), MASK)
    ((_, _, attention),) = relations.values()
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2, 5, dtype=torch.float64))
    assert attention[0, :, :, 3:].abs().max() == 0


def test_only_the_named_layers_are_looked_into_and_only_for_so_long(monkeypatch):
    kernels, real = [], transformer.attend
    monkeypatch.setattr(transformer, "attend", lambda *given: kernels.append(given[-1]) or real(*given))
    stack, x = shaken(Stack(6, 3, 2)), numbers(2, 5, 6)
    with recorded(stack, r"blocks\.[02]\.attention") as relations:
        stack(x)
    assert list(relations) == ["blocks.0.attention", "blocks.2.attention"]
    assert kernels == [False, True, False]
    kernels.clear()
    stack(x)
    assert kernels == [True, True, True]  # nobody looks: the fused kernel, as ever
    with pytest.raises(RuntimeError), recorded(stack):
        stack(numbers(2, 5, 7))
    assert all(block.attention.recorder is None for block in stack.blocks)


def test_a_layer_nobody_has_is_an_error_that_names_some():
    stack = Stack(6, 1, 2)
    with (
        pytest.raises(UserError, match=r"is named 'image.*'; there are blocks\.0\.attention"),
        recorded(stack, r"image\..*"),
    ):
        pass


def test_a_layer_that_runs_twice_is_not_taken_for_one():
    stack = Stack(6, 1, 2)
    with recorded(stack):
        stack(torch.zeros(1, 2, 6))
        with pytest.raises(AssertionError, match=r"blocks\.0\.attention ran twice"):
            stack(torch.zeros(1, 2, 6))


# embeddings alone, and an MLP over two vectors
BEFORE_ATTENTION = {("vilt", "encode_images"), ("vilt", "encode_texts"), ("dide", "match")}


TWICE = {"ege_cmp"}  # title and entities pass through the same layers, which one record cannot tell apart


@pytest.mark.parametrize(
    "name", [name for name in systems.names() if systems.find(name).can("encode_texts") and name not in TWICE]
)
def test_every_systems_towers_and_match_are_looked_into(name):
    system, batch = build(name).eval(), spanned()
    calls = {
        "encode_images": lambda: system.encode_images(batch.images),
        "encode_texts": lambda: system.encode_texts(batch.texts),
        "match": lambda: system.match(*encoded),
    }
    encoded = []
    for capability, call in calls.items():
        if not system.can(capability):
            continue
        with recorded(system) as relations, torch.no_grad():
            encoded.append(call())
        assert bool(relations) == ((name, capability) not in BEFORE_ATTENTION), capability
        for queries, keys, attention in relations.values():
            logits = (queries @ keys.mT / queries.shape[-1] ** 0.5).masked_fill(attention == 0, -torch.inf)
            torch.testing.assert_close(logits.softmax(-1), attention, rtol=0, atol=1e-5)
