"""Token-wise scores on a GPU by Triton: a pair's similarities are made, used and forgotten on the chip.

What `token_wise.token_scores` computes in blocks, for `MaxFlow` and `SoftFlow`. Memory is that of the two sides and the
scores; nothing is kept for the backward pass, whose sums are in a fixed order, so that two runs give the same numbers.
Checked through Triton's interpreter (TRITON_INTERPRET=1); not yet run on a GPU.

The published packages flash-maxsim 0.3 and late-interaction-kernels 0.4.5 were looked at and not taken: each call gives
one direction's sum of bests (so both directions make the similarities twice), keeps an index a pair and token for the
backward pass, sends the gradient of equal bests to one of them, and neither has the soft flows.

Shape legend: X rows of the one side with N tokens, Y rows of the other with L, D width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from tuwen.similarity.flows import Flow, MaxFlow, SoftFlow

LARGEST = 1 << 14  # similarities of one pair, padded to powers of two, that fit on the chip
STEP = 32  # of the width, that a product takes at a time
WIDTH = 64  # of the width, that one program of the backward pass sums


def fits(v: Tensor, w: Tensor, flow: Flow) -> bool:
    """Whether this kernel takes these tokens."""
    padded = _padded(v.shape[1]) * _padded(w.shape[1])
    return isinstance(flow, MaxFlow | SoftFlow) and v.dtype == torch.float32 and padded <= LARGEST


def token_scores(
    flow: Flow,
    v: Tensor,
    w: Tensor,
    v_whole: Tensor | None,
    w_whole: Tensor | None,
    v_real: Tensor | None,
    w_real: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(S_i2t, S_t2i), each [I, T] float32, of tokens v [I, N, D] and w [T, L, D] with masks and whole vectors."""
    return _Scores.apply(flow, v, w, v_whole, w_whole, v_real, w_real)


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flow, v, w, v_whole, w_whole, v_real, w_real):
        ctx.flow = flow
        v, w = v.contiguous(), w.contiguous()
        v_whole, w_whole = (None if x is None else x.contiguous() for x in (v_whole, w_whole))
        ctx.save_for_backward(v, w, v_whole, w_whole, v_real, w_real)
        to_text, to_image = (v.new_empty(len(v), len(w)) for _ in range(2))
        given = _given(flow, v, w, v_whole, w_whole, v_real, w_real)
        _scores_kernel[(len(v), len(w))](to_text, to_image, **given)
        return to_text, to_image

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_text: Tensor, to_image: Tensor):
        v, w, v_whole, w_whole, v_real, w_real = ctx.saved_tensors
        grad_v, whole_v = _gradients(ctx.flow, to_text, to_image, v, w, v_whole, w_whole, v_real, w_real, False)
        grad_w, whole_w = _gradients(ctx.flow, to_image.T, to_text.T, w, v, w_whole, v_whole, w_real, v_real, True)
        return None, grad_v, grad_w, whole_v, whole_w, None, None


def _gradients(flow, out, back, x, y, x_whole, y_whole, x_real, y_real, turned) -> tuple[Tensor, Tensor | None]:
    """Gradients of one side's tokens and whole vectors; out, back: [X, Y] of the scores from x to y and from y to x."""
    out, back = out.contiguous(), back.contiguous()
    grad = torch.empty_like(x)
    whole = torch.empty_like(x_whole) if x_whole is not None else grad
    given = _given(flow, x, y, x_whole, y_whole, x_real, y_real, turned)
    blocks = triton.cdiv(x.shape[2], WIDTH)
    _gradient_kernel[(len(x), blocks)](grad, whole, out, back, others=len(y), BLOCK=WIDTH, **given)
    return grad, whole if x_whole is not None else None


def _padded(tokens: int) -> int:
    return max(16, triton.next_power_of_2(tokens))


