"""A student follows a teacher: R2D2's feature-guided distillation of texts, DiDE's of attention and of logits.

Shape legend: B rows, L tokens, W a tower's width, D shared embedding width; H heads, d width of a head, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.nn.relations import Crossing
from tuwen.objectives.contrastive import logits_of


def feature_guided(student: Encoded, teacher: Encoded, form: str, temperature: Tensor | float) -> Tensor:
    """FgD (R2D2 card, section 4.6): the published functional could not be verified, so its form is a [choice].

    student: of the masked text; teacher: of the clean text, no gradient. form:
    - "tokens": mean over real positions of 1 - cosine of the last states; "cls": over first positions only;
    - "similarity": cross entropy between rows of batch similarities.
    """
    states, taught, mask = student.states["last"], teacher.states["last"], student.state_mask
    assert mask is not None
    if form == "tokens":
        return cosine_distance(states, taught, mask)
    if form == "cls":
        return cosine_distance(states[:, :1], taught[:, :1], mask[:, :1])
    if form == "similarity":
        assert student.pooled is not None
        assert teacher.pooled is not None
        return similarity_distance(student.pooled, teacher.pooled, temperature)
    raise UserError(f'model.feature_guided is {form!r}: use "tokens", "cls", "similarity" or "off"')


def cosine_distance(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean of 1 - cosine over the positions of mask [B, L] bool; student, teacher [B, L, W]."""
    distance = 1 - F.cosine_similarity(_float(student), _float(teacher).detach(), dim=-1)
    return (distance * mask).sum() / mask.sum()


def similarity_distance(student: Tensor, teacher: Tensor, temperature: Tensor | float) -> Tensor:
    """How the student's vectors relate to the teacher's batch against how the teacher's relate among themselves.

    student, teacher: [B, D] unit vectors.
    """
    teacher = teacher.detach()
    target = logits_of(teacher, teacher, temperature).softmax(1)
    return -(target * logits_of(student, teacher, temperature).log_softmax(1)).sum(1).mean()


def attention_distillation(student: Crossing, teacher: Crossing, words: Tensor) -> Tensor:
    """How far words look at patches, and patches at words, from how the teacher does (DiDE card, section 4).

    KL(teacher || student), the softmax over the other side's real tokens alone, summed over keys, mean over rows, heads
    and real queries; the sum of both directions, of which a teacher may have one. words: [B, L] bool, True on real
    ones. Ours differs: padded queries do not count (the code's mean is over them too), and padded keys have the least
    finite logit, not -inf, which would make 0 * -inf of a distribution's zero.
    """
    everything = words.new_ones(len(words), 1)
    loss = words.new_zeros((), dtype=torch.float32)
    if teacher.word_queries is not None:
        own, its = (log_attention(x.word_queries, x.patch_keys, everything) for x in (student, teacher))
        loss = loss + _divergence(own, its, words)
    if teacher.patch_queries is not None:
        own, its = (log_attention(x.patch_queries, x.word_keys, words) for x in (student, teacher))
        loss = loss + _divergence(own, its, everything)
    return loss


def log_attention(queries: Tensor | None, keys: Tensor | None, mask: Tensor) -> Tensor:
    """[B, H, L, S] log of the softmax over keys [B, H, S, d] of queries [B, H, L, d]; mask [B, S] or [B, 1], True on
    real keys."""
    assert queries is not None
    assert keys is not None
    with torch.autocast(queries.device.type, enabled=False):
        scores = _float(queries) @ _float(keys).mT * queries.shape[-1] ** -0.5
    return scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min).log_softmax(-1)


def _divergence(student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """Mean over rows, heads and real queries of KL between log-distributions [B, H, L, S]; real: [B, L] or [B, 1]."""
    teacher = teacher.detach()
    each = (teacher.exp() * (teacher - student)).sum(-1)
    counts = real[:, None].expand_as(each)
    return each.masked_fill(~counts, 0).sum() / counts.sum()


def soft_classes(logits: Tensor, taught: Tensor) -> Tensor:
    """KL(teacher || student) of one class a row, mean over rows: logits [B, C], the teacher's probabilities [B, C]."""
    return F.kl_div(_float(logits).log_softmax(1), _float(taught).detach(), reduction="batchmean")


def soft_answers(logits: Tensor, taught: Tensor) -> Tensor:
    """Binary cross entropy of each of C answers, summed over them, mean over rows; shapes as in `soft_classes`."""
    loss = F.binary_cross_entropy_with_logits(_float(logits), _float(taught).detach(), reduction="none")
    return loss.sum(1).mean()


def _float(x: Tensor) -> Tensor:
    """float32 at least: bfloat16 would lose what is left of a small distance."""
    return x.float() if x.element_size() < 4 else x
