"""ALBEF's whole loss against the slow version, value and gradient, and the checks one can do by hand."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from tests.reference import albef as slow
from tests.systems.common import (
    IMAGE_IDS,
    PROGRESS,
    TEXT_IDS,
    VOCABULARY,
    assert_same_gradients,
    build,
    example,
    expected_negatives,
    gradients,
    queue_of,
    shaken,
    watched,
)
from tuwen.data.text import mask_words
from tuwen.nn.encoded import Encoded
from tuwen.objectives import matching
from tuwen.objectives.contrastive import distilled_contrastive
from tuwen.systems import albef as module
from tuwen.systems.system import Progress

QUEUE = 8


def slow_terms(system, batch, alpha: float, masked, labels: Tensor, draws: Tensor) -> dict[str, Tensor]:
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    teacher = system.teacher.encoders
    with torch.no_grad():
        image_keys = teacher.encode_images(batch.images)
        text_keys = teacher.encode_texts(batch.texts.ids, batch.texts.mask)
    rows = images.pooled, texts.pooled, image_keys.pooled, text_keys.pooled
    ids = batch.image_id.tolist(), batch.text_id.tolist()
    contrast = slow.contrast(*rows, *ids, queue_of(system), system.temperature, alpha)

    wrong_image = expected_negatives(texts.pooled, image_keys.pooled, system.temperature, draws[:, 0], ids)
    wrong_text = expected_negatives(images.pooled, text_keys.pooled, system.temperature, draws[:, 1], ids)
    pairs = [(k, k, 1) for k in range(len(batch))]
    pairs += [(j, k, 0) for k, j in enumerate(wrong_image) if j is not None]
    pairs += [(k, j, 0) for k, j in enumerate(wrong_text) if j is not None]
    logits = [system.match_head(system.fuse([images.select([i])], texts.select([t])).pooled)[0] for i, t, _ in pairs]
    matching = slow.matching(torch.stack(logits), [label for *_, label in pairs])

    students = word_logits(system, images, masked)
    taught = word_logits(system.teacher, image_keys, masked).detach()
    return {
        "contrast": contrast,
        "matching": matching,
        "masked_words": slow.masked_words(students, taught, labels, alpha),
    }


def word_logits(parts, images: Encoded, masked) -> Tensor:
    """[B, L, V] at every position, row by row."""
    rows = []
    for k in range(len(masked)):
        words = parts.encoders.text(masked.ids[k : k + 1], masked.mask[k : k + 1])
        states = parts.fusion(words, masked.mask[k : k + 1], images.states["last"][k : k + 1], None)
        rows.append(parts.word_head(states[0], parts.encoders.text.words.weight))
    return torch.stack(rows)


@pytest.mark.parametrize(("step", "alpha"), [(0, 0.0), (3, 0.24), (7, 0.4)])
def test_every_term_and_gradient_is_the_slow_versions(monkeypatch, step, alpha):
    system, batch = shaken(build("albef", queue=QUEUE, mask_share=0.4)), example()
    negatives, masks = watched(monkeypatch, matching, "hard_negatives"), watched(monkeypatch, module, "mask_words")
    progress = Progress(step, PROGRESS.steps_per_epoch, PROGRESS.total_steps, 6)
    losses = system(batch, progress)
    masked, labels = masks[0][1]
    assert (labels >= 0).sum() >= 4
    draws = torch.stack([call[0][2] for call in negatives], 1)
    want = slow_terms(system, batch, alpha, masked, labels, draws)
    assert {k: float(v.detach()) for k, v in losses.terms.items()} == pytest.approx(
        {k: float(v.detach()) for k, v in want.items()}, rel=0, abs=1e-9
    )
    for name in want:
        assert_same_gradients(gradients(losses.terms[name], system), gradients(want[name], system))


def test_rows_without_a_wrong_partner_are_left_out_of_matching(monkeypatch):
    system, batch = shaken(build("albef", queue=QUEUE, mask_share=0.4)), example([0, 2])  # one picture, two texts
    negatives, masks = watched(monkeypatch, matching, "hard_negatives"), watched(monkeypatch, module, "mask_words")
    losses = system(batch, PROGRESS)
    draws = torch.stack([call[0][2] for call in negatives], 1)
    want = slow_terms(system, batch, 0.24, *masks[0][1], draws)
    for name, value in want.items():
        assert float(losses.terms[name].detach()) == pytest.approx(float(value.detach()), abs=1e-9), name


def test_contrast_by_hand():
    """Card, check 2: B = 2, no queue, temperature 1, identity similarities."""
    eye = torch.eye(2, dtype=torch.float64)
    same = torch.eye(2, dtype=torch.bool)
    for alpha, want in ((0.0, 0.3133), (0.4, 0.4208)):
        loss = distilled_contrastive((eye, eye), (eye, eye), (eye, eye), same, torch.tensor(1.0), alpha)
        assert float(loss) == pytest.approx(want, abs=5e-5)
        ids = [0, 1], [0, 1]
        assert float(slow.contrast(eye, eye, eye, eye, *ids, None, torch.tensor(1.0), alpha)) == pytest.approx(
            float(loss)
        )
    assert float(loss) == pytest.approx(-(0.6 + 0.4 * math.e / (1 + math.e)) + math.log(1 + math.e))


def test_contrast_reaches_each_tower_from_its_own_query_alone():
    """Card, check 3: keys are the teacher's, so picture-to-text gives the text tower nothing, and back."""
    system, batch = shaken(build("albef", queue=QUEUE)), example()
    found = gradients(system(batch, PROGRESS).terms["contrast"], system)
    assert all(g is None or not g.any() for name, g in found.items() if "teacher" in name)
    v, w = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    keys = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    same = torch.eye(3, dtype=torch.bool)
    loss = distilled_contrastive((v, w.detach()), keys, keys, same, torch.tensor(0.5), 0.4)
    (forth,) = torch.autograd.grad(loss, v)
    loss = distilled_contrastive((v, w), keys, keys, same, torch.tensor(0.5), 0.4)
    torch.testing.assert_close(torch.autograd.grad(loss, v)[0], forth, rtol=0, atol=0)


