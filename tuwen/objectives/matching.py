"""Image-text matching: which negatives, and the loss over matched and unmatched pairs.

Shape legend: B rows, N columns to draw negatives from, R pairs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # label of a pair that does not count


def hard_negatives(scores: Tensor, same: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """One wrong column a row, drawn with probability softmax(scores) over the columns that are not the same pair.

    scores: [B, N] logits (cosine over temperature), taken without gradient. same: [B, N] bool by identity.
    draws: [B] in [0, 1). Returns the columns [B] int64 and exists [B] bool, False where a row has no wrong column.
    """
    with torch.no_grad():
        exists = ~same.all(1)
        weights = scores.double().masked_fill(same, float("-inf"))
        weights = torch.where(exists[:, None], weights, 0.0).softmax(1)
        edges = weights.cumsum(1)
        column = torch.searchsorted(edges, (draws.double() * edges[:, -1])[:, None], right=True)[:, 0]
        # rounding may leave the draw at the very edge: the last column of any probability is then meant
        last = weights.shape[1] - 1 - (weights > 0).flip(1).int().argmax(1)
        return torch.minimum(column, last), exists


def hardest_negatives(scores: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """The wrong column of greatest score of each row (of equals the first), as `hard_negatives` gives one by chance."""
    with torch.no_grad():
        return scores.masked_fill(same, float("-inf")).argmax(1), ~same.all(1)


@dataclass(frozen=True)
class DrawnPairs:
    """images, texts [R]: columns of what R pairs are made of; most often B matched ones, B with a wrong picture, B with
    a wrong text.

    labels: [R] int64: 1 for a match, 0; ignored where a row has no wrong partner.
    """

    images: Tensor
    texts: Tensor
    labels: Tensor


def drawn_pairs(
    text_scores: Tensor,
    image_scores: Tensor,
    same: Tensor,
    draws: Tensor,
    first: int = 0,
    hardness: Tensor | float = 1.0,
) -> DrawnPairs:
    """The pairs that matching reads; wrong partners are drawn by `hard_negatives`, one of each kind a row.

    Pictures by text_scores [B, N], of each text with every picture; texts by image_scores [B, N], of each picture with
    every text; equal scores make all wrong ones alike likely. same: [B, N] bool. draws: [B, 2] in [0, 1). first: column
    of row 0 itself. hardness: what the scores are multiplied with, 1 as published, 0 for all alike likely.
    """
    wrong_image, exists_image = hard_negatives(hardness * text_scores, same, draws[:, 0])
    wrong_text, exists_text = hard_negatives(hardness * image_scores, same, draws[:, 1])
    return _pairs_of(wrong_image, wrong_text, exists_image, exists_text, first)


def hardest_pairs(
    text_scores: Tensor, image_scores: Tensor, same: Tensor, draws: Tensor, share: Tensor | float = 1.0
) -> DrawnPairs:
    """`drawn_pairs` whose wrong partners are the hardest, in that share of rows; in the others any, all alike likely.

    share: 1 takes no draw into account (GRIT-VLP). draws: [B, 4] in [0, 1): which kind, then which one, of the picture
    and of the text. Other arguments as in `drawn_pairs`.
    """
    partners = []
    for scores, side in ((text_scores, draws[:, :2]), (image_scores, draws[:, 2:])):
        hardest, exists = hardest_negatives(scores, same)
        partners.append((torch.where(side[:, 0] < share, hardest, one_wrong(same, side[:, 1])), exists))
    (wrong_image, exists_image), (wrong_text, exists_text) = partners
    return _pairs_of(wrong_image, wrong_text, exists_image, exists_text)


def _pairs_of(
    wrong_image: Tensor, wrong_text: Tensor, exists_image: Tensor, exists_text: Tensor, first: int = 0
) -> DrawnPairs:
    own = torch.arange(first, first + len(wrong_image), device=wrong_image.device)
    images, texts = torch.cat([own, wrong_image, own]), torch.cat([own, own, wrong_text])
    return DrawnPairs(images, texts, matching_labels(len(own), exists_image, exists_text))


def half_pairs(same: Tensor, draws: Tensor) -> DrawnPairs:
    """B pairs, exactly floor(B / 2) of them right; the others have another row's picture, all alike likely (ViLT).

    same: [B, B] bool. draws: [B, 2] in [0, 1): which rows stay right, then which wrong picture. A row that should get a
    wrong picture and has none keeps its own, and is ignored.
    """
    place = draws[:, 0].argsort(stable=True).argsort(stable=True)
    labels = (place < len(same) // 2).long()
    own = torch.arange(len(same), device=same.device)
    labels = labels.masked_fill((labels == 0) & same.all(1), IGNORED)
    return DrawnPairs(torch.where(labels == 0, one_wrong(same, draws[:, 1]), own), own, labels)


def one_wrong(same: Tensor, draws: Tensor) -> Tensor:
    """[B] int64: a column of each row that is not the same [B, N], all alike likely; 0 where there is none.

    draws: [B] in [0, 1).
    """
    rank = (draws * (~same).sum(1)).long()  # the so-many-th of the row's wrong columns
    return ((~same).cumsum(1) > rank[:, None]).int().argmax(1)


def matching_labels(matched: int, exists_image: Tensor, exists_text: Tensor) -> Tensor:
    """[3B] int64 labels of (B matched; B wrong picture, own text; B own picture, wrong text): 1, 0, 0.

    Pairs whose negative does not exist are ignored.
    """
    negative = torch.cat([exists_image, exists_text])
    return torch.cat([negative.new_ones(matched, dtype=torch.int64), torch.where(negative, 0, IGNORED)])


def matching_loss(logits: Tensor, labels: Tensor, positive_weight: float = 1.0) -> Tensor:
    """Cross entropy over pairs, class 1 = match. logits [R, 2], labels [R] (0, 1 or ignored).

    positive_weight: weight of matched pairs; the mean divides by the sum of weights, so with two negatives a
    positive, weight 2 lets both classes count alike (R2D2 section 4.2).
    """
    weight = torch.tensor([1.0, positive_weight], device=logits.device)
    logits = logits.float() if logits.dtype != torch.float64 else logits
    return F.cross_entropy(logits, labels, weight.to(logits.dtype), ignore_index=IGNORED)


def matching_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the pairs that count [R] whose greater logit [R, 2] is the right one, without gradient."""
    return (logits.detach().argmax(1) == labels)[labels >= 0].float().mean()


