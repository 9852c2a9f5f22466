"""TransE's distance and loss by hand and against scalars in float64, gradients included."""

import pytest
import torch

from tuwen.objectives.knowledge import transe_distance, transe_loss


def test_distances_by_hand():
    head, relation, tail = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, -5.0]])
    assert transe_distance(head, relation, tail).tolist() == [3.0]  # |1 + 0 - 0| + |0 + 1 + 1|


def slowly(tables, edges, copies, real, margin):
    def distance(edge):
        parts = [tables[0][edge[0]], tables[1][edge[1]], tables[0][edge[2]]]
        head, relation, tail = (part / part.square().sum().sqrt() for part in parts)
        return sum((head[d] + relation[d] - tail[d]).abs() for d in range(len(head)))

    total, count = 0.0, 0
    for b, edge in enumerate(edges):
        for k, copy in enumerate(copies[b]):
            if real[b][k]:
                total, count = total + torch.clamp(margin + distance(edge) - distance(copy), min=0), count + 1
    return total / max(count, 1)


def test_loss_and_gradients_against_scalars():
    generator = torch.Generator().manual_seed(2)
    tables = [torch.randn(n, 3, generator=generator, dtype=torch.float64).requires_grad_() for n in (5, 2)]
    edges = torch.tensor([[0, 0, 1], [2, 1, 3], [4, 0, 0]])
    copies = torch.tensor([[[0, 0, 2], [3, 0, 1]], [[2, 1, 2], [1, 1, 3]], [[4, 0, 3], [2, 0, 0]]])
    real = torch.tensor([[True, True], [False, True], [True, True]])

    def fast():
        parts = [(tables[0][e[..., 0]], tables[1][e[..., 1]], tables[0][e[..., 2]]) for e in (edges, copies)]
        return transe_loss(transe_distance(*parts[0]), transe_distance(*parts[1]), real, 0.7)

    ours, slow = fast(), slowly(tables, edges.tolist(), copies.tolist(), real.tolist(), 0.7)
    assert float(ours) == pytest.approx(float(slow), abs=1e-12)
    for a, b in zip(torch.autograd.grad(ours, tables), torch.autograd.grad(slow, tables), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
        assert a.abs().max() > 0
    none = transe_loss(torch.ones(1), torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool), 5.0)
    assert float(none) == 0
