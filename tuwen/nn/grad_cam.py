"""Grad-CAM on attention: which places of a picture made a score high (Selvaraju et al. 2017; ALBEF card, section 6).

Shape legend: B rows, H heads, L words, S places.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tuwen.errors import UserError
from tuwen.nn.relations import recorded


def positive_shares(score: Tensor, attention: Sequence[Tensor]) -> list[Tensor]:
    """[B, L, S] a layer: mean over heads of attention times the score's gradient by it where that is positive.

    score: [B], row b of which hangs on row b of the attention [B, H, L, S] alone. Layers that it does not hang on are
    left out.
    """
    gradients = torch.autograd.grad(score.sum(), attention, allow_unused=True) if attention else ()
    return [
        (weights.detach() * gradient.clamp(min=0)).mean(1)
        for weights, gradient in zip(attention, gradients, strict=True)
        if gradient is not None
    ]


def heat_of(
    system: nn.Module, where: str, score: Callable[[], Tensor], mask: Tensor | None, grid: Callable[[Tensor], Tensor]
) -> Tensor:
    """[B, h, w]: where words look to make the score high, in the layers that `where` names, mean over layers and words.

    score: gives [B] log-odds or logits of pairs of a picture and a text. mask: [B, L] bool, real words; padding counts
    as words that look nowhere. grid: the patches of [B, S, 1] image tokens.
    """
    with torch.enable_grad(), recorded(system, where) as relations:
        shares = positive_shares(score(), [relation.attention for relation in relations.values()])
    cam = torch.stack(shares).mean(0).float()
    if mask is not None and cam.shape[1] == mask.shape[1]:  # a last layer may work for one word alone
        cam = cam * mask[..., None]
    return on_grid(grid(cam.mean(1)[..., None])[..., 0])


def on_grid(shares: Tensor) -> Tensor:
    """[..., h, w] of the shares [..., S] of a square of places, with or without a class token before it.

    Raises:
        UserError: they make no square.
    """
    count = shares.shape[-1]
    side = math.isqrt(count)
    if side * side != count:
        side = math.isqrt(count - 1)
    if side * side not in (count, count - 1):
        raise UserError(f"cannot lay {count} image tokens on a square grid")
    return shares[..., -side * side :].unflatten(-1, (side, side))
