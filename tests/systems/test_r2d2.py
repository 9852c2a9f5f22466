"""R2D2's whole loss against the slow version, value and gradient, each part switched, and the checks by hand."""

import math

import pytest
import torch
from torch import Tensor

from tests.reference import albef as slow_albef
from tests.reference import r2d2 as slow
from tests.systems.common import (
    PROGRESS,
    assert_same_gradients,
    build,
    example,
    expected_negatives,
    gradients,
    queue_of,
    shaken,
    units,
    watched,
)
from tuwen.data.batch import Texts
from tuwen.nn.encoded import Encoded
from tuwen.objectives import matching
from tuwen.objectives.contrastive import contrastive, distilled_contrastive
from tuwen.objectives.distillation import feature_guided
from tuwen.systems import prd2, r2d2
from tuwen.systems.system import Progress

SMALL = {"queue": 8, "mask_share": 0.4}


def slow_terms(system, batch, alpha: float, masked: Texts, labels: Tensor, draws: Tensor) -> dict[str, Tensor]:
    """All terms of the card's section 4.7, with the config's parts."""
    config, ids = system.config, (batch.image_id.tolist(), batch.text_id.tolist())
    images = system.encode_images(batch.images)
    seen = system.encode_texts(masked if config.enhanced else batch.texts)
    terms: dict[str, Tensor] = {}
    if config.target_guided or config.feature_guided != "off":
        teacher = system.teacher.encoders
        with torch.no_grad():
            clean = teacher.encode_texts(batch.texts.ids, batch.texts.mask)
            keys = teacher.encode_images(batch.images).pooled
    pooled = images.pooled, seen.pooled
    if config.target_guided:
        past = queue_of(system)
        terms["contrast"] = slow.target_guided(*pooled, keys, clean.pooled, *ids, past, system.temperature, alpha)
    else:
        terms["contrast"] = slow.global_contrast(*pooled, *ids, system.temperature)
    if config.ranking:
        terms["matching"] = slow_ranking(system, images, seen, draws, ids)
    if config.masked_words:
        rows = system.encode_texts(masked)
        states = [text_over_image(system, images, rows, k, k) for k in range(len(batch))]
        words = system.encoders.text.words.weight
        logits = torch.stack([system.word_head(state[0], words) for state in states])
        terms["masked_words"] = slow_albef.masked_words(logits, None, labels, 0.0)
    if config.feature_guided == "tokens":
        student = system.encode_texts(masked)
        terms["feature_guided"] = slow.feature_guided(student.states["last"], clean.states["last"], masked.mask)
    return terms


def text_over_image(system, images: Encoded, texts: Encoded, image: int, text: int) -> Tensor:
    words, tokens = texts.states["last"][text : text + 1], images.states["last"][image : image + 1]
    return system.text_queries(words, texts.state_mask[text : text + 1], tokens, None)


def image_over_text(system, images: Encoded, texts: Encoded, image: int, text: int) -> Tensor:
    words, tokens = texts.states["last"][text : text + 1], images.states["last"][image : image + 1]
    return system.image_queries(system.image_to_fusion(tokens), None, words, texts.state_mask[text : text + 1])


def slow_ranking(system, images: Encoded, texts: Encoded, draws: Tensor, ids) -> Tensor:
    wrong_image = expected_negatives(texts.pooled, images.pooled, system.temperature, draws[:, 0], ids)
    wrong_text = expected_negatives(images.pooled, texts.pooled, system.temperature, draws[:, 1], ids)
    pairs = [(k, k, 1) for k in range(len(texts))]
    pairs += [(j, k, 0) for k, j in enumerate(wrong_image) if j is not None]
    pairs += [(k, j, 0) for k, j in enumerate(wrong_text) if j is not None]
    by_text = [system.text_match_head(text_over_image(system, images, texts, i, t)[0, 0]) for i, t, _ in pairs]
    by_image = [system.image_match_head(image_over_text(system, images, texts, i, t)[0, 0]) for i, t, _ in pairs]
    return slow.fine_ranking(torch.stack(by_text), torch.stack(by_image), [label for *_, label in pairs])


CASES = [
    {},
    {"enhanced": False},
    {"target_guided": False},
    {"feature_guided": "off"},
    {"masked_words": False},
    {"ranking": False},
    {"ranking": False, "enhanced": False},
    {"target_guided": False, "feature_guided": "off", "masked_words": False, "enhanced": False},
]


@pytest.mark.parametrize("changes", CASES, ids=lambda c: ",".join(f"{k}={v}" for k, v in c.items()) or "whole")
def test_every_term_and_gradient_is_the_slow_versions(monkeypatch, changes):
    system, batch = shaken(build("r2d2", **SMALL, **changes)), example()
    compare(monkeypatch, system, batch, Progress(3, 5, 10, 6), 0.24)


