"""Several prompts for one class: vectors are averaged before the comparison, token-wise scores after it.

Shape legend: C classes, P prompts, I pictures, D width.
"""

import torch
from torch import Tensor

from tuwen.nn.towers import unit


def average_vectors(vectors: Tensor) -> Tensor:
    """[C, D] unit vectors: the mean over prompts of unit vectors [P, C, D], scaled to length 1 (CLIP, section 3.1.4).

    Raises:
        ValueError: for tokens [P, C, L, D], which differ in number from prompt to prompt and must not be averaged.
    """
    if vectors.dim() != 3:
        raise ValueError(
            f"vectors must be [prompts, classes, width], got {list(vectors.shape)}; average tokens' scores"
        )
    return unit(vectors.mean(0))


def average_scores(scores: Tensor) -> Tensor:
    """[I, C]: the mean over prompts of softmax over classes of S_i2t [P, I, C], without temperature.

    As the official code does (Wukong card, section 6); the FILIP paper speaks of the mean of the scores, which ranks
    nearly alike.
    """
    return scores.softmax(-1, dtype=torch.float64).mean(0).float()
