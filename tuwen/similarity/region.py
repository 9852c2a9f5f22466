"""Regions and words: how well a text's words find themselves in a picture's regions (SLAN, card section 3.5).

Shape legend: R pairs, N regions, L words, D shared width.
"""

import torch
from torch import Tensor


def word_attention(words: Tensor, regions: Tensor, gates: Tensor, temperature: float = 0.1) -> Tensor:
    """[R, L, N]: softmax over regions of <W_j, R_k> / temperature + log s_k; rows sum to 1.

    words [R, L, D], regions [R, N, D]: unit vectors. gates [R, N]: log s.
    """
    return ((words @ regions.mT) / temperature + gates[:, None]).softmax(-1)


def region_word_scores(words: Tensor, real: Tensor, regions: Tensor, gates: Tensor, temperature: float = 0.1) -> Tensor:
    """[R] mean over real words j of <W_j, g_j>, g_j the regions' mean under the word's attention. real [R, L]: bool.

    A text without a real word scores 0.
    """
    attended = word_attention(words, regions, gates, temperature) @ regions  # [R, L, D]
    local = (words * attended).sum(-1) * real
    return local.sum(1) / real.sum(1).clamp(min=1)


def phrase_scores(words: Tensor, real: Tensor, regions: Tensor, gates: Tensor, temperature: float = 0.1) -> Tensor:
    """[R, N] how well each region fits a phrase: the mean cosine with its words, plus temperature times log s."""
    mean = (words * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("rnd,rd->rn", regions, mean) + temperature * gates