def _given(flow, x, y, x_whole, y_whole, x_real, y_real, turned=False) -> dict[str, Any]:
    """Arguments that both kernels take."""
    soft = isinstance(flow, SoftFlow)
    zeros = not soft and flow.padding == "zeros"
    n, length = _padded(x.shape[1]), _padded(y.shape[1])
    return {
        "x": x,
        "y": y,
        "x_whole": x if x_whole is None else x_whole,
        "y_whole": y if y_whole is None else y_whole,
        "x_real": x if x_real is None else x_real.contiguous().view(torch.uint8),
        "y_real": y if y_real is None else y_real.contiguous().view(torch.uint8),
        "n": x.shape[1],
        "length": y.shape[1],
        "d": x.shape[2],
        "sharpness": float(flow.sharpness) if soft else 0.0,
        "X_MASK": x_real is not None,
        "Y_MASK": y_real is not None,
        "SOFT": soft,
        "MASS": {"": 0, "cross": 1, "own": 2}[flow.masses],
        "SIGNED": soft and flow.signed,
        "NORMAL": soft and flow.normalize,
        "DETACH": soft and flow.detach,
        "MEAN": soft or flow.reduce == "mean",
        "X_ZEROS": zeros and turned,  # padded tokens of a side are zero vectors that may be the best
        "Y_ZEROS": zeros and not turned,
        "N": n,
        "L": length,
        "STEP": STEP,
        "num_warps": 4 if n * length <= 4096 else 8,
    }


@triton.jit
def _tile(base, rows, step, count, d):
    """[rows, step] of a [count, d] matrix, zeros outside."""
    inside = (rows[:, None] < count) & (step[None, :] < d)
    return tl.load(base + rows[:, None] * d + step[None, :], mask=inside, other=0.0)


@triton.jit
def _similarities(
    x, y, mx, my, rows, columns, n, length, d, MASS: tl.constexpr, N: tl.constexpr, L: tl.constexpr, STEP: tl.constexpr
):  # fmt: skip
    """c [N, L], and the masses [N] and [L]: products with mx and my, the whole vectors that weigh each side."""
    c = tl.zeros((N, L), tl.float32)
    this, other = tl.zeros((N,), tl.float32), tl.zeros((L,), tl.float32)
    for start in range(0, d, STEP):
        step = start + tl.arange(0, STEP)
        a, b = _tile(x, rows, step, n, d), _tile(y, columns, step, length, d)
        c = tl.dot(a, tl.trans(b), c, input_precision="tf32x3")
        if MASS:
            this += tl.sum(a * tl.load(mx + step, mask=step < d, other=0.0)[None, :], 1)
            other += tl.sum(b * tl.load(my + step, mask=step < d, other=0.0)[None, :], 1)
    return c, this, other


@triton.jit
def _real(mask, tokens, count, MASK: tl.constexpr):
    """Which tokens are there: inside the side, and not padding."""
    real = tokens < count
    if MASK:
        real = real & (tl.load(mask + tokens, mask=real, other=0) != 0)
    return real


@triton.jit
def _shown(mass, real, MASS: tl.constexpr, SIGNED: tl.constexpr):
    """Masses as the flow takes them: 1 where uniform, not negative unless signed, 0 on padding."""
    if MASS == 0:
        mass = tl.full(mass.shape, 1.0, tl.float32)
    elif not SIGNED:
        mass = tl.maximum(mass, 0.0)
    return tl.where(real, mass, 0.0)


@triton.jit
def _softmax(logits, open_, AXIS: tl.constexpr):
    logits = tl.where(open_, logits, -1e30)
    top = tl.max(logits, AXIS)
    raised = tl.exp(logits - tl.expand_dims(top, AXIS))
    raised = tl.where(open_, raised, 0.0)
    total = tl.sum(raised, AXIS)
    return raised / tl.expand_dims(tl.where(total > 0, total, 1.0), AXIS)


@triton.jit
def _best(c, open_, AXIS: tl.constexpr):
    return tl.max(tl.where(open_, c, -1e30), AXIS)


