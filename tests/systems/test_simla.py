"""SIMLA's losses against the slow version, value and gradient, and its card's checks of section 11."""

import dataclasses
import math

import pytest
import torch

from tests.reference import albef as albef_slow
from tests.reference import simla as slow
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
from tuwen.data.batch import Batch
from tuwen.data.views import View
from tuwen.errors import UserError
from tuwen.objectives import matching
from tuwen.objectives.keywords import keyword_loss, recall_among, voted, word_labels
from tuwen.objectives.masked_language import masked_language
from tuwen.systems import simla as module
from tuwen.systems.system import Progress

QUEUE = 8
SPECIAL = (VOCABULARY.pad, VOCABULARY.unknown, VOCABULARY.cls, VOCABULARY.sep, VOCABULARY.mask)


def pictured(rows: list[int] | None = None) -> Batch:
    """The common batch with the view that codes are taken of."""
    batch = example(rows)
    return dataclasses.replace(batch, images=dataclasses.replace(batch.images, views={"codes": batch.images.pixels}))


def system_of(**changes):
    return shaken(build("simla", queue=QUEUE, mask_share=0.4, **changes))


def read(parts, x, mask, memory, memory_mask, only=None):
    """Row by row through every layer: embeddings x [B, L, W] before the norm, padding cut off."""
    text, rows = parts.encoders.text, []
    for k in range(len(x)):
        own = slice(None) if mask is None else mask[k]
        beside = slice(None) if memory_mask is None else memory_mask[k]
        states = text.embedding_norm(x[k : k + 1, own])
        for block in text.stack.blocks:
            states = block.attention_norm(states + block.attention(states))
            states = block.cross_norm(states + block.cross(states, memory[k : k + 1, beside]))
            states = block.feed_forward_norm(states + block.feed_forward(states))
        rows.append(states[0])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def slow_terms(system, batch, progress, masked, labels, draws) -> dict[str, torch.Tensor]:
    alpha, teacher = progress.ramp(0.4), system.teacher
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    with torch.no_grad():
        image_keys = teacher.encoders.encode_images(batch.images)
        text_keys = teacher.encoders.encode_texts(batch.texts.ids, batch.texts.mask)
    rows = images.pooled, texts.pooled, image_keys.pooled, text_keys.pooled
    ids = batch.image_id.tolist(), batch.text_id.tolist()
    contrast = albef_slow.contrast(*rows, *ids, queue_of(system), system.temperature, alpha)

    wrong_image = expected_negatives(texts.pooled, image_keys.pooled, system.temperature, draws[:, 0], ids)
    wrong_text = expected_negatives(images.pooled, text_keys.pooled, system.temperature, draws[:, 1], ids)
    pairs = [(k, k, 1) for k in range(len(batch))]
    pairs += [(j, k, 0) for k, j in enumerate(wrong_image) if j is not None]
    pairs += [(k, j, 0) for k, j in enumerate(wrong_text) if j is not None]
    words = embedded(system, batch.texts.ids)
    logits = []
    for i, t, _ in pairs:
        one = read(system, words[t : t + 1], batch.texts.mask[t : t + 1], images.states["last"][i : i + 1], None)
        logits.append(system.match_head(one[0, 0]))

    students, taught = (
        parts.word_head(
            read(parts, embedded(parts, masked.ids), masked.mask, seen.states["last"], None),
            parts.encoders.text.words.weight,
        )
        for parts, seen in ((system, images), (teacher, image_keys))
    )
    hidden = system.hide(batch, progress)
    codes = system.codes.codes(batch.images.views["codes"])
    keys = system.encoders.text.embedding_norm(words)
    told = []
    for parts in (system, teacher):
        tokens = parts.encoders.image(batch.images.pixels, hidden=(hidden, parts.patch_input.mask_token))
        states = read(parts, tokens + parts.patch_input.positions, None, keys, batch.texts.mask)
        told.append(parts.code_head(states[:, 1:]))  # the class token is no patch
    code_labels = codes.masked_fill(~hidden, -100).flatten(1)
    with torch.no_grad():
        taught_concepts = teacher.concept_head(image_keys.pooled)
    chosen = [slow_keywords(system, batch, images, k) for k in range(len(batch))]
    hard = [[float(word in row) for word in range(VOCABULARY.size)] for row in chosen]
    return {
        "contrast": contrast,
        "matching": albef_slow.matching(torch.stack(logits), [label for *_, label in pairs]),
        "masked_words": albef_slow.masked_words(students, taught.detach(), labels, alpha),
        "masked_patches": albef_slow.masked_words(told[0], told[1].detach(), code_labels, alpha),
        "keywords": slow.keyword_loss(system.concept_head(images.pooled), hard, taught_concepts, alpha),
    }


