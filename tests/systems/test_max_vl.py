"""MAX-VL's losses against the slow version, value and gradient, and its card's checks of section 11."""

import dataclasses
import math

import pytest
import torch

from tests.reference import albef as albef_slow
from tests.reference import max_vl as slow
from tests.systems.common import (
    PROGRESS,
    VOCABULARY,
    WORDS,
    assert_same_gradients,
    build,
    example,
    gradients,
    queue_of,
    random,
    shaken,
    units,
    watched,
)
from tuwen.data.batch import Batch, Texts
from tuwen.data.sentences import identities, reordered
from tuwen.objectives import matching
from tuwen.objectives.contrastive import distilled_contrastive, softened
from tuwen.objectives.masked_language import masked_language
from tuwen.objectives.sentences import sentence_contrast, wrong_sentences
from tuwen.systems import max_vl as module
from tuwen.systems.system import Progress
from tuwen.training import optim
from tuwen.training.config import TrainConfig

QUEUE = 8
# the common texts cut in sentences, without [CLS] and [SEP]; rows 0 and 5 both say (25,)
CUT = [[[11, 12, 13], [14, 15], [25]], [[21, 22]], [[31, 11], [32, 12, 33]], [[21, 22]], [[8, 9], [10, 38, 39]], [[25]]]


def sentences_of(rows: list[int] | None = None, padding: int = 0) -> Texts:
    rows = list(range(6)) if rows is None else rows
    every = [(k, [2, *words, 3]) for k, row in enumerate(rows) for words in CUT[row]]
    longest = max(len(words) for _, words in every) + padding
    ids = torch.tensor([words + [0] * (longest - len(words)) for _, words in every])
    owner = torch.tensor([k for k, _ in every])
    return Texts(ids, ids != 0, torch.zeros_like(owner), owner)


def reported(rows: list[int] | None = None, padding: int = 0) -> Batch:
    """The common batch with the whole picture beside its crop, and its texts as sentences."""
    batch = example(rows)
    images = dataclasses.replace(batch.images, views={"whole": batch.images.pixels.flip(2)})
    return dataclasses.replace(batch, images=images, sentences=sentences_of(rows, padding))


def system_of(**changes):
    return shaken(build("max_vl", queue=QUEUE, mask_share=0.4, **changes))


def slow_terms(system, batch, progress, masked, labels, draws) -> dict[str, torch.Tensor]:
    alpha, teacher, temperature = progress.ramp(0.4), system.teacher, system.temperature
    report = system.report(batch, progress)
    images = system.encoders.encode_images(batch.images)
    texts = system.encoders.encode_texts(report.ids, report.mask)
    with torch.no_grad():
        image_keys = teacher.encoders.encode_images(batch.images.view("whole"))
        text_keys = teacher.encoders.encode_texts(report.ids, report.mask)
        spoken = [
            [(tuple(w), teacher.encoders.encode_texts(*one_text([2, *w, 3])).pooled[0]) for w in row] for row in CUT
        ]
    ids, queue = (batch.image_id.tolist(), batch.text_id.tolist()), queue_of(system)
    rows = images.pooled, texts.pooled, image_keys.pooled, text_keys.pooled
    columns = albef_slow.columns(*ids, queue)
    right = [[albef_slow.belong(i, t, a, b) for _, a, b in columns] for i, t in zip(*ids, strict=True)]
    keys = {
        side: [(now[k] if k >= 0 else past[-1 - k]) for k, _, _ in columns]
        for side, now, past in (("p", image_keys.pooled, queue.images), ("t", text_keys.pooled, queue.texts))
    }
    near = slow.near_identical(list(text_keys.states["last"][:, 0]), system.config.alike, system.config.centred)
    every = [(k, k, 1) for k in range(len(batch))]
    for kind, queries, against in ((0, texts.pooled, image_keys.pooled), (1, images.pooled, text_keys.pooled)):
        chosen = negatives(queries, against, temperature, draws[:, kind], ids, near)
        every += [((j, k, 0) if kind == 0 else (k, j, 0)) for k, j in enumerate(chosen) if j is not None]
    logits, by_pictures = [], []
    for i, t, _ in every:
        words, seen = (
            texts.states["last"][t : t + 1, report.mask[t]],
            system.image_input(images.states["last"][i : i + 1]),
        )
        logits.append(system.match_head(system.fusion(words, None, seen, None)[0, 0]))
        if system.config.alternating:  # the same layers the other way, and the picture's class token
            by_pictures.append(system.image_match_head(system.fusion(seen, None, words, None)[0, 0]))
    heads = [logits, by_pictures] if by_pictures else [logits]
    labels_of = [label for *_, label in every]
    logits_of_words = []
    for parts, seen in ((system, images), (teacher, image_keys)):
        read = parts.encoders.encode_texts(masked.ids, masked.mask).states["last"]
        states = parts.fusion(read, masked.mask, parts.image_input(seen.states["last"]), None)
        logits_of_words.append(parts.word_head(states, parts.encoders.text.words.weight))
    return {
        "contrast": 2 * albef_slow.contrast(*rows, *ids, queue, temperature, alpha) / 5,
        "pictures": slow.within(images.pooled, keys["p"], right, temperature) / 5,
        "texts": slow.within(texts.pooled, keys["t"], right, temperature) / 5,
        "sentences": slow.sentences(images.pooled, spoken, *ids, temperature) / 5,
        "matching": 2 * slow.mean([albef_slow.matching(torch.stack(own), labels_of) for own in heads]),
        "masked_words": albef_slow.masked_words(logits_of_words[0], logits_of_words[1].detach(), labels, alpha),
    }