@pytest.mark.parametrize(("step", "alpha"), [(0, 0.0), (7, 0.4)])
def test_the_whole_at_both_ends_of_the_ramp(monkeypatch, step, alpha):
    compare(monkeypatch, shaken(build("r2d2", **SMALL)), example(), Progress(step, 5, 10, 6), alpha)


def test_rows_without_a_wrong_partner_are_left_out_of_ranking(monkeypatch):
    compare(monkeypatch, shaken(build("r2d2", **SMALL)), example([0, 2]), PROGRESS, 0.24)


def compare(monkeypatch, system, batch, progress, alpha: float) -> None:
    negatives, masks = (watched(monkeypatch, *at) for at in ((matching, "hard_negatives"), (r2d2, "mask_words")))
    losses = system(batch, progress)
    masked, labels = masks[0][1] if masks else (None, None)
    draws = torch.stack([call[0][2] for call in negatives], 1) if negatives else None
    want = slow_terms(system, batch, alpha, masked, labels, draws)
    assert {k: float(v.detach()) for k, v in losses.terms.items()} == pytest.approx(
        {k: float(v.detach()) for k, v in want.items()}, rel=0, abs=1e-9
    )
    for name in want:
        assert_same_gradients(gradients(losses.terms[name], system), gradients(want[name], system))


def test_all_losses_of_a_step_read_one_masked_text(monkeypatch):
    system, batch = shaken(build("r2d2", **SMALL)), example()
    masks = watched(monkeypatch, r2d2, "mask_words")
    system(batch, PROGRESS)
    for call in masks[1:]:
        assert torch.equal(call[1][0].ids, masks[0][1][0].ids)
        assert torch.equal(call[1][1], masks[0][1][1])


def test_prd2_is_r2d2s_distilled_contrast_on_the_masked_text(monkeypatch):
    for form, alpha in (("tokens", 0.24), ("off", 0.24)):
        system, batch = shaken(build("prd2", **SMALL, feature_guided=form)), example()
        masks = watched(monkeypatch, prd2, "mask_words")
        losses = system(batch, Progress(3, 5, 10, 6))
        seen = masks[0][1][0] if masks else batch.texts
        teacher = system.teacher.encoders
        images, texts = system.encode_images(batch.images), system.encoders.encode_texts(seen.ids, seen.mask)
        with torch.no_grad():
            keys = teacher.encode_images(batch.images).pooled
            clean = teacher.encode_texts(batch.texts.ids, batch.texts.mask)
        ids = batch.image_id.tolist(), batch.text_id.tolist()
        rows = images.pooled, texts.pooled, keys, clean.pooled
        want = {"contrast": slow.target_guided(*rows, *ids, queue_of(system), system.temperature, alpha)}
        if form == "tokens":
            want["feature_guided"] = slow.feature_guided(texts.states["last"], clean.states["last"], seen.mask)
        assert losses.terms.keys() == want.keys()
        for name in want:
            assert float(losses.terms[name].detach()) == pytest.approx(float(want[name].detach()), abs=1e-9)
            assert_same_gradients(gradients(losses.terms[name], system), gradients(want[name], system))
        monkeypatch.undo()


# ---- card, section 11


@torch.no_grad()
def test_final_score_is_the_mean_probability_plus_cosine():
    """Checks 4 and 5: between -1 and 2; with one head silenced the order follows half the other plus cosine."""
    system, batch = shaken(build("r2d2", **SMALL)).eval(), example()
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    cosine = system.scores(images, texts).i2t
    every = torch.cartesian_prod(torch.arange(6), torch.arange(6))
    match = system.match(images.select(every[:, 0]), texts.select(every[:, 1]))
    final = system.rerank(match, cosine[every[:, 0], every[:, 1]])
    for n, (i, t) in enumerate(every.tolist()):
        by_text = system.text_match_head(text_over_image(system, images, texts, i, t)[0, 0])
        by_image = system.image_match_head(image_over_text(system, images, texts, i, t)[0, 0])
        want = slow.final_score(by_text, by_image, float(images.pooled[i] @ texts.pooled[t]))
        assert float(final[n]) == pytest.approx(want, abs=2e-6)
    assert final.min() >= -1
    assert final.max() <= 2
    system.image_match_head.weight.zero_()
    system.image_match_head.bias.zero_()
    half = system.rerank(system.match(images, texts), cosine.diagonal())
    p = system.match(images, texts)[:, 0].sigmoid()
    torch.testing.assert_close(half, p / 2 + 0.25 + cosine.diagonal(), rtol=0, atol=1e-6)
    extremes = torch.tensor([[-80.0, -80.0], [80.0, 80.0]]), torch.tensor([-1.0, 1.0])
    assert system.rerank(*extremes).tolist() == pytest.approx([-1, 2])


