"""VLMAE's losses against the slow version, value and gradient, and its card's checks of section 11."""

import dataclasses
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.reference import albef as albef_slow
from tests.reference import vlmae as slow
from tests.systems.common import (
    PROGRESS,
    VOCABULARY,
    assert_same_gradients,
    build,
    example,
    expected_negatives,
    gradients,
    queue_of,
    random,
    shaken,
    watched,
)
from tuwen.data.batch import Images
from tuwen.nn.backbones import normalised
from tuwen.objectives import matching
from tuwen.objectives.masked_features import masked_features
from tuwen.systems import vlmae as module
from tuwen.systems.system import Progress
from tuwen.systems.vlmae import IFRConfig, RMIMConfig

QUEUE = 8


def system_of(**changes):
    """Parts by name: rmim and ifr take a mapping of what differs from size tiny."""
    tiny = build("vlmae").config
    for part in ("rmim", "ifr"):
        changes[part] = dataclasses.replace(getattr(tiny, part), **changes.get(part, {}))
    return shaken(build("vlmae", **{"distil": True, "queue": QUEUE, "mask_share": 0.4, **changes}))


def slow_terms(system, batch, progress, masked, labels, draws) -> dict[str, torch.Tensor]:
    config, distil = system.config, system.config.distil
    kept, hidden = system.masks(batch, progress)
    visible = [
        system.encoders.encode_images(batch.images.select(torch.tensor([k])), kept=kept[k : k + 1])
        for k in range(len(batch))
    ]
    visible = type(visible[0]).cat(visible)
    images = visible if config.single_pass else system.encode_images(batch.images)
    texts = system.encode_texts(batch.texts)
    with torch.no_grad():
        teacher = system.teacher.encoders if system.teacher.parts else system.encoders
        whole = teacher.encode_images(batch.images)
        read = teacher.encode_texts(batch.texts.ids, batch.texts.mask) if distil else None
    keys = (whole.pooled, read.pooled) if distil else (images.pooled.detach(), texts.pooled.detach())
    ids = batch.image_id.tolist(), batch.text_id.tolist()
    alpha = progress.ramp(0.4) if distil else 0.0
    terms = {}
    if distil:
        rows = images.pooled, texts.pooled, *keys
        terms["contrast"] = albef_slow.contrast(*rows, *ids, queue_of(system), system.temperature, alpha)
    wrong_image = expected_negatives(texts.pooled, keys[0], system.temperature, draws[:, 0], ids)
    wrong_text = expected_negatives(images.pooled, keys[1], system.temperature, draws[:, 1], ids)
    pairs = [(k, k, 1) for k in range(len(batch))]
    pairs += [(j, k, 0) for k, j in enumerate(wrong_image) if j is not None]
    pairs += [(k, j, 0) for k, j in enumerate(wrong_text) if j is not None]
    logits = [system.match_head(system.fuse([images.select([i])], texts.select([t])).pooled)[0] for i, t, _ in pairs]
    terms["matching"] = albef_slow.matching(torch.stack(logits), [label for *_, label in pairs])
    taught = word_logits(system.teacher, whole, masked).detach() if distil else None
    terms["masked_words"] = albef_slow.masked_words(word_logits(system, images, masked), taught, labels, alpha)

    grid, fused = system.encoders.image.grid, system.fuse([visible], texts).states
    condition = {"text": texts.states["last"], "fused": fused, "none": None}[config.rmim.condition]
    mask = None if condition is None else texts.state_mask
    painted = system.painter(grid(visible.states["last"]), kept, condition, mask)
    pixels = normalised(batch.images.pixels, system.encoders.image.mean, system.encoders.image.std).double()
    terms["masked_pixels"] = config.rmim.weight * slow.masked_pixels(painted, pixels, hidden.tolist(), 8)
    seen = whole if config.ifr.target == "momentum_full" else system.encode_images(batch.images)
    told = system.teller(fused, texts.state_mask)
    asked = {"all": hidden | True, "masked": hidden, "visible": ~hidden}[config.ifr.positions].tolist()
    features = slow.features(told, grid(seen.states["last"]), asked, config.ifr.distance)
    return terms | {"features": config.ifr.weight * features}


