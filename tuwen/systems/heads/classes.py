"""Classifiers and a ranking on joint vectors, as ViLT's code has them and its descendants (BridgeTower, DiDE)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def head_layers(inputs: int, hidden: int, classes: int, dropout: float) -> tuple[nn.Module, ...]:
    """Layers from [B, inputs] to [B, classes]: dropout, then dense, norm, GELU, dense."""
    layers = nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, classes)
    return nn.Dropout(dropout), *layers


class AnswerHead(nn.Sequential):
    """Each answer is told for itself: the loss is the sum of the binary ones."""

    binary = True


class RankingHead(nn.Linear):
    """A score a pair, which starts as the logit of a match."""

    @torch.no_grad()
    def begin(self, system: Any) -> None:
        self.weight.copy_(system.match_head.weight[1:])
        self.bias.copy_(system.match_head.bias[1:])
