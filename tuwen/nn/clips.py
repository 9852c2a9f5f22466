"""Clips: several frames a row become one row, in order.

Shape legend: R rows, F frames a row, N tokens a frame, W a tower's width, D shared embedding width.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from tuwen.data.batch import places_of
from tuwen.nn.encoded import Encoded
from tuwen.nn.towers import unit
from tuwen.nn.transformer import Stack


class FrameOrder(nn.Module):
    """What a frame's vector gains from its place and its neighbours (after CLIP4Clip's "seqTransf", Luo et al. 2021).

    A mean of frames forgets their order: a drawing that grows and one that shrinks are then one clip. Positions and
    layers of self-attention over the frames' vectors are added to them. [choice]: a position is a unit vector too, and
    the layers read and give vectors of length sqrt(D), the size their norms work at. Positions that start at 0.02 drown
    in a unit vector's numbers, and a gain that is left at sqrt(D) drowns a frame's patches. frames: most a row.
    """

    def __init__(self, width: int, heads: int, layers: int, frames: int = 64):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(frames, width))
        self.stack = Stack(width, layers, heads, "pre")

    def forward(self, frames: Tensor) -> Tensor:
        """[R, F, D] from unit vectors [R, F, D]."""
        size = frames.shape[-1] ** 0.5
        placed = frames + unit(self.positions[: frames.shape[1]])
        return frames + self.stack(size * placed) / size


def merged(
    frames: Encoded,
    owner: Tensor | None,
    tokens: Literal["frame", "patches"] = "frame",
    order: FrameOrder | None = None,
) -> Encoded:
    """One row a clip from one a frame; what it is given where there is one picture a row (owner None).

    pooled: the mean of the frames' vectors, scaled to length 1 (TokenFlow card, section 3). tokens: a vector a frame
    [R, F, D], or all patches of all frames [R, F N, D], as asked. States are not kept: no system fuses clips.
    order: changes the frames' vectors by their place; a frame's patches change by as much as its vector.
    """
    if owner is None:
        return frames
    places = places_of(owner)
    assert frames.pooled is not None
    vectors = frames.pooled[places]  # [R, F, D]
    moved = vectors if order is None else order(vectors)
    pooled = unit(moved.mean(1))
    if tokens == "frame":
        return Encoded(pooled, unit(moved))
    assert frames.tokens is not None, "all patches are asked of a tower that gives one vector a frame"
    patches = frames.tokens[places]  # [R, F, N, D]
    patches = unit(patches + (moved - vectors)[:, :, None])
    mask = None if frames.token_mask is None else frames.token_mask[places].flatten(1)
    return Encoded(pooled, patches.flatten(1, 2), mask)
