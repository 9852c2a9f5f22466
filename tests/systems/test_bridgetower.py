"""BridgeTower against transformers on the same weights, and the checks one can do by hand."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from tests.systems.common import PROGRESS, VOCABULARY, build, example, gradients, watched
from tuwen.data.batch import Images
from tuwen.nn.fusion import BridgedEncoder
from tuwen.nn.published import bridgetower as names
from tuwen.nn.published.names import inward, outward
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig
from tuwen.objectives import contrastive as objective
from tuwen.objectives.matching import half_pairs
from tuwen.systems.bridgetower import BridgeTower, BridgeTowerConfig

transformers = pytest.importorskip("transformers")

CONFIG = BridgeTowerConfig(
    image=ImageTowerConfig(
        side=32,
        patch=16,
        width=64,
        layers=4,
        heads=1,
        activation="quick_gelu",
        pre_norm=True,
        eps=1e-5,
        patch_bias=False,
    ),
    text=TextTowerConfig(length=16, width=64, layers=4, heads=4, eps=1e-5),
    fusion=CrossEncoderConfig(width=64, layers=2, heads=4, eps=1e-5),
    embed=24,
)


def peer(kind: str):
    """A random model of transformers in our small size (pad id 0 instead of RoBERTa's 1, so positions start at 1)."""
    torch.manual_seed(0)
    text = {
        "vocab_size": 100,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 256,
    }
    config = transformers.BridgeTowerConfig(
        text_config={**text, "max_position_embeddings": 18, "pad_token_id": 1, "layer_norm_eps": 1e-5},
        vision_config={"hidden_size": 64, "num_hidden_layers": 4, "patch_size": 16, "image_size": 32},
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        contrastive_hidden_size=24,
        logit_scale_init_value=2.6592,
        layer_norm_eps=1e-5,
    )
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for k, parameter in enumerate(model.parameters()):
            if parameter.dim():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k)))
    return model


def ours_of(held: dict[str, Tensor], prefix: str = "", **heads) -> BridgeTower:
    system = BridgeTower(CONFIG, dataclasses.replace(VOCABULARY, size=100))
    entries = names.entries(CONFIG.image, CONFIG.text, CONFIG.fusion)
    entries = names.prefixed(entries, "", prefix) + names.heads(**heads)
    wanted = {name for entry in entries for name in entry.ours}
    shapes = {name: p.shape for name, p in system.named_parameters() if name in wanted}
    found, report = inward(entries, held, shapes, names.KNOWN)
    assert not report.missing + report.shapes
    assert all(report.unexpected.values())
    system.load_state_dict(found, strict=False)
    return system.eval()


def inputs():
    """Padded texts (pad id 1, as RoBERTa's), and pictures."""
    texts = example().texts
    ids = torch.where(texts.mask, texts.ids + 2, 1)  # no real token is the padding
    pixels = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return Images(pixels), dataclasses.replace(texts, ids=ids)


def run(model, images, texts, **more):
    return model(input_ids=texts.ids, attention_mask=texts.mask.long(), pixel_values=images.pixels, **more)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@torch.no_grad()
def test_states_are_those_of_transformers_from_disk_and_back(tmp_path):
    from safetensors.torch import load_file

    model, (images, texts) = peer("BridgeTowerModel"), inputs()
    model.save_pretrained(tmp_path)
    system = ours_of(load_file(tmp_path / "model.safetensors"))
    theirs = run(model, images, texts)
    words, patches = system.fused(system.encode_images(images), system.encode_texts(texts))
    close(words[texts.mask], theirs.text_features[texts.mask])
    close(patches, theirs.image_features)
    close(system.pooled(words, patches), theirs.pooler_output)
    close(system.fuse([system.encode_images(images)], system.encode_texts(texts)).pooled, theirs.pooler_output)
    back = outward(names.entries(CONFIG.image, CONFIG.text, CONFIG.fusion), system.state_dict())
    again = peer("BridgeTowerModel")
    for parameter in again.parameters():
        parameter.zero_()
    lacking, extra = again.load_state_dict(back, strict=False)
    assert not extra
    assert all(name.startswith("text_model.pooler") for name in lacking)
    close(run(again, images, texts).pooler_output, theirs.pooler_output)


