"""FLAVA against transformers' FlavaForPreTraining on the same weights, and the checks one can do by hand."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from tests.systems.common import IMAGE_IDS, PROGRESS, TEXT_IDS, VOCABULARY, build, example, gradients
from tuwen.data.batch import Images, Spans
from tuwen.nn.encoded import Encoded
from tuwen.nn.patch_codes import CodeEncoder, CodesConfig, load_codes, map_pixels
from tuwen.nn.published import flava as names
from tuwen.nn.published.names import inward, outward
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig
from tuwen.systems.flava import FLAVA, FLAVAConfig
from tuwen.systems.system import Progress

transformers = pytest.importorskip("transformers")

SETTINGS = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 128, "layer_norm_eps": 1e-12}
CONFIG = FLAVAConfig(
    image=ImageTowerConfig(side=32, patch=8, width=32, layers=2, heads=4, eps=1e-12),
    text=TextTowerConfig(kind="flava", length=16, width=32, layers=2, heads=4, eps=1e-12),
    fusion=CrossEncoderConfig(width=32, layers=1, heads=4, eps=1e-12),
    embed=24,
    codes=CodesConfig(width=8, blocks=2, vocabulary=50),
)


def peer(codebook: bool = False):
    """A random FlavaForPreTraining of our small size."""
    torch.manual_seed(0)
    image = {
        **SETTINGS,
        "num_hidden_layers": 2,
        "image_size": 32,
        "patch_size": 8,
        "mask_token": True,
        "vocab_size": 50,
    }
    text = {**SETTINGS, "num_hidden_layers": 2, "vocab_size": 40, "max_position_embeddings": 16, "pad_token_id": 0}
    config = transformers.FlavaConfig(
        image_config=image,
        text_config=text,
        multimodal_config={**SETTINGS, "num_hidden_layers": 1},
        image_codebook_config={"hidden_size": 8, "num_blocks_per_group": 2, "vocab_size": 50},
        hidden_size=32,
        projection_dim=24,
        init_codebook=codebook,
    )
    model = transformers.FlavaForPreTraining(config).eval()
    with torch.no_grad():
        for k, parameter in enumerate(model.parameters()):
            if parameter.dim():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k)))
    return model


def ours_of(model) -> FLAVA:
    system = FLAVA(CONFIG, VOCABULARY)
    shapes = {name: p.shape for name, p in system.named_parameters() if not name.startswith("codes.")}
    entries = names.pretraining(CONFIG.image, CONFIG.text, CONFIG.fusion)
    found, report = inward(entries, model.state_dict(), shapes, names.KNOWN)
    assert not report.missing
    assert not report.shapes
    assert all(report.unexpected.values())
    system.load_state_dict(found, strict=False)
    return system.eval()


def inputs():
    """A padded batch of 4 with masks, codes and masked words; row 3's text is another's."""
    batch = example([0, 1, 4, 5])
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(4, 3, 32, 32, generator=generator)
    hidden = torch.rand(4, 4, 4, generator=generator) < 0.4
    codes = torch.randint(0, 50, (4, 4, 4), generator=generator)
    chosen = batch.texts.mask & (torch.rand(batch.texts.ids.shape, generator=generator) < 0.4)
    labels = batch.texts.ids.masked_fill(~chosen, -100)
    masked = dataclasses.replace(batch.texts, ids=batch.texts.ids.masked_fill(chosen, VOCABULARY.mask))
    return batch, Images(pixels), hidden, codes, masked, labels


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


# ---- parity, float32, padded


@torch.no_grad()
def test_states_are_those_of_transformers():
    model = peer()
    system = ours_of(model)
    batch, images, hidden, _, _, _ = inputs()
    real = batch.texts.mask
    for seen in (None, hidden):
        theirs = model.flava(
            batch.texts.ids,
            images.pixels,
            real.long(),
            bool_masked_pos=seen,
            output_hidden_states=True,
            return_dict=True,
        )
        before, after = system.image_states(images, seen)
        close(after, theirs.image_embeddings)
        words_before, words = system.text_states(batch.texts.ids, real)
        close(words[real], theirs.text_embeddings[real])
        joint = system.joint(before, words_before, real)
        whole = torch.cat([torch.ones(4, 18, dtype=torch.bool), real], 1)
        close(joint[whole], theirs.multimodal_embeddings[whole])
    projected = model.flava.get_text_features(batch.texts.ids, real.long()).pooler_output[:, 0]
    close(system.encode_texts(batch.texts).pooled, torch.nn.functional.normalize(projected, dim=-1))
    close(
        system.fuse([system.encode_images(images)], system.encode_texts(batch.texts)).pooled,
        pooled_of(model, batch, images),
    )


def pooled_of(model, batch, images) -> Tensor:
    given = batch.texts.ids, images.pixels, batch.texts.mask.long()
    return model.flava(*given, output_hidden_states=True, return_dict=True).multimodal_embeddings[:, 0]


@pytest.mark.parametrize("matched", [[1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
def test_losses_of_pairs_and_their_gradients_are_those_of_transformers(matched):
    """Card, check 8 too: which rows count for what. Where all are wrong, theirs contrasts wrong pairs; ours none."""
    model = peer()
    system = ours_of(model)
    batch, images, hidden, codes, masked, labels = inputs()
    theirs = model(
        input_ids=batch.texts.ids,
        input_ids_masked=masked.ids,
        pixel_values=images.pixels,
        attention_mask=batch.texts.mask.long(),
        bool_masked_pos=hidden.flatten(1).clone(),
        mlm_labels=labels.clone(),
        mim_labels=codes.flatten(1).clone(),
        itm_labels=torch.tensor(matched),
        return_dict=True,
    )
    own, right = (batch.image_id, batch.text_id), torch.tensor(matched, dtype=torch.bool)
    terms, _ = system.pair_losses(  # a wrong text is of no picture of the batch, as in the released code
        system.encode_images(images),
        system.encode_texts(batch.texts),
        (own, (torch.where(right, own[0], own[0] + 100), torch.where(right, own[1], own[1] + 100))),
        right,
        (images, hidden, codes),
        (masked, labels),
    )
    found = theirs.loss_info
    close(terms["contrast"], found.global_contrastive if any(matched) else torch.tensor(0.0))
    close(terms["matching"], found.itm)
    close(terms["joint_masked_words"], found.mmm_text)
    close(terms["joint_masked_patches"], found.mmm_image)
    (theirs.loss if any(matched) else theirs.loss - found.global_contrastive).backward()
    mine = gradients(sum(terms.values()), system)
    for ours, other in (
        ("encoders.image.patches.weight", "flava.image_model.embeddings.patch_embeddings.projection.weight"),
        ("encoders.text.words.weight", "flava.text_model.embeddings.word_embeddings.weight"),
        ("joint_word_head.decoder.weight", "mmm_text_head.decoder.weight"),
        ("image_to_fusion.weight", "flava.image_to_mm_projection.weight"),
        ("log_scale", "flava.logit_scale"),
    ):
        wanted = model.get_parameter(other).grad
        if ours == "encoders.text.words.weight":  # transformers lets no gradient reach the padding's row
            wanted, mine[ours][0] = wanted.clone(), wanted[0]
        torch.testing.assert_close(mine[ours], wanted, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_losses_of_one_side_alone_are_those_of_transformers():
    model = peer()
    system = ours_of(model)
    batch, images, hidden, codes, masked, labels = inputs()
    theirs = model(
        pixel_values=images.pixels,
        bool_masked_pos=hidden.flatten(1),
        mim_labels=codes.flatten(1).clone(),
        return_dict=True,
    )
    close(system.masked_patches(images, hidden, codes), theirs.loss_info.mim)
    theirs = model(
        input_ids=batch.texts.ids,
        input_ids_masked=masked.ids,
        attention_mask=batch.texts.mask.long(),
        mlm_labels=labels.clone(),
        return_dict=True,
    )
    close(system.masked_words(masked, labels), theirs.loss_info.mlm)


@torch.no_grad()
def test_weights_come_from_disk_and_go_back(tmp_path):
    """Saved by transformers, read, written in its layout, read by transformers again: the same outputs."""
    from safetensors.torch import load_file

    model = peer(codebook=True)
    model.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    system = FLAVA(CONFIG, VOCABULARY)
    shapes = {name: p.shape for name, p in system.named_parameters() if not name.startswith("codes.")}
    entries = names.pretraining(CONFIG.image, CONFIG.text, CONFIG.fusion)
    found, report = inward(entries, held, shapes, names.KNOWN)
    assert not report.missing + report.shapes
    system.load_state_dict(found, strict=False)
    load_codes(system.codes, tmp_path)
    pixels = torch.rand(3, 3, 32, 32)
    codes = system.codes.codes(pixels)
    assert torch.equal(codes, model.image_codebook.get_codebook_indices(map_pixels(pixels)))
    logits = model.image_codebook.blocks(map_pixels(pixels))
    torch.testing.assert_close(system.codes(map_pixels(pixels)), logits, rtol=1e-4, atol=1e-4)
    back = outward(entries, system.state_dict()) | outward(names.codebook(CONFIG.codes), system.codes.state_dict())
    again = peer(codebook=True)
    for parameter in again.parameters():
        parameter.zero_()
    renamed = {
        k.replace("blocks.", "image_codebook.blocks.", 1) if k.startswith("blocks.") else k: v for k, v in back.items()
    }
    lacking, extra = again.load_state_dict(renamed, strict=False)
    assert not extra
    assert all(any(name.startswith(start) for start in names.KNOWN) for name in lacking)
    batch, images, *_ = inputs()
    close(pooled_of(again, batch, images), pooled_of(model, batch, images))
    assert torch.equal(again.image_codebook.get_codebook_indices(map_pixels(pixels)), codes)


# ---- card, section 11


def test_slices_of_the_joint_states():
    """Checks 1 and 2: a tagger at base's sizes: 1 + 197 + 77 tokens, patches at 2..197, words at 198..274."""
    base = FLAVA(dataclasses.replace(CONFIG, image=dataclasses.replace(CONFIG.image, side=112)), VOCABULARY)
    seen = {}

    def joint(images, texts, mask):
        total = 1 + images.shape[1] + texts.shape[1]
        return torch.arange(float(total))[None, :, None].expand(len(images), -1, 32)

    base.joint = joint
    for name in ("joint_patch_head", "joint_word_head"):
        getattr(base, name).forward = lambda x, name=name: seen.setdefault(name, x[:, :1]).expand(-1, 50)
    length = 77
    hidden, codes = torch.ones(1, 14, 14, dtype=torch.bool), torch.zeros(1, 14, 14, dtype=torch.int64)
    ids = torch.full((1, length), 7)
    texts = dataclasses.replace(example([0]).texts, ids=ids, mask=torch.ones_like(ids, dtype=torch.bool))
    base.image_states = lambda images, hidden=None: (torch.zeros(1, 197, 32),) * 2
    base.text_states = lambda ids, mask: (torch.zeros(1, length, 32),) * 2
    pooled = Encoded(torch.nn.functional.normalize(torch.ones(1, 24), dim=1))
    one = torch.zeros(1, dtype=torch.int64)
    pictures = Images(torch.zeros(1, 3, 112, 112)), hidden, codes
    base.pair_losses(pooled, pooled, ((one, one),) * 2, torch.ones(1, dtype=torch.bool), pictures, (texts, ids.clone()))
    assert seen["joint_patch_head"][:, 0].tolist() == list(range(2, 198))
    assert seen["joint_word_head"][:, 0].tolist() == list(range(198, 275))