def test_both_cross_encoders_count():
    """Check 5: a stub that ignores one tower fails when the towers disagree."""
    system = build("r2d2")
    match, first = torch.tensor([[3.0, -3.0], [2.0, 2.0]]), torch.zeros(2)
    assert system.rerank(match, first).tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-2))])


def test_padding_ids_change_no_score():
    """Check 6, in both cross encoders."""
    system, batch = shaken(build("r2d2", **SMALL)).eval(), example()
    images = system.encode_images(batch.images)
    other = torch.where(batch.texts.mask, batch.texts.ids, 37)
    texts = Texts(other, batch.texts.mask, batch.texts.language)
    a = system.match(images, system.encode_texts(batch.texts))
    b = system.match(images, system.encode_texts(texts))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_target_guided_with_itself_as_teacher_is_plain_contrast_with_query_side_gradient():
    """Check 8: alpha 0, no queue, teacher = student gives GCPR's value, and its gradient through queries only."""
    u, t = units(4, 5, 1).requires_grad_(), units(4, 5, 2).requires_grad_()
    same = torch.eye(4, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    keys = u.detach(), t.detach()
    guided = distilled_contrastive((u, t), keys, keys, same, torch.tensor(0.2), 0.0)
    plain = contrastive(u, t, u, t, same, torch.tensor(0.2))
    assert float(guided.detach()) == pytest.approx(float(plain.detach()), abs=1e-12)
    ours = torch.autograd.grad(guided, (u, t))
    query_only = torch.autograd.grad(contrastive(u, t, *keys, same, torch.tensor(0.2)), (u, t))
    for a, b in zip(ours, query_only, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    full = torch.autograd.grad(plain, (u, t))
    assert (full[0] - ours[0]).abs().max() > 1e-3


def test_feature_guided_is_zero_for_equal_states_and_teaches_only_the_student():
    """Check 9."""
    system, batch = build("r2d2", queue=8, mask_share=0.0).double(), example()
    system.teacher.copy_student(system)
    terms = system(batch, PROGRESS).terms
    assert float(terms["feature_guided"].detach()) == pytest.approx(0, abs=1e-12)
    assert float(terms["masked_words"].detach()) == 0
    sum(terms.values()).backward()
    assert all(p.grad is None for p in system.teacher.parameters())


@pytest.mark.parametrize("form", ["tokens", "cls", "similarity"])
def test_feature_guided_forms_by_hand(form):
    """Two texts, two tokens each, the second of the second padding; teacher turned by 90 degrees at one token."""
    east, north = [1.0, 0.0], [0.0, 1.0]
    student = Encoded(torch.tensor([east, north]), states={"last": torch.tensor([[east, east], [north, [9.0, 9.0]]])})
    student = Encoded(student.pooled, None, None, student.states, torch.tensor([[True, True], [True, False]]))
    teacher = Encoded(torch.tensor([east, east]), states={"last": torch.tensor([[[2.0, 0.0], north], [north, east]])})
    got = float(feature_guided(student, teacher, form, 1.0))
    cross = -0.5 * sum(math.log(1 / 2) for _ in range(2))  # teacher rows alike: both targets are (1/2, 1/2)
    assert got == pytest.approx({"tokens": 1 / 3, "cls": 0.0, "similarity": cross}[form], abs=1e-6)


def test_teacher_sees_the_clean_text():
    system, batch = shaken(build("r2d2", **SMALL)), example()
    with torch.no_grad():
        clean = system.teacher.encoders.encode_texts(batch.texts.ids, batch.texts.mask).pooled
    torch.testing.assert_close(system(batch, PROGRESS).keep["texts"], clean, rtol=0, atol=1e-12)


def test_frozen_image_tower_stays_while_its_projection_moves():
    """Check 10."""
    system, batch = build("r2d2", **SMALL), example()
    system.encoders.image.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in system.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in system.parameters() if p.requires_grad], lr=1e-3)
    system(batch, PROGRESS).total.backward()
    optimizer.step()
    moved = {name for name, p in system.named_parameters() if not torch.equal(p, before[name])}
    assert not any(name.startswith(("encoders.image.", "teacher.")) for name in moved)
    assert {"encoders.image_projection.weight", "encoders.text.words.weight", "temperature"} <= moved


def test_image_tower_gives_tokens_without_the_last_norm():
    """Section 3: fusion and projection read CLIP's last_hidden_state, which has no final norm."""
    system = shaken(build("r2d2", **SMALL))
    tokens = system.encoders.image(example().images.pixels)
    assert not isinstance(system.encoders.image.stack.norm, torch.nn.LayerNorm)
    pooled = system.encoders.image_projection(tokens[:, 0])
    torch.testing.assert_close(system.encode_images(example().images).pooled, pooled / pooled.norm(dim=1, keepdim=True))
