"""R2D2's feature-guided distillation: a student's text features follow a teacher's.

Shape legend: B rows, L tokens, W a tower's width, D shared embedding width.
"""

import torch.nn.functional as F
from torch import Tensor

from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
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


def _float(x: Tensor) -> Tensor:
    """float32 at least: bfloat16 would lose what is left of a small distance."""
    return x.float() if x.element_size() < 4 else x