def test_the_joint_encoder_reads_what_is_before_the_final_norms():
    """Checks 3 and 9: scaling the towers' final norms changes the contrast alone; the contrast does not see masks."""
    system = ours_of(peer())
    batch, images, hidden, codes, masked, labels = inputs()

    def terms(hidden, masked, labels):
        encoded = system.encode_images(images), system.encode_texts(batch.texts)
        ids = torch.arange(4)
        found, _ = system.pair_losses(
            *encoded, ((ids, ids),) * 2, torch.ones(4, dtype=torch.bool), (images, hidden, codes), (masked, labels)
        )
        return {name: float(term.detach()) for name, term in found.items()}

    before = terms(hidden, masked, labels)
    other = terms(~hidden, masked, labels)
    assert other["contrast"] == before["contrast"]
    assert other["joint_masked_patches"] != before["joint_masked_patches"]
    assert other["joint_masked_words"] != before["joint_masked_words"]
    with torch.no_grad():
        system.encoders.image.stack.norm.weight.mul_(torch.linspace(0.1, 3, 32))
        system.encoders.text.stack.norm.weight.mul_(torch.linspace(3, 0.1, 32))
    after = terms(hidden, masked, labels)
    assert after["contrast"] != before["contrast"]
    assert {k: v for k, v in after.items() if k != "contrast"} == {k: v for k, v in before.items() if k != "contrast"}


