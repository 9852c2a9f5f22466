"""Masked patches, told by their pixels (MAE, He et al. 2022, section 3).

Shape legend: B pictures, N patches, row by row.
"""

from torch import Tensor


def patches_of(pixels: Tensor, patch: int) -> Tensor:
    """[B, N, patch patch 3]: a patch's pixels row by row, the three channels of each together. pixels: [B, 3, H, W]."""
    rows, _, height, width = pixels.shape
    cut = pixels.view(rows, 3, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(rows, -1, 3 * patch * patch)


def masked_pixels(predicted: Tensor, pixels: Tensor, hidden: Tensor, patch: int) -> Tensor:
    """Mean squared error over the hidden patches; a patch's pixels are first brought to mean 0 and variance 1.

    told: [B, N, patch patch 3]. pixels: [B, 3, H, W] float. hidden: [B, N] bool; none hidden costs 0.
    The variance is the unbiased one, plus 1e-6 (official code), so that a patch of one colour is all 0.
    """
    right = patches_of(pixels, patch).to(predicted.dtype)
    right = (right - right.mean(-1, keepdim=True)) / (right.var(-1, keepdim=True) + 1e-6).sqrt()
    error = (predicted - right).square().mean(-1)
    return (error * hidden).sum() / hidden.sum().clamp(min=1)
