"""Files of the papers' own code, put together from transformers' parts: what is imported gives what the parts give."""

import pytest
import torch
import torch.nn.functional as F

import tuwen
from tests.exchange.checkpoints import IDS, TEXT, VISION, randomised, write_pictures, write_tokenizer
from tuwen.data.batch import Images, Texts
from tuwen.errors import UserError
from tuwen.exchange.importing import import_model
from tuwen.nn.published.files import tensors_of

t = pytest.importorskip("transformers")

REAL = IDS != 0
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ONE = {"num_attention_heads": 1}  # such files do not tell their heads, which are of width 64: here one


def image(kind: str, eps: float):
    config, model = {"vit": (t.ViTConfig, t.ViTModel), "clip": (t.CLIPVisionConfig, t.CLIPVisionModel)}[kind]
    return randomised(model(config(**VISION | ONE, layer_norm_eps=eps)))


def words():
    return randomised(t.BertModel(t.BertConfig(**TEXT | ONE), add_pooling_layer=False))


def crossed(memory: int):
    """Two layers with cross-attention over states of a width: transformers has them in BLIP's text encoder alone."""
    from transformers.models.blip.modeling_blip_text import BlipTextEncoder

    config = t.BlipTextConfig(**TEXT | ONE | {"num_hidden_layers": 2}, encoder_hidden_size=memory, is_decoder=True)
    config._attn_implementation = "eager"
    return randomised(BlipTextEncoder(config))


def joint(layers, states, mask, memory, memory_mask):
    """Row by row with padding cut off: transformers 5.23 forgets the memory's mask in these layers."""
    out = torch.zeros_like(states)
    for row, (own, other) in enumerate(zip(mask, memory_mask, strict=True)):
        one = layers(states[row : row + 1, own], None, memory[row : row + 1, other])
        out[row, own] = one.last_hidden_state[0]
    return out


def published(model, folder) -> dict[str, torch.Tensor]:
    """The weights by the names in files, which are not those in memory."""
    model.save_pretrained(folder)
    return tensors_of(folder)


def linear(out: int, into: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"weight": torch.randn(out, into, generator=generator), "bias": torch.randn(out, generator=generator)}


def named(stem: str, values) -> dict[str, torch.Tensor]:
    return {f"{stem}{name}": value for name, value in values.items()}


def written(folder, held) -> str:
    """A .pth as the papers leave it: the weights under "model"."""
    folder.mkdir()
    torch.save({"model": {name: value.clone() for name, value in held.items()}, "epoch": 3}, folder / "model.pth")
    write_tokenizer(folder)
    write_pictures(folder)
    return str(folder / "model.pth")


def encoded(run):
    system = tuwen.load(run).system
    texts = Texts(IDS, REAL, torch.zeros(3, dtype=torch.int64))
    return system, system.encode_images(Images(PIXELS)), system.encode_texts(texts)


