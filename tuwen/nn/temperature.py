"""Learned temperatures that stay within their bounds."""

import math

import torch
from torch import nn


class Temperature(nn.Parameter):
    """A learned scalar, `least` <= value <= `most`: whatever a step made of it, the next forward finds it clamped.

    It is the temperature itself (ALBEF), or the logarithm of its inverse (`log_scale`, CLIP).
    """

    least: float
    most: float

    def __new__(cls, start: float = 0.07, least: float = 0.001, most: float = 0.5) -> "Temperature":
        self = super().__new__(cls, torch.tensor(start))
        self.least, self.most = least, most
        return self

    def __deepcopy__(self, memo) -> "Temperature":
        copied = Temperature(0.0, self.least, self.most)
        copied.requires_grad_(self.requires_grad)
        copied.data = self.data.clone()
        memo[id(self)] = copied
        return copied


def log_scale(scale: float = 1 / 0.07, most: float = 100.0) -> Temperature:
    """The logarithm of a scale, which is a temperature's inverse, of 1 to `most` (CLIP, section 2.5)."""
    return Temperature(math.log(scale), 0.0, math.log(most))


def clamp_temperatures(module: nn.Module) -> None:
    """Brings every temperature of a module within its bounds, in place.

    By `data`, which autograd does not watch: a second forward before the first one's backward (another thread's, or
    another micro-batch's) changes no number, since the first has clamped already, and must not count as a change.
    """
    for parameter in module.parameters():
        if isinstance(parameter, Temperature):
            parameter.data.clamp_(parameter.least, parameter.most)
