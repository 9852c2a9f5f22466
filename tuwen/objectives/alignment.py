"""Word-patch alignment (ViLT; UNITER's of regions): how cheaply the words of a text are moved onto a picture's patches.

Shape legend: B rows, L words, N patches, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BETA, ROUNDS = 0.5, 50  # of ViLT's code: the proximal step's weight, how many


def transport_cost(words: Tensor, patches: Tensor, word_mask: Tensor, patch_mask: Tensor) -> Tensor:
    """[B] cost of the transport of words [B, L, W] onto patches [B, N, W], by 1 - cosine; masks True on what counts.

    The plan is found without gradient by IPOT (Xie et al., UAI 2019), each word and each patch having equal mass. A row
    without a word or a patch costs nothing.
    """
    cost = 1 - F.normalize(_float(words), dim=-1, eps=1e-5) @ F.normalize(_float(patches), dim=-1, eps=1e-5).mT
    return (cost * transport_plan(cost.detach(), word_mask, patch_mask)).sum((1, 2))


@torch.no_grad()
def transport_plan(cost: Tensor, word_mask: Tensor, patch_mask: Tensor) -> Tensor:
    """[B, L, N] what is moved from each word to each patch, for costs [B, L, N]; what is masked moves nothing."""
    both = word_mask[:, :, None] & patch_mask[:, None]
    words, patches = (mask.sum(1).clamp(min=1)[:, None].to(cost) for mask in (word_mask, patch_mask))
    kernel = (-cost / BETA).exp() * both
    moved, of_words = both.to(cost), word_mask.to(cost) / words
    for _ in range(ROUNDS):
        weighed = kernel * moved
        of_patches = patch_mask / (patches * (of_words[:, :, None] * weighed).sum(1)).clamp(min=1e-30)
        of_words = word_mask / (words * (of_patches[:, None] * weighed).sum(2)).clamp(min=1e-30)
        moved = of_words[:, :, None] * weighed * of_patches[:, None]
    return moved


def alignment_loss(costs: Tensor, matched: Tensor) -> Tensor:
    """Costs of matched pairs less those of the others, over all pairs: costs [B], matched [B] bool."""
    return torch.where(matched, costs, -costs).mean()


def _float(x: Tensor) -> Tensor:
    return x.float() if x.element_size() < 4 else x
