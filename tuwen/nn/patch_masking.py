"""Which patches are hidden: blocks (BEiT), single ones at random (MAE), or blocks of an exact number (VLMAE).

Shape legend: B pictures, h x w patches, N = h w.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TRIES = 10  # attempts for one block before a picture's mask is left as it is
ATTEMPTS = 48  # in all; a picture whose mask needs more stays below its target
DRAWS = 4 * ATTEMPTS  # numbers a picture takes


def hide_blocks(
    draws: Tensor, grid: tuple[int, int], target: int, least: int = 16, aspect: tuple[float, float] = (0.3, 1 / 0.3)
) -> Tensor:
    """[B, h, w] bool, True where hidden: rectangles are added until `target` are (BEiT, Bao et al. 2022, alg. 1).

    A rectangle has an area drawn between `least` and what is still missing, a log-uniform aspect (height over width),
    and a place; it is taken where it adds at least one patch and not more than are missing; after ten
    failures in a row the mask is done. So between 1 and `target` patches are hidden.

    draws: [B, >= DRAWS] in [0, 1); attempt k takes numbers 4k (area), 4k + 1 (aspect), 4k + 2 (top), 4k + 3 (left).
        A picture's mask depends on its own draws alone.
    """
    height, width = grid
    device = draws.device
    rows, columns = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    hidden = torch.zeros(len(draws), height, width, dtype=torch.bool, device=device)
    failures = torch.zeros(len(draws), dtype=torch.int64, device=device)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for attempt in range(ATTEMPTS):
        missing = target - hidden.flatten(1).sum(1)
        active = (missing > 0) & (failures < TRIES)
        if not bool(active.any()):
            break
        area_draw, aspect_draw, top_draw, left_draw = draws[:, 4 * attempt : 4 * attempt + 4].unbind(1)
        area = least + area_draw * (missing - least)
        ratio = torch.exp(low + aspect_draw * (high - low))
        tall, wide = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        fits = (tall < height) & (wide < width)
        top = (top_draw * (height - tall + 1).clamp(min=1)).long()[:, None, None]
        left = (left_draw * (width - wide + 1).clamp(min=1)).long()[:, None, None]
        inside = (rows >= top) & (rows < top + tall[:, None, None])
        inside = inside & (columns >= left) & (columns < left + wide[:, None, None])
        added = (inside & ~hidden).flatten(1).sum(1)
        taken = active & fits & (added > 0) & (added <= missing)
        hidden = hidden | (inside & taken[:, None, None])
        failures = torch.where(taken, 0, failures + active.long())
    return hidden


def block_size(patches: int, hidden: int = 75, least: int = 16, of: int = 196) -> tuple[int, int]:
    """(target, least) for a grid of so many patches, in the proportion of FLAVA's 75 and 16 of 14 x 14."""
    return max(1, round(patches * hidden / of)), max(1, round(patches * least / of))


def hide_random(draws: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """(kept [B, K] int64, hidden [B, N] bool): the K = int(N (1 - share)) patches of least draw stay (MAE).

    draws: [B, N] in [0, 1).
    """
    order = draws.argsort(dim=1, stable=True)
    visible = order[:, : int(draws.shape[1] * (1 - share))]
    return visible, torch.ones_like(draws, dtype=torch.bool).scatter(1, visible, False)


def hide_exactly(draws: Tensor, grid: tuple[int, int], count: int, blocks: bool = True) -> tuple[Tensor, Tensor]:
    """(kept [B, N - count] int64, in order, hidden [B, N] bool): so many patches of every picture, so that rows stack.

    blocks: `hide_blocks`, whose blocks then grow: patches beside them come first, those of greatest draw; False: those
    of greatest draw from the start. draws: [B, DRAWS + N] in [0, 1).
    """
    rank = draws[:, DRAWS:]
    if blocks and count:
        hidden = hide_blocks(draws[:, :DRAWS], grid, count, block_size(grid[0] * grid[1])[1])
        around = F.max_pool2d(hidden[:, None].float(), 3, stride=1, padding=1)[:, 0]  # hidden or beside
        rank = rank + (hidden + around).flatten(1)
    order = rank.argsort(dim=1, descending=True, stable=True)
    return order[:, count:].sort(1).values, torch.zeros_like(rank, dtype=torch.bool).scatter(1, order[:, :count], True)
