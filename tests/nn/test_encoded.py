"""Encoded: rows of what towers give."""

import torch

from tuwen.nn.encoded import Encoded


def test_the_gradient_of_selected_rows_has_the_same_bits_every_time():
    """With several threads too, however often a row is taken: else two runs of one command would differ."""
    generator = torch.Generator().manual_seed(0)
    pooled = torch.randn(64, 64, 96, generator=generator, requires_grad=True)
    rows = torch.randint(0, 8, (512,), generator=generator)
    weights = torch.randn(512, 64, 96, generator=generator)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        gradients = [
            torch.autograd.grad((Encoded(pooled).select(rows).pooled * weights).sum(), pooled)[0] for _ in range(6)
        ]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])
    expected = torch.zeros_like(pooled).index_add(0, rows, weights)
    assert torch.allclose(gradients[0], expected, atol=1e-4)
