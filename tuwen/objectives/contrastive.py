"""Image-text contrast over identities, with hard or soft targets and weighted columns.

Shape legend: B rows (queries), N columns (keys: the batch, then the queue), D shared embedding width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tuwen.errors import UserError


def targets_of(same: Tensor) -> Tensor:
    """[B, N] float: every right column of a row alike, rows summing to one (ALBEF's fine-tuning targets).

    A row with no right column gives zeros, and so no loss.
    """
    same = same.float() if same.dtype == torch.bool else same
    return same / same.sum(1, keepdim=True).clamp(min=1)


def smoothed(targets: Tensor, smoothing: Tensor | float | None, real: Tensor | None = None) -> Tensor:
    """[B, N]: (1 - s_i) y_ij + s_i / N, rows that sum to one as before (label smoothing, a share of its own for a row).

    smoothing: s, [B] or one for all; None: 0. real: [N] bool, the columns among which a share is spread; None: all.
    """
    if smoothing is None:
        return targets
    share = smoothing[:, None].to(targets.dtype) if isinstance(smoothing, Tensor) else smoothing
    if real is None:
        return (1 - share) * targets + share / targets.shape[1]
    return (1 - share) * targets + share * real / real.sum()


def logits_of(rows: Tensor, columns: Tensor, temperature: Tensor | float) -> Tensor:
    """[B, N] cosine over temperature from unit vectors [B, D] and [N, D], float32 at least.

    Autocast is switched off: in a bfloat16 region a product of float32 vectors would be rounded to eight bits, more
    than the gap between neighbouring scores.
    """
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ columns.T / temperature


def soft_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, real: Tensor | None = None
) -> Tensor:
    """Mean over rows of -sum_j w_j y_ij log softmax(s_i)_j.

    logits, targets: [B, N]. weights w: [N], 1 where None (R2D2's decay of stale keys, card section 4.5).
    real: [N] bool, False on columns that do not exist (empty slots of a queue): they take no probability.
    """
    if real is not None:
        logits = logits.masked_fill(~real, float("-inf"))
        targets = targets.masked_fill(~real, 0)
    log_p = logits.log_softmax(1)
    if real is not None:
        log_p = log_p.masked_fill(~real, 0)
    terms = targets * log_p
    return -(terms if weights is None else terms * weights).sum(1).mean()


def prefix(vectors: Tensor, width: int) -> Tensor:
    """[., width] the first numbers of unit vectors [., D], of unit length again: vectors of few bytes.

    Raises:
        UserError: a width that is not less than the vectors' own.
    """
    if not 0 < width < vectors.shape[-1]:
        raise UserError(f"model.nested: {width} is no width within vectors of {vectors.shape[-1]} numbers")
    return F.normalize(vectors[..., :width], dim=-1)


def nested_mean(loss: Callable[..., Tensor], vectors: Sequence[Tensor], nested: Sequence[int]) -> Tensor:
    """A contrast of whole vectors, or its mean over these and their prefixes of the widths in `nested`.

    So that the first 16 numbers are already a vector to search by (Matryoshka representations, Kusupati et al. 2022,
    equation 1, all weights alike).
    """
    whole = loss(*vectors)
    if not nested:
        return whole
    parts = [loss(*(prefix(x, width) for x in vectors)) for width in nested]
    return torch.stack([whole, *parts]).mean()


def contrastive(
    image_rows: Tensor,
    text_rows: Tensor,
    image_columns: Tensor,
    text_columns: Tensor,
    same: Tensor,
    temperature: Tensor | float,
    same_texts: Tensor | None = None,
    smoothing: Tensor | None = None,
) -> Tensor:
    """InfoNCE both ways, every right pair a positive.

    image_rows, text_rows: [B, D] unit vectors of this process; image_columns, text_columns: [N, D] of all
    (gathered with gradient). same: [B, N] bool, of pictures with texts; same_texts: of texts with pictures, where texts
    stand beside pictures they do not belong to (None: the same). smoothing: as of `smoothed`, of a row both ways.
    Half the sum of picture-to-text and text-to-picture.
    """
    targets = smoothed(targets_of(same.to(image_rows.dtype)), smoothing)
    own = None if same_texts is None else targets_of(same_texts.to(image_rows.dtype))
    text_targets = targets if own is None else smoothed(own, smoothing)
    image_to_text = soft_cross_entropy(logits_of(image_rows, text_columns, temperature), targets)
    text_to_image = soft_cross_entropy(logits_of(text_rows, image_columns, temperature), text_targets)
    return (image_to_text + text_to_image) / 2


def directional_contrastive(
    image_logits: Tensor,
    text_logits: Tensor,
    same: Tensor,
    smoothing: Tensor | float | None = None,
    bound: float | None = None,
) -> Tensor:
    """Contrast where the two directions score differently (FILIP, Yao et al. 2022, eq. 2; Wukong card, section 4.2).

    image_logits: [B, N] of this process's pictures against all texts; text_logits: [B, N] of its texts against all
    pictures. same: [B, N] bool. Half the sum of both cross entropies, targets `smoothed`.
    bound: logits are cut to -bound..bound first.
    """
    targets = smoothed(targets_of(same.to(image_logits.dtype)), smoothing)
    if bound is not None:
        image_logits, text_logits = image_logits.clamp(-bound, bound), text_logits.clamp(-bound, bound)
    return (soft_cross_entropy(image_logits, targets) + soft_cross_entropy(text_logits, targets)) / 2


def consistency(image_logits: Tensor, text_logits: Tensor) -> Tensor:
    """How far each row's distribution over texts is from the same row's over pictures (GRIT-VLP card, section 4).

    image_logits: [B, N] of pictures with texts; text_logits: [B, N] of texts with pictures. Half the sum of both cross
    entropies, the other side's softmax as target, without gradient; least, the entropy, where both agree.
    """
    from_texts, from_images = text_logits.detach().softmax(1), image_logits.detach().softmax(1)
    return (soft_cross_entropy(image_logits, from_texts) + soft_cross_entropy(text_logits, from_images)) / 2


def softened(targets: Tensor, teacher_logits: Tensor, alpha: float, real: Tensor | None = None) -> Tensor:
    """[B, N]: alpha softmax(teacher) + (1 - alpha) targets, without gradient (ALBEF section 4.1)."""
    with torch.no_grad():
        if real is not None:
            teacher_logits = teacher_logits.masked_fill(~real, float("-inf"))
        return alpha * teacher_logits.softmax(1) + (1 - alpha) * targets


def distilled_contrastive(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    keys: tuple[Tensor, Tensor],
    same: Tensor,
    temperature: Tensor,
    alpha: float,
    weights: Tensor | None = None,
    real: Tensor | None = None,
    nested: Sequence[int] = (),
    smoothing: Tensor | None = None,
) -> Tensor:
    """Contrast with a momentum teacher's keys and softened targets (ALBEF section 4.1; R2D2's TgD, section 4.5).

    student, teacher: (pictures [B, D], texts [B, D]) of the same rows, unit vectors; keys: (pictures [N, D],
    texts [N, D]), the teacher's of batch and queue, no gradient. same: [B, N] bool by identity. Targets are
    alpha softmax(teacher) + (1 - alpha) same/count; weights [N] and real [N] as in `soft_cross_entropy`. nested: as in
    `nested_mean`. smoothing: [B], as of `smoothed`, of the hard targets.
    Gradient reaches the student's rows only, each tower's from its own query direction.
    """
    targets = targets_of((same if real is None else same & real).to(student[0].dtype))
    targets = smoothed(targets, smoothing, real)

    def whole(images, texts, taught_images, taught_texts, image_keys, text_keys):
        loss = images.new_zeros(())
        for rows, taught, columns in ((images, taught_images, text_keys), (texts, taught_texts, image_keys)):
            soft = softened(targets, logits_of(taught, columns, temperature), alpha, real)
            loss = loss + soft_cross_entropy(logits_of(rows, columns, temperature), soft, weights, real) / 2
        return loss

    return nested_mean(whole, (*student, *teacher, *keys), nested)