def word_logits(parts, images, masked) -> torch.Tensor:
    """[B, L, V] at every position, row by row."""
    rows = []
    for k in range(len(masked)):
        words = parts.encoders.text(masked.ids[k : k + 1], masked.mask[k : k + 1])
        states = parts.fusion(words, masked.mask[k : k + 1], images.states["last"][k : k + 1], None)
        rows.append(parts.word_head(states[0], parts.encoders.text.words.weight))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"distil": False, "rmim": {"mask": "random", "condition": "none", "weight": 0.5}, "ifr": {"distance": "mse"}},
        {
            "single_pass": False,
            "rmim": {"condition": "fused"},
            "ifr": {"target": "online_full_sg", "positions": "masked", "distance": "cosine", "weight": 2.0},
        },
        {"mask_ratio": 0.75, "ifr": {"positions": "visible"}},
    ],
    ids=["defaults", "without teacher", "two passes", "three quarters"],
)
def test_every_term_and_gradient_is_the_slow_version_s(monkeypatch, changes):
    system, batch = system_of(**changes), example()
    negatives, masks = watched(monkeypatch, matching, "hard_negatives"), watched(monkeypatch, module, "mask_words")
    losses = system(batch, PROGRESS)
    masked, labels = masks[0][1]
    draws = torch.stack([call[0][2] for call in negatives], 1)
    want = slow_terms(system, batch, PROGRESS, masked, labels, draws)
    assert set(losses.terms) == {"contrast", "matching", "masked_words", "masked_pixels", "features"}
    for name, value in want.items():
        assert float(losses.terms[name].detach()) == pytest.approx(float(value.detach()), abs=1e-9), name
        assert_same_gradients(gradients(losses.terms[name], system), gradients(value, system))


def flops_of(work) -> int:
    with FlopCounterMode(display=False) as counter:
        work().backward()
    return counter.get_total_flops()


def test_the_tower_reads_the_class_token_and_the_visible_patches_alone():
    """Check 1: 1 + K tokens, and work that shrinks with them."""
    flops, lengths, batch = {}, {}, example()
    for ratio in (0.0, 0.5, 0.75):
        system = build("vlmae", mask_ratio=ratio).train()
        lengths[ratio] = []
        system.encoders.image.stack.register_forward_pre_hook(
            lambda _, inputs, seen=lengths[ratio]: seen.append(inputs[0].shape[1])
        )
        kept, _ = system.masks(batch, PROGRESS)
        flops[ratio] = flops_of(lambda: system.encoders.encode_images(batch.images, kept=kept).pooled.sum())  # noqa: B023
        system(batch, PROGRESS)
    assert lengths == {0.0: [17, 17], 0.5: [9, 9], 0.75: [5, 5]}
    assert 9 / 17 < flops[0.5] / flops[0.0] < 0.6  # every patch is embedded, K of N go through the blocks
    assert flops[0.75] < flops[0.5]


def test_a_masked_step_costs_less_where_it_replaces_the_whole_one():
    """Check 10, by counting: as at r = 0 but for the decoder of pixels, which r = 0 lacks; two passes cost more."""
    painter = RMIMConfig(weight=0.0, decoder=build("vlmae").config.rmim.decoder)
    steps = {
        name: flops_of(lambda: build("vlmae", rmim=painter, **changes).train()(example(), PROGRESS).total)  # noqa: B023
        for name, changes in {"whole": {"mask_ratio": 0.0}, "one": {}, "two": {"single_pass": False}}.items()
    }
    assert steps["one"] < 0.9 * steps["whole"]
    assert steps["two"] > steps["whole"]