def matching_gain(loss: Tensor, labels: Tensor, positive_weight: float = 1.0) -> Tensor:
    """1 - loss / H, without gradient: 0 for who knows no more than how many pairs match, 1 for who knows all.

    H is the entropy of the labels [R] of this very batch, by their weights as in `matching_loss`; where all are of one
    kind there is nothing to know, and the gain is 0.
    """
    matched = positive_weight * (labels == 1).sum().double()
    share = matched / (matched + (labels == 0).sum()).clamp(min=1)
    entropy = torch.special.entr(share) + torch.special.entr(1 - share)
    return torch.where(entropy > 0, 1 - loss.detach() / entropy.clamp(min=1e-9), 0.0)


def candidates(same: Tensor, draws: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(columns [B, C] int64, counts [B, C] bool): each row's own column, then others as drawn, wrong ones first.

    C is `count`, or B where there are fewer columns; further columns that are right for the row do not count.
    same: [B, B] bool. draws: [B, B] in [0, 1).
    """
    own = torch.arange(len(same), device=same.device)[:, None]
    order = draws.masked_fill(same, 2.0).scatter(1, own, 3.0).argsort(dim=1, stable=True)
    columns = torch.cat([own, order[:, : min(count, len(same)) - 1]], 1)
    counts = ~same.gather(1, columns)
    counts[:, 0] = True
    return columns, counts


def ranking_loss(scores: Tensor, counts: Tensor) -> Tensor:
    """Mean of the cross entropy of each row's first candidate among those that count; both [B, C]."""
    return F.cross_entropy(scores.masked_fill(~counts, -torch.inf), torch.zeros_like(scores[:, 0], dtype=torch.int64))


def log_odds(logits: Tensor) -> Tensor:
    """[R] log p(match) / p(no match) from two-class logits [R, 2]."""
    return logits[:, 1] - logits[:, 0]