def test_matching_and_its_gradient_are_those_of_transformers():
    model, (images, texts) = peer("BridgeTowerForImageAndTextRetrieval"), inputs()
    system = ours_of(model.state_dict(), "bridgetower.", match=True)
    labels = torch.tensor([1, 0, 1, 0, 1, 1])
    theirs = run(model, images, texts, labels=labels)
    encoded = system.encode_images(images), system.encode_texts(texts)
    logits = system.match_logits(*encoded)
    close(logits, theirs.logits)
    close(system.match(*encoded)[:, 0], theirs.logits[:, 1] - theirs.logits[:, 0])
    theirs.loss.backward()
    mine = gradients(nn.functional.cross_entropy(logits, labels), system)
    for ours, other in (
        ("encoders.image.patches.weight", "bridgetower.vision_model.visual.embeddings.patch_embedding.weight"),
        ("encoders.image.stack.norm.weight", "bridgetower.vision_model.visual.ln_post.weight"),
        ("fusion.text_transform.weight", "bridgetower.cross_modal_text_transform.weight"),
        ("fusion.image_norms.1.weight", "bridgetower.cross_modal_image_link_tower.0.LayerNorm.weight"),
    ):
        torch.testing.assert_close(mine[ours], model.get_parameter(other).grad, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_masked_words_and_contrastive_heads_are_those_of_transformers():
    model, (images, texts) = peer("BridgeTowerForMaskedLM"), inputs()
    system = ours_of(model.state_dict(), "bridgetower.", words=True)
    words, _ = system.fused(system.encode_images(images), system.encode_texts(texts))
    close(system.word_logits(words)[texts.mask], run(model, images, texts).logits[texts.mask])
    model = peer("BridgeTowerForContrastiveLearning")
    system = ours_of(model.state_dict(), "bridgetower.", contrast=True)
    theirs = run(model, images, texts)
    close(system.encode_texts(texts).pooled, theirs.text_embeds)
    # its picture's vector goes through the cross encoder's transform and type (card, 12 c): made one with the head
    close(system.encode_images(images).pooled, theirs.image_embeds)


# ---- card, section 11


def test_each_bridge_reads_one_more_layer():
    """Check 1: of N = 4 layers and L = 2 levels, 3 and 4; one run of each cross layer a stream."""
    system, (images, texts) = BridgeTower(CONFIG, dataclasses.replace(VOCABULARY, size=100)), inputs()
    layers: list[Tensor] = []
    last = system.encoders.image(images.pixels, layers=layers)
    states = system.encode_images(images).states
    assert list(states) == ["layer0", "layer1"]
    close(states["layer0"], system.encoders.image.stack.norm(layers[2]))
    close(states["layer1"], last)
    layers.clear()
    system.encoders.text(texts.ids, texts.mask, layers=layers)
    read = system.encode_texts(texts).states
    close(read["layer0"], layers[2])
    close(read["layer1"], layers[3])


def test_bridge_arithmetic():
    """Check 2: [1, 3] + [1, 1] gives [-1, 1]; the scale does not matter; zero gives the norm of the other."""
    norm = BridgedEncoder(CrossEncoderConfig(width=2, layers=2, heads=1, eps=1e-12), 2, 2).text_norms[1]
    x, z = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0])
    assert norm(x + z).tolist() == pytest.approx([-1, 1], abs=1e-5)
    assert norm(7 * (x + z)).tolist() == pytest.approx([-1, 1], abs=1e-5)
    close(norm(torch.zeros(2) + x), norm(x))


def test_bridges_cost_their_norms_alone():
    """Check 3: 18,432 parameters at base, 3,072 of them the first level's."""
    fusion = BridgedEncoder(CrossEncoderConfig(width=8, layers=6, heads=2), 8, 8)
    norms = sum(p.numel() for part in (fusion.text_norms, fusion.image_norms) for p in part.parameters())
    assert norms * 768 // 8 == 18_432
    assert (
        sum(p.numel() for part in (fusion.text_norms[0], fusion.image_norms[0]) for p in part.parameters()) * 96 == 3072
    )


@torch.no_grad()
def test_streams_are_updated_side_by_side():
    """Check 4: the first image layer changes the text stream after the second level alone."""
    fusion = BridgedEncoder(CrossEncoderConfig(width=8, layers=2, heads=2), 8, 8)
    images, texts = [torch.randn(2, 5, 8) for _ in range(2)], [torch.randn(2, 4, 8) for _ in range(2)]
    seen: list[Tensor] = []
    fusion.text_layers[0].register_forward_hook(lambda module, given, out: seen.append(out))
    before = fusion(images, texts, None)[0]
    for parameter in fusion.image_layers[0].parameters():
        parameter.add_(torch.randn_like(parameter))
    after = fusion(images, texts, None)[0]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(before, after)


@pytest.mark.parametrize("bridges", [True, False])
def test_a_bridge_is_a_short_cut_for_the_gradient(bridges):
    """Check 5: with layer N - L + 2 cut off, layer N - L + 1 still learns with bridges, and not without (METER)."""
    fusion = BridgedEncoder(CrossEncoderConfig(width=8, layers=2, heads=2), 8, 8, bridges)
    lower = torch.randn(2, 5, 8, requires_grad=True)
    texts = [torch.randn(2, 4, 8) for _ in range(2)]
    fusion([lower, lower.detach() * 2], texts, None)[0].pow(2).sum().backward()
    assert (lower.grad is not None and bool(lower.grad.abs().sum() > 0)) == bridges


