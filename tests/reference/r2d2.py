"""R2D2's losses, slowly: one number at a time, from the equations of arXiv 2205.03860 and its official code.

Shape legend: B rows, M queue slots, D embedding width, L tokens, W width of states, V vocabulary.
"""

from collections.abc import Sequence

from torch import Tensor

from tests.reference.albef import Queue, columns
from tests.reference.scalars import belong, cross_entropy, dot, log_softmax, mean, softmax, uniform_over

DECAY = 0.99  # of a queue element's weight, an iteration


def global_contrast(
    u: Tensor, t: Tensor, image_ids: Sequence[int], text_ids: Sequence[int], temperature: Tensor
) -> Tensor:
    """GCPR: 1/2 mean_i [CE(y_i, u_i . t / tau) + CE(y_i, t_i . u / tau)], gradient through both sides; u, t: [B, D]."""
    rows = []
    for i in range(len(u)):
        right = [belong(image_ids[i], text_ids[i], image_ids[j], text_ids[j]) for j in range(len(u))]
        target = uniform_over(right)
        forth = cross_entropy([dot(u[i], t[j]) / temperature for j in range(len(u))], target)
        back = cross_entropy([dot(t[i], u[j]) / temperature for j in range(len(u))], target)
        rows.append((forth + back) / 2)
    return mean(rows)


def fine_ranking(by_text: Tensor, by_image: Tensor, labels: Sequence[int]) -> Tensor:
    """FGR: class weights 1 and 2, weighted mean over the sum of weights, mean of both cross encoders.

    by_text, by_image: [3B, 2], class 1 = match.
    """
    both = []
    for logits in (by_text, by_image):
        total, weights = logits.new_zeros(()), 0.0
        for row, label in zip(logits, labels, strict=True):
            weight = 2.0 if label == 1 else 1.0
            total = total - weight * log_softmax(list(row))[label]
            weights += weight
        both.append(total / weights)
    return (both[0] + both[1]) / 2


def target_guided(
    u: Tensor,
    t: Tensor,
    u_key: Tensor,
    t_key: Tensor,
    image_ids: Sequence[int],
    text_ids: Sequence[int],
    queue: Queue | None,
    temperature: Tensor,
    alpha: float,
    decay: float = DECAY,
) -> Tensor:
    """TgD: like GCPR against the teacher's keys and its queue, targets softened, each column weighted by decay^age.

    1/2 mean_i [- sum_j r_j y_ij log softmax(u_i . [T' | Q_T] / tau)_j, and the same from the text].
    """
    rows = []
    for i in range(len(u)):
        row = u.new_zeros(())
        for query, teacher, keys, past in (
            (u[i], u_key[i], t_key, None if queue is None else queue.texts),
            (t[i], t_key[i], u_key, None if queue is None else queue.images),
        ):
            logits, taught, right, weights = [], [], [], []
            for place, image_id, text_id in columns(image_ids, text_ids, queue):
                key = (keys[place] if place >= 0 else past[-1 - place]).detach()
                logits.append(dot(query, key) / temperature)
                taught.append((dot(teacher, key) / temperature).detach())
                right.append(belong(image_ids[i], text_ids[i], image_id, text_id))
                weights.append(1.0 if place >= 0 else decay ** queue.ages[-1 - place])
            hard = uniform_over(right)
            soft = softmax(taught)
            logs = log_softmax(logits)
            for j in range(len(logits)):
                row = row - weights[j] * (alpha * soft[j] + (1 - alpha) * hard[j]) * logs[j]
        rows.append(row / 2)
    return mean(rows)


def feature_guided(states: Tensor, taught: Tensor, mask: Tensor) -> Tensor:
    """FgD: mean over real positions of 1 - cos(student on masked text, teacher on clean text); states [B, L, W]."""
    terms = []
    for b in range(mask.shape[0]):
        for k in range(mask.shape[1]):
            if mask[b, k]:
                h, g = states[b, k], taught[b, k].detach()
                terms.append(1 - dot(h, g) / (dot(h, h).sqrt() * dot(g, g).sqrt()))
    return mean(terms)


def final_score(by_text: Tensor, by_image: Tensor, cosine: float) -> float:
    """[P_T(match) + P_I(match)] / 2 + cos, from two [2] rows of logits."""
    return float((softmax(list(by_text))[1] + softmax(list(by_image))[1]) / 2) + cosine
