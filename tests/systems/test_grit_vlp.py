"""GRIT-VLP's losses against the slow version, value and gradient, and its card's checks of section 11.

Those of the sampler alone (1 to 6) stand in tests/data/test_grouping.py and tests/training/test_resume.py.
"""

import dataclasses
import json
import math

import pytest
import torch

from tests.reference import albef as albef_slow
from tests.reference import grit_vlp as slow
from tests.systems.common import (
    PROGRESS,
    VOCABULARY,
    assert_same_gradients,
    build,
    example,
    gradients,
    random,
    shaken,
    units,
    watched,
)
from tuwen.data.text import mask_words
from tuwen.objectives.contrastive import consistency, directional_contrastive, logits_of
from tuwen.objectives.matching import hardest_pairs
from tuwen.systems import grit_vlp as module
from tuwen.training import loop
from tuwen.training.config import RunConfig


def slow_terms(system, batch, masked, labels) -> dict[str, torch.Tensor]:
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    v, w, ids = images.pooled, texts.pooled, (batch.image_id.tolist(), batch.text_id.tolist())
    pairs = [(k, k, 1) for k in range(len(batch))]
    pairs += [(j, k, 0) for k, j in enumerate(slow.hardest(w, v, ids)) if j is not None]
    pairs += [(k, j, 0) for k, j in enumerate(slow.hardest(v, w, ids)) if j is not None]
    logits = [system.match_head(system.fuse([images.select([i])], texts.select([t])).pooled)[0] for i, t, _ in pairs]
    words = []
    for k in range(len(batch)):
        read = system.encoders.text(masked.ids[k : k + 1], masked.mask[k : k + 1])
        states = system.fusion(read, masked.mask[k : k + 1], images.states["last"][k : k + 1], None)
        words.append(system.word_head(states[0], system.encoders.text.words.weight))
    return {
        "contrast": slow.contrast(v, w, ids, system.temperature),
        "consistency": 0.2 * slow.consistency(v, w, system.temperature),
        "matching": albef_slow.matching(torch.stack(logits), [label for *_, label in pairs]),
        "masked_words": albef_slow.masked_words(torch.stack(words), None, labels, 0.0),
    }


@pytest.mark.parametrize("rows", [None, [0, 2], [1, 4, 5]])  # rows 0 and 2 show one picture: no wrong partner
def test_every_term_and_gradient_is_the_slow_version_s(monkeypatch, rows):
    system, batch = shaken(build("grit_vlp")), example(rows)
    masks = watched(monkeypatch, module, "mask_words")
    losses = system(batch, PROGRESS)
    masked, labels = masks[0][1]
    want = slow_terms(system, batch, masked, labels)
    terms = {name: float(value.detach()) for name, value in losses.terms.items()}
    assert terms == pytest.approx({k: float(v.detach()) for k, v in want.items()}, rel=0, abs=1e-9)
    for name in want:
        assert_same_gradients(gradients(losses.terms[name], system), gradients(want[name], system))


def test_keys_are_detached_and_consistency_has_no_gradient_into_its_targets():
    """Check 7: the gradient of keys is zero; equal rows cost their entropy, the least; targets take no gradient."""
    v, w = units(4, 6, 1).requires_grad_(), units(4, 6, 2).requires_grad_()
    same = torch.eye(4, dtype=torch.bool)
    keys = v.detach(), w.detach()
    loss = directional_contrastive(logits_of(v, keys[1], 0.1), logits_of(w, keys[0], 0.1), same)
    onto_v = torch.autograd.grad(loss, v, retain_graph=True)[0]
    alone = directional_contrastive(logits_of(v, keys[1], 0.1), logits_of(w.detach(), keys[0], 0.1), same)
    torch.testing.assert_close(onto_v, torch.autograd.grad(alone, v)[0], rtol=0, atol=0)

    a, b = random(3, 5, seed=1).requires_grad_(), random(3, 5, seed=2).requires_grad_()
    p, q = a.detach().softmax(1), b.detach().softmax(1)
    got = torch.autograd.grad(consistency(a, b), (a, b))
    torch.testing.assert_close(got[0], (p - q) / 6)  # of CE(q, softmax(a)) / 2 alone, mean over three rows
    torch.testing.assert_close(got[1], (q - p) / 6)
    entropy = -(p * p.log()).sum(1).mean()
    assert float(consistency(a, a).detach()) == pytest.approx(float(entropy))
    assert torch.autograd.grad(consistency(a, a), a)[0].abs().max() < 1e-15
    assert float(consistency(a, b).detach()) > (float(entropy) - float((q * q.log()).sum(1).mean())) / 2
    # by hand: two columns, shares 3/4 against 1/4 and 1/2 against 1/2
    two = consistency(torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2))
    assert float(two) == pytest.approx((math.log(4) - math.log(3) / 2 + math.log(2)) / 2)


