"""Regions and words: attention sums to one, padding counts nothing, one region is read by every word."""

import pytest
import torch

from tests.systems.common import random
from tuwen.nn.towers import unit
from tuwen.similarity.region import phrase_scores, region_word_scores, word_attention

WORDS, REGIONS = unit(random(3, 6, 5, seed=1)), unit(random(3, 4, 5, seed=2))
GATES = random(3, 4, seed=3).sigmoid().log()
REAL = torch.arange(6) < torch.tensor([[6], [2], [0]])


def test_against_a_loop_value_and_gradient():
    words, regions, gates = (x.clone().requires_grad_() for x in (WORDS, REGIONS, GATES))
    found = region_word_scores(words, REAL, regions, gates, 0.3)
    rows = []
    for r in range(3):
        local = []
        for j in range(6):
            if REAL[r, j]:
                logits = torch.stack([words[r, j] @ regions[r, k] / 0.3 + gates[r, k] for k in range(4)])
                share = logits.exp() / logits.exp().sum()
                local.append(words[r, j] @ sum(share[k] * regions[r, k] for k in range(4)))
        rows.append(sum(local) / len(local) if local else words.new_zeros(()))
    want = torch.stack(rows)
    torch.testing.assert_close(found, want)
    for a, b in zip(*(torch.autograd.grad(x.sum(), (words, regions, gates)) for x in (found, want)), strict=True):
        torch.testing.assert_close(a, b)


def test_attention_sums_to_one_and_padding_counts_nothing():
    """Card, check 10."""
    torch.testing.assert_close(word_attention(WORDS, REGIONS, GATES).sum(2), torch.ones(3, 6, dtype=torch.float64))
    other = torch.where(REAL[..., None], WORDS, unit(random(3, 6, 5, seed=9)))
    assert torch.equal(region_word_scores(WORDS, REAL, REGIONS, GATES), region_word_scores(other, REAL, REGIONS, GATES))
    longer = torch.nn.functional.pad(WORDS, (0, 0, 0, 3)), torch.nn.functional.pad(REAL, (0, 3))
    torch.testing.assert_close(
        region_word_scores(*longer, REGIONS, GATES), region_word_scores(WORDS, REAL, REGIONS, GATES), rtol=0, atol=1e-14
    )


def test_one_region_is_every_words():
    """Card, check 10: the score is then the mean cosine with it."""
    found = region_word_scores(WORDS, REAL, REGIONS[:, :1], GATES[:, :1])
    want = torch.stack([(WORDS[r] @ REGIONS[r, 0])[REAL[r]].mean() for r in range(2)])
    torch.testing.assert_close(found[:2], want)
    assert float(found[2]) == 0


def test_order_of_regions_and_words_changes_nothing():
    regions, words = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 0])
    one = region_word_scores(WORDS[1:2, :2], REAL[1:2, :2], REGIONS[1:2], GATES[1:2])
    other = region_word_scores(WORDS[1:2, words], REAL[1:2, :2], REGIONS[1:2, regions], GATES[1:2, regions])
    torch.testing.assert_close(one, other)


def test_saying_all_twice_and_batch_mates_change_nothing():
    """Doubled regions share each word's attention; doubled words count alike; a pair alone is as in its batch."""
    want = region_word_scores(WORDS, REAL, REGIONS, GATES)
    twice = region_word_scores(WORDS, REAL, REGIONS.repeat(1, 2, 1), GATES.repeat(1, 2))
    torch.testing.assert_close(twice, want)
    words = region_word_scores(WORDS.repeat(1, 2, 1), REAL.repeat(1, 2), REGIONS, GATES)
    torch.testing.assert_close(words, want)
    phrases = phrase_scores(WORDS, REAL, REGIONS, GATES)
    for row in range(3):
        one = slice(row, row + 1)
        alone = region_word_scores(WORDS[one], REAL[one], REGIONS[one], GATES[one])
        torch.testing.assert_close(alone, want[one], rtol=0, atol=1e-14)
        alone = phrase_scores(WORDS[one], REAL[one], REGIONS[one], GATES[one])
        torch.testing.assert_close(alone, phrases[one], rtol=0, atol=1e-14)


def test_a_gate_shut_takes_its_region_out():
    gates = GATES.clone()
    gates[:, 2] = -1e9
    rest = torch.tensor([0, 1, 3])
    torch.testing.assert_close(
        region_word_scores(WORDS, REAL, REGIONS, gates),
        region_word_scores(WORDS, REAL, REGIONS[:, rest], GATES[:, rest]),
    )


def test_phrases_by_hand():
    words = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]])
    regions = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])
    real = torch.tensor([[True, True, False]])
    found = phrase_scores(words, real, regions, torch.tensor([[0.0, -2.0]]))
    assert found[0].tolist() == pytest.approx([0.5, 0.7 - 0.2])
