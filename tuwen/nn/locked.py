"""Towers that may be locked: never trained, always in evaluation mode (LiT, Zhai et al. 2022, arXiv 2111.07991)."""

import torch
from torch import Tensor, nn

from tuwen.errors import UserError
from tuwen.nn.features import TextFeatures


class Lockable(nn.Module):
    """A tower whose `run` computes. Locked, it keeps no gradient and no dropout, and its output may be cached.

    A locked image tower takes its own tokens [B, N, W] in place of pixels [B, 3, H, W] (the loader may have them from
    disk). A locked text tower looks texts up in `features` where it is given one.
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

    def forward(self, *inputs, **options) -> Tensor:
        """What `run` says.

        Raises:
            UserError: for tokens that come from disk, if more is asked than they are (other layers, fewer patches).
        """
        if not self.locked:
            return self.run(*inputs, **options)
        if inputs[0].dim() == 3:
            asked = sorted(name for name, value in options.items() if value is not None)
            if asked:
                raise UserError(
                    f"a locked tower's tokens on disk are of whole pictures, at its last layer; this system asks for "
                    f"{', '.join(asked)} too: set data.augment=crop, with which none are kept on disk"
                )
            return inputs[0]
        with torch.no_grad():
            if self.features is not None and not options and len(inputs) == 2:
                return self.features.states(*inputs, self.run)
            return self.run(*inputs, **options)