def test_hardest_negatives_are_the_greatest_off_the_same_and_take_no_draw():
    """Check 8, and what the paced share makes of it: none hardest, all alike likely."""
    scores = torch.tensor([[9.0, 1, 2], [3, 9, 8], [5, 5, 9]])
    same = torch.eye(3, dtype=torch.bool)
    for seed in (1, 2):
        draws = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        pairs = hardest_pairs(scores.T, scores, same, draws)
        assert pairs.images.tolist() == [0, 1, 2, 2, 2, 1, 0, 1, 2]  # columns 0 1 2 of the scores: 5, 5, 8
        assert pairs.texts.tolist() == [0, 1, 2, 0, 1, 2, 2, 2, 0]  # rows: 2, 8, 5 (the first of equals)
        assert pairs.labels.tolist() == [1] * 3 + [0] * 6
    draws = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    draws[:, 1], draws[:, 3] = 0.0, 0.99  # the first wrong picture, the last wrong text
    pairs = hardest_pairs(scores.T, scores, same, draws, 0.0)
    assert pairs.images.tolist()[3:6] == [1, 0, 0]
    assert pairs.texts.tolist()[6:] == [2, 2, 1]
    draws[:, 0] = torch.tensor([0.2, 0.6, 0.2])
    half = hardest_pairs(scores.T, scores, same, draws, torch.tensor(0.5))
    assert half.images.tolist()[3:6] == [2, 0, 1]  # rows 0 and 2 the hardest, row 1 the first
    none = hardest_pairs(scores.T, scores, torch.ones(3, 3, dtype=torch.bool), draws)
    assert none.labels.tolist() == [1] * 3 + [-100] * 6


def test_matching_reads_the_hardest_and_is_the_same_twice(monkeypatch):
    """Check 8: the same inputs twice give the same negatives, and their mean cosine is what is logged."""
    system, batch = shaken(build("grit_vlp")), example()
    calls = watched(monkeypatch, module, "hardest_pairs")
    first, again = system(batch, PROGRESS), system(batch, dataclasses.replace(PROGRESS, step=9))
    assert torch.equal(calls[0][1].images, calls[1][1].images)
    assert torch.equal(calls[0][1].texts, calls[1][1].texts)
    assert torch.equal(first.terms["matching"], again.terms["matching"])
    v, w = system.encode_images(batch.images).pooled, system.encode_texts(batch.texts).pooled
    ids = batch.image_id.tolist(), batch.text_id.tolist()
    pairs = [(j, k) for k, j in enumerate(slow.hardest(w, v, ids))] + [*enumerate(slow.hardest(v, w, ids))]
    cosines = [float((v[i] @ w[t]).detach()) for i, t in pairs]
    assert float(first.metrics["negative_cosine"].detach()) == pytest.approx(sum(cosines) / len(cosines))


