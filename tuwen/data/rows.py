"""Rows of a batch, drawn, and how they become its tensors."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tuwen.data.batch import Images
from tuwen.data.features import RegionFeatures, padded
from tuwen.errors import UserError


@dataclass(frozen=True)
class Row:
    """One row of a batch, drawn. views[""] are its pictures; texts are (text, language index); further by name.

    A row of pictures alone has no texts and no text identity (0); one of texts alone no views and no image identity.
    features: [F, N, W] of its F pictures, in place of the views. regions: beside them.
    """

    index: int
    image_id: int
    views: dict[str, Tensor]
    features: Tensor | None
    regions: RegionFeatures | None
    texts: list[tuple[str, int]]
    further: dict[str, tuple[str, int]]
    columns: dict[str, np.ndarray]


def images_of_rows(rows: list[Row]) -> Images:
    """Their pictures with views and regions, or the features that stand for them."""
    features = [row.features for row in rows if row.features is not None]
    if features:
        return Images(features=torch.cat(features), owner=_owner([len(own) for own in features]))
    images = padded([row.regions for row in rows if row.regions is not None]) if rows[0].regions else Images()
    views = {name: torch.cat([row.views[name] for row in rows]) for name in rows[0].views}
    owner = _owner([len(row.views[""]) for row in rows])
    return replace(images, pixels=views.pop(""), owner=owner, views=views)


def _owner(counts: list[int]) -> Tensor | None:
    """The row of every picture, of rows that show so many; None where each shows one."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)) if max(counts) > 1 else None


def stacked(rows: list[Row], name: str) -> Tensor:
    """[B, ...]: a column of numbers."""
    shapes = {row.columns[name].shape for row in rows}
    if len(shapes) > 1:
        raise UserError(
            f"column {name!r}: rows differ in shape ({', '.join(map(str, sorted(shapes)))}); make them equal"
        )
    return torch.from_numpy(np.stack([row.columns[name] for row in rows]))
