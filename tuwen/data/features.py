"""Tokens of a corpus's pictures that a locked tower gave before, in place of the pictures."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Store(Protocol):
    """`tuwen.nn.features.FeatureStore`."""

    def __contains__(self, key: int) -> bool: ...
    def read(self, key: int) -> np.ndarray: ...


class ImageFeatures:
    """By corpus row."""

    def __init__(self, store: Store):
        self.store = store

    def __contains__(self, row: int) -> bool:
        return row in self.store

    def tokens(self, row: int) -> Tensor:
        """[N, W] float32."""
        return torch.from_numpy(np.array(self.store.read(row)))
