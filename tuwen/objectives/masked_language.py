"""Masked language modelling on the masked positions only.

Shape legend: B rows, L tokens, K masked positions, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tuwen.objectives.matching import IGNORED


def masked_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where labels [B, L] are not ignored: index into the flattened B * L positions and the labels there, [K] each."""
    flat = labels.flatten()
    index = torch.nonzero(flat != IGNORED)[:, 0]
    return index, flat[index]


def masked_language(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None, alpha: float = 0.0) -> Tensor:
    """Mean over masked positions of (1 - alpha) CE(word) + alpha CE(teacher) (ALBEF section 4.3).

    logits [K, V], labels [K], teacher_logits [K, V] without gradient. Zero, with gradient, where nothing is masked.
    """
    if len(labels) == 0:
        return logits.sum() * 0
    logits = logits.float() if logits.dtype != torch.float64 else logits
    words = F.cross_entropy(logits, labels)
    if teacher_logits is None or alpha == 0:
        return words
    taught = -(teacher_logits.to(logits.dtype).softmax(1).detach() * logits.log_softmax(1)).sum(1).mean()
    return (1 - alpha) * words + alpha * taught