@triton.jit
def _scores_kernel(
    to_text, to_image, x, y, x_whole, y_whole, x_real, y_real, n, length, d, sharpness,
    X_MASK: tl.constexpr, Y_MASK: tl.constexpr, SOFT: tl.constexpr, MASS: tl.constexpr, SIGNED: tl.constexpr,
    NORMAL: tl.constexpr, DETACH: tl.constexpr, MEAN: tl.constexpr, X_ZEROS: tl.constexpr, Y_ZEROS: tl.constexpr,
    N: tl.constexpr, L: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Both scores of one pair."""
    i, t = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    rows, columns = tl.arange(0, N), tl.arange(0, L)
    mx = (y_whole + t * d) if MASS == 1 else (x_whole + i * d)
    my = (x_whole + i * d) if MASS == 1 else (y_whole + t * d)
    c, this, other = _similarities(
        x + i * n * d, y + t * length * d, mx, my, rows, columns, n, length, d, MASS, N, L, STEP
    )  # fmt: skip
    here, there = _real(x_real + i * n, rows, n, X_MASK), _real(y_real + t * length, columns, length, Y_MASK)
    count, others = tl.sum(here.to(tl.float32), 0), tl.sum(there.to(tl.float32), 0)
    if SOFT:
        this, other = _shown(this, here, MASS, SIGNED), _shown(other, there, MASS, SIGNED)
        reached = tl.sum(_softmax(sharpness * other[None, :] * c, there[None, :] & (rows[:, None] < N), 1) * c, 1)
        met = tl.sum(_softmax(sharpness * this[:, None] * c, here[:, None] & (columns[None, :] < L), 0) * c, 0)
        first, second = tl.sum(this * reached, 0), tl.sum(other * met, 0)
        if NORMAL:
            first, second = first / tl.maximum(tl.sum(this, 0), 1e-30), second / tl.maximum(tl.sum(other, 0), 1e-30)
        else:
            first, second = first / tl.maximum(count, 1.0), second / tl.maximum(others, 1.0)
    else:
        seen = columns < length if Y_ZEROS else there
        first = tl.sum(tl.where(here, _best(c, seen[None, :] & (rows[:, None] < N), 1), 0.0), 0)
        second = tl.sum(tl.where(there, _best(c, here[:, None] & (columns[None, :] < L), 0), 0.0), 0)
        if MEAN:
            first, second = first / tl.maximum(count, 1.0), second / tl.maximum(others, 1.0)
    some = (count > 0) & (others > 0)
    width = tl.num_programs(1)
    tl.store(to_text + i * width + t, tl.where(some, first, 0.0))
    tl.store(to_image + i * width + t, tl.where(some, second, 0.0))


@triton.jit
def _one_way(c, this, other, open_, g, sharpness, scale, total, NORMAL: tl.constexpr, AXIS: tl.constexpr):
    """A soft flow's gradients, spread along AXIS: of c, of the masses that ship, and of those that route."""
    weight = tl.expand_dims(other, 1 - AXIS)
    spread = _softmax(sharpness * weight * c, open_, AXIS)
    reached = tl.sum(spread * c, AXIS)
    shipped = this * scale
    apart = c - tl.expand_dims(reached, AXIS)
    pull = g * tl.expand_dims(shipped, AXIS) * spread
    of_c = pull * (1 + sharpness * weight * apart)
    of_other = tl.sum(pull * sharpness * c * apart, 1 - AXIS)
    of_one = g * scale * (reached - total) if NORMAL else g * scale * reached
    return of_c, of_one, of_other


@triton.jit
def _shared(c, open_, outer, AXIS: tl.constexpr):
    """The flow of mean-of-max before its division: 1 at a token's best, shared by equal ones."""
    best = (c == tl.expand_dims(_best(c, open_, AXIS), AXIS)) & open_
    total = tl.sum(best.to(tl.float32), AXIS)
    flow = best.to(tl.float32) / tl.expand_dims(tl.maximum(total, 1.0), AXIS)
    return tl.where(tl.expand_dims(outer, AXIS), flow, 0.0)


@triton.jit
def _soft_pull(
    c, raw, other_raw, here, there, first, second, count, reply, sharpness,
    MASS: tl.constexpr, SIGNED: tl.constexpr, NORMAL: tl.constexpr,
):  # fmt: skip
    """Gradients of a soft flow's scores, weighed by first and second: of c, and of the masses of both sides."""
    along, across = there[None, :] | (here[:, None] & False), here[:, None] | (there[None, :] & False)
    this, other = _shown(raw, here, MASS, SIGNED), _shown(other_raw, there, MASS, SIGNED)
    if NORMAL:
        per_row, per_column = 1 / tl.maximum(tl.sum(this, 0), 1e-30), 1 / tl.maximum(tl.sum(other, 0), 1e-30)
    else:
        per_row, per_column = 1 / count, 1 / reply
    reached = tl.sum(_softmax(sharpness * other[None, :] * c, along, 1) * c, 1)
    met = tl.sum(_softmax(sharpness * this[:, None] * c, across, 0) * c, 0)
    s, r = tl.sum(this * reached, 0) * per_row, tl.sum(other * met, 0) * per_column
    a, one_a, other_a = _one_way(c, this, other, along, first, sharpness, per_row, s, NORMAL, 1)
    b, other_b, one_b = _one_way(c, other, this, across, second, sharpness, per_column, r, NORMAL, 0)
    of_one, of_other = tl.where(here, one_a + one_b, 0.0), tl.where(there, other_a + other_b, 0.0)
    if not SIGNED:
        of_one, of_other = tl.where(raw > 0, of_one, 0.0), tl.where(other_raw > 0, of_other, 0.0)
    return a + b, of_one, of_other


@triton.jit
def _gradient_kernel(
    grad, grad_whole, out, back, x, y, x_whole, y_whole, x_real, y_real, n, length, d, sharpness, others,
    X_MASK: tl.constexpr, Y_MASK: tl.constexpr, SOFT: tl.constexpr, MASS: tl.constexpr, SIGNED: tl.constexpr,
    NORMAL: tl.constexpr, DETACH: tl.constexpr, MEAN: tl.constexpr, X_ZEROS: tl.constexpr, Y_ZEROS: tl.constexpr,
    N: tl.constexpr, L: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of one row's tokens and whole vector, over a part of the width, summed over the other side in order."""
    i = tl.program_id(0).to(tl.int64)
    rows, columns = tl.arange(0, N), tl.arange(0, L)
    part = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = _real(x_real + i * n, rows, n, X_MASK)
    here_count = tl.sum(here.to(tl.float32), 0)
    own = _tile(x + i * n * d, rows, part, n, d)
    total, whole = tl.zeros((N, BLOCK), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for step in range(0, others):
        t = i * 0 + step  # 64 bits, as i is
        yt = y + t * length * d
        mx = (y_whole + t * d) if MASS == 1 else (x_whole + i * d)
        my = (x_whole + i * d) if MASS == 1 else (y_whole + t * d)
        c, raw, other_raw = _similarities(
            x + i * n * d, yt, mx, my, rows, columns, n, length, d, MASS, N, L, STEP
        )  # fmt: skip
        there = _real(y_real + t * length, columns, length, Y_MASK)
        there_count = tl.sum(there.to(tl.float32), 0)
        some = (there_count > 0) & (here_count > 0)
        first = tl.where(some, tl.load(out + i * others + t), 0.0)
        second = tl.where(some, tl.load(back + i * others + t), 0.0)
        far = _tile(yt, columns, part, length, d)
        if SOFT:
            pull, of_one, of_other = _soft_pull(
                c, raw, other_raw, here, there, first, second,
                tl.maximum(here_count, 1.0), tl.maximum(there_count, 1.0), sharpness, MASS, SIGNED, NORMAL,
            )  # fmt: skip
            if (MASS > 0) and (not DETACH):
                total += of_one[:, None] * tl.load(mx + part, mask=part < d, other=0.0)[None, :]
                whole += tl.sum(of_other[:, None] * far, 0) if MASS == 1 else tl.sum(of_one[:, None] * own, 0)
        else:
            seen, met = (columns < length) if Y_ZEROS else there, (rows < n) if X_ZEROS else here
            per_row, per_column = first, second
            if MEAN:
                per_row, per_column = first / tl.maximum(here_count, 1.0), second / tl.maximum(there_count, 1.0)
            pull = per_row * _shared(c, seen[None, :] | (here[:, None] & False), here, 1)
            pull += per_column * _shared(c, met[:, None] | (there[None, :] & False), there, 0)
        total = tl.dot(pull, far, total, input_precision="tf32x3")
    inside = (rows[:, None] < n) & (part[None, :] < d)
    tl.store(grad + i * n * d + rows[:, None] * d + part[None, :], total, mask=inside)
    if MASS:
        tl.store(grad_whole + i * d + part, whole, mask=part < d)