def test_half_of_the_words_are_masked():
    """Check 9: 0.5 +- 0.02 of ten thousand tokens, of which 80 % are [MASK], 10 % drawn, 10 % as they were."""
    ids = torch.full((250, 44), 20)
    ids[:, 0], ids[:, -1] = VOCABULARY.cls, VOCABULARY.pad
    base = example()
    texts = type(base.texts)(ids, ids != 0, torch.zeros(250, dtype=torch.int64))
    batch = type(base)(None, texts, torch.arange(250), torch.arange(250), torch.arange(250))
    system = build("grit_vlp")
    draws = PROGRESS.uniform(batch, 3 * 44, "mask")
    masked, labels = mask_words(texts, VOCABULARY, draws, system.config.mask_share)
    chosen = labels >= 0
    assert not chosen[:, 0].any()
    assert not chosen[:, -1].any()
    total = int(chosen.sum())
    assert total / (250 * 42) == pytest.approx(0.5, abs=0.02)
    assert int((masked.ids[chosen] == VOCABULARY.mask).sum()) / total == pytest.approx(0.8 + 0.1 / 40, abs=0.02)
    assert int((masked.ids[chosen] == 20).sum()) / total == pytest.approx(0.1 + 0.1 / 40, abs=0.02)


GROUPED = {
    "train.batch_size": 8,
    "train.epochs": 3,
    "train.group_search": 16,
    "train.group_queue": 32,
    "train.log_every": 1,
    "train.precision": "float32",
    "train.threads": 1,
    "data.workers": 0,
}


def run(folder, **changes) -> list[dict]:
    config = RunConfig.of("grit_vlp", "tiny", "scenes:count=40,side=32", changes={**GROUPED, **changes})
    lines = (loop.train(config, folder, quiet=True) / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "losses" in row]


def test_it_is_grouped_by_default_and_asks_for_no_further_pass(tmp_path, monkeypatch):
    """Check 10: as many calls of both encoders in all steps as with a random order; the first epoch is the same."""
    counts = []
    for name in ("image", "text"):
        tower = type(getattr(build("grit_vlp").encoders, name))
        real = tower.forward

        def forward(self, *args, real=real, **kwargs):
            counts.append(1)
            return real(self, *args, **kwargs)

        monkeypatch.setattr(tower, "forward", forward)
    grouped = run(tmp_path / "grouped")
    first = len(counts)
    shuffled = run(tmp_path / "shuffled", **{"train.order": "shuffled"})
    assert first - 2 == len(counts) - first, "two calls before the first step look whether the system has vectors"
    assert [row["losses"] for row in grouped[:5]] == [row["losses"] for row in shuffled[:5]]
    assert [row["losses"] for row in grouped[5:]] != [row["losses"] for row in shuffled[5:]]


def test_only_its_pre_training_is_grouped():
    def order(*args, **kwargs):
        return RunConfig.of(*args, **kwargs).train.order

    assert order("grit_vlp", "tiny", "scenes") == "grouped"
    assert order("grit_vlp", "tiny", "scenes", "finetune") == "shuffled"
    assert order("grit_vlp", "tiny", "scenes", changes={"train.order": "shuffled"}) == "shuffled"
    assert order("albef", "tiny", "scenes") == "shuffled"
    assert order("albef", "tiny", "scenes", changes={"train.order": "grouped"}) == "grouped"


def test_padding_and_order_of_rows_change_no_term():
    system, batch = shaken(build("grit_vlp")), example()
    first = system(batch, PROGRESS).terms
    moved = system(batch.select(torch.tensor([3, 5, 0, 1, 4, 2])), PROGRESS).terms
    longer = torch.nn.functional.pad(batch.texts.ids, (0, 4))
    padded = dataclasses.replace(
        batch, texts=dataclasses.replace(batch.texts, ids=longer, mask=longer != VOCABULARY.pad)
    )
    third = system(padded, PROGRESS).terms
    for name in first:
        assert float(first[name].detach()) == pytest.approx(float(moved[name].detach()), abs=1e-10), name
        assert float(first[name].detach()) == pytest.approx(float(third[name].detach()), abs=1e-10), name
