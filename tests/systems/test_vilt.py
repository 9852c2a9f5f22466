"""ViLT: its one stream, its wrong pictures, and the alignment of words with patches against the code's loops."""

import dataclasses

import pytest
import torch

from tests.reference import vilt as slow
from tests.systems.common import PROGRESS, build, gradients, random, shaken
from tests.systems.test_survey import spanned
from tuwen import systems
from tuwen.errors import UserError
from tuwen.nn.initial import initialise
from tuwen.objectives.alignment import alignment_loss, transport_cost, transport_plan
from tuwen.training.config import RunConfig


def test_the_plan_is_the_code_s_and_padding_takes_nothing():
    words, patches = random(2, 4, 3, seed=1), random(2, 5, 3, seed=2)
    real = torch.tensor([[True, True, True, True], [True, False, True, False]])
    seen = torch.ones(2, 5, dtype=torch.bool)
    costs = transport_cost(words, patches, real, seen)
    for row in range(2):
        by_hand = slow.transport(words[row][real[row]].tolist(), patches[row].tolist())
        assert float(costs[row]) == pytest.approx(by_hand, rel=1e-9)
    moved = transport_plan(1 - torch.rand(2, 4, 5, dtype=torch.float64), real, seen)
    assert (moved[1, [1, 3]] == 0).all()
    # masses: every word sends alike, every patch takes alike
    torch.testing.assert_close(moved[0].sum(0), torch.full((5,), 0.2, dtype=torch.float64), atol=1e-3, rtol=0)
    torch.testing.assert_close(moved[0].sum(1), torch.full((4,), 0.25, dtype=torch.float64), atol=1e-3, rtol=0)
    other = torch.where(real[:, :, None], words, 1e3)
    assert torch.equal(transport_cost(other, patches, real, seen), costs)


def test_equal_words_and_patches_cost_nothing_and_rows_without_words_neither():
    words = torch.eye(3, dtype=torch.float64)[None]
    everything = torch.ones(1, 3, dtype=torch.bool)
    assert float(transport_cost(words, words, everything, everything)) == pytest.approx(0, abs=1e-3)
    assert float(transport_cost(words, words, ~everything, everything)) == 0
    assert float(alignment_loss(torch.tensor([0.5, 0.2, 0.1]), torch.tensor([True, False, False]))) == pytest.approx(
        (0.5 - 0.3) / 3
    )


def test_the_plan_has_no_gradient_and_the_cost_has():
    words, patches = random(1, 2, 3, seed=1).requires_grad_(), random(1, 2, 3, seed=2)
    every = torch.ones(1, 2, dtype=torch.bool)
    transport_cost(words, patches, every, every).sum().backward()
    cosines = torch.nn.functional.cosine_similarity
    costs = 1 - cosines(words.detach()[:, :, None], patches[:, None], dim=-1)
    moved = transport_plan(costs, every, every)
    again = words.detach().requires_grad_()
    (moved * (1 - cosines(again[:, :, None], patches[:, None], dim=-1))).sum().backward()
    torch.testing.assert_close(words.grad, again.grad)


def test_words_and_patches_are_one_sequence_with_types():
    """By hand: BERT's embeddings with type 0, patches with type 1 or 2, the ViT's blocks, the text's first token."""
    system, batch = shaken(build("vilt")).eval(), spanned()
    encoder, types = system.encoders, system.types.weight
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    ids, mask = batch.texts.ids, batch.texts.mask
    words = encoder.text.embedding_norm(encoder.text.words(ids) + encoder.text.positions[: ids.shape[1]]) + types[0]
    pixels = (batch.images.pixels.double() / 255 - encoder.image.mean) / encoder.image.std
    patches = encoder.image.patches(pixels).flatten(2).mT
    patches = torch.cat([encoder.image.class_token.expand(6, 1, -1), patches], 1) + encoder.image.positions
    whole = torch.cat([mask, torch.ones(6, 17, dtype=torch.bool)], 1)
    pooled = []
    for kind in (1, 2):
        x = torch.cat([words, patches + types[kind]], 1)
        for block in encoder.image.stack.blocks:
            x = block(x, whole)
        pooled.append(system.pooler(encoder.image.stack.norm(x)[:, 0]).tanh())
    close = {"rtol": 1e-6, "atol": 1e-6}  # pixels are normalised in float32
    torch.testing.assert_close(system.fuse([images], texts).pooled, pooled[0], **close)
    torch.testing.assert_close(system.fuse([images, images], texts).pooled, torch.cat(pooled, 1), **close)


def test_padding_of_a_text_changes_nothing():
    system, batch = shaken(build("vilt")).eval(), spanned()
    other = dataclasses.replace(batch.texts, ids=torch.where(batch.texts.mask, batch.texts.ids, 37))
    images = system.encode_images(batch.images)
    torch.testing.assert_close(
        system.match(images, system.encode_texts(batch.texts)), system.match(images, system.encode_texts(other))
    )


def test_the_second_picture_s_type_starts_as_the_first_s():
    system = build("vilt")
    head = system.adapt("two_pictures", 2, 2)
    images, texts = system.encode_images(spanned().images), system.encode_texts(spanned().texts)
    assert not torch.equal(*system.fuse([images, images], texts).pooled.chunk(2, 1))
    head.begin(system)
    assert torch.equal(*system.fuse([images, images], texts).pooled.chunk(2, 1))


def test_every_part_learns():
    system = shaken(build("vilt"))
    losses = system(spanned(), PROGRESS)
    assert set(losses.terms) == {"masked_words", "matching", "alignment"}
    for name, gradient in gradients(losses.total, system).items():
        if name != "types.weight":
            assert gradient is not None, name
            assert gradient.abs().max() > 0 or name.endswith("query_key_value.bias"), name
    assert gradients(losses.total, system)["types.weight"][:2].abs().amin(1).gt(0).all()


def test_it_starts_as_a_vit(tmp_path):
    """What the tower of another run has, its blocks have."""
    donor, system = build("clip", 5), build("vilt")
    initialise(donor, 5)
    ours, theirs = system.encoders.image.state_dict(), donor.encoders.image.state_dict()
    assert {name: x.shape for name, x in ours.items()} == {name: x.shape for name, x in theirs.items()}


@pytest.mark.parametrize("change", [{"model.text.layers": 1}, {"model.text.width": 64}, {"model.image.locked": True}])
def test_a_second_transformer_is_refused(change):
    config = RunConfig.of("vilt", "tiny", "scenes", changes=change)
    with pytest.raises(UserError, match="vilt has one transformer") as error:
        systems.find("vilt")(config.model, build("vilt").vocabulary)
    assert "\n" not in str(error.value)
