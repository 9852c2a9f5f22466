"""An explanation as a picture: a panel a word with its heat map, and who was matched with whom."""

from pathlib import Path

import numpy as np
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from tuwen.data.images import shrink
from tuwen.explain.font import font_for
from tuwen.explain.maps import Box, Explanation
from tuwen.outputs import check_free

MARK = "tuwen explain"  # in the file, so that it may be written again
COLUMNS = 5  # panels in a row
PANEL = 2.0  # inches
BOXES = 3  # the best boxes that are drawn
LINES = 3  # the strongest matches of a word that are drawn
BEST = "#f5d90a"  # a located box
DARK = 0.3  # brightness of what is coldest
COLOURS = ("#e0862b", "#3f7fe0", "#1f9d6b", "#d1495b", "#b05fc9", "#2a9fb5", "#8a8f2a", "#94694f")


def draw(explanation: Explanation, text: str, out: Path) -> str:
    """Writes the picture as PNG; gives the characters no font was found for, which are drawn as boxes."""
    pixels = shrink(explanation.picture, 256).permute(1, 2, 0).numpy()
    font, lacking = font_for(text + "".join(explanation.words))
    matched = explanation.flow is not None and explanation.places is not None
    panels = 1 + len(explanation.words)
    rows = -(-panels // COLUMNS)
    aspect = min(2.0, max(0.5, pixels.shape[0] / pixels.shape[1]))
    height = rows * (PANEL * aspect + 0.35) + 0.4 + (_match_height(explanation, aspect) if matched else 0)
    figure = Figure(figsize=(COLUMNS * PANEL, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    below = _match_height(explanation, aspect)
    heights = [PANEL * aspect + 0.35] * rows + [below] * matched
    layout = figure.add_gridspec(rows + matched, COLUMNS, height_ratios=heights)
    figure.suptitle(
        f"{text}\nby {explanation.how}; score of picture and text {explanation.score:.3f}",
        fontproperties=font,
        fontsize=10,
    )
    for k in range(panels):
        axis = figure.add_subplot(layout[k // COLUMNS, k % COLUMNS])
        axis.set_axis_off()
        _show(axis, pixels)
        if k == 0:
            boxes = getattr(explanation.located, "boxes", None)
            _boxes(axis, None if boxes is None else boxes[0, :BOXES], pixels.shape, BEST)
            continue
        colour = COLOURS[(k - 1) % len(COLOURS)]
        _heat(axis, explanation.maps[k - 1], explanation.part, pixels, colour)
        if explanation.boxes is not None:
            _boxes(axis, explanation.boxes[k - 1 : k], pixels.shape, BEST)
        axis.set_title(explanation.words[k - 1], fontproperties=font, fontsize=11, color=colour)
    if matched:
        _matches(figure.add_subplot(layout[rows, :]), explanation, pixels, font)
    check_free(out, MARK)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, format="png", dpi=100, metadata={"Software": MARK})
    return lacking


def _match_height(explanation: Explanation, aspect: float) -> float:
    return max(1.8 * PANEL * aspect, 0.24 * len(explanation.words))


def _show(axis: Axes, pixels: np.ndarray) -> None:
    axis.imshow(pixels, extent=(0, pixels.shape[1], pixels.shape[0], 0))


def _heat(axis: Axes, heat: Tensor, part: Box, pixels: np.ndarray, colour: str) -> None:
    """The picture lit where the word is and dark elsewhere, a line round what is warmer than halfway.

    heat: [h, w] over a part of the picture; beside it nothing was read, and nothing is lit.
    """
    height, width = pixels.shape[:2]
    left, top, right, bottom = (round(edge * side) for edge, side in zip(part, (width, height) * 2, strict=True))
    smooth = F.interpolate(heat[None, None], (bottom - top, right - left), mode="bilinear", align_corners=False)
    low, high = float(smooth.min()), float(smooth.max())
    share = np.zeros((height, width, 1), np.float32)
    if high > low:
        share[top:bottom, left:right, 0] = ((smooth - low) / (high - low))[0, 0].numpy()
    grey = pixels.mean(2, keepdims=True) * DARK
    axis.imshow((grey + share * (pixels - grey)).round().astype(np.uint8), extent=(0, width, height, 0))
    if high > low:
        x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
        axis.contour(x, y, share[..., 0], levels=[0.5], colors=[colour], linewidths=1.2)


def _boxes(axis: Axes, boxes: Tensor | None, shape: tuple[int, ...], colour: str) -> None:
    """Boxes [K, 4] (x0, y0, x1, y1 in 0..1), the first the best and drawn strongest."""
    if not isinstance(boxes, Tensor):
        return
    for k, (x0, y0, x1, y1) in enumerate(boxes.detach().tolist()):
        width, height = shape[1], shape[0]
        corner = (x0 * width, y0 * height)
        thick, line = (2.0, "-") if k == 0 else (0.8, "--")
        sides = (x1 - x0) * width, (y1 - y0) * height
        axis.add_patch(Rectangle(corner, *sides, fill=False, color=colour, linewidth=thick, linestyle=line))


def _matches(axis: Axes, explanation: Explanation, pixels: np.ndarray, font) -> None:
    """Words on the left, the picture on the right, lines between: as wide as the share of the word's flow."""
    assert explanation.flow is not None
    assert explanation.places is not None
    height, width = pixels.shape[:2]
    axis.set_axis_off()
    axis.imshow(pixels, extent=(width, 2 * width, height, 0))
    axis.set_xlim(-0.2 * width, 2 * width)
    axis.set_ylim(height, 0)
    centres = _centres(explanation.places.numpy(), explanation.part, width, height)
    for k, word in enumerate(explanation.words):
        colour, y = COLOURS[k % len(COLOURS)], (k + 0.5) * height / len(explanation.words)
        axis.text(0.3 * width, y, word, fontproperties=font, fontsize=11, color=colour, ha="right", va="center")
        shares = np.abs(explanation.flow[:, k].numpy())
        for token in np.argsort(-shares, kind="stable")[:LINES]:
            if shares[token] > 0.02:
                to = centres[token]
                ends = [0.34 * width, width + to[0]], [y, to[1]]
                axis.plot(*ends, color=colour, lw=0.5 + 3 * shares[token], alpha=0.8, solid_capstyle="round")
                axis.plot(width + to[0], to[1], "o", color=colour, markersize=3 + 5 * shares[token])


def _centres(places: np.ndarray, part: Box, width: int, height: int) -> np.ndarray:
    """[N, 2] the mean place (x, y) of each token, in pixels of the whole picture."""
    _, rows, columns = places.shape
    left, top, right, bottom = part
    x = (left + (np.arange(columns) + 0.5) * (right - left) / columns) * width
    y = (top + (np.arange(rows) + 0.5) * (bottom - top) / rows) * height
    return np.stack([places.sum(1) @ x, places.sum(2) @ y], 1)
