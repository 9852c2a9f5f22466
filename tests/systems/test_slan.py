"""SLAN's losses against loops over pairs, value and gradient, and the checks of its card (section 11)."""

import dataclasses

import pytest
import torch

from tests.systems.common import (
    IMAGE_IDS,
    PROGRESS,
    TEXT_IDS,
    assert_same_gradients,
    build,
    example,
    gradients,
    shaken,
    watched,
)
from tuwen.data.batch import Batch, Spans
from tuwen.data.spans import KINDS
from tuwen.errors import UserError
from tuwen.nn.boxes import corners
from tuwen.objectives import matching
from tuwen.similarity.region import region_word_scores
from tuwen.systems import slan as module
from tuwen.systems.system import Progress

PLACES = [(0, 1, 3), (0, 4, 7), (2, 1, 5), (4, 1, 4), (5, 1, 2)]  # (text, start, end); texts 1 and 3 have no phrase


def spelled(batch: Batch, rows: list[int] | None = None) -> Batch:
    rows = list(range(6)) if rows is None else rows
    places = [(k, start, end) for k, row in enumerate(rows) for text, start, end in PLACES if text == row]
    table = torch.tensor(places, dtype=torch.int64).reshape(-1, 3)
    kind = torch.full((len(table),), KINDS.index("phrase"))
    spans = Spans(*table.unbind(1), torch.zeros(len(table)).long(), kind)
    return dataclasses.replace(batch, texts=dataclasses.replace(batch.texts, spans=spans))


def belong(i: int, j: int) -> bool:
    return IMAGE_IDS[i] == IMAGE_IDS[j] or TEXT_IDS[i] == TEXT_IDS[j]


def contrast_of(to_text, to_image):
    """Half the sum over both directions; to_text[i][j] and to_image[i][j] of picture i and text j."""
    total = to_text.new_zeros(())
    for i in range(6):
        right = [belong(i, j) for j in range(6)]
        for row in (to_text[i], to_image[:, i]):
            log_p = row.log_softmax(0)
            total = total - sum(log_p[j] for j in range(6) if right[j]) / sum(right) / 12
    return total


def test_every_term_and_gradient_is_the_slow_versions(monkeypatch):
    system, batch = shaken(build("slan", repulsion=0.05, peak=-1.0)), spelled(example())
    negatives = watched(monkeypatch, matching, "hard_negatives")
    losses = system(batch, PROGRESS)
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    cosine = images.pooled @ texts.pooled.T / system.temperature
    words, real = system.locator.words(texts.states["last"]), texts.states["words"]
    candidates = system.locator.candidates(system.patches(images))
    places, scale = candidates.features[:, candidates.middle], system.log_scale.exp()
    best = [
        torch.stack([(places[i] @ words[j, k]).amax() for k in range(real.shape[1]) if real[j, k]]).mean() * scale
        for i in range(6)
        for j in range(6)
    ]
    filtered = torch.stack(best).view(6, 6)

    (wrong_image, _), (wrong_text, _) = (call[1] for call in negatives)
    pairs = [(k, k, 1) for k in range(6)] + [(int(wrong_image[k]), k, 0) for k in range(6)]
    pairs += [(k, int(wrong_text[k]), 0) for k in range(6)]
    assert not any(belong(i, t) for i, t, label in pairs if not label)
    logits, scores, boxes = [], [], []
    for i, t, _ in pairs:
        picture, text = images.select(torch.tensor([i])), texts.select(torch.tensor([t]))
        regions = system.locate_regions(system.locator.candidates(system.patches(picture)), text)
        logits.append(system.match_head(system.fused(picture, text, regions)[:, 0])[0])
        one = system.locator.words(text.states["last"]), text.states["words"]
        scores.append(scale * region_word_scores(*one, regions.features, regions.gates)[0])
        boxes.append(regions.boxes[0])
    apart = [(scores[k], scores[part * 6 + k]) for part in (1, 2) for k in range(6)]
    near = []
    for held in boxes[:6]:
        shared = [module_overlap(held[a], held[b]) for a in range(16) for b in range(16) if a != b]
        near += [(x - 0.7).clamp(min=0) for x in shared]
    want = {
        "contrast": contrast_of(cosine, cosine),
        "words": contrast_of(filtered, filtered),
        "regions": sum(-(torch.stack(pair).log_softmax(0)[0]) for pair in apart) / 12,
        "matching": -sum(x.log_softmax(0)[label] for x, (*_, label) in zip(logits, pairs, strict=True)) / 18,
        "repulsion": 0.05 * sum(near) / len(near),
    }
    assert set(losses.terms) == {*want, "boxes"}
    for name, value in want.items():
        assert float(losses.terms[name].detach()) == pytest.approx(float(value.detach()), rel=0, abs=1e-8), name
        assert_same_gradients(gradients(losses.terms[name], system), gradients(value, system))
    assert losses.metrics["references"] > 0
    assert losses.terms["boxes"] > 0


