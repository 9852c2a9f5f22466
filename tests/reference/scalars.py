"""Loops over numbers, shared by the slow versions. Values are float64 scalar tensors, so autograd passes through."""

from collections.abc import Sequence

import torch
from torch import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of two vectors, one term after the other."""
    total = a.new_zeros(())
    for k in range(a.shape[0]):
        total = total + a[k] * b[k]
    return total


def softmax(row: Sequence[Tensor]) -> list[Tensor]:
    """exp(x_j) / sum_k exp(x_k), after subtracting the largest (which changes nothing)."""
    largest = max(float(x.detach()) for x in row)
    powers = [torch.exp(x - largest) for x in row]
    return [power / sum(powers) for power in powers]


def log_softmax(row: Sequence[Tensor]) -> list[Tensor]:
    largest = max(float(x.detach()) for x in row)
    total = torch.log(sum(torch.exp(x - largest) for x in row))
    return [x - largest - total for x in row]


def cross_entropy(row: Sequence[Tensor], target: Sequence[Tensor | float]) -> Tensor:
    """- sum_j target_j log softmax(row)_j."""
    return sum(-t * p for t, p in zip(target, log_softmax(row), strict=True))


def mean(values: Sequence[Tensor]) -> Tensor:
    return sum(values) / len(values)


def uniform_over(right: Sequence[bool]) -> list[float]:
    """The target that shares one unit equally over the right columns."""
    return [float(r) / sum(right) for r in right]


def belong(image_a: int, text_a: int, image_b: int, text_b: int) -> bool:
    """Whether the pictures and texts of two rows are right for each other: one picture, or one text."""
    return image_a == image_b or text_a == text_b
