"""NLIP's losses against a version row by row and word by word in float64, and its card's checks of section 11."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.systems.common import (
    PROGRESS,
    VOCABULARY,
    assert_same_gradients,
    build,
    example,
    gradients,
    random,
    shaken,
)
from tuwen.data.batch import Images, Texts
from tuwen.nn.backbones import normalised
from tuwen.nn.generation import Generation
from tuwen.objectives.contrastive import contrastive
from tuwen.objectives.masked_pixels import patches_of

NOISE = torch.tensor([0.0, 0.9, 0.25, 0.9, 1.0, 0.5], dtype=torch.float64)
TAGS = [[2, 11, 21, 3], [2, 31, 3], [2, 11, 21, 3], [2, 3], [2, 38, 39, 25, 3], [2, 25, 3]]


def told(noise=NOISE, tags=TAGS):
    """The common batch with noise, and names of what the pictures show (none of row 3)."""
    longest = max(map(len, tags)) + 1
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in tags])
    return replace(example(), columns={"noise": noise, "tags": Texts(ids, ids != 0, torch.zeros(len(tags)).long())})


def nlip(**changes):
    return shaken(build("nlip", **changes)).eval()


def slow_text(system, ids, tags):
    """[D]: T_e of one caption and its names, without padding, then the decoder's last state."""
    tower = system.encoders.text
    behind = [VOCABULARY.sep, *tags[1:]] if len(tags) > 1 else []
    places = torch.tensor([*range(len(ids)), *range(len(behind))])
    row = torch.tensor([[*ids, *behind]])
    states = tower(row, torch.ones_like(row).bool(), places=places) + system.types[1]
    language = torch.zeros(1, dtype=torch.int64)
    last = system.decoder(torch.tensor([ids]), language, states, None, tower.words.weight)[0, -1]
    x = system.encoders.text_projection(last)
    return x / x.norm()


def slow_losses(system, batch, progress):
    """Loops over rows, columns, words and patches."""
    config, rows = system.config, range(len(batch))
    stays = progress.uniform(batch, 1, "concepts")[:, 0] < config.concept_share
    kept, hidden = system.masks(batch, progress)
    captions = [batch.texts.ids[i][batch.texts.mask[i]].tolist() for i in rows]
    names = [TAGS[i] if stays[i] else [2] for i in rows]
    images, states = [], []
    for i in rows:
        seen = system.encoders.image.run(batch.images.pixels[i : i + 1], kept=kept[i : i + 1])
        vector = system.encoders.image_projection(seen[0, 0])
        states.append(seen)
        images.append(vector / vector.norm())
    texts = [slow_text(system, captions[i], names[i]) for i in rows]
    noise, count = batch.columns["noise"], len(batch)
    contrast = 0
    for a, b in ((images, texts), (texts, images)):
        for i in rows:
            logits = torch.stack([a[i] @ b[j] for j in rows]) / system.temperature
            same = [bool(batch.image_id[i] == batch.image_id[j] or batch.text_id[i] == batch.text_id[j]) for j in rows]
            share = config.softening * noise[i]
            for j in rows:
                target = (1 - share) * same[j] / sum(same) + share / count
                contrast = contrast - target * (logits[j] - torch.logsumexp(logits, 0)) / (2 * count)
    spoken, words, total = 0, system.encoders.text.words.weight, sum(len(row) - 1 for row in captions)
    for i in rows:
        row = torch.tensor([names[i]])
        memory = system.encoders.text(row, torch.ones_like(row).bool()) + system.types[1]
        memory = torch.cat([system.image_to_decoder(states[i]) + system.types[0], memory], 1)
        for place in range(1, len(captions[i])):
            before = torch.tensor([captions[i][:place]])
            state = system.decoder(before, torch.zeros(1).long(), memory, None, words)[0, -1]
            log_p = (words @ state + system.decoder.bias).log_softmax(0)
            spoken = spoken - (1 - noise[i]) * log_p[captions[i][place]] / total
    tower = system.encoders.image
    right = patches_of(normalised(batch.images.pixels, tower.mean, tower.std).double(), config.image.patch)
    pixels, places = 0, [(i, n) for i in rows for n in range(hidden.shape[1]) if hidden[i, n]]
    for i, n in places:
        painted = system.painter(states[i][:, tower.first :], kept[i : i + 1])[0, n]
        patch = right[i, n]
        patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
        pixels = pixels + ((painted - patch) ** 2).mean() / len(places)
    return {"contrast": contrast, "captions": config.captions * spoken, "masked_pixels": config.pixels * pixels}


