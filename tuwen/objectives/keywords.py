"""Keywords of a text as labels of its picture (SIMLA's PSL): chosen by a vote of attention heads, and told.

Shape legend: B rows, H heads, L tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def voted(attention: Tensor, allowed: Tensor, votes: int = 4, most: int = 5) -> Tensor:
    """[B, L] bool: at most so many tokens of each text that most heads look at.

    Every head votes for the `votes` tokens of greatest attention [B, H, L] among those allowed [B, L] bool; the `most`
    tokens with most votes are chosen, of equals those of greatest attention over all heads; none without a vote.
    """
    scores = attention.masked_fill(~allowed[:, None], -1)
    ballots = _greatest(scores, votes) & allowed[:, None]
    counts = ballots.sum(1)
    chosen = _greatest(counts + 0.5 * attention.mean(1), most)  # a mean share is below 1: it only parts equals
    return chosen & (counts > 0)


def _greatest(values: Tensor, count: int) -> Tensor:
    """Bool like values [..., L]: the `count` greatest of the last axis, of equals the first ones."""
    order = values.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(values, dtype=torch.bool).scatter(-1, order, True)


def word_labels(ids: Tensor, chosen: Tensor, words: int) -> Tensor:
    """[B, V] float: 1 at the words that stand at the chosen [B, L] places of ids [B, L]."""
    rows, places = torch.nonzero(chosen, as_tuple=True)
    labels = torch.zeros(len(ids), words, device=ids.device)
    labels[rows, ids[rows, places]] = 1
    return labels


def keyword_loss(logits: Tensor, labels: Tensor, taught: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) BCE(labels) + alpha BCE(sigmoid of the teacher's logits), mean over B and V (card, section 4.4).

    logits, labels, taught: [B, V]; the teacher's take no gradient. BCE is linear in its target.
    """
    logits = logits.float() if logits.dtype != torch.float64 else logits
    target = (1 - alpha) * labels.to(logits.dtype) + alpha * taught.detach().to(logits.dtype).sigmoid()
    return F.binary_cross_entropy_with_logits(logits, target)


@torch.no_grad()
def recall_among(logits: Tensor, labels: Tensor, count: int = 5) -> Tensor:
    """Share of the labels [B, V] that are among the `count` greatest logits [B, V] of their row."""
    first = torch.zeros_like(labels).scatter(1, logits.topk(min(count, logits.shape[1]), 1).indices, 1)
    return (first * labels).sum() / labels.sum().clamp(min=1)
