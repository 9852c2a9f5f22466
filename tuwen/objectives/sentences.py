"""Contrast of pictures with the sentences of their reports (MAX-VL's global-local term, card section 4.3).

Shape legend: B pictures, K sentences, D shared embedding width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tuwen.objectives.contrastive import logits_of

NONE = -1e9  # a logit whose exponential is nothing in any precision, and whose gradient is a number


def sentence_contrast(
    images: Tensor, sentences: Tensor, own: Tensor, wrong: Tensor, temperature: Tensor | float
) -> Tensor:
    """Every sentence of a picture's own report against all sentences that are wrong of it.

    images: [B, D], sentences: [K, D], unit vectors; the sentences' take no gradient. own, wrong: [B, K] bool; what is
    neither does not count. -log e^p / (e^p + sum over the wrong e^n), mean over a picture's own, then over the pictures
    that have any.
    """
    logits = logits_of(images, sentences.detach(), temperature)
    others = logits.masked_fill(~wrong, NONE).logsumexp(1, keepdim=True)
    terms = F.softplus(others - logits) * own
    counts = own.sum(1)
    return (terms.sum(1) / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)


def wrong_sentences(own: Tensor, same: Tensor, owner: Tensor, words: Tensor) -> Tensor:
    """[B, K] bool: real, of a row that is not the same, and said by none of a picture's own sentences.

    own: [B, K] bool. same: [B, N] bool of rows. owner: [K] int64, the row a sentence is of, -1 where it is padding.
    words: [K] int64, equal where two sentences are word for word one ("No pneumothorax." is no negative of itself).
    """
    of_same = same[:, owner.clamp(min=0)]
    repeated = (own.to(torch.float32) @ (words[:, None] == words).to(torch.float32)) > 0
    return (owner >= 0) & ~of_same & ~repeated
