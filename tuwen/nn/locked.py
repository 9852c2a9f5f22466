"""Towers that may be locked: never trained, always in evaluation mode (LiT, Zhai et al. 2022, arXiv 2111.07991)."""

import torch
from torch import Tensor, nn

from tuwen.data.batch import Images
from tuwen.errors import UserError
from tuwen.nn.features import TextFeatures


class Lockable(nn.Module):
    """A tower whose `run` computes. Locked, it keeps no gradient and no dropout, and its output may be cached.

    A locked image tower's tokens may come with the batch (the loader may have them from disk), see `tokens`. A locked
    text tower looks texts up in `features` where it is given one.
    """

    features: TextFeatures | None = None

    def __init__(self, locked: bool):
        super().__init__()
        self.locked = locked

    def lock(self) -> None:
        """At the end of a tower's `__init__`: takes gradients away where the tower is locked."""
        if self.locked:
            self.requires_grad_(False)
            self.eval()

    def train(self, mode: bool = True):
        return super().train(mode and not self.locked)

    def run(self, *inputs, **options) -> Tensor:
        raise NotImplementedError

    def alone(self, *inputs) -> Tensor | None:
        """[B] int64: the one position that pooling reads, so that `run(..., only=...)` does for a vector without
        states; None where pooling reads several or the output may be cached."""
        return None

    def tokens(self, images: Images, **options) -> Tensor:
        """[P, N, W] of pictures: `run` of their pixels, or what this tower, locked, gave for them before.

        Raises:
            UserError: for tokens that come from disk, if more is asked than they are (other layers, fewer patches).
        """
        if images.pixels is not None:
            return self(images.pixels, **options)
        assert self.locked, "features in place of pixels are for the locked tower that gave them"
        assert images.features is not None
        asked = sorted(name for name, value in options.items() if value is not None)
        if asked:
            raise UserError(
                f"a locked tower's tokens on disk are of whole pictures, at its last layer; this system asks for "
                f"{', '.join(asked)} too: set data.augment=crop, with which none are kept on disk"
            )
        return images.features

    def forward(self, *inputs, **options) -> Tensor:
        """What `run` says."""
        if not self.locked:
            return self.run(*inputs, **options)
        with torch.no_grad():
            if self.features is not None and not options and len(inputs) == 2:
                return self.features.states(*inputs, self.run)
            return self.run(*inputs, **options)
