"""Words told one after the other by a decoder.

Shape legend: K words to tell, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor


def next_word(logits: Tensor, words: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Mean over words of -log p(word | words before, memory); zero, with gradient, where there is none.

    logits [K, V], words [K]. smoothing: share of the target spread evenly over the vocabulary (Szegedy et al. 2016).
    weights: [K] what each word counts; those that count less make the mean less, not the others more.
    """
    if len(words) == 0:
        return logits.sum() * 0
    logits = logits.float() if logits.element_size() < 4 else logits
    if weights is None:
        return F.cross_entropy(logits, words, label_smoothing=smoothing)
    return (
        weights.to(logits.dtype) * F.cross_entropy(logits, words, reduction="none", label_smoothing=smoothing)
    ).mean()