def views(batch):
    images = dataclasses.replace(batch.images, views={"codes": batch.images.pixels})
    words = Spans(*(torch.zeros(0, dtype=torch.int64),) * 5)
    return dataclasses.replace(batch, images=images, texts=dataclasses.replace(batch.texts, spans=words))


def test_each_source_has_its_own_losses_at_the_level_of_chance():
    """Checks 4 and 5."""
    system, batch = build("flava"), views(example())
    pairs = system(batch, PROGRESS).terms
    assert set(pairs) == {"contrast", "matching", "joint_masked_words", "joint_masked_patches"}
    pictures = system(dataclasses.replace(batch, texts=None, source="images"), PROGRESS).terms
    assert set(pictures) == {"masked_patches"}
    words = system(dataclasses.replace(batch, images=None, source="texts"), Progress(4, 5, 10, 6)).terms
    assert set(words) == {"masked_words"}
    assert float(pictures["masked_patches"].detach()) == pytest.approx(math.log(64), abs=0.7)
    assert float(pairs["joint_masked_patches"].detach()) == pytest.approx(math.log(64), abs=0.7)
    assert float(words["masked_words"].detach()) == pytest.approx(math.log(40), abs=0.7)
    assert float(pairs["matching"].detach()) == pytest.approx(math.log(2), abs=0.3)