@pytest.mark.parametrize("changes", [{}, {"softening": 1.0, "captions": 0.3, "pixels": 2.0, "mask_ratio": 0.7}])
def test_losses_and_gradients_are_the_loops(changes):
    system, batch = nlip(**changes), told()
    ours, theirs = system(batch, PROGRESS), slow_losses(system, batch, PROGRESS)
    assert list(ours.terms) == ["contrast", "captions", "masked_pixels"]
    for name, term in ours.terms.items():
        assert term.item() == pytest.approx(theirs[name].item(), abs=1e-9), name
        assert_same_gradients(gradients(term, system), gradients(theirs[name], system))


@pytest.mark.parametrize("changes", [{"softening": 0.0}, {"noise": False}, {"zero": True}])
def test_without_noise_or_softening_the_contrast_is_clip_s(changes):
    """Check 1."""
    zero = changes.pop("zero", False)
    system, batch = nlip(**changes), told(0 * NOISE if zero else NOISE)
    encoded = system.encode(batch, PROGRESS)
    images, texts = encoded["images"].pooled, encoded["texts"].pooled
    plain = contrastive(images, texts, images, texts, batch.same(), system.temperature)
    loss = system.losses(encoded, batch, PROGRESS).terms["contrast"]
    assert loss.item() == pytest.approx(plain.item(), abs=1e-12)
    assert_same_gradients(gradients(loss, system), gradients(plain, system))


def test_a_wholly_noisy_row_is_pushed_towards_nothing():
    """Check 3: with equal logits no gradient, with the diagonal's higher one that lowers it."""
    same, share = torch.eye(4, dtype=torch.bool), torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    for height, sign in ((0.0, 0), (1.0, 1)):
        rows = torch.eye(4, dtype=torch.float64)[:1].mul(height).requires_grad_()
        logits = torch.cat([rows, random(3, 4, seed=1)])
        log_p = logits.log_softmax(1)
        targets = (1 - share[:, None]) * same + share[:, None] / 4
        slope = torch.autograd.grad(-(targets * log_p).sum(1).mean(), rows)[0][0]
        assert slope[0].sign() == sign
        assert height or slope.abs().max() < 1e-17


def test_the_best_similarity_falls_as_noise_rises():
    """Check 10: two pairs, the cosine of the first free."""
    best = []
    for noise in (0.0, 0.2, 0.5, 0.9):
        x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
        logits = torch.stack([x, torch.zeros_like(x)], 1)
        targets = torch.tensor([1 - noise + noise / 2, noise / 2], dtype=torch.float64)
        best.append(float(x[-(targets * logits.log_softmax(1)).sum(1).argmin()].abs()))
        losses = -(targets * logits.log_softmax(1)).sum(1)
        best[-1] = float(x[losses.argmin()])
    assert best == sorted(best, reverse=True)
    assert len(set(best)) == 4


def test_the_caption_s_vector_never_sees_the_picture_and_the_captions_do():
    """Check 6, bit for bit."""
    system, batch = nlip(), told()
    other = replace(batch, images=Images(255 - batch.images.pixels))
    with torch.no_grad():
        mine, theirs = (system.encode(b, PROGRESS) for b in (batch, other))
        assert torch.equal(mine["texts"].pooled, theirs["texts"].pooled)
        assert not torch.equal(mine["images"].pooled, theirs["images"].pooled)
        said = [system.likelihood(encoded["images"], None, batch.texts) for encoded in (mine, theirs)]
        assert (said[0] - said[1]).abs().min() > 0


def test_a_word_is_told_without_itself_and_what_follows():
    """Check 7's cause: neither T_e's memory nor the decoder holds the word that is told."""
    system, batch = nlip(), told()
    with torch.no_grad():
        images = system.encode(batch, PROGRESS)["images"]
        memory = system.context(images, system.named(batch.columns["tags"], len(batch)))
        for place in (2, 5):
            changed = batch.texts.ids.clone()
            changed[0, place:8] = 20
            states = [system.decoder(ids[:, :-1], batch.texts.language, *memory, system.words)
                      for ids in (batch.texts.ids, changed)]  # fmt: skip
            assert torch.equal(states[0][0, :place], states[1][0, :place])
            assert not torch.equal(states[0][0, place], states[1][0, place])


