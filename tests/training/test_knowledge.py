"""TransE's training: corruption that is never an edge, filtered ranks against a slow version, seeds, the command."""

import json

import numpy as np
import pytest
import torch

from tuwen import cli
from tuwen.data.lexicons.files import saved_lexicon
from tuwen.data.lexicons.lexicon import LexiconMaker
from tuwen.data.lexicons.open import open_lexicon
from tuwen.errors import UserError
from tuwen.objectives.knowledge import transe_distance
from tuwen.training.knowledge import KnowledgeConfig, corrupted_edges, head_share, learn_knowledge, tail_ranks

FEW = KnowledgeConfig(width=32, epochs=50, batches=4, margin=5.0)


def test_heads_are_corrupted_where_tails_are_many():
    """Kind 0: one head of four tails; kind 1: three heads of one tail; kind 2 has no edge."""
    edges = torch.tensor([[0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 0, 4], [1, 1, 0], [2, 1, 0], [3, 1, 0]])
    assert head_share(edges, 3).tolist() == [4 / 5, pytest.approx(1 / 4), 0]


def test_copies_are_no_edges():
    edges = torch.tensor([[0, 0, 1], [0, 0, 2], [1, 0, 2], [2, 1, 3]])
    known = ((edges[:, 0] * 2 + edges[:, 1]) * 4 + edges[:, 2]).sort().values
    copies, real = corrupted_edges(edges, head_share(edges, 2), known, 4, 2, 200, torch.Generator().manual_seed(1))
    assert bool(real.all())
    everything = {tuple(edge) for edge in edges.tolist()}
    for edge, own in zip(edges.tolist(), copies.tolist(), strict=True):
        assert all(tuple(copy) not in everything for copy in own)
        assert all((copy[0] == edge[0]) + (copy[2] == edge[2]) >= 1 and copy[1] == edge[1] for copy in own)
        assert len({tuple(copy) for copy in own}) > 2
    # two entities, both ways an edge: nothing can be corrupted, and nothing counts
    full = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]])
    known = (full[:, 0] * 2 + full[:, 2]).sort().values
    assert not corrupted_edges(full, head_share(full, 1), known, 2, 1, 3, torch.Generator())[1].any()


def test_filtered_ranks_against_a_slow_version():
    generator = torch.Generator().manual_seed(5)
    entities, relations = torch.randn(9, 4, generator=generator), torch.randn(2, 4, generator=generator)
    edges = torch.tensor([[0, 0, 1], [0, 0, 2], [0, 1, 3], [5, 1, 3], [8, 0, 8]])
    slow = []
    for head, kind, tail in edges.tolist():
        others = {t for h, k, t in edges.tolist() if (h, k) == (head, kind)} - {tail}
        own = float(transe_distance(entities[head], relations[kind], entities[tail]))
        rank = 1
        for entity in range(9):
            nearer = float(transe_distance(entities[head], relations[kind], entities[entity])) < own
            rank += nearer and entity not in others
        slow.append(rank)
    assert tail_ranks(edges, entities, relations).tolist() == slow


def test_a_graph_is_learnt_and_seeds_are_kept():
    lexicon, metrics = learn_knowledge(open_lexicon("scenes"), FEW)
    again, _ = learn_knowledge(open_lexicon("scenes"), FEW)
    assert metrics["mrr"] > 10 * metrics["chance_mrr"] > 0
    assert np.array_equal(lexicon.vectors, again.vectors)
    assert np.allclose(np.linalg.norm(lexicon.vectors, axis=1), 1, atol=1e-5)
    group = dict(lexicon.edges[:, [0, 2]].tolist())
    things = torch.tensor([row for row in group if row < 116])
    cosine = torch.from_numpy(lexicon.vectors[things] @ lexicon.vectors[things].T)
    groups = torch.tensor([group[row] for row in things.tolist()])
    together = groups[:, None] == groups
    apart = cosine[~together].mean()
    assert cosine[together & ~torch.eye(len(things), dtype=torch.bool)].mean() > apart + 0.1


def test_entities_that_texts_name_are_kept():
    texts = ["a dog and a cat", "a dog", "a mammal", "一条狗"]
    few, metrics = learn_knowledge(open_lexicon("scenes"), KnowledgeConfig(epochs=1, width=4), texts)
    assert few.ids == ("dog", "cat", "mammal")
    assert metrics["edges"] == 2
    few, _ = learn_knowledge(open_lexicon("scenes"), KnowledgeConfig(epochs=1, width=4, connected=True))
    assert set(np.unique(few.edges[:, [0, 2]])) == set(range(len(few)))
    with pytest.raises(UserError, match="no edge among its 1 entities"):
        learn_knowledge(open_lexicon("scenes"), KnowledgeConfig(least=3), texts)
    maker = LexiconMaker()
    maker.name("a", "a", "en")
    with pytest.raises(UserError, match="no edge"):
        learn_knowledge(maker.lexicon("made"), KnowledgeConfig())


def test_the_command(tmp_path, capsys):
    out = tmp_path / "things"
    words = ["knowledge", "scenes", "--out", str(out), "--set", "epochs=2", "width=8", "batches=2", "--json"]
    assert cli.main(words) == 0
    metrics = json.loads(capsys.readouterr().out)
    lexicon = saved_lexicon(out)
    assert len(lexicon) == metrics["entities"] == 157
    assert lexicon.vectors.shape == (157, 8)
    assert cli.main(words) == 1  # is not written over
    assert "holds a lexicon already" in capsys.readouterr().err
    words = ["knowledge", "scenes", "--corpus", "scenes:count=20,side=32", "--out", str(tmp_path / "few")]
    assert cli.main([*words, "--set", "epochs=1", "least=1", "width=4"]) == 1  # groups are named in no caption
    assert "no edge among its" in capsys.readouterr().err
    assert cli.main(["knowledge", "scenes", "--out", str(tmp_path / "x"), "--set", "epoch=2"]) == 1