def test_the_scale_is_clamped():
    """Check 7."""
    system = build("flava")
    with torch.no_grad():
        system.log_scale.fill_(10)
    system(views(example()), PROGRESS)
    assert float(system.log_scale.detach()) == pytest.approx(math.log(100))


def test_wrong_texts_are_other_texts_of_the_batch():
    system, batch = build("flava", wrong_share=1.0), example()
    said, matched = system.wrong_texts(batch, PROGRESS)
    assert not matched.any()
    for row, other in enumerate(said.tolist()):
        assert batch.image_id[row] != batch.image_id[other]
        assert batch.text_id[row] != batch.text_id[other]
    alone = example([0, 2])  # one picture twice: no wrong partner
    assert system.wrong_texts(alone, PROGRESS)[1].all()
    system = build("flava")
    many = [system.wrong_texts(batch, Progress(0, 1, 1, 6, seed))[1] for seed in range(300)]
    assert float((~torch.stack(many)).float().mean()) == pytest.approx(0.1, abs=0.03)


def slow_contrast(pictures, words, said: list[int], matched: list[bool], scale: float) -> float:
    """Row by row: what is right is a text of that picture, wherever it stands, or a picture of that text."""
    total, rows = [], [k for k, right in enumerate(matched) if right]
    ids = list(zip(IMAGE_IDS, TEXT_IDS, strict=True))
    for queries, keys, query_ids, key_ids in (
        (pictures, words, ids, [ids[k] for k in said]),
        (words, pictures, [ids[k] for k in said], ids),
    ):
        for row in rows:
            log_p = (scale * queries[row] @ keys.T).log_softmax(0)
            right = [j for j, other in enumerate(key_ids) if any(map(int.__eq__, query_ids[row], other))]
            total.append(-log_p[right].mean() if right else torch.zeros(()))
    return float(torch.stack(total).sum() / len(rows) / 2)


def test_a_text_changed_for_another_is_no_positive_of_the_picture_it_stands_beside():
    """Rows 1 and 4 change texts; the picture of row 1 is then right with the text in row 4, and asks for it there."""
    system, batch = build("flava").double().eval(), views(example())
    images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
    said, matched = [0, 4, 2, 3, 1, 5], [True, False, True, True, False, True]
    order = torch.tensor(said)
    system.wrong_texts = lambda batch, progress: (order, torch.tensor(matched))
    scale = float(system.log_scale.detach().exp())
    terms = system.losses({"images": images, "texts": texts}, batch, PROGRESS).terms
    want = slow_contrast(images.pooled.detach(), texts.pooled.detach()[order], said, matched, scale)
    assert float(terms["contrast"].detach()) == pytest.approx(want, abs=1e-9)
    kept = slow_contrast(images.pooled.detach(), texts.pooled.detach()[order], list(range(6)), matched, scale)
    assert abs(want - kept) > 1e-3  # what the pairing as it stands would give


def test_codes_take_no_gradient_and_are_no_optimizers_business():
    """Check 10."""
    system, batch = build("flava"), views(example())
    system(batch, PROGRESS).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in system.codes.parameters())
    assert map_pixels(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == pytest.approx([0.1, 0.9])
    wide = CodeEncoder(CodesConfig(4, 1, 8192))
    codes = wide.codes(torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8))
    assert codes.shape == (2, 14, 14)
    assert int(codes.min()) >= 0
    assert int(codes.max()) < 8192


def test_the_averages_of_the_paper():
    """Check 12, as the card prints them."""
    vision = [75.54, 88.51, 92.87, 77.68, 70.87, 47.31, 77.29, 84.82, 95.74, 96.37, 98.42, 98.89, 97.26, 79.46, 89.04]
    vision += [85.31, 83.32, 79.66, 61.12, 82.17, 57.11, 28.92]
    language = [80.33, 50.65, (81.4 + 86.9) / 2, (90.4 + 87.2) / 2, 90.94, 87.31, 57.76, 85.67]
    both = [72.49, 78.89, 76.09, 67.70, 94.00, 65.22, 89.38, 42.74, 76.76, 38.38, 67.47]
    means = [sum(values) / len(values) for values in (vision, language, both)]
    assert means == pytest.approx([79.44, 78.20, 69.92], abs=0.006)
    assert sum(means) / 3 == pytest.approx(75.85, abs=0.006)
