"""Imported weights give what transformers gives, on padded batches; exported and imported again they are the same."""

import json

import pytest
import torch
import torch.nn.functional as F

import tuwen
from tests.exchange.checkpoints import IDS, ROBERTA, TEXT, VISION, randomised, saved, write_pictures
from tuwen.data.batch import Images, Texts
from tuwen.errors import UserError
from tuwen.exchange.exporting import export_model
from tuwen.exchange.importing import import_model
from tuwen.nn.published.files import tensors_of
from tuwen.nn.published.towers import image_weights, text_weights
from tuwen.nn.towers import image_tower, text_tower

t = pytest.importorskip("transformers")

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
REAL = torch.arange(8) < torch.tensor([5, 8, 2])[:, None]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def vtde():
    towers = t.ViTConfig(**VISION), t.BertConfig(**TEXT)
    return t.VisionTextDualEncoderConfig.from_vision_text_configs(*towers, projection_dim=12)


DUAL = {
    "clip": lambda: t.CLIPModel(t.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)),
    "chinese_clip": lambda: t.ChineseCLIPModel(
        t.ChineseCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
    ),
    "altclip": lambda: t.AltCLIPModel(
        t.AltCLIPConfig(text_config=ROBERTA | {"project_dim": 14}, vision_config=VISION, projection_dim=12)
    ),
    "siglip": lambda: t.SiglipModel(
        t.SiglipConfig(text_config=TEXT | {"projection_size": 24, "pad_token_id": 0}, vision_config=VISION)
    ),
    "vision-text-dual-encoder": lambda: t.VisionTextDualEncoderModel(vtde()),
}


def theirs(kind: str, model, ids, mask):
    """(picture, text) unit vectors as the model gives them; SigLIP's reads padding, so it gets all of its length."""
    if kind == "siglip":
        ids, mask = F.pad(ids, (0, 20 - ids.shape[1])), None
    out = model(input_ids=ids, pixel_values=PIXELS, attention_mask=None if mask is None else mask.long())
    return F.normalize(out.image_embeds, dim=-1), F.normalize(out.text_embeds, dim=-1)


@pytest.mark.parametrize("kind", DUAL)
@torch.no_grad()
def test_two_tower_models(kind, tmp_path):
    roberta = kind == "altclip"
    model = randomised(DUAL[kind]())
    source = saved(model, tmp_path / "theirs", roberta)
    ids = IDS.masked_fill(~REAL, 1) if roberta else IDS
    import_model(str(source), tmp_path / "run")
    ours = tuwen.load(tmp_path / "run").system
    pictures, texts = theirs(kind, model, ids, REAL)
    got = ours.encode_images(Images(PIXELS)).pooled
    torch.testing.assert_close(got, pictures, **CLOSE)
    language = torch.zeros(3, dtype=torch.int64)
    torch.testing.assert_close(ours.encode_texts(Texts(ids, REAL, language)).pooled, texts, **CLOSE)

    export_model(tmp_path / "run", tmp_path / "out")
    again = type(model).from_pretrained(tmp_path / "out").eval()
    for mine, other in zip(theirs(kind, again, ids, REAL), (pictures, texts), strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)
    import_model(str(tmp_path / "out"), tmp_path / "run2")
    first, second = (tensors_of(tmp_path / name / "weights.safetensors") for name in ("run", "run2"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "imported from" in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == kind


IMAGE = {
    "vit": lambda: t.ViTModel(t.ViTConfig(**VISION)),
    "deit": lambda: t.DeiTModel(t.DeiTConfig(**VISION)),
    "clip_vision": lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**VISION)),
    "swin": lambda: t.SwinModel(
        t.SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 2], num_heads=[2, 2], window_size=4)
    ),
    "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**VISION)),
    "convnext": lambda: t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 2, 1])),
    "efficientnet": lambda: t.EfficientNetModel(
        t.EfficientNetConfig(image_size=32, width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320)
    ),
}


@pytest.mark.parametrize("kind", IMAGE)
@torch.no_grad()
def test_image_towers(kind, tmp_path):
    model = randomised(IMAGE[kind]())
    folder = saved(model, tmp_path / "theirs")
    if kind == "convnext":
        write_pictures(folder, 224, crop_pct=0.875)
    found = image_weights(str(folder))
    tower = image_tower(found.config).eval()
    tower.load_state_dict(dict(found.tensors), strict=False)
    pixels = torch.randn(2, 3, found.config.side, found.config.side)
    want = model(pixel_values=pixels)
    states = want.last_hidden_state
    if states.dim() == 4:
        states = states.flatten(2).transpose(1, 2)
    tokens = tower(pixels)
    if kind == "clip_vision":  # theirs norms the pooled token alone, ours all
        torch.testing.assert_close(tower.pooled(tokens), want.pooler_output, **CLOSE)
    else:
        torch.testing.assert_close(tokens, states, **CLOSE)
    if kind not in ("vit", "deit", "clip_vision"):
        torch.testing.assert_close(tower.pooled(tokens), want.pooler_output.flatten(1), **CLOSE)


TEXTS = {
    "bert": (lambda: t.BertModel(t.BertConfig(**TEXT)), False),
    "roberta": (lambda: t.RobertaModel(t.RobertaConfig(**ROBERTA)), True),
    "xlm-roberta": (lambda: t.XLMRobertaModel(t.XLMRobertaConfig(**ROBERTA)), True),
    "electra": (lambda: t.ElectraModel(t.ElectraConfig(**TEXT, embedding_size=8)), False),
}


