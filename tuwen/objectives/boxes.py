"""A box learnt from right ones.

Shape legend: B rows, K right boxes a row, of which some may be the same.
"""

from torch import Tensor

from tuwen.nn.boxes import centred, generalized_overlap


def nearest_box_loss(boxes: Tensor, right: Tensor, edges: float = 5.0, overlap: float = 2.0) -> Tensor:
    """Mean over rows of the least, over a row's right boxes, of edges |b - b*|_1 + overlap (1 - GIoU(b, b*)).

    DETR's weights (Carion et al. 2020). boxes: [B, 4] cx, cy, w, h; right: [B, K, 4] x0, y0, x1, y1.
    """
    aims = centred(right.to(boxes))
    apart = (boxes[:, None] - aims).abs().sum(-1)
    return (edges * apart + overlap * (1 - generalized_overlap(boxes[:, None], aims))).amin(1).mean()
