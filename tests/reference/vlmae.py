"""VLMAE's two reconstructions, slowly: one number at a time, from its card's section 4.

Shape legend: B pictures, N patches, C numbers of a patch (3 p p), W width of features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.scalars import dot, mean


def patch_of(pixels: Tensor, place: int, patch: int) -> list[Tensor]:
    """The numbers of a patch, row by row, the three channels of each together. pixels: [3, H, W]."""
    across = pixels.shape[2] // patch
    top, left = place // across * patch, place % across * patch
    return [pixels[c, top + y, left + x] for y in range(patch) for x in range(patch) for c in range(3)]


def masked_pixels(told: Tensor, pixels: Tensor, hidden: Sequence[Sequence[bool]], patch: int) -> Tensor:
    """(1/|M|) sum over hidden patches i of mean_c (told_ic - y_ic)^2, y = (x - mean) / sqrt(var + 1e-6), unbiased."""
    errors = []
    for b, row in enumerate(hidden):
        for place, asked in enumerate(row):
            if asked:
                x = patch_of(pixels[b], place, patch)
                middle = sum(x) / len(x)
                spread = (sum((v - middle) ** 2 for v in x) / (len(x) - 1) + 1e-6) ** 0.5
                right = [(v - middle) / spread for v in x]
                errors.append(mean([(t - r) ** 2 for t, r in zip(told[b, place], right, strict=True)]))
    return mean(errors)


def features(told: Tensor, seen: Tensor, asked: Sequence[Sequence[bool]], distance: str) -> Tensor:
    """(1/count) sum over the patches asked of the distance from told to the normed, detached features."""
    errors = []
    for b, row in enumerate(asked):
        for place, counts in enumerate(row):
            if not counts:
                continue
            g = seen[b, place].detach()
            middle = sum(g) / len(g)
            spread = (sum((v - middle) ** 2 for v in g) / len(g) + 1e-5) ** 0.5
            right = torch.stack([(v - middle) / spread for v in g])
            if distance == "cosine":
                lengths = [dot(x, x) ** 0.5 for x in (told[b, place], right)]
                errors.append(1 - dot(told[b, place], right) / (lengths[0] * lengths[1]))
                continue
            gaps = [t - r for t, r in zip(told[b, place], right, strict=True)]
            if distance == "mse":
                errors.append(mean([gap**2 for gap in gaps]))
            else:
                errors.append(mean([gap**2 / 2 if abs(float(gap.detach())) < 1 else gap.abs() - 0.5 for gap in gaps]))
    return mean(errors)