@pytest.mark.parametrize("kind", TEXTS)
@torch.no_grad()
def test_text_towers(kind, tmp_path):
    make, roberta = TEXTS[kind]
    model = randomised(make())
    found = text_weights(str(saved(model, tmp_path / "theirs", roberta)))
    tower = text_tower(found.config, found.tokenizer.vocabulary).eval()
    tower.load_state_dict(dict(found.tensors))
    ids = IDS.masked_fill(~REAL, found.tokenizer.vocabulary.pad)
    want = model(input_ids=ids, attention_mask=REAL.long()).last_hidden_state
    torch.testing.assert_close(tower(ids, REAL)[REAL], want[REAL], **CLOSE)


@torch.no_grad()
def test_blip_with_its_retrieval_head(tmp_path):
    vision = VISION | {"layer_norm_eps": 1e-5}
    config = t.BlipConfig(
        text_config=TEXT | {"encoder_hidden_size": 24}, vision_config=vision, image_text_hidden_size=12
    )
    model = randomised(t.BlipForImageTextRetrieval(config))
    report = import_model(str(saved(model, tmp_path / "theirs")), tmp_path / "run")
    assert all(report.unexpected.values())
    system = tuwen.load(tmp_path / "run").system
    images = system.encode_images(Images(PIXELS))
    texts = system.encode_texts(Texts(IDS, REAL, torch.zeros(3, dtype=torch.int64)))

    def theirs(model):
        asked = {"input_ids": IDS, "pixel_values": PIXELS, "attention_mask": REAL.long()}
        return model(**asked).itm_score, model(**asked, use_itm_head=False).itm_score

    match, cosine = theirs(model)
    torch.testing.assert_close(system.match_logits(images, texts), match, **CLOSE)
    torch.testing.assert_close(images.pooled @ texts.pooled.T, cosine, **CLOSE)
    assert match[:, 0].std() > 0.01, "the pictures must matter"
    assert export_model(tmp_path / "run", tmp_path / "out") == "BlipForImageTextRetrieval"
    again = t.BlipForImageTextRetrieval.from_pretrained(tmp_path / "out").eval()
    for mine, other in zip(theirs(again), (match, cosine), strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)
    import_model(str(tmp_path / "out"), tmp_path / "run2")
    first, second = (tensors_of(tmp_path / name / "weights.safetensors") for name in ("run", "run2"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_missing_or_of_another_shape_is_refused_and_what_is_left_over_is_told(tmp_path):
    from safetensors.torch import save_file

    folder = saved(randomised(DUAL["clip"]()), tmp_path / "theirs")
    held = tensors_of(folder)
    held["surprise.weight"] = torch.zeros(2)
    save_file(held, folder / "model.safetensors")
    report = import_model(str(folder), tmp_path / "run")
    assert report.unexpected == {"surprise.weight": ""}
    gone = held.pop("text_projection.weight")
    save_file(held, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks encoders\.text_projection\.weight \(from text_projection\.weight\)"):
        import_model(str(folder), tmp_path / "run2")
    save_file(held | {"text_projection.weight": gone[:5]}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"text_projection\.weight is \[5, 16\], not \[12, 16\]"):
        import_model(str(folder), tmp_path / "run2")
    assert not (tmp_path / "run2").exists()


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    folder = saved(DUAL["clip"](), tmp_path / "theirs")
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    import_model(str(folder), tmp_path / "run")

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"x": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="refused") as told:
        import_model(str(folder), tmp_path / "run2")
    assert not (tmp_path / "ran").exists()
    assert "GLOBAL io.open" in str(told.value), "what it would have run"
    assert str(told.value).isprintable()


def test_what_a_folder_is_not_is_told_first(tmp_path):
    folder = saved(IMAGE["vit"](), tmp_path / "vit")
    with pytest.raises(UserError, match="no system here is a 'vit'"):
        import_model(str(folder), tmp_path / "run")
    folder = saved(DUAL["clip"](), tmp_path / "clip")
    told = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"model_max_length": 5}))
    line = "texts are cut at the model's 20 tokens, not its tokenizer's 5"
    assert import_model(str(folder), tmp_path / "run").notes == (line,)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_attention_heads"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="a width of 16 does not divide by 3 heads"):
        import_model(str(folder), tmp_path / "run2")
    torch.save({"x": torch.zeros(2)}, folder / "x.pth")
    with pytest.raises(UserError, match="not the weights of albef"):
        import_model(str(folder / "x.pth"), tmp_path / "run2", "albef")


def test_values_of_another_type_and_numbers_that_are_none_are_one_line(tmp_path):
    from safetensors.torch import save_file

    folder = saved(DUAL["clip"](), tmp_path / "theirs")
    config = json.loads((folder / "config.json").read_text())
    for part, name in (("vision_config", "hidden_size"), ("text_config", "num_attention_heads")):
        broken = config | {part: config[part] | {name: "many"}}
        (folder / "config.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match=f"config.json: {name} is 'many', not a whole number"):
            import_model(str(folder), tmp_path / "run")
    (folder / "config.json").write_text(json.dumps(config))
    held = tensors_of(folder)
    held["visual_projection.weight"][0, 0] = float("nan")
    save_file(held, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"image_projection\.weight holds numbers that are not finite"):
        import_model(str(folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()