def module_overlap(a, b):
    """IoU of two boxes cx, cy, w, h."""
    p, q = corners(a), corners(b)
    sides = (torch.minimum(p[2:], q[2:]) - torch.maximum(p[:2], q[:2])).clamp(min=0)
    shared = sides[0] * sides[1]
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def located(system, batch: Batch):
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    return system.locate_regions(system.locator.candidates(system.patches(images)), texts)


def test_boxes_start_where_the_filter_finds_them():
    """Card, check 1: the adaptor starts at zero, so every step's boxes are the first."""
    regions = located(build("slan"), spelled(example()))
    assert len(regions.steps) == 4
    assert all(torch.equal(step, regions.steps[0]) for step in regions.steps)
    moved = located(shaken(build("slan")), spelled(example()))
    assert not torch.equal(moved.steps[0], moved.steps[-1])


def test_a_content_word_decides_and_padding_never_does():
    """Card, check 5."""
    system, batch = shaken(build("slan")).eval(), spelled(example())
    one = located(system, batch)
    ids = batch.texts.ids.clone()
    ids[0, 2] = 35
    other = located(system, dataclasses.replace(batch, texts=dataclasses.replace(batch.texts, ids=ids)))
    assert not torch.equal(one.gates[0], other.gates[0])
    assert torch.equal(one.gates[1:], other.gates[1:])
    longer = torch.nn.functional.pad(batch.texts.ids, (0, 4))
    texts = dataclasses.replace(batch.texts, ids=longer, mask=longer != 0)
    padded = located(system, dataclasses.replace(batch, texts=texts))
    torch.testing.assert_close(padded.boxes, one.boxes, rtol=0, atol=1e-12)
    torch.testing.assert_close(padded.gates, one.gates, rtol=0, atol=1e-12)


def test_a_pairs_regions_do_not_depend_on_the_batch():
    system, batch = shaken(build("slan")).eval(), spelled(example())
    every = located(system, batch)
    for row in range(6):
        alone = located(system, spelled(example([row]), [row]))
        torch.testing.assert_close(alone.boxes[0], every.boxes[row], rtol=0, atol=1e-10)
        torch.testing.assert_close(alone.features[0], every.features[row], rtol=0, atol=1e-10)


def test_gates_teach_the_filter_what_to_keep():
    """Card, check 6: which regions are kept has no gradient; through s_p the losses reach filter and words."""
    system, batch = shaken(build("slan")), spelled(example())
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    regions = system.locate_regions(system.locator.candidates(system.patches(images)), texts)
    words, real = system.locator.words(texts.states["last"]), texts.states["words"]
    score = region_word_scores(words.detach(), real, regions.features.detach(), regions.gates).sum()
    filters = [system.locator.word_projection.weight, system.locator.objectness.weight]
    assert all(slope.abs().sum() > 0 for slope in torch.autograd.grad(score, filters, retain_graph=True))
    shut = region_word_scores(words.detach(), real, regions.features, regions.gates.detach()).sum()
    assert all(slope is None for slope in torch.autograd.grad(shut, filters, allow_unused=True, retain_graph=True))
    moves = [move[-1].weight for move in system.locator.moves]
    assert torch.autograd.grad(shut, moves[-1])[0].abs().sum() > 0  # pooling reaches the boxes


def test_no_box_is_read_in_training():
    """Card, check 7: nothing is asked of the corpus but pictures and texts, and a batch with boxes changes nothing."""
    config = module.SLANConfig.sized("tiny")
    assert module.SLAN.needs(config).columns == ()
    assert module.SLAN.reads(config).spans == ("phrase",)

    class Spy(dict):
        def __getitem__(self, name, *_):
            if name == "noise":  # what a run that softens noisy pairs adds, see `Batch.softening`
                return None
            raise AssertionError(f"column {name} was read")

        get = items = values = __iter__ = __getitem__

    system, batch = shaken(build("slan")), spelled(example())
    losses = system(dataclasses.replace(batch, columns=Spy()), PROGRESS)
    for name, value in system(batch, PROGRESS).terms.items():
        assert torch.equal(losses.terms[name], value)


def test_references_and_teacher_take_no_gradient_and_the_teacher_moves_by_average_alone():
    """Card, check 8."""
    system, batch = shaken(build("slan", peak=-1.0)), spelled(example())
    losses = system(batch, PROGRESS)
    found = gradients(losses.terms["boxes"], system)
    assert all(slope is None for name, slope in found.items() if name.startswith("teacher"))
    assert not any(p.requires_grad for p in system.teacher.parameters())
    assert found["locator.moves.0.3.weight"].abs().sum() > 0
    before = {name: p.clone() for name, p in system.teacher.named_parameters()}
    system.before_step(Progress(3, 5, 10, 6))
    for name, value in system.teacher.named_parameters():
        mixed = 4 / 13 * before[name] + 9 / 13 * system.get_parameter(name).detach()
        torch.testing.assert_close(value, mixed, rtol=0, atol=1e-12)


def test_regression_warms_up_over_a_fifth_of_the_run():
    system, batch = shaken(build("slan", peak=-1.0)), spelled(example())
    values = [float(system(batch, Progress(step, 50, 100, 6)).terms["boxes"].detach()) for step in (0, 10, 20, 40)]
    assert values[0] == 0
    assert values[1] * 2 == pytest.approx(values[2])
    assert values[2] == pytest.approx(values[3])