def one_text(words: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([words])
    return ids, ids != 0


def negatives(queries, keys, temperature, draws, ids, near) -> list[int | None]:
    """Row by row among those that are neither the same nor near-identical."""
    image_ids, text_ids = ids
    chosen = []
    for i in range(len(queries)):
        same = [
            albef_slow.belong(image_ids[i], text_ids[i], image_ids[j], text_ids[j]) or near[i][j]
            for j in range(len(keys))
        ]
        scores = [albef_slow.dot(queries[i], keys[j]) / temperature for j in range(len(keys))]
        chosen.append(albef_slow.draw(scores, same, float(draws[i])))
    return chosen


NARROW = module.ImageTowerConfig(side=32, patch=8, width=24, layers=1, heads=2)


@pytest.mark.parametrize(
    ("step", "alike", "changes"),
    [
        (0, 0.95, {}),
        (3, 0.2, {}),
        (7, 0.95, {}),
        (3, 0.95, {"alternating": True}),
        (3, 0.2, {"alternating": True, "image": NARROW}),
    ],
)
def test_every_term_and_gradient_is_the_slow_version_s(monkeypatch, step, alike, changes):
    system, batch = system_of(alike=alike, **changes), reported()
    drawn, masks = watched(monkeypatch, matching, "hard_negatives"), watched(monkeypatch, module, "mask_words")
    progress = Progress(step, PROGRESS.steps_per_epoch, PROGRESS.total_steps, 6)
    losses = system(batch, progress)
    masked, labels = masks[0][1]
    want = slow_terms(system, batch, progress, masked, labels, torch.stack([call[0][2] for call in drawn], 1))
    assert set(losses.terms) == set(want)
    for name, value in want.items():
        assert float(losses.terms[name].detach()) == pytest.approx(float(value.detach()), abs=1e-9), name
        assert_same_gradients(gradients(losses.terms[name], system), gradients(value, system))
    assert (float(losses.metrics["near_identical"]) > 0) == (alike == 0.2)


# ---- the card's checks


def test_the_rates_of_its_recipe_as_its_code_has_them():
    """Check 1: a cosine of five epochs from 1e-4 to 2e-5, read at epochs 2, 3 and 4."""
    config = TrainConfig(lr=1e-4, min_lr=2e-5, warmup=0.0, steps=5)
    rate = optim.schedule(config, 5)
    for epoch, expected in ((2, 7.24e-5), (3, 4.76e-5), (4, 2.76e-5)):
        assert config.lr * rate(epoch) == pytest.approx(expected, rel=0.01)


def test_without_alpha_targets_are_hard_and_with_it_they_sum_to_one():
    """Check 2."""
    student, teacher = (units(4, 6, 1), units(4, 6, 2)), (units(4, 6, 3), units(4, 6, 4))
    keys, same = (units(7, 6, 5), units(7, 6, 6)), torch.eye(4, 7, dtype=torch.bool)
    temperature = torch.tensor(0.3, dtype=torch.float64)
    ours = distilled_contrastive(student, teacher, keys, same, temperature, 0.0)
    logits = student[0] @ keys[1].T / 0.3, student[1] @ keys[0].T / 0.3
    hard = sum(torch.nn.functional.cross_entropy(x, torch.arange(4)) for x in logits) / 2
    assert float(ours) == pytest.approx(float(hard), abs=1e-12)
    targets = softened(same.double(), teacher[0] @ keys[1].T / 0.3, 0.4)
    torch.testing.assert_close(targets.sum(1), torch.ones(4, dtype=torch.float64))


def test_sentence_contrast_by_hand_and_what_it_moves():
    """Check 3: two reports of one sentence each, l = v = e1 and e2: log(1 + e) - 1; check 4: no gradient to texts."""
    images = torch.eye(2, dtype=torch.float64).requires_grad_()
    spoken = torch.eye(2, dtype=torch.float64).requires_grad_()
    own = torch.eye(2, dtype=torch.bool)
    loss = sentence_contrast(images, spoken, own, ~own, 1.0)
    assert float(loss.detach()) == pytest.approx(0.3133, abs=5e-5)
    loss.backward()
    assert spoken.grad is None
    assert images.grad.abs().max() > 0.1
    padded = torch.cat([spoken, random(3, 2, seed=1)])
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    again = sentence_contrast(images, padded, torch.cat([own, nothing], 1), torch.cat([~own, nothing], 1), 1.0)
    assert float(again.detach()) == float(loss.detach())
    # nothing wrong costs nothing, and gives numbers as gradients
    none = sentence_contrast(images, spoken, own, torch.zeros_like(own), 1.0)
    assert float(none.detach()) == 0
    assert torch.isfinite(torch.autograd.grad(none, images)[0]).all()


def test_a_sentence_is_wrong_of_no_report_that_says_it_too():
    own = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0]]).bool()
    owner, words = torch.tensor([0, 0, 1, 2, 2, -1]), torch.tensor([5, 6, 6, 7, 8, 0])
    same = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 1, 1]]).bool()
    wrong = wrong_sentences(own, same, owner, words)
    # row 0 says 6 as row 1 does; rows 1 and 2 are one picture; the last is padding
    assert wrong.int().tolist() == [[0, 0, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]


def test_only_the_pictures_tower_learns_from_sentences():
    """Check 4, in the system."""
    system = system_of()
    moved = gradients(system(reported(), PROGRESS).terms["sentences"], system)
    texts = {name: g for name, g in moved.items() if name.startswith(("encoders.text", "fusion", "word_head"))}
    assert all(g is None or not g.abs().any() for g in texts.values())
    assert moved["encoders.image.patches.weight"].abs().max() > 0


def test_matching_pairs_are_three_a_row_and_never_near_identical():
    """Check 5: four reports, three of them near-identical: the fourth is what each of the three is held against."""
    system = system_of(hardness=0.0)
    states = torch.tensor([[1.0, 0, 0], [1, 0.01, 0], [1, 0, 0.01], [0, 1, 1]], dtype=torch.float64)
    for centred in (True, False):
        near = torch.tensor(slow.near_identical(list(states), 0.95, centred))
        assert near.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    draws = torch.rand(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    same = torch.eye(4, dtype=torch.bool)
    pairs = matching.drawn_pairs(random(4, 4, seed=1), random(4, 4, seed=2), same | near, draws)
    assert pairs.labels.tolist() == [1] * 4 + [0] * 8
    assert pairs.images[4:7].tolist() == [3, 3, 3]
    assert pairs.texts[8:11].tolist() == [3, 3, 3]
    assert pairs.images[7] != 3
    # where all others are near-identical the row has no wrong partner, rather than a false one
    alone = matching.drawn_pairs(torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2, 2).bool(), draws[:2])
    assert alone.labels.tolist() == [1, 1] + [matching.IGNORED] * 4
    # untrained text towers: uncentred, every pair is near-identical; centred, only those that say the same
    batch, fresh = reported(), build("max_vl").eval()
    shares = {}
    for centred in (True, False):
        system = build("max_vl", centred=centred).eval()
        near = system.near(fresh.teacher.encoders.encode_texts(batch.texts.ids, batch.texts.mask))
        shares[centred] = near
    assert shares[True].int().tolist() == (batch.text_id[:, None] == batch.text_id).int().tolist()
    assert shares[False].all()


def test_the_teacher_follows_by_its_share():
    """Check 6."""
    system = build("max_vl", momentum=0.995, momentum_rises=False)
    named = dict(system.named_parameters())
    pairs = {name: name.removeprefix("teacher.") for name in named if name.startswith("teacher.")}
    assert len(pairs) > 60
    for taught, own in pairs.items():
        assert not named[taught].requires_grad
        assert torch.equal(named[taught], named[own])
    with torch.no_grad():
        for own in pairs.values():
            named[own].add_(1.0)
    before = {name: named[name].clone() for name in pairs}
    system.before_step(PROGRESS)
    for name, old in before.items():
        torch.testing.assert_close(named[name] - old, torch.full_like(old, 0.005), rtol=0, atol=1e-6)


def test_the_teacher_s_words_are_a_distribution_over_words():
    """Check 7: more padding changes nothing (over positions it would)."""
    system = system_of()
    terms = []
    for batch in (reported(), reported(padding=3)):
        texts = batch.texts
        ids = torch.nn.functional.pad(texts.ids, (0, 5 if len(terms) else 0))
        wider = dataclasses.replace(batch, texts=dataclasses.replace(texts, ids=ids, mask=ids != 0), sentences=None)
        terms.append(float(system(wider, PROGRESS).terms["masked_words"].detach()))
    assert terms[0] == pytest.approx(terms[1], abs=1e-12)
    logits, taught = random(3, 5, seed=1), random(3, 5, seed=2)
    by_hand = -(taught.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    assert float(masked_language(logits, torch.tensor([0, 1, 2]), taught, 1.0)) == pytest.approx(float(by_hand))


def test_another_order_of_sentences_is_another_text_of_the_same_sentences():
    """Check 8; every text begins and ends as it should, and is cut at the tower's length."""
    system, batch = system_of(), reported()
    seen = set()
    for epoch in range(8):
        report = system.report(batch, dataclasses.replace(PROGRESS, step=5 * epoch))
        rows = [ids[mask].tolist() for ids, mask in zip(report.ids, report.mask, strict=True)]
        for row, parts in zip(rows, CUT, strict=True):
            assert (row[0], row[-1]) == (2, 3)
            assert sorted(row[1:-1]) == sorted(word for part in parts for word in part)
            assert all(str(part)[1:-1] in str(row) for part in parts)  # a sentence stays in one piece
        seen.add(tuple(map(tuple, rows)))
    assert len(seen) > 3
    assert torch.equal(report.ids, system.report(reported(padding=4), dataclasses.replace(PROGRESS, step=35)).ids)
    short = reordered(batch.sentences, torch.zeros(10), 6, VOCABULARY, 5)
    assert short.ids[0].tolist() == [2, 11, 12, 13, 3]
    assert short.mask.sum(1).tolist() == [5, 4, 5, 4, 5, 3]
    # in their own order they are the text as it stands, padded as a tokenizer pads
    whole = reordered(batch.sentences, torch.zeros(10), 6, VOCABULARY, 32)
    assert [ids[mask].tolist() for ids, mask in zip(whole.ids, whole.mask, strict=True)][1:] == WORDS[1:]
    assert whole.ids.shape[1] == 8


def test_equal_sentences_have_equal_identities_whatever_their_padding():
    plain, wide = sentences_of(), sentences_of(padding=5)
    assert torch.equal(identities(plain), identities(wide))
    words = [tuple(ids[mask].tolist()) for ids, mask in zip(plain.ids, plain.mask, strict=True)]
    same = torch.tensor([[a == b for b in words] for a in words])
    assert torch.equal(identities(plain)[:, None] == identities(plain), same)


def test_constant_scores_cost_the_logarithm_of_how_many():
    """Every contrast at equal vectors: log of the keys for the queue's, log(1 + wrong ones) for sentences."""
    alike = torch.ones(3, 2, dtype=torch.float64) / math.sqrt(2)
    own = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]).bool()
    loss = sentence_contrast(alike, alike[:1].expand(6, 2), own, ~own, 0.07)
    assert float(loss) == pytest.approx((math.log(5) + math.log(6) + math.log(4)) / 3)


@torch.no_grad()
def test_the_alternating_form_has_two_heads_and_the_control_arms_are_settings():
    """Card, sections 9 and 10: one stack both ways, two heads whose scores are averaged; without the filter of
    near-identical reports, and without sentences."""
    batch, plain, both = reported(), build("max_vl").eval(), build("max_vl", alternating=True).eval()
    extra = {name for name in both.state_dict() if name not in plain.state_dict()}
    assert extra == {"image_match_head.weight", "image_match_head.bias"}
    images, texts = both.encode_images(batch.images), both.encode_texts(batch.texts)
    odds = both.match(images, texts)
    assert odds.shape == (6, 2)
    assert (odds[:, 0] != odds[:, 1]).all()
    torch.testing.assert_close(odds[:, :1], plain.match(images, texts))  # equal weights, the words' pass is the same
    progress = PROGRESS
    unfiltered = build("max_vl", alike=2.0)(batch, progress)
    assert float(unfiltered.metrics["near_identical"]) == 0
    assert "sentences" not in build("max_vl", sentences=0.0)(batch, progress).terms
