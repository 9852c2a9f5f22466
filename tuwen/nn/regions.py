"""Pictures as regions that a detector found: their features and places (CAPTURE's picture side).

Shape legend: P pictures, N regions, F width of their features, W width of the states.
"""

import torch
from torch import Tensor, nn

from tuwen.data.batch import Images
from tuwen.nn.sizes import ImageTowerConfig
from tuwen.nn.transformer import Stack


class RegionTower(nn.Module):
    """norm(W f + L place) and post-norm layers; before the regions stands the whole picture, the mean of them."""

    def __init__(self, config: ImageTowerConfig, features: int):
        super().__init__()
        self.config, self.pooled_width = config, config.width
        self.feature, self.place = nn.Linear(features, config.width), nn.Linear(5, config.width)
        self.norm, self.dropout = nn.LayerNorm(config.width, config.eps), nn.Dropout(config.dropout)
        self.stack = Stack.of(config, "post")

    def tokens(self, images: Images, hidden: Tensor | None = None) -> Tensor:
        """[P, 1 + N, W]; hidden: [P, N] bool, regions whose features are zeros."""
        assert images.features is not None
        assert images.boxes is not None
        features = images.features.to(self.feature.weight.dtype)
        features = features if hidden is None else features.masked_fill(hidden[..., None], 0)
        real = self.mask(images)[:, 1:, None]
        whole = (features * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
        x0, y0, x1, y1 = images.boxes.to(features.dtype).unbind(-1)
        places = torch.stack([x0, y0, x1, y1, (x1 - x0) * (y1 - y0)], -1)
        everywhere = places.new_tensor([0, 0, 1, 1, 1]).expand(len(places), 1, -1)
        x = self.feature(torch.cat([whole, features], 1)) + self.place(torch.cat([everywhere, places], 1))
        return self.stack(self.dropout(self.norm(x)), self.mask(images))

    def mask(self, images: Images) -> Tensor:
        """[P, 1 + N] bool, False on regions that are padding."""
        assert images.features is not None
        real = images.feature_mask
        real = torch.ones_like(images.features[..., 0], dtype=torch.bool) if real is None else real
        return torch.nn.functional.pad(real, (1, 0), value=True)

    def grid(self, tokens: Tensor) -> Tensor:
        return tokens[:, 1:]

    def pooled(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]
