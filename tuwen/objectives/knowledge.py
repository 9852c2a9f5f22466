"""Knowledge graphs: TransE (Bordes et al. 2013, equation 1; its L1 form in OpenKE, ARL's card section 3), and entities
told from a picture or a text.

Shape legend: B edges, K corrupted copies of each, D width.
"""

import torch.nn.functional as F
from torch import Tensor


def transe_distance(head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
    """[...] L1 length of head + relation - tail, each [..., D] brought to length 1 first."""
    head, relation, tail = (F.normalize(x, dim=-1) for x in (head, relation, tail))
    return (head + relation - tail).abs().sum(-1)


def transe_loss(right: Tensor, corrupted: Tensor, real: Tensor, margin: float) -> Tensor:
    """Mean over real copies of max(0, margin + distance of the edge - distance of its copy).

    right: [B] distances of edges. corrupted: [B, K] of their copies. real: [B, K] bool, False on copies that are edges
    themselves; none real costs 0.
    """
    loss = (margin + right[:, None] - corrupted).relu()
    return (loss * real).sum() / real.sum().clamp(min=1)


def entity_alignment(queries: Tensor, entities: Tensor, mentioned: Tensor) -> Tensor:
    """Mean over rows and entities of the binary cross entropy of query . entity (ARL's Align, its card section 4).

    queries: [B, D], of pictures or texts; entities: [N, D]; mentioned: [B, N] bool, those of the row's text.
    """
    logits = queries @ entities.T
    return F.binary_cross_entropy_with_logits(logits, mentioned.to(logits.dtype))