def embedded(parts, ids):
    text = parts.encoders.text
    return torch.stack([text.words.weight[row] + text.positions[: len(row)] for row in ids])


@torch.no_grad()
def slow_keywords(system, batch, images, row: int) -> set[int]:
    """Word ids: the last layer's self-attention of the teacher's BERT over the student's tokens, from the products."""
    text, real = system.teacher.encoders.text, batch.texts.mask[row]
    ids = batch.texts.ids[row][real]
    states = text.embedding_norm(embedded(system.teacher, ids[None]))
    for block in text.stack.blocks[:-1]:
        states = block.attention_norm(states + block.attention(states))
        states = block.cross_norm(states + block.cross(states, images.states["last"][row : row + 1]))
        states = block.feed_forward_norm(states + block.feed_forward(states))
    last = text.stack.blocks[-1].attention
    query, key, _ = last.query_key_value(states)[0].chunk(3, -1)
    heads, width = last.heads, query.shape[1] // last.heads
    shares = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        shares.append((key[:, part] @ query[0, part] / width**0.5).softmax(0).tolist())
    allowed = [word not in SPECIAL for word in ids.tolist()]
    return {int(ids[place]) for place in slow.keywords(shares, allowed, 4, 5)}


@pytest.mark.parametrize("step", [0, 3, 7])
def test_every_term_and_gradient_is_the_slow_version_s(monkeypatch, step):
    system, batch = system_of(), pictured()
    negatives, masks = watched(monkeypatch, matching, "hard_negatives"), watched(monkeypatch, module, "mask_words")
    progress = Progress(step, PROGRESS.steps_per_epoch, PROGRESS.total_steps, 6)
    losses = system(batch, progress)
    masked, labels = masks[0][1]
    draws = torch.stack([call[0][2] for call in negatives], 1)
    want = slow_terms(system, batch, progress, masked, labels, draws)
    assert set(losses.terms) == set(want)
    for name, value in want.items():
        assert float(losses.terms[name].detach()) == pytest.approx(float(value.detach()), abs=1e-9), name
        assert_same_gradients(gradients(losses.terms[name], system), gradients(value, system))


def test_texts_are_read_alone_and_with_a_picture_by_the_same_layers(monkeypatch):
    """Checks 1 and 2: one stack; without cross-attention no picture counts, with it every one does."""
    system, batch = system_of().eval(), pictured()
    texts, images = system.encode_texts(batch.texts), system.encode_images(batch.images)
    other = images.map(lambda x: x.flip(0))
    assert (system.match(images, texts) != system.match(other, texts)).any()
    stack = system.encoders.text.stack
    seen = []
    for block in stack.blocks:
        block.cross.register_forward_pre_hook(lambda *_: seen.append(1))
    system.encode_texts(batch.texts)
    assert not seen
    system.match(images, texts)
    assert len(seen) == len(stack.blocks)
    ours = [name for name, _ in system.named_parameters() if "teacher" not in name]
    assert sum(name.endswith("words.weight") for name in ours) == 1
    assert sum(".attention.query_key_value.weight" in name for name in ours if "image" not in name) == 2
    assert len({p.data_ptr() for p in system.parameters()}) == len([*system.parameters()])


TOY = [0.30, 0.05, 0.25, 0.20, 0.15, 0.05]


def test_keywords_of_the_toy():
    """Check 3: votes for 0, 2, 3, 4; of these the class token's is no label; special tokens may be left out before."""
    attention, ids = torch.tensor([[TOY]]), torch.tensor([[2, 20, 21, 22, 23, 3]])
    assert voted(attention, torch.ones(1, 6, dtype=torch.bool))[0].nonzero()[:, 0].tolist() == [0, 2, 3, 4]
    inside = torch.tensor([[False, True, True, True, True, False]])
    chosen = voted(attention, inside)
    assert chosen[0].nonzero()[:, 0].tolist() == [1, 2, 3, 4]
    assert word_labels(ids, chosen, 30)[0].nonzero()[:, 0].tolist() == [20, 21, 22, 23]
    # short texts: no place without leave is chosen, and none at all where none has it
    short = torch.tensor([[False, True, False, False, False, False]])
    assert voted(attention, short)[0].nonzero()[:, 0].tolist() == [1]
    assert not voted(attention, torch.zeros(1, 6, dtype=torch.bool)).any()
    # a word that stands twice is one label
    assert word_labels(torch.tensor([[7, 7, 5]]), torch.tensor([[True, True, False]]), 9).sum() == 1


