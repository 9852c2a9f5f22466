"""The entity graph: CAN by the card's properties and against the dense formula, likeness, memory; entity sequences."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.reference import ege_cmp as slow
from tests.systems.common import VOCABULARY, random
from tuwen.data.batch import Images, Spans, Texts
from tuwen.nn.entities import entity_texts
from tuwen.nn.entity_graph import EntityMemory, can_weights, graph_of_edges, graph_of_features, symmetric
from tuwen.nn.regions import RegionTower
from tuwen.nn.sizes import ImageTowerConfig


@pytest.mark.parametrize(("count", "k"), [(12, 3), (12, 5), (6, 5), (6, 9), (2, 1)])
def test_can_against_the_dense_formula(count, k):
    """Card, check 7: rows sum to 1, at most k weights a row, W symmetric, eigenvalues of the Laplacian at most 1."""
    features = random(count, 4, seed=count + k)
    columns, weights = can_weights(features, k)
    dense = torch.zeros(count, count, dtype=torch.float64).scatter_add(1, columns, weights.double())
    np.testing.assert_allclose(dense.numpy(), slow.can_rows(features.tolist(), k), atol=1e-6)
    np.testing.assert_allclose(dense.sum(1).numpy(), 1, atol=1e-6)
    assert int((dense > 0).sum(1).max()) <= k
    w = symmetric(columns, weights).toarray()
    np.testing.assert_array_equal(w, w.T)
    degree = 1 / np.sqrt(w.sum(1))
    assert np.linalg.eigvalsh(degree[:, None] * w * degree).max() <= 1 + 1e-9


def test_equal_nodes_share_alike():
    columns, weights = can_weights(torch.zeros(4, 3), 2)
    assert weights.tolist() == [[0.5, 0.5]] * 4
    assert can_weights(torch.ones(1, 3), 5)[1].tolist() == [[1.0]]
    assert int(columns.max()) < 4


def test_likeness_against_the_dense_formula():
    features, ids = random(15, 3, seed=4), torch.arange(15) * 7 - 20
    graph = graph_of_features(ids, features, 4)
    unit = torch.nn.functional.normalize(features, dim=1)
    dense = torch.tensor(slow.similarity(slow.can_rows(unit.tolist(), 4)), dtype=torch.float64)
    asked = torch.tensor([ids[3], 999, ids[0], ids[14], ids[8]])
    ours, places = graph.between(asked).double(), [3, 0, 14, 8]
    known = torch.tensor([0, 2, 3, 4])
    right = dense[places][:, places]
    torch.testing.assert_close(ours[known][:, known], right.masked_fill(right < 0.5, 0), atol=1e-6, rtol=0)
    assert bool(ours[1].isnan().all())
    assert bool(ours[:, 1].isnan().all())
    assert int(((right > 0.5) & (right < 1)).sum()) > 0


def test_siblings_of_a_lexicon_are_alike():
    edges = np.array([[0, 0, 4], [1, 0, 4], [2, 0, 5], [3, 0, 5], [3, 1, 4], [4, 0, 5]])
    likeness = graph_of_edges(6, edges).between(torch.arange(6))
    assert likeness[0].tolist() == pytest.approx([1, 1, 0, 0.7071, 0, 0], abs=1e-4)
    assert likeness[2].tolist() == pytest.approx([0, 0, 1, 0.7071, 1, 0], abs=1e-4)
    assert likeness[5].tolist() == [0, 0, 0, 0, 0, 1]  # without a tail: itself alone


def test_a_shuffled_graph_is_the_same_over_other_entities():
    graph = graph_of_features(torch.arange(20), random(20, 3, seed=2), 4)
    other = graph.shuffled(np.random.default_rng(1))
    before, after = (x.between(torch.arange(20)) for x in (graph, other))
    assert not torch.equal(before, after)
    assert torch.equal(before.flatten().sort().values, after.flatten().sort().values)
    assert bool((after.diagonal() == 1).all())


def test_memory_keeps_the_latest_and_no_more_than_it_may():
    memory = EntityMemory(2, most=3)
    memory.update(torch.tensor([9, 4, 9]), torch.tensor([[1.0, 1], [2, 2], [3, 3]]))
    assert (memory.ids.tolist(), memory.features.tolist()) == ([4, 9], [[2, 2], [3, 3]])
    memory.update(torch.tensor([7, 1, 4]), torch.tensor([[5.0, 5], [6, 6], [7, 7]]))
    assert (memory.ids.tolist(), memory.features.tolist()) == ([1, 4, 9], [[6, 6], [7, 7], [3, 3]])
    memory.update(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2))
    memory.graph = graph_of_features(memory.ids, memory.features, 2)
    back = EntityMemory(2, most=3)
    back.load(memory.tensors())
    assert torch.equal(back.graph.between(memory.ids), memory.graph.between(memory.ids))
    back.load({"ids": memory.ids, "features": memory.features})
    assert back.graph is None


def texts(*rows: list[int], spans=()) -> Texts:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    table = torch.tensor(spans, dtype=torch.int64).reshape(-1, 5)
    return Texts(ids, ids != 0, torch.zeros(len(rows), dtype=torch.int64), None, Spans(*table.unbind(1)))


def test_entities_as_a_sequence_by_hand():
    """[CLS] 2, [SEP] 3; kind 2 is entity, 1 phrase. An entity named twice stands once."""
    both = texts(
        [2, 11, 12, 13, 14, 11, 3],
        [2, 21, 3],
        [2, 31, 32, 33, 3],
        spans=[[2, 3, 4, 9, 2], [0, 5, 6, 7, 2], [0, 1, 2, 7, 2], [0, 2, 5, 8, 2], [0, 1, 5, 5, 1], [2, 1, 3, 6, 2]],
    )
    entities = entity_texts(both, VOCABULARY, most=15, length=20)
    assert entities.texts.ids.tolist() == [[2, 11, 3, 12, 13, 14, 3], [2, 3, 0, 0, 0, 0, 0], [2, 31, 32, 3, 33, 3, 0]]
    assert entities.texts.mask.sum(1).tolist() == [7, 2, 6]
    assert (entities.owner.tolist(), entities.id.tolist()) == ([0, 0, 2, 2], [7, 8, 6, 9])
    states = random(3, 7, 4, seed=1)
    features = entities.features(states)
    for n, (row, begin, end) in enumerate([(0, 1, 2), (0, 3, 6), (2, 1, 3), (2, 4, 5)]):
        torch.testing.assert_close(features[n], states[row, begin:end].mean(0))
    assert entities.by_text(entities.id)[:, :2].tolist() == [[7, 8], [0, 0], [6, 9]]
    few = entity_texts(both, VOCABULARY, most=1, length=20)
    assert few.texts.ids.tolist() == [[2, 11, 3, 0], [2, 3, 0, 0], [2, 31, 32, 3]]
    short = entity_texts(both, VOCABULARY, most=15, length=4)
    assert short.id.tolist() == [7, 6]
    none = entity_texts(texts([2, 5, 3]), VOCABULARY, most=3, length=9)
    assert none.texts.ids.tolist() == [[2, 3]]


def test_regions_that_are_padding_say_nothing():
    torch.manual_seed(0)
    tower = RegionTower(ImageTowerConfig(side=32, patch=8, width=16, layers=2, heads=2), 6).double()
    boxes = torch.rand(2, 3, 4, dtype=torch.float64)
    images = Images(
        features=random(2, 3, 6, seed=1), boxes=boxes, feature_mask=torch.tensor([[True] * 3, [True] * 2 + [False]])
    )
    tokens = tower.tokens(images)
    other = replace(images, features=images.features.clone())
    other.features[1, 2] = 77
    torch.testing.assert_close(tower.tokens(other)[:, :3], tokens[:, :3])
    alone = Images(features=images.features[1:, :2], boxes=boxes[1:, :2])
    torch.testing.assert_close(tower.tokens(alone)[0], tokens[1, :3])
    hidden = torch.tensor([[True, False, False], [False] * 3])
    zero = replace(images, features=images.features.masked_fill(hidden[..., None], 0))
    torch.testing.assert_close(tower.tokens(images, hidden), tower.tokens(zero))
    assert not torch.allclose(tower.tokens(images, hidden)[0], tokens[0])
