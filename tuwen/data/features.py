"""What was computed of pictures before they became a batch: a locked tower's tokens, and regions of a detector."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from tuwen.data.batch import Images
from tuwen.data.corpus import Record
from tuwen.data.needs import numbers
from tuwen.errors import UserError


class Store(Protocol):
    """`tuwen.nn.features.FeatureStore`."""

    def __contains__(self, key: int) -> bool: ...
    def read(self, key: int) -> np.ndarray: ...


class ImageFeatures:
    """Tokens of a corpus's pictures that a locked tower gave before, in place of the pictures; by corpus row.

    keys: [rows] int64 where in the store each row's are. pictures: that a row shows, one after the other in its entry.
    """

    def __init__(self, store: Store, keys: np.ndarray, pictures: int):
        self.store, self.keys, self.pictures = store, keys, pictures

    def __contains__(self, row: int) -> bool:
        return int(self.keys[row]) in self.store

    def tokens(self, row: int) -> Tensor:
        """[pictures, N, W] float32."""
        values = torch.from_numpy(np.array(self.store.read(int(self.keys[row]))))
        return values.view(self.pictures, -1, values.shape[1])


class RegionFeatures(NamedTuple):
    """Of one picture: features [N, W] float32, boxes [N, 4] x0, y0, x1, y1 in 0..1."""

    features: Tensor
    boxes: Tensor


def regions_of(record: Record) -> RegionFeatures:
    """The regions of a row, from its columns "features" and "boxes".

    Raises:
        UserError: a column is not there, or the two do not fit.
    """
    features, boxes = (np.asarray(numbers(record, name), dtype=np.float32) for name in ("features", "boxes"))
    if features.ndim != 2 or boxes.shape != (len(features), 4) or not len(features):
        raise UserError(
            f'row {record.called}: columns "features" {list(features.shape)} and "boxes" {list(boxes.shape)} must be '
            "[N, W] numbers of N regions, at least one, and [N, 4] of their places"
        )
    if boxes.min() < 0 or boxes.max() > 1:
        raise UserError(f'row {record.called}: column "boxes" must hold shares of width and height, from 0 to 1')
    return RegionFeatures(torch.from_numpy(features), torch.from_numpy(boxes))


def padded(regions: Sequence[RegionFeatures]) -> Images:
    """Pictures as their regions alone: those with fewer are filled with zeros, which the mask tells.

    Raises:
        UserError: features of different widths.
    """
    widths = sorted({picture.features.shape[1] for picture in regions})
    if len(widths) > 1:
        raise UserError(f'column "features": rows differ in width ({", ".join(map(str, widths))}); make them equal')
    features, boxes = (torch.nn.utils.rnn.pad_sequence(list(x), batch_first=True) for x in zip(*regions, strict=True))
    counts = torch.tensor([len(picture.boxes) for picture in regions])
    return Images(features=features, boxes=boxes, feature_mask=torch.arange(boxes.shape[1]) < counts[:, None])