def test_visible_patches_alone_are_encoded_and_hidden_ones_told():
    """Check 8."""
    system, batch = nlip(), told()
    seen = system.encode(batch, PROGRESS)["images"].states["last"]
    assert seen.shape[1] == 1 + system.grid[0] ** 2 // 2
    kept, hidden = system.masks(batch, PROGRESS)
    assert bool(hidden.gather(1, kept).logical_not().all())
    assert int(hidden.sum(1)[0]) == system.grid[0] ** 2 - kept.shape[1]
    quiet = nlip(pixels=0.0)
    slopes = gradients(quiet(batch, PROGRESS).total, quiet)
    assert all(slope is None for name, slope in slopes.items() if name.startswith("painter."))
    assert nlip(mask_ratio=0.0)(batch, PROGRESS).terms.keys() == {"contrast", "captions"}


def test_masks_and_concepts_are_drawn_once_a_step_for_all_their_uses(monkeypatch):
    """Card, section 4, flow for one batch: the patches kept for V_e are those that V_d has; a row's names as well."""
    system, batch, drawn = nlip(), told(), []
    uniform = type(PROGRESS).uniform
    monkeypatch.setattr(type(PROGRESS), "uniform", lambda *asked: drawn.append(asked[-1]) or uniform(*asked))
    losses = system(batch, PROGRESS)
    assert sorted(drawn) == ["concepts", "patches"]
    assert losses.terms.keys() == {"contrast", "captions", "masked_pixels"}


def test_noise_has_no_gradient_and_rows_bring_their_own():
    """Check 5: any order of the batch, the same losses."""
    noise = NOISE.clone().requires_grad_()
    system, batch = nlip(), told(noise)
    total = system(batch, PROGRESS).total
    assert torch.autograd.grad(total, noise, allow_unused=True) == (None,)
    order = torch.tensor([3, 5, 0, 4, 2, 1])
    moved = system(told().select(order), PROGRESS).total
    assert moved.item() == pytest.approx(total.item(), abs=1e-12)


def test_concepts_are_dropped_for_some_rows_and_in_use_for_all():
    """Card, section 10: class names never come with concepts."""
    system, batch = nlip(concept_share=0.0), told()
    with torch.no_grad():
        alone = system.encode_texts(batch.texts).pooled
        assert torch.allclose(system.encode(batch, PROGRESS)["texts"].pooled, alone, atol=1e-12)
        kept = nlip(concept_share=1.0).encode(batch, PROGRESS)["texts"].pooled
        differs = (kept - alone).abs().amax(1) > 1e-6
    assert differs[[0, 1, 2, 4, 5]].all()
    none = nlip(concepts=False)
    assert none.needs(none.config).tags is False
    assert none(replace(batch, columns={"noise": NOISE}), PROGRESS).total.isfinite()


def test_it_speaks_with_names_and_without_and_within_its_length():
    system, batch = nlip(), told()
    with torch.no_grad():
        images = system.encode_images(batch.images)
        language = torch.zeros(len(batch), dtype=torch.int64)
        for how in (Generation("greedy"), Generation("nucleus", seed=1), Generation(beams=2)):
            made = [system.generate(images, prompt, language, how) for prompt in (None, batch.columns["tags"])]
            assert all(text.ids.shape[1] <= system.config.text.length for text in made)
        texts = Texts(made[1].ids, made[1].mask, language)
        scores = [system.likelihood(images, prompt, texts) for prompt in (None, batch.columns["tags"])]
        assert not torch.equal(*scores)


def test_a_padded_text_and_a_padded_name_change_nothing():
    system, batch = nlip(), told()

    def longer(texts):
        return replace(texts, ids=F.pad(texts.ids, (0, 2)), mask=F.pad(texts.mask, (0, 2)))

    padded = replace(batch, texts=longer(batch.texts),
                     columns={**batch.columns, "tags": longer(batch.columns["tags"])})  # fmt: skip
    for name, term in system(padded, PROGRESS).terms.items():
        assert term.item() == pytest.approx(system(batch, PROGRESS).terms[name].item(), abs=1e-12), name
