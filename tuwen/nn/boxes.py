"""Boxes as tensors: moved, compared, chosen, and read from a feature map with gradients to their edges.

A box is (cx, cy, w, h) in shares of the picture's width and height; corners are (x0, y0, x1, y1).
Shape legend: R rows, N boxes a row, P candidates, C channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LEAST = 1e-3  # sides are never shorter


def corners(boxes: Tensor) -> Tensor:
    """[..., 4] x0, y0, x1, y1 of boxes [..., 4] cx, cy, w, h."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def centred(edges: Tensor) -> Tensor:
    """[..., 4] cx, cy, w, h of corners [..., 4]."""
    return torch.cat([(edges[..., :2] + edges[..., 2:]) / 2, edges[..., 2:] - edges[..., :2]], -1)


def clipped(boxes: Tensor) -> Tensor:
    """Boxes [..., 4] cut to the picture."""
    edges = corners(boxes).clamp(0, 1)
    cut = centred(edges)
    return torch.cat([cut[..., :2], cut[..., 2:].clamp(min=LEAST)], -1)


def moved(boxes: Tensor, delta: Tensor) -> Tensor:
    """cx + dx w, cy + dy h, w exp(dw), h exp(dh), deltas cut to -1..1, the box to the picture (SLAN card, 3.4)."""
    delta = delta.clamp(-1, 1)
    place = boxes[..., :2] + delta[..., :2] * boxes[..., 2:]
    return clipped(torch.cat([place, boxes[..., 2:] * delta[..., 2:].exp()], -1))


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes [..., 4] that broadcast against each other."""
    shared, joined, _ = _areas(a, b)
    return shared / joined.clamp(min=LEAST**2)


def generalized_overlap(a: Tensor, b: Tensor) -> Tensor:
    """GIoU (Rezatofighi et al. 2019): overlap less the share of the enclosing box that neither covers; in -1..1."""
    shared, joined, hull = _areas(a, b)
    return shared / joined.clamp(min=LEAST**2) - (hull - joined) / hull.clamp(min=LEAST**2)


def _areas(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Areas of intersection, union, and of the box around both."""
    p, q = corners(a), corners(b)
    shared = (torch.minimum(p[..., 2:], q[..., 2:]) - torch.maximum(p[..., :2], q[..., :2])).clamp(min=0).prod(-1)
    hull = (torch.maximum(p[..., 2:], q[..., 2:]) - torch.minimum(p[..., :2], q[..., :2])).prod(-1)
    return shared, a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - shared, hull


def choose_boxes(scores: Tensor, boxes: Tensor, count: int, limit: float = 0.7) -> Tensor:
    """[R, count] int64: the best candidates [R, P], each overlapping the better ones by at most `limit` (greedy).

    Where too few are so far apart, the rest are the best of what overlaps. No gradient.
    """
    with torch.no_grad():
        left = scores.detach().clone()
        drop = float(left.max() - left.min()) + 1.0  # below all others, still in their own order
        chosen = []
        for _ in range(count):
            best = left.argmax(1)
            chosen.append(best)
            near = overlap(boxes, boxes.gather(1, best[:, None, None].expand(-1, 1, 4))) > limit
            left = torch.where(near, torch.minimum(left, scores.detach() - drop), left)
            left.scatter_(1, best[:, None], float("-inf"))
        return torch.stack(chosen, 1)


def pool(levels: Sequence[Tensor], boxes: Tensor, size: int = 7) -> Tensor:
    """[R, N, C]: mean over size x size bilinear samples inside each box [R, N, 4] of a map.

    levels: maps [R, C, h, w], fine to coarse; each box is read from the one on which it spans nearest to four cells
    (SLAN card, section 3.4). Differentiable in the boxes, which torchvision's roi_align is not. Samples beyond a map
    take its edge. As samples lie on a grid, their bilinear weights are products of a row's and a column's.
    """
    span = boxes[..., 2:].detach().prod(-1).sqrt()
    which = torch.stack([(span * level.shape[-1] / 4).log().abs() for level in levels]).argmin(0)  # [R, N]
    pooled = boxes.new_zeros(())
    for k, level in enumerate(levels):
        height, width = level.shape[2:]
        columns = _shares(boxes[..., 0], boxes[..., 2], width, size) * (which == k)[..., None]
        rows = _shares(boxes[..., 1], boxes[..., 3], height, size)
        weights = rows[..., :, None] * columns[..., None, :]  # [R, N, h, w]
        pooled = pooled + weights.flatten(2).to(level.dtype) @ level.flatten(2).mT
    return pooled


def _shares(centre: Tensor, extent: Tensor, cells: int, size: int) -> Tensor:
    """[R, N, cells] mean bilinear weight of each cell of one axis, over `size` samples in centre +- extent / 2."""
    steps = (torch.arange(size, device=centre.device, dtype=centre.dtype) + 0.5) / size - 0.5
    place = (centre[..., None] + steps * extent[..., None]) * cells - 0.5  # [R, N, size] in cells
    apart = place.clamp(0, cells - 1)[..., None] - torch.arange(cells, device=centre.device, dtype=centre.dtype)
    return (1 - apart.abs()).clamp(min=0).mean(-2)


def hot_box(heat: Tensor) -> tuple[Tensor, Tensor]:
    """(boxes [M, 4], share [M] of the map they cover): tight boxes round the hot spots of heat maps [M, h, w].

    A spot is what hangs together with the peak (by sides) at no less than half way from the map's mean to its peak.
    """
    peak = heat.flatten(1).amax(1)[:, None, None]
    hot = heat >= (heat.mean((1, 2), keepdim=True) + peak) / 2
    spot = heat == peak
    while True:
        grown = spot.clone()
        grown[:, 1:] |= spot[:, :-1]
        grown[:, :-1] |= spot[:, 1:]
        grown[:, :, 1:] |= spot[:, :, :-1]
        grown[:, :, :-1] |= spot[:, :, 1:]
        grown &= hot
        if torch.equal(grown, spot):
            break
        spot = grown
    edges = []
    for cells in (spot.any(1), spot.any(2)):
        length = cells.shape[1]
        first = cells.int().argmax(1)
        last = length - cells.flip(1).int().argmax(1)
        edges.append((first.to(heat.dtype) / length, last.to(heat.dtype) / length))
    (left, right), (top, bottom) = edges
    return centred(torch.stack([left, top, right, bottom], 1)), spot.to(heat.dtype).mean((1, 2))
