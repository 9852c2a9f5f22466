"""Scores of pictures and texts by their tokens: the one fast function, its slow reference, and the flow to look at.

Shape legend: I pictures, T texts, B pairs, N image tokens, L text tokens, D width.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tuwen.nn.encoded import Encoded
from tuwen.similarity.flows import Flow, MaxFlow, TokenPairs

BUDGET = 1 << 20  # similarities a block holds: 4 MiB of float32, which stay in a core's cache
KEPT = 8  # blocks that are kept for the backward pass where there are no more: to make them anew would be slower


def token_scores(images: Encoded, texts: Encoded, flow: Flow | None = None, budget: int = BUDGET):
    """(S_i2t, S_t2i), each [I, T] float32 (float64 from float64), of every picture with every text.

    images: tokens [I, N, D] with token_mask; texts: tokens [T, L, D] with token_mask. Both: pooled [., D], where the
    flow weighs tokens by whole vectors. flow: `MaxFlow()`, FILIP's, if not given.

    The [I, T, N, L] similarities are made in blocks of at most `budget` and made anew in the backward pass, so that
    memory grows with the two sides alone; up to `KEPT` times as many are simply held. On a GPU with Triton a kernel
    does it without leaving the chip.
    Padding takes no part. A picture or text without a single real token scores 0 with everything.
    """
    flow = flow or MaxFlow()
    sides = *_sides(images, texts, flow), images.token_mask, texts.token_mask
    with torch.autocast(sides[0].device.type, enabled=False):
        if sides[0].is_cuda and find_spec("triton"):
            from tuwen.similarity import token_wise_cuda

            if token_wise_cuda.fits(sides[0], sides[1], flow):
                return token_wise_cuda.token_scores(flow, *sides)
        if _pairs_of(sides[0], sides[1]) * len(sides[0]) * len(sides[1]) <= KEPT * budget:
            return _block(flow, *sides)
        return _Blocks.apply(flow, budget, *sides)


def token_scores_slow(images: Encoded, texts: Encoded, flow: Flow | None = None) -> tuple[Tensor, Tensor]:
    """`token_scores` from the definition: all [I, T, N, L] flows, times all similarities, summed."""
    flow = flow or MaxFlow()
    v, w, v_whole, w_whole = _sides(images, texts, flow)
    c = torch.einsum("ind,tld->itnl", v, w)
    image_mass = text_mass = None
    if v_whole is not None:
        assert w_whole is not None
        cross = flow.masses == "cross"
        image_mass = (
            torch.einsum("ind,td->itn", v, w_whole) if cross else torch.einsum("ind,id->in", v, v_whole)[:, None]
        )
        text_mass = torch.einsum("tld,id->itl", w, v_whole) if cross else torch.einsum("tld,td->tl", w, w_whole)[None]
    image_real = None if images.token_mask is None else images.token_mask[:, None]
    text_real = None if texts.token_mask is None else texts.token_mask[None]
    to_text, to_image = flow.flows(TokenPairs(c, image_real, text_real, image_mass, text_mass))
    return (to_text * c).sum((2, 3)), (to_image * c).sum((2, 3))


def token_flow(images: Encoded, texts: Encoded, flow: Flow | None = None) -> tuple[Tensor, Tensor]:
    """(F of S_i2t, F of S_t2i), each [B, N, L]: who is matched with whom in pairs (picture b, text b)."""
    flow = flow or MaxFlow()
    v, w, v_whole, w_whole = _sides(images, texts, flow)
    image_mass = text_mass = None
    if v_whole is not None:
        assert w_whole is not None
        cross = flow.masses == "cross"
        image_mass = torch.einsum("bnd,bd->bn", v, w_whole if cross else v_whole)
        text_mass = torch.einsum("bld,bd->bl", w, v_whole if cross else w_whole)
    return flow.flows(TokenPairs(v @ w.mT, images.token_mask, texts.token_mask, image_mass, text_mass))


# ---- blocks


class _Blocks(torch.autograd.Function):
    """`_block` of a few pictures and texts at a time; the backward pass makes each block again."""

    @staticmethod
    def forward(ctx: Any, flow: Flow, budget: int, *sides: Tensor | None):
        v, w = sides[0], sides[1]
        assert v is not None
        assert w is not None
        ctx.flow, ctx.budget = flow, budget
        ctx.save_for_backward(*sides)
        to_text, to_image = (v.new_empty(len(v), len(w)) for _ in range(2))
        for i, t in _blocks(v, w, budget):
            to_text[i, t], to_image[i, t] = _block(flow, *_cut(sides, i, t))
        return to_text, to_image

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_text: Tensor, to_image: Tensor):
        sides = ctx.saved_tensors
        needed = [k for k in range(4) if ctx.needs_input_grad[k + 2]]
        grads = {k: torch.zeros_like(sides[k]) for k in needed}
        for i, t in _blocks(sides[0], sides[1], ctx.budget):
            part = list(_cut(sides, i, t))
            for k in needed:
                part[k] = part[k].detach().requires_grad_()
            with torch.enable_grad():
                scores = _block(ctx.flow, *part)
            gradients = torch.autograd.grad(
                scores, [part[k] for k in needed], (to_text[i, t], to_image[i, t]), allow_unused=True
            )
            for k, gradient in zip(needed, gradients, strict=True):
                if gradient is not None:
                    grads[k][i if k in (0, 2) else t] += gradient
        return None, None, *(grads.get(k) for k in range(4)), None, None


def _block(
    flow: Flow,
    v: Tensor,
    w: Tensor,
    v_whole: Tensor | None,
    w_whole: Tensor | None,
    v_real: Tensor | None,
    w_real: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Both scores [I, T] with all similarities of the block at once."""
    (pictures, n, _), (texts, length, _) = v.shape, w.shape
    c = (v.flatten(0, 1) @ w.flatten(0, 1).T).view(pictures, n, texts, length).transpose(1, 2)
    image_mass = text_mass = None
    if v_whole is not None and w_whole is not None:
        if flow.masses == "cross":
            image_mass = (v @ w_whole.T).mT  # [I, T, N]
            text_mass = (w @ v_whole.T).permute(2, 0, 1)  # [I, T, L]
        else:
            image_mass = (v @ v_whole[..., None])[..., 0][:, None]
            text_mass = (w @ w_whole[..., None])[..., 0][None]
    image_real = None if v_real is None else v_real[:, None]
    text_real = None if w_real is None else w_real[None]
    return flow.scores(TokenPairs(c, image_real, text_real, image_mass, text_mass))


