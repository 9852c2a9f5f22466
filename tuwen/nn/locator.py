"""SLAN's locator: a filter that picks regions for a text, an adaptor that moves their boxes.

Reconstructed (card section 3; no code was published). Shape legend: B pictures, R pairs of a picture and a text,
P candidates, N regions kept, L words, C channels, W widths of the towers.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuwen.nn import boxes as box
from tuwen.nn.towers import unit
from tuwen.nn.transformer import Block


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero."""

    zero_start = True


@dataclass(frozen=True)
class Candidates:
    """Text-free candidates of pictures.

    levels: maps [B, C, h, w], fine to coarse. features: [B, P, C] unit vectors, one a place of all levels.
    boxes: [B, P, 4]. objectness: [B, P] logits. middle: slice of P that is the towers' own grid, row by row.
    """

    levels: list[Tensor]
    features: Tensor
    boxes: Tensor
    objectness: Tensor
    middle: slice

    def select(self, rows: Tensor) -> "Candidates":
        levels = [level[rows] for level in self.levels]
        return Candidates(levels, self.features[rows], self.boxes[rows], self.objectness[rows], self.middle)


@dataclass(frozen=True)
class Regions:
    """The regions kept for R pairs.

    steps: boxes [R, N, 4] before and after each step of the adaptor. states: [R, N, C] what the adaptor knows of them.
    features: [R, N, C] unit vectors of what lies inside the last boxes, of the picture alone. gates: [R, N] log s.
    """

    steps: list[Tensor]
    states: Tensor
    features: Tensor
    gates: Tensor

    @property
    def boxes(self) -> Tensor:
        return self.steps[-1]


class Locator(nn.Module):
    """Candidates of pictures, words of texts, and the regions of pairs.

    count: regions kept. steps: times the adaptor moves them. channels: C, also of the space regions and words share.
    """

    def __init__(self, image_width: int, text_width: int, channels: int, heads: int, count: int, steps: int):
        super().__init__()
        self.count = count
        self.lateral = nn.Linear(image_width, channels)
        self.finer = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.LayerNorm(channels)
        self.region_projection = nn.Linear(channels, channels)
        self.word_projection = nn.Linear(text_width, channels)
        self.objectness = ZeroLinear(channels, 1)
        self.distances = ZeroLinear(channels, 4)
        self.log_scale = nn.Parameter(torch.tensor(2.3))  # of cosines in the significance
        self.blocks = nn.ModuleList(Block(channels, heads, memory_width=text_width) for _ in range(steps))
        self.moves = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU(), ZeroLinear(channels, 4))
            for _ in range(steps)
        )

    def candidates(self, tokens: Tensor) -> Candidates:
        """From patch tokens [B, h * h, W] of square pictures (card sections 3.2 and 3.3)."""
        side = round(tokens.shape[1] ** 0.5)
        assert side * side == tokens.shape[1], f"{tokens.shape[1]} patches are no square"
        middle = self.norm(self.lateral(tokens)).transpose(1, 2).unflatten(2, (side, side))
        fine = F.interpolate(middle, scale_factor=2, mode="bilinear", align_corners=False)
        levels = [fine + self.finer(fine), middle, F.max_pool2d(middle, 2, ceil_mode=True)]
        flat = torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2)  # [B, P, C]
        boxes = torch.cat([self._boxes(level) for level in levels], 1)
        first = levels[0].shape[-1] ** 2
        features = unit(self.region_projection(flat))
        return Candidates(levels, features, boxes, self.objectness(flat)[..., 0], slice(first, first + side * side))

    def _boxes(self, level: Tensor) -> Tensor:
        """[B, h * w, 4]: distances to the four sides from each place, one cell each to begin with."""
        height, width = level.shape[2:]
        reach = self.distances(level.flatten(2).transpose(1, 2)).float().clamp(-2, 2).exp()  # [B, hw, 4] cells
        y, x = torch.meshgrid(
            (torch.arange(height, device=level.device) + 0.5) / height,
            (torch.arange(width, device=level.device) + 0.5) / width,
            indexing="ij",
        )
        place = torch.stack([x.flatten(), y.flatten()], 1).to(reach)
        cell = reach.new_tensor([1 / width, 1 / height])
        edges = torch.cat([place - reach[..., :2] * cell, place + reach[..., 2:] * cell], -1)
        return box.centred(edges.clamp(0, 1))

    def words(self, states: Tensor) -> Tensor:
        """[B, L, C] unit vectors of word states [B, L, W]."""
        return unit(self.word_projection(states))

    def significance(self, candidates: Candidates, words: Tensor, real: Tensor) -> Tensor:
        """[R, P] logits: the best word's cosine, scaled, plus objectness (card section 3.3). real [R, L]: words."""
        cosine = candidates.features @ words.mT  # [R, P, L]
        best = cosine.masked_fill(~real[:, None], -1.0).amax(2)
        return self.log_scale.exp() * best + candidates.objectness

    def forward(self, candidates: Candidates, states: Tensor, mask: Tensor, real: Tensor) -> Regions:
        """The regions of R pairs, from both sides' rows; word states [R, L, W], mask and real [R, L].

        Which candidates are kept has no gradient; the gates, by which the kept are weighed, do.
        """
        logits = self.significance(candidates, self.words(states), real)
        chosen = box.choose_boxes(logits, candidates.boxes, self.count)
        boxes = candidates.boxes.gather(1, chosen[..., None].expand(-1, -1, 4))
        gates = F.logsigmoid(logits.gather(1, chosen)).clamp(min=-13.8)  # log of 1e-6
        steps, state = [boxes], 0.0
        for block, move in zip(self.blocks, self.moves, strict=True):
            state = block(state + box.pool(candidates.levels, steps[-1]), None, states, mask)
            steps.append(box.moved(steps[-1].detach(), move(state).float()))
        inside = box.pool(candidates.levels, steps[-1])
        return Regions(steps, state + inside, unit(self.region_projection(inside)), gates)
