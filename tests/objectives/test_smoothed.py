"""Targets of a contrast with a share of each row spread over all columns, against loops in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from tuwen.objectives.contrastive import contrastive, distilled_contrastive, smoothed


def test_rows_by_hand():
    """NLIP card, section 11, checks 1 and 2."""
    targets = torch.eye(4, dtype=torch.float64)
    rows = smoothed(targets, torch.tensor([0.0, 0.5, 1.0, 0.5], dtype=torch.float64))
    assert rows[0].tolist() == [1, 0, 0, 0]
    assert rows[1].tolist() == [0.125, 0.625, 0.125, 0.125]
    assert rows[2].tolist() == [0.25] * 4
    assert torch.equal(rows.sum(1), torch.ones(4, dtype=torch.float64))
    assert smoothed(targets, None) is targets
    real = torch.tensor([True, True, False, True])
    assert smoothed(targets, torch.full((4,), 0.3, dtype=torch.float64), real)[0].tolist() == pytest.approx(
        [0.8, 0.1, 0, 0.1]
    )


def test_the_contrast_with_softened_rows_is_the_loop():
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(5, 3, dtype=torch.float64), dim=1).requires_grad_() for _ in range(2))
    noise = torch.tensor([0.0, 0.2, 1.0, 0.7, 0.1], dtype=torch.float64)
    same = torch.eye(5, dtype=torch.bool)
    same[0, 3] = same[3, 0] = True
    loss = contrastive(images, texts, images, texts, same, 0.1, smoothing=noise / 2)
    slow = 0
    for i in range(5):
        for rows, columns in ((images, texts), (texts, images)):
            logits = [rows[i] @ columns[j] / 0.1 for j in range(5)]
            log_sum = torch.log(sum(torch.exp(x) for x in logits))
            right = [j for j in range(5) if same[i, j]]
            for j in range(5):
                y = (1 - noise[i] / 2) * (j in right) / len(right) + noise[i] / 2 / 5
                slow = slow - y * (logits[j] - log_sum) / 10
    assert loss.item() == pytest.approx(slow.item(), abs=1e-12)
    grads = torch.autograd.grad(loss, [images, texts]), torch.autograd.grad(slow, [images, texts])
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*grads, strict=True))


def test_no_softening_is_the_plain_contrast_and_a_queue_is_spread_over_what_is_there():
    torch.manual_seed(1)
    rows = [F.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1) for _ in range(4)]
    keys = [F.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1) for _ in range(2)]
    same, real = torch.eye(3, 6, dtype=torch.bool), torch.tensor([True] * 4 + [False] * 2)

    def loss(smoothing):
        pairs = (rows[0], rows[1]), (rows[2], rows[3]), (keys[0], keys[1])
        return float(
            distilled_contrastive(
                *pairs, same, torch.tensor(0.2, dtype=torch.float64), 0.0, real=real, smoothing=smoothing
            )
        )

    assert loss(torch.zeros(3, dtype=torch.float64)) == loss(None)
    slow = 0.0
    for side in range(2):
        for i in range(3):
            logits = [float(rows[side][i] @ keys[1 - side][j]) / 0.2 for j in range(4)]
            log_sum = math.log(sum(map(math.exp, logits)))
            slow -= sum((0.4 * (i == j) + 0.6 / 4) * (logits[j] - log_sum) for j in range(4)) / 6
    assert loss(torch.full((3,), 0.6, dtype=torch.float64)) == pytest.approx(slow, abs=1e-12)