def test_votes_are_the_slow_ones():
    attention = random(40, 3, 9, seed=4).softmax(-1)
    allowed = random(40, 9, seed=5) > -0.5
    for votes, most in ((4, 5), (2, 3), (12, 12)):
        chosen = voted(attention, allowed, votes, most)
        for row in range(40):
            want = slow.keywords(attention[row].tolist(), allowed[row].tolist(), votes, most)
            assert set(chosen[row].nonzero()[:, 0].tolist()) == want


def test_keywords_are_never_special_tokens_or_padding(monkeypatch):
    system, batch = system_of(), pictured()
    calls = watched(monkeypatch, module, "word_labels")
    system(batch, PROGRESS)
    labels = calls[0][1]
    assert not labels[:, list(SPECIAL)].any()
    for row in range(6):
        assert 1 <= int(labels[row].sum()) <= 5
        assert set(labels[row].nonzero()[:, 0].tolist()) <= set(batch.texts.ids[row].tolist())


def test_the_loss_of_keywords_by_hand():
    """Checks 4 and 5: ln 2 at zero logits whatever the targets; no gradient into the teacher's."""
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    taught = random(2, 3, seed=1).requires_grad_()
    for alpha in (0.0, 0.4, 1.0):
        zero = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
        assert float(keyword_loss(zero, labels, taught, alpha).detach()) == pytest.approx(math.log(2))
        logits = random(2, 3, seed=2).requires_grad_()
        loss = keyword_loss(logits, labels, taught, alpha)
        assert torch.autograd.grad(loss, taught, allow_unused=True) == (None,)
        want = (1 - alpha) * labels.double() + alpha * taught.detach().sigmoid()
        loss = keyword_loss(logits, labels, taught, alpha)
        torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], (logits.sigmoid() - want).detach() / 6)
    logits = torch.tensor([[3.0, 2, 1, 0], [0, 1, 2, 3]])
    right = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]])
    assert float(recall_among(logits, right, 2)) == pytest.approx(2 / 3)


