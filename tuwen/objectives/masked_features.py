"""Features of patches told, against those of a tower that saw the whole picture (VLMAE's IFR).

Shape legend: B pictures, N patches, W width of the features.
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Distance = Literal["smooth_l1", "cosine", "mse"]


def masked_features(
    predicted: Tensor, features: Tensor, asked: Tensor, distance: Distance = "smooth_l1", normed: bool = True
) -> Tensor:
    """Mean distance over the patches asked [B, N] bool; no patch costs 0.

    predicted, features: [B, N, W]; the features are brought to mean 0 and variance 1 a patch (a norm without weights)
    and take no gradient, else all could agree on one constant. distance: smooth L1 and squared error are means over W,
    "cosine" is 1 - cosine. normed: False takes features as they are (those of a detector).
    """
    right = features.detach().to(predicted.dtype)
    right = F.layer_norm(right, features.shape[-1:]) if normed else right
    each = DISTANCES[distance](predicted, right)
    return (each * asked).sum() / asked.sum().clamp(min=1)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "smooth_l1": lambda a, b: F.smooth_l1_loss(a, b, reduction="none").mean(-1),
    "cosine": lambda a, b: 1 - F.cosine_similarity(a, b, dim=-1),
    "mse": lambda a, b: (a - b).square().mean(-1),
}