def test_wrong_pairs_have_regions_of_their_own_text(monkeypatch):
    """Card, check 9: 3 B pairs are located; a wrong text never reads the regions of the right one."""
    system, batch = shaken(build("slan")), spelled(example())
    calls = []
    monkeypatch.setattr(
        system,
        "locate_regions",
        lambda candidates, texts, real=system.locate_regions: (
            calls.append((candidates, texts)) or real(candidates, texts)
        ),
    )
    negatives = watched(monkeypatch, matching, "hard_negatives")
    system(batch, PROGRESS)
    ((candidates, texts),) = calls
    assert len(texts) == len(candidates.boxes) == 18
    wrong_text = negatives[1][1][0]
    states = system.encode_texts(batch.texts).states["last"]
    torch.testing.assert_close(texts.states["last"][12:], states[wrong_text])


def test_words_that_look_for_regions():
    words = build("slan").encode_texts(spelled(example()).texts).states["words"]
    assert words[0].nonzero()[:, 0].tolist() == [1, 2, 4, 5, 6]
    assert words[1].nonzero()[:, 0].tolist() == [1, 2]  # no phrase: all but [CLS] and [SEP]
    assert words[5].nonzero()[:, 0].tolist() == [1]
    with pytest.raises(UserError, match="spans of kind phrase"):
        build("slan").encode_texts(example().texts)


def test_final_score_is_the_sum_of_the_three_logits_that_were_trained():
    """Card, section 6: the match's log-odds, the region-word score and the cosine, each at its own scale."""
    system, batch = shaken(build("slan")).eval(), spelled(example())
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    kept = [x.map(lambda y: y.clone()) for x in (images, texts)]
    logits = system.match_head(system.fuse([images], texts).pooled)
    regions, words = located(system, batch), system.locator.words(texts.states["last"])
    local = region_word_scores(words, texts.states["words"], regions.features, regions.gates) * system.log_scale.exp()
    want = logits[:, 1] - logits[:, 0] + local
    match = system.match(*kept)
    assert local.std() > 1e-3
    torch.testing.assert_close(match[:, 0], want.float(), rtol=0, atol=1e-5)
    first = (images.pooled * texts.pooled).sum(1).float()
    total = system.rerank(match, first)
    torch.testing.assert_close(total, (want + first / system.temperature).float(), rtol=0, atol=1e-4, check_dtype=False)


def test_located_boxes_lie_in_the_picture():
    system, batch = shaken(build("slan")).eval(), spelled(example())
    found = system.locate(batch.images, batch.texts)
    assert found.boxes.shape == (6, 16, 4)
    assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
    assert (found.boxes[..., 2:] > found.boxes[..., :2]).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= 1).all()
    regions = located(system, batch)
    assert {tuple(b) for b in found.boxes[2].tolist()} == {
        tuple(b) for b in corners(regions.boxes)[2].clamp(0, 1).tolist()
    }


@torch.no_grad()
def knowing_no_left_and_right(system):
    """Its weights made the same seen in a mirror: patches, positions, the finer map, and boxes about their places."""
    tower, locator = system.encoders.image, system.locator
    for kernel in (tower.patches.weight, locator.finer.weight):
        kernel.copy_((kernel + kernel.flip(-1)) / 2)
    side = round((len(tower.positions) - tower.first) ** 0.5)
    places = tower.positions[tower.first :].view(side, side, -1)
    places.copy_((places + places.flip(1)) / 2)
    for part in (locator.distances.weight, locator.distances.bias):
        part[2] = part[0]  # as far to the right as to the left
    for move in locator.moves:
        move[-1].weight[0] = move[-1].bias[0] = 0
    return system


@torch.no_grad()
def test_boxes_and_heat_of_a_mirrored_picture_are_mirrored():
    """Card, check 11: with weights that know no left and right exactly, so that no half cell is lost on the way."""
    system, batch = knowing_no_left_and_right(shaken(build("slan")).eval()), spelled(example())
    found = system.locate(batch.images, batch.texts)
    turned = system.locate(dataclasses.replace(batch.images, pixels=batch.images.pixels.flip(-1)), batch.texts)
    torch.testing.assert_close(turned.heat.flip(-1), found.heat)
    mirrored = turned.boxes[..., [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([1, 0, 1, 0])
    torch.testing.assert_close(mirrored, found.boxes, rtol=0, atol=1e-6)
    assert (found.boxes[:, 0] - turned.boxes[:, 0]).abs().amax(1).min() > 0.02  # each best box has another side


def test_matching_trains_the_filter():
    """Card, section 3.3: kept regions are weighed by their gates, so that losses reach what chose them."""
    system, batch = shaken(build("slan", boxes=0.0, repulsion=0.0)), spelled(example())
    slopes = gradients(system(batch, PROGRESS).terms["matching"], system)
    for name in ("objectness.weight", "objectness.bias", "log_scale", "word_projection.weight"):
        assert slopes[f"locator.{name}"].abs().max() > 0, name