def test_one_norm_serves_all_levels():
    """Check 6: without W_V no level teaches it."""
    system, (images, texts) = BridgeTower(CONFIG, dataclasses.replace(VOCABULARY, size=100)), inputs()

    def taught() -> float:
        logits = system.match_logits(system.encode_images(images), system.encode_texts(texts))
        return float(gradients(logits[:, 0].sum(), system)["encoders.image.stack.norm.weight"].abs().sum())

    assert taught() > 0
    with torch.no_grad():
        system.fusion.image_transform.weight.zero_()
    assert taught() == 0


@torch.no_grad()
def test_two_pictures_have_halves_of_their_own():
    """Check 7."""
    system, (images, texts) = BridgeTower(CONFIG, dataclasses.replace(VOCABULARY, size=100)).eval(), inputs()
    head = system.adapt("two_pictures", pictures=2)
    head.begin(system)
    assert torch.equal(system.fusion.types.weight[2], system.fusion.types.weight[1])
    a, b = system.encode_images(images), system.encode_images(Images(images.pixels.flip(0)))
    words = system.encode_texts(texts)
    one, other = system.fuse([a, b], words).pooled, system.fuse([b, a], words).pooled
    close(one[:, :128], other[:, 128:])
    close(one[:, 128:], other[:, :128])
    assert head.eval()(one).shape == (6, 2)
    assert system.adapt("vqa", 3129)(one[:, :128]).shape == (6, 3129)


@torch.no_grad()
def test_the_ranking_head_starts_as_the_logit_of_a_match():
    system, (images, texts) = BridgeTower(CONFIG, dataclasses.replace(VOCABULARY, size=100)).eval(), inputs()
    encoded = system.encode_images(images), system.encode_texts(texts)
    head = system.adapt("ranking")
    head.begin(system)
    close(head(system.fuse([encoded[0]], encoded[1]).pooled)[:, 0], system.match_logits(*encoded)[:, 1])


@pytest.mark.parametrize("rows", [None, [0, 1, 4, 5, 3]])
def test_half_of_the_pairs_are_right(rows):
    """Check 9: exactly floor(B / 2) ones, and a wrong picture is another picture."""
    system, batch = build("bridgetower", contrast=False), example(rows)
    pairs = half_pairs(batch.same_here(), PROGRESS.uniform(batch, 2, "wrong picture"))
    assert int((pairs.labels == 1).sum()) == len(batch) // 2
    assert pairs.texts.tolist() == list(range(len(batch)))
    for row, (picture, label) in enumerate(zip(pairs.images.tolist(), pairs.labels.tolist(), strict=True)):
        assert (picture == row) == (label == 1)
        if label == 0:
            assert batch.image_id[row] != batch.image_id[picture]
            assert batch.text_id[row] != batch.text_id[picture]
    assert set(system(batch, PROGRESS).terms) == {"masked_words", "matching"}
    assert set(build("bridgetower")(batch, PROGRESS).terms) == {"masked_words", "matching", "contrast"}


def test_every_right_pair_is_a_target_of_the_contrast(monkeypatch):
    """Check 9: a row's targets sum to 1, and rows of one picture have the same."""
    seen = watched(monkeypatch, objective, "soft_cross_entropy")
    build("bridgetower")(example(), PROGRESS)
    assert len(seen) == 2
    for (_, targets), _ in seen:
        assert targets.sum(1).tolist() == pytest.approx([1] * 6)
        assert torch.equal(targets[0], targets[2])
        assert targets[0].tolist() == [0.5, 0, 0.5, 0, 0, 0]


@torch.no_grad()
def test_padding_changes_nothing():
    """Check 11."""
    system, (images, texts) = BridgeTower(CONFIG, dataclasses.replace(VOCABULARY, size=100)).eval(), inputs()
    other = dataclasses.replace(texts, ids=torch.where(texts.mask, texts.ids, 37))
    encoded = system.encode_images(images)
    a, b = (system.fused(encoded, system.encode_texts(x)) for x in (texts, other))
    close(a[0][texts.mask], b[0][texts.mask])
    close(a[1], b[1])


@torch.no_grad()
def test_a_tower_without_class_token_is_pooled_as_it_pools():
    """Not by its first patch: the order of the patches' last states is nothing to the match."""
    system = build("bridgetower", image=dataclasses.replace(build("bridgetower").config.image, pool="max")).eval()
    images, texts = system.encode_images(example().images), system.encode_texts(example().texts)
    words, patches = system.fused(images, texts)
    assert patches.shape[1] == 16
    width = words.shape[2]
    close(system.pooled(words, patches.flip(1))[:, width:], system.pooled(words, patches)[:, width:])
    close(system.pooled(words, patches)[:, width:], system.image_pooler(patches.amax(1)).tanh())