def test_teacher_moves_once_before_the_forward_and_is_no_optimizers_business():
    """Card, check 1, with the momentum of a run from scratch: min(0.995, (1 + t) / (10 + t))."""
    for step, decay in ((0, 0.1), (3, 4 / 13), (1789, 1790 / 1799), (1790, 0.995), (10**6, 0.995)):
        system = shaken(build("albef", queue=QUEUE))
        old = {name: p.clone() for name, p in system.teacher.named_parameters()}
        system.before_step(Progress(step, 5, 10, 6))
        for name, value in system.teacher.named_parameters():
            now = system.get_parameter(name).detach()
            torch.testing.assert_close(value, decay * old[name] + (1 - decay) * now, rtol=0, atol=1e-14)
            assert not value.requires_grad
        system(example(), PROGRESS).total.backward()
        assert all(p.grad is None for p in system.teacher.parameters())
    assert not any(m.training for m in system.teacher.modules())
    assert {name.split(".")[0] for name in old} == {"encoders", "fusion", "word_head"}  # no match head, no temperature


def test_queue_takes_the_teachers_features_and_the_batch_stands_in_it_once():
    """Card, check 4."""
    system, batch = shaken(build("albef", queue=QUEUE)), example()
    losses = system(batch, PROGRESS)
    with torch.no_grad():
        images = system.teacher.encoders.encode_images(batch.images).pooled
        texts = system.teacher.encoders.encode_texts(batch.texts.ids, batch.texts.mask).pooled
    torch.testing.assert_close(losses.keep["images"], images)
    torch.testing.assert_close(losses.keep["texts"], texts)
    before = system.queue.images.clone()
    system.after_step(losses.keep, PROGRESS)
    assert int(system.queue.pointer) == (5 + 6) % QUEUE
    places = [5, 6, 7, 0, 1, 2]
    torch.testing.assert_close(system.queue.images[places], images)
    torch.testing.assert_close(system.queue.texts[places], texts)
    torch.testing.assert_close(system.queue.images[[3, 4]], before[[3, 4]])
    assert system.queue.image_id[places].tolist() == IMAGE_IDS
    assert system.queue.text_id[places].tolist() == TEXT_IDS
    torch.testing.assert_close(system.queue.texts.norm(dim=1), torch.ones(QUEUE, dtype=torch.float64))