def _blocks(v: Tensor, w: Tensor, budget: int) -> Iterator[tuple[slice, slice]]:
    """Pictures and texts of each block, as square as their tokens allow."""
    pairs = max(1, budget // _pairs_of(v, w))
    texts = min(len(w), max(1, int((pairs * v.shape[1] / w.shape[1]) ** 0.5)))
    pictures = min(len(v), max(1, pairs // texts))
    texts = min(len(w), max(1, pairs // pictures))
    for i in range(0, len(v), pictures):
        for t in range(0, len(w), texts):
            yield slice(i, i + pictures), slice(t, t + texts)


def _cut(sides, i: slice, t: slice):
    return (None if x is None else x[i if k % 2 == 0 else t] for k, x in enumerate(sides))


def _pairs_of(v: Tensor, w: Tensor) -> int:
    """Token pairs of one picture with one text."""
    return max(1, v.shape[1] * w.shape[1])


def _sides(images: Encoded, texts: Encoded, flow: Flow) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Tokens and, where the flow needs them, whole vectors of both sides, in float32 at least."""
    if images.tokens is None or texts.tokens is None:
        raise ValueError("token-wise scores need the tokens of both sides")
    whole = (images.pooled, texts.pooled) if flow.masses else (None, None)
    if flow.masses and (whole[0] is None or whole[1] is None):
        raise ValueError("these flows weigh tokens by whole vectors: give `pooled` of both sides as well")
    v, w, v_whole, w_whole = (
        x if x is None or x.dtype == torch.float64 else x.float() for x in (images.tokens, texts.tokens, *whole)
    )
    assert v is not None
    assert w is not None
    if isinstance(flow, MaxFlow) and flow.padding == "zeros" and texts.token_mask is not None:
        w = w * texts.token_mask[..., None]
    return v, w, v_whole, w_whole