def timm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' ViT by timm's names."""
    names = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
    out = {"cls_token": state["embeddings.cls_token"], "pos_embed": state["embeddings.position_embeddings"]}
    for k in range(VISION["num_hidden_layers"]):
        theirs = f"encoder.layer.{k}"
        parts = ("query", "key", "value")
        for kind in ("weight", "bias"):
            joined = [state[f"{theirs}.attention.attention.{part}.{kind}"] for part in parts]
            out[f"blocks.{k}.attn.qkv.{kind}"] = torch.cat(joined)
        inner = {"attn.proj": "attention.output.dense", "norm1": "layernorm_before", "norm2": "layernorm_after"}
        inner |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
        names |= {f"blocks.{k}.{mine}": f"{theirs}.{other}" for mine, other in inner.items()}
    return out | {f"{m}.{kind}": state[f"{o}.{kind}"] for m, o in names.items() for kind in ("weight", "bias")}


@torch.no_grad()
def test_albefs_file(tmp_path):
    seen, read, fusion = image("vit", 1e-6), words(), crossed(24)
    heads = {"vision_proj": linear(12, 24, 0), "text_proj": linear(12, 16, 1), "itm_head": linear(2, 16, 2)}
    layers = TEXT["num_hidden_layers"]
    upper = {f"{int(name[6]) + layers}{name[7:]}": value for name, value in fusion.state_dict().items()}
    held = named("visual_encoder.", timm(published(seen, tmp_path / "vit")))
    held |= named("text_encoder.bert.", published(read, tmp_path / "bert")) | named(
        "text_encoder.bert.encoder.layer.", upper
    )
    for name, values in heads.items():
        held |= named(f"{name}.", values)
    held |= {"temp": torch.tensor(0.05), "queue_ptr": torch.zeros(1), "image_queue": torch.zeros(12, 8)}
    held["visual_encoder_m.cls_token"] = torch.zeros(1, 1, 24)
    report = import_model(written(tmp_path / "theirs", held), tmp_path / "run", "albef")
    assert set(report.unexpected) == {"queue_ptr", "image_queue", "visual_encoder_m.cls_token"}
    assert all(report.unexpected.values()), "each with its reason"

    system, images, texts = encoded(tmp_path / "run")
    patches = seen(pixel_values=PIXELS).last_hidden_state
    states = read(input_ids=IDS, attention_mask=REAL.long()).last_hidden_state
    fused = joint(fusion, states, REAL, patches, torch.ones(patches.shape[:2], dtype=torch.bool))
    for name, mine, other in (("vision_proj", images, patches), ("text_proj", texts, states)):
        want = F.normalize(F.linear(other[:, 0], *heads[name].values()), dim=-1)
        torch.testing.assert_close(mine.pooled, want, **CLOSE)
    torch.testing.assert_close(system.match_logits(images, texts), F.linear(fused[:, 0], *heads["itm_head"].values()))
    assert float(system.temperature) == pytest.approx(0.05)

    del held["itm_head.bias"]
    with pytest.raises(UserError, match=r"lacks match_head\.bias \(from itm_head\.bias\)"):
        import_model(written(tmp_path / "less", held), tmp_path / "run2", "albef")


@torch.no_grad()
def test_r2d2s_file(tmp_path):
    seen, read, by_text, by_image = image("clip", 1e-5), words(), crossed(24), crossed(16)
    heads = {"vision_proj": linear(12, 24, 0), "text_proj": linear(12, 16, 1), "img_joint_proj": linear(16, 24, 2)}
    heads |= {"itm_head": linear(2, 16, 3), "itm_head_i": linear(2, 16, 4)}
    state = {name.removeprefix("vision_model."): value for name, value in published(seen, tmp_path / "clip").items()}
    held = named("visual_encoder.", {name: v for name, v in state.items() if not name.startswith("post_layernorm")})
    held |= named("text_encoder.", published(read, tmp_path / "bert")) | {"temp": torch.tensor(0.06)}
    held |= named("text_joint_layer.encoder.", by_text.state_dict())
    held |= named("img_joint_layer.encoder.", by_image.state_dict())
    for name, values in heads.items():
        held |= named(f"{name}.", values)
    report = import_model(written(tmp_path / "theirs", held), tmp_path / "run", "r2d2")
    assert all(report.unexpected.values()), report.unexpected

    system, images, texts = encoded(tmp_path / "run")
    patches = seen(pixel_values=PIXELS).last_hidden_state  # before the last norm
    states = read(input_ids=IDS, attention_mask=REAL.long()).last_hidden_state
    every = torch.ones(patches.shape[:2], dtype=torch.bool)
    text_first = joint(by_text, states, REAL, patches, every)[:, 0]
    image_first = joint(by_image, F.linear(patches, *heads["img_joint_proj"].values()), every, states, REAL)[:, 0]
    for name, mine, other in (("vision_proj", images, patches), ("text_proj", texts, states)):
        want = F.normalize(F.linear(other[:, 0], *heads[name].values()), dim=-1)
        torch.testing.assert_close(mine.pooled, want, **CLOSE)
    pairs = (("itm_head", text_first), ("itm_head_i", image_first))
    logits = [F.linear(first, *heads[name].values()) for name, first in pairs]
    want = torch.stack([two[:, 1] - two[:, 0] for two in logits], 1)
    torch.testing.assert_close(system.match(images, texts), want, **CLOSE)