def test_teacher_and_attention_take_no_gradient():
    """Check 4; and which parts the teacher copies: neither the match head nor the temperature."""
    system, batch = system_of(momentum_rises=False), pictured()
    old = {name: p.clone() for name, p in system.teacher.named_parameters()}
    system.before_step(Progress(3, 5, 10, 6))
    for name, value in system.teacher.named_parameters():
        torch.testing.assert_close(value, 0.995 * old[name] + 0.005 * system.get_parameter(name).detach())
    copied = {name.split(".")[0] for name in old}
    assert copied == {"encoders", "patch_input", "word_head", "code_head", "concept_head"}
    system(batch, PROGRESS).total.backward()
    assert all(p.grad is None for p in system.teacher.parameters())
    reached = {name for name, p in system.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached >= {"patch_input.mask_token", "code_head.weight", "concept_head.weight", "match_head.weight"}


def test_uniform_codes_cost_the_logarithm_of_their_number(monkeypatch):
    """Check 6: ln 8192 = 9.0109; and only hidden patches are told."""
    assert float(masked_language(torch.zeros(7, 8192), torch.arange(7))) == pytest.approx(9.0109, abs=1e-4)
    system, batch = system_of(), pictured()
    shapes = []
    system.code_head.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    system(batch, PROGRESS)
    hidden = system.hide(batch, PROGRESS)
    assert shapes == [(int(hidden.sum()), 32)]
    assert 1 <= int(hidden.flatten(1).sum(1).min()) <= int(hidden.flatten(1).sum(1).max()) <= 5  # 75 of 256 of 16


def test_hidden_patches_are_the_mask_token_at_their_positions():
    """Checks 7 and 8: the mask token and the position, exactly; all positions are read, the class token tells none."""
    system, batch = system_of(), pictured()
    tower, hidden = system.encoders.image, system.hide(batch, PROGRESS)
    entered, read_by_bert = [], []
    tower.stack.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    system.encoders.text.stack.register_forward_pre_hook(lambda _, inputs: read_by_bert.append(inputs[0].shape))
    texts = system.encode_texts(batch.texts)
    read_by_bert.clear()
    keys = system.encoders.text.embedding_norm(texts.states["last"])
    system.code_logits(system, batch.images, hidden, keys, batch.texts.mask)
    assert read_by_bert == [(6, 17, 32)]
    patches = tower.patches((batch.images.pixels.float() / 255 - tower.mean) / tower.std).flatten(2).transpose(1, 2)
    for row in range(6):
        for place in range(16):
            content = system.patch_input.mask_token if hidden.flatten(1)[row, place] else patches[row, place]
            torch.testing.assert_close(entered[0][row, 1 + place], content + tower.positions[1 + place])


def test_alpha_chooses_between_labels_and_teacher(monkeypatch):
    """Check 9: at 0 no soft term is left, at 1 no hard label counts except matching's."""
    batch = pictured()
    start, full = Progress(0, 5, 10, 6), Progress(5, 5, 10, 6)
    system = system_of(alpha=1.0)
    first, last = (system(batch, progress).terms for progress in (start, full))
    with torch.no_grad():
        for parameter in system.teacher.concept_head.parameters():
            parameter.add_(0.3)
        for parameter in (*system.teacher.code_head.parameters(), *system.teacher.word_head.parameters()):
            parameter.add_(0.1 * random(*parameter.shape, seed=9))
    again = [system(batch, progress).terms for progress in (start, full)]
    for name in ("masked_words", "masked_patches", "keywords"):
        assert torch.equal(first[name], again[0][name]), name
        assert not torch.equal(last[name], again[1][name]), name
    # hard labels replaced: nothing moves at alpha 1
    real_codes = system.codes.codes
    monkeypatch.setattr(system.codes, "codes", lambda pixels: (real_codes(pixels) + 1) % 64)
    monkeypatch.setattr(module, "word_labels", lambda ids, chosen, words: torch.ones(len(ids), words))
    other = system(batch, full).terms
    for name in ("contrast", "masked_patches", "keywords", "matching"):
        torch.testing.assert_close(other[name], again[1][name])
    assert not torch.equal(system(batch, start).terms["keywords"], again[0]["keywords"])


def test_gradient_of_masked_patches_reaches_all_that_it_should():
    """Check 10: the ViT, BERT with its cross-attention, the head, word embeddings and the mask token."""
    system = system_of()
    onto = gradients(system(pictured(), PROGRESS).terms["masked_patches"], system)
    for name in (
        "encoders.image.patches.weight",
        "encoders.text.words.weight",
        "encoders.text.stack.blocks.0.attention.query_key_value.weight",
        "encoders.text.stack.blocks.1.cross.key_value.weight",
        "code_head.weight",
        "patch_input.mask_token",
        "patch_input.positions",
    ):
        assert onto[name] is not None, name
        assert onto[name].abs().max() > 0, name


@torch.no_grad()
def test_matching_reads_words_not_text_vectors():
    """Check 11: other cached vectors change no re-ranked score; another word does."""
    system, batch = system_of().eval(), pictured()
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    want = system.match(images, texts)
    other = dataclasses.replace(texts, pooled=-texts.pooled)
    assert torch.equal(system.match(images, other), want)
    ids = torch.where(batch.texts.ids == 12, 30, batch.texts.ids)
    changed = system.match(images, system.encode_texts(dataclasses.replace(batch.texts, ids=ids)))
    assert (changed != want)[:, 0].tolist() == [12 in row for row in batch.texts.ids.tolist()]


def test_padding_and_order_of_rows_change_no_term():
    system, batch = system_of(), pictured()
    first = system(batch, PROGRESS).terms
    moved = system(batch.select(torch.tensor([3, 5, 0, 1, 4, 2])), PROGRESS).terms
    longer = torch.nn.functional.pad(batch.texts.ids, (0, 4))
    texts = dataclasses.replace(batch.texts, ids=longer, mask=longer != VOCABULARY.pad)
    padded = system(dataclasses.replace(batch, texts=texts), PROGRESS).terms
    for name in first:
        if name != "matching":  # the draws of negatives follow columns, which have moved
            assert float(first[name].detach()) == pytest.approx(float(moved[name].detach()), abs=1e-10), name
        assert float(first[name].detach()) == pytest.approx(float(padded[name].detach()), abs=1e-10), name


def test_codes_and_tower_share_one_geometry_unless_told():
    """Section 10: one piece of the picture; the code's own crop on request."""
    config = build("simla").config
    assert type(build("simla")).needs(config).views == {"codes": View(32)}
    own = dataclasses.replace(config, code_crop="own")
    assert type(build("simla")).needs(own).views == {"codes": View(32, crop="own")}


def test_towers_it_cannot_read_by_one_bert_are_refused():
    config = build("simla").config
    with pytest.raises(UserError, match=r"image\.width 64 must be model\.text\.width 32"):
        build("simla", image=dataclasses.replace(config.image, width=64))
    with pytest.raises(UserError, match=r"model\.text\.kind must be bert"):
        build("simla", text=dataclasses.replace(config.text, kind="clip"))


def test_without_masked_patches_no_view_is_asked_for_and_the_other_losses_stay():
    whole, without = system_of(), system_of(patch_weight=0.0)
    without.load_state_dict(whole.state_dict())
    assert type(without).needs(without.config).views == {}
    all_terms, terms = whole(pictured(), PROGRESS).terms, without(example(), PROGRESS).terms
    assert all_terms.keys() - terms.keys() == {"masked_patches"}
    for name, term in terms.items():
        assert float(term.detach()) == float(all_terms[name].detach()), name