def test_queue_is_at_most_a_quarter_of_an_epoch():
    system = build("albef", queue=1000)
    system.before_step(Progress(0, 4, 8, 12))
    assert len(system.queue.read().real) == 4 * 12 // 4


def test_alpha_ramps_over_the_first_epoch():
    """Card, check 8: 0.4 i / len(loader), then 0.4."""
    assert [Progress(i, 8, 80, 4).ramp(0.4) for i in (0, 1, 6, 8, 79)] == pytest.approx([0, 0.05, 0.3, 0.4, 0.4])


def test_masking_leaves_cls_and_padding_alone_and_splits_80_10_10():
    """Card, check 6."""
    ids = torch.full((400, 50), 20)
    ids[:, 0], ids[:, -2], ids[:, -1] = VOCABULARY.cls, VOCABULARY.sep, VOCABULARY.pad
    base = example()
    texts = type(base.texts)(ids, ids != 0, torch.zeros(400, dtype=torch.int64))
    batch = type(base)(None, texts, torch.arange(400), torch.arange(400), torch.arange(400))
    draws = PROGRESS.uniform(batch, 150, "mask")
    masked, labels = mask_words(texts, VOCABULARY, draws, 0.15)
    assert (labels[:, 0] == -100).all()
    assert (labels[:, -1] == -100).all()
    assert (labels[:, -2] >= 0).any()  # [SEP] may be masked
    asked = labels >= 0
    assert torch.equal(masked.ids[~asked], ids[~asked])
    count = 400 * 48
    assert abs(int(asked.sum()) - 0.15 * count) < 4 * math.sqrt(count * 0.15 * 0.85)
    words = asked & (ids == 20)
    total, hidden = int(words.sum()), int((words & (masked.ids == VOCABULARY.mask)).sum())
    kept = int((words & (masked.ids == 20)).sum())
    assert abs(hidden - (0.8 + 0.1 / 40) * total) < 4 * math.sqrt(total * 0.16)
    assert abs(kept - (0.1 + 0.1 / 40) * total) < 4 * math.sqrt(total * 0.09)
    drawn = masked.ids[words & (masked.ids != 20) & (masked.ids != VOCABULARY.mask)]
    assert drawn.unique().numel() > 30


def test_text_then_fusion_is_what_matching_reads():
    """Card, check 9: the match of cached states equals the whole way from ids, whatever stands beside it."""
    system, batch = shaken(build("albef", queue=QUEUE)).eval(), example()
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    every = system.match(images, texts)[:, 0]
    for k in range(6):
        alone = example([k])
        length = int(alone.texts.mask.sum())
        words = type(alone.texts)(alone.texts.ids[:, :length], alone.texts.mask[:, :length], alone.texts.language)
        one = system.match(system.encode_images(alone.images), system.encode_texts(words))[0, 0]
        assert float(one.detach()) == pytest.approx(float(every[k].detach()), abs=1e-5)


def test_padding_and_order_change_no_term(monkeypatch):
    system, batch = shaken(build("albef", queue=QUEUE, mask_share=0.4)), example()
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    first = system(batch, PROGRESS).terms
    other = system(batch.select(order), PROGRESS).terms
    for name in ("contrast", "masked_words"):  # the draws of negatives follow columns, which have moved
        assert float(first[name].detach()) == pytest.approx(float(other[name].detach()), abs=1e-10), name
    longer = torch.nn.functional.pad(batch.texts.ids, (0, 4))
    padded = type(batch.texts)(longer, longer != 0, batch.texts.language)
    third = system(type(batch)(batch.images, padded, batch.image_id, batch.text_id, batch.index), PROGRESS).terms
    for name in first:
        assert float(first[name].detach()) == pytest.approx(float(third[name].detach()), abs=1e-10), name


def test_queued_keys_count_from_their_epoch_on():
    """From scratch the contrast of the first epoch is with the batch alone; the queue fills meanwhile."""
    batch = example()
    late, never = (shaken(build("albef", queue_from=epochs)) for epochs in (1.0, 9.0))
    first, second = PROGRESS, dataclasses.replace(PROGRESS, step=PROGRESS.steps_per_epoch)
    assert torch.equal(late(batch, first).terms["contrast"], never(batch, first).terms["contrast"])
    assert late(batch, second).terms["contrast"] > never(batch, second).terms["contrast"]
    assert late.queue.read().real.sum() == 5