def test_visible_patches_stand_at_their_places_and_the_unseen_vector_elsewhere():
    """Check 2."""
    system, batch = system_of(), example()
    kept, hidden = system.masks(batch, PROGRESS)
    states = random(6, 8, 32, seed=1)
    placed = system.painter.placed(states, kept) - system.painter.positions
    for row in range(6):
        assert sorted(kept[row].tolist() + hidden[row].nonzero()[:, 0].tolist()) == list(range(16))
        torch.testing.assert_close(placed[row][kept[row]], system.painter.enter(states[row]))
        torch.testing.assert_close(placed[row][hidden[row]], system.painter.unseen.expand(8, -1))


def changed_where_hidden(system, batch):
    _, hidden = system.masks(batch, PROGRESS)
    inside = hidden.view(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    pixels = torch.where(inside, 255 - batch.images.pixels, batch.images.pixels)
    return dataclasses.replace(batch, images=Images(pixels))


def test_hidden_pixels_reach_the_targets_alone():
    """Check 3: without the teacher's soft targets nothing else moves, to the last bit; with them those may."""
    batch = example()
    for distil in (False, True):
        system = system_of(distil=distil)
        other = changed_where_hidden(system, batch)
        first, second = (system(x, PROGRESS).terms for x in (batch, other))
        seen = [system.encode(x, PROGRESS)["images"].states["last"] for x in (batch, other)]
        assert torch.equal(*seen)
        moved = {name for name in first if not torch.equal(first[name], second[name])}
        assert moved >= {"masked_pixels", "features"}
        assert distil or moved == {"masked_pixels", "features"}


def test_the_decoder_reads_the_caption_where_it_is_conditioned_on_it():
    """Check 5: other captions, another painting; with condition none the same."""
    batch = example()
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    crossed = dataclasses.replace(batch, texts=batch.texts.select(order))
    for condition, differs in (("text", True), ("fused", True), ("none", False)):
        system = system_of(rmim={"condition": condition})
        # masks are drawn by row and text: the ids of the texts stay as they were
        values = [system(x, PROGRESS).terms["masked_pixels"] for x in (batch, crossed)]
        assert (values[0] != values[1]) == differs, condition


def test_words_are_masked_for_words_alone(monkeypatch):
    """Section 10: both reconstructions read the clean text."""
    system, batch = system_of(), example()
    first = system(batch, PROGRESS).terms
    monkeypatch.setattr(module, "mask_words", lambda texts, *rest: (texts, texts.ids.masked_fill(~texts.mask, -100)))
    second = system(batch, PROGRESS).terms
    assert {name for name in first if not torch.equal(first[name], second[name])} == {"masked_words"}


def test_feature_targets_take_no_gradient_and_the_picture_is_read_through_the_fused_states_alone(monkeypatch):
    """Check 6."""
    for target in ("momentum_full", "online_full_sg"):
        system, batch = system_of(ifr={"target": target}), example()
        onto = gradients(system(batch, PROGRESS).terms["features"], system)
        assert onto["encoders.image.patches.weight"].abs().max() > 0
        real = system.fusion.forward
        system.fusion.forward = lambda x, mask, memory, rest, real=real: real(x, mask, memory.detach(), rest)
        cut = gradients(system(batch, PROGRESS).terms["features"], system)
        image = [name for name in cut if name.startswith("encoders.image")]
        assert all(cut[name] is None or not cut[name].any() for name in image)
        assert cut["teller.query_tokens"].abs().max() > 0
    told, seen = random(2, 3, 4, seed=1), random(2, 3, 4, seed=2).requires_grad_()
    assert not masked_features(told, seen, torch.ones(2, 3, dtype=torch.bool)).requires_grad


def test_nothing_hidden_is_albef(monkeypatch):
    """Check 7: r = 0 gives ALBEF's losses, and no masked pixels instead of a division by zero."""
    ours = system_of(mask_ratio=0.0)
    theirs = shaken(build("albef", queue=QUEUE, mask_share=0.4))
    theirs.load_state_dict({name: value for name, value in ours.state_dict().items() if name in theirs.state_dict()})
    batch = example()
    got, want = ours(batch, PROGRESS).terms, theirs(batch, PROGRESS).terms
    assert set(got) == {*want, "features"}
    for name in want:
        assert float(got[name].detach()) == pytest.approx(float(want[name].detach()), abs=1e-12), name
    nothing = system_of(mask_ratio=0.0, ifr={"positions": "masked"})
    assert float(nothing(batch, PROGRESS).terms["features"].detach()) == 0


def test_teacher_queue_and_labels():
    """Checks 8 and 9: the moving average, B ones before 2B zeros, the queue's pointer after the batch."""
    system, batch = system_of(momentum_rises=False, queue_share=1.0), example([0, 1, 4, 5])
    old = {name: p.clone() for name, p in system.teacher.named_parameters()}
    system.before_step(Progress(3, 5, 10, 6))
    for name, value in system.teacher.named_parameters():
        torch.testing.assert_close(value, 0.995 * old[name] + 0.005 * system.get_parameter(name).detach())
    assert {name.split(".")[0] for name in old} == {"encoders", "fusion", "word_head"}
    losses = system(batch, PROGRESS)
    losses.total.backward()
    assert all(p.grad is None for p in system.teacher.parameters())
    before = int(system.queue.pointer)
    system.after_step(losses.keep, PROGRESS)
    assert int(system.queue.pointer) == (before + 4) % QUEUE
    alone = build("vlmae")  # size tiny distils nothing: the teacher is there for its features
    assert {name.split(".")[0] for name, _ in alone.teacher.named_parameters()} == {"encoders"}
    no_target = build("vlmae", ifr=IFRConfig(target="online_full_sg", decoder=alone.config.ifr.decoder))
    assert not [*no_target.teacher.parameters()]


def test_a_wrong_picture_brings_its_own_visible_patches(monkeypatch):
    """Section 10 and check 9: no negative equals its positive, and its states are those of its own mask."""
    system, batch = system_of(), example([0, 1, 4, 5])
    memories = []
    real = system.fusion.first

    def first(x, mask, memory, rest):
        memories.append(memory)
        return real(x, mask, memory, rest)

    monkeypatch.setattr(system.fusion, "first", first)
    own = system.encode(batch, PROGRESS)["images"].states["last"]
    system(batch, PROGRESS)
    wrong = memories[0]
    assert len(wrong) == 8
    places = [[k for k in range(4) if torch.equal(row, own[k])] for row in wrong]
    assert all(len(place) == 1 for place in places)
    assert [place[0] for place in places[4:]] == [0, 1, 2, 3], "own pictures beside wrong texts"
    assert all(place != [k] for k, place in enumerate(places[:4]))


def test_what_is_used_has_neither_decoder():
    """Check 11: and reads whole pictures."""
    system = build("vlmae").eval()
    lengths = []
    system.encoders.image.stack.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    whole = system.encode_images(example().images)
    used = system.for_use()
    names = {name.split(".")[0] for name, _ in used.named_parameters()}
    assert names == {"encoders", "fusion", "word_head", "match_head", "temperature"}
    torch.testing.assert_close(used.encode_images(example().images).pooled, whole.pooled, rtol=0, atol=0)
    assert used.match(whole, used.encode_texts(example().texts)).shape == (6, 1)
    assert lengths == [17, 17]


def test_first_losses():
    """Section 13: matching near ln 2, words near ln 40 (of 40 words), features of unit normal targets told as 0."""
    terms = {name: float(value.detach()) for name, value in build("vlmae")(example(), PROGRESS).terms.items()}
    assert terms["matching"] == pytest.approx(math.log(2), abs=0.1)
    assert terms["masked_words"] == pytest.approx(math.log(VOCABULARY.size), rel=0.1)
    assert 0.9 < terms["masked_pixels"] < 2
    targets = torch.randn(40, 50, 64, generator=torch.Generator().manual_seed(0))
    zero = masked_features(torch.zeros_like(targets), targets, torch.ones(40, 50, dtype=torch.bool))
    assert float(zero) == pytest.approx(0.425, abs=0.01)


def test_a_share_that_hides_all_is_refused():
    with pytest.raises(ValueError, match="mask_ratio must lie between 0 and 1"):
        build("vlmae", mask_ratio=1.0)
    assert RMIMConfig().decoder.width == 384
