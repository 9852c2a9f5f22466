"""Words told one after the other by a decoder.

Shape legend: K words to tell, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor


def next_word(logits: Tensor, words: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over words of -log p(word | words before, memory); zero, with gradient, where there is none.

    logits [K, V], words [K]. smoothing: share of the target spread evenly over the vocabulary (Szegedy et al. 2016).
    """
    if len(words) == 0:
        return logits.sum() * 0
    logits = logits.float() if logits.element_size() < 4 else logits
    return F.cross_entropy(logits, words, label_smoothing=smoothing)
