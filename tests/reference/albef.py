"""ALBEF's losses, slowly: one number at a time, from the equations of arXiv 2107.07651 and its official code.

Shape legend: B rows, M queue slots, D embedding width, L tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.reference.scalars import belong, cross_entropy, dot, mean, softmax, uniform_over


@dataclass(frozen=True)
class Queue:
    """Past teacher features: images, texts [M, D]; ids; filled[m] False where nothing was ever written."""

    images: Tensor
    texts: Tensor
    image_ids: Sequence[int]
    text_ids: Sequence[int]
    filled: Sequence[bool]
    ages: Sequence[int]


def columns(image_ids: Sequence[int], text_ids: Sequence[int], queue: Queue | None) -> list[tuple[int, int, int]]:
    """(place, image id, text id) of every column: the batch, then the filled slots (place -1 - slot)."""
    batch = [(j, image_ids[j], text_ids[j]) for j in range(len(image_ids))]
    if queue is None:
        return batch
    slots = range(len(queue.filled))
    return batch + [(-1 - m, queue.image_ids[m], queue.text_ids[m]) for m in slots if queue.filled[m]]


def contrast(
    v: Tensor,
    w: Tensor,
    v_key: Tensor,
    w_key: Tensor,
    image_ids: Sequence[int],
    text_ids: Sequence[int],
    queue: Queue | None,
    temperature: Tensor,
    alpha: float,
) -> Tensor:
    """Image-text contrast with momentum distillation.

    v, w: [B, D] student pictures and texts; v_key, w_key: [B, D] the teacher's, never differentiated.
    a_i = v_i . [w' | Q_T] / t,  b_i = w_i . [v' | Q_I] / t,  y = alpha softmax(a') + (1 - alpha) ids, and
    1/2 mean_i [CE(y_i, a_i) + CE(y_i, b_i)].
    """
    rows = []
    for i in range(len(v)):
        row = v.new_zeros(())
        for query, teacher, keys, past in (
            (v[i], v_key[i], w_key, None if queue is None else queue.texts),
            (w[i], w_key[i], v_key, None if queue is None else queue.images),
        ):
            logits, taught, right = [], [], []
            for place, image_id, text_id in columns(image_ids, text_ids, queue):
                key = (keys[place] if place >= 0 else past[-1 - place]).detach()
                logits.append(dot(query, key) / temperature)
                taught.append((dot(teacher, key) / temperature).detach())
                right.append(belong(image_ids[i], text_ids[i], image_id, text_id))
            hard = uniform_over(right)
            target = [alpha * s + (1 - alpha) * h for s, h in zip(softmax(taught), hard, strict=True)]
            row = row + cross_entropy(logits, target)
        rows.append(row / 2)
    return mean(rows)


def matching(logits: Tensor, labels: Sequence[int]) -> Tensor:
    """Mean cross entropy of [R, 2] log-odds pairs, class 1 = matched."""
    rows = zip(logits, labels, strict=True)
    return mean([cross_entropy(list(row), [float(label == c) for c in (0, 1)]) for row, label in rows])


def masked_words(logits: Tensor, taught: Tensor | None, labels: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) CE(one-hot) + alpha CE(teacher), mean over masked positions.

    logits, taught: [B, L, V]; labels: [B, L], negative where nothing is asked.
    """
    terms = []
    for b in range(labels.shape[0]):
        for k in range(labels.shape[1]):
            if labels[b, k] < 0:
                continue
            student = list(logits[b, k])
            hard = [float(word == int(labels[b, k])) for word in range(len(student))]
            term = (1 - alpha) * cross_entropy(student, hard)
            if alpha:
                term = term + alpha * cross_entropy(student, softmax([x.detach() for x in taught[b, k]]))
            terms.append(term)
    return mean(terms) if terms else logits.sum() * 0


def draw(scores: Sequence[Tensor], same: Sequence[bool], u: float) -> int | None:
    """A column not `same`, with probability softmax(scores) over those, by inverting the sum at u in [0, 1)."""
    free = [j for j in range(len(same)) if not same[j]]
    if not free:
        return None
    below = 0.0
    for j, p in zip(free, softmax([scores[j] for j in free]), strict=True):
        below += float(p.detach())
        if u < below:
            return j
    return free[-1]


def momentum(old: Tensor, student: Tensor, decay: float) -> Tensor:
    """theta' <- m theta' + (1 - m) theta, entry by entry."""
    out = torch.empty_like(old).flatten()
    for k, (a, b) in enumerate(zip(old.flatten().tolist(), student.flatten().tolist(), strict=True)):
        out[k] = decay * a + (1 - decay) * b
    return out.reshape(old.shape)
