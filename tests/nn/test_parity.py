"""The towers against the models of `transformers` they are shaped after, tiny and random, weights copied by name."""

import pytest
import torch
from torch import Tensor

from tests.nn.test_attention import numbers
from tuwen.data.text import Vocabulary
from tuwen.nn.fusion import CrossEncoder, WordHead
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig
from tuwen.nn.towers import CLIP_MEAN, CLIP_STD, ImageTower, TextTower

transformers = pytest.importorskip("transformers")

VOCABULARY = Vocabulary(size=50, pad=0, unknown=1, cls=2, sep=3, mask=4)
IDS = torch.tensor([[2, 17, 9, 30, 3, 0, 0], [2, 8, 8, 41, 22, 11, 3], [2, 3, 0, 0, 0, 0, 0]])
REAL = IDS != 0


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Every weight away from its default, so that a swapped name or a forgotten bias shows."""
    with torch.no_grad():
        for k, parameter in enumerate(model.parameters()):
            parameter.copy_(0.2 * numbers(*parameter.shape, seed=k) + (parameter == 1))
    return model.eval()


def packed(theirs: dict[str, Tensor], stem: str, names: tuple[str, ...]) -> dict[str, Tensor]:
    return {kind: torch.cat([theirs[f"{stem}{name}.{kind}"] for name in names]) for kind in ("weight", "bias")}


def load(module: torch.nn.Module, weights: dict[str, Tensor]) -> torch.nn.Module:
    buffers = {name for name, _ in module.named_buffers()}
    missing, unexpected = module.load_state_dict(weights, strict=False)
    assert set(missing) <= buffers
    assert unexpected == []
    return module.eval()


def renamed(theirs: dict[str, Tensor], old: str, new: str, pairs: dict[str, str]) -> dict[str, Tensor]:
    return {f"{new}{b}.{kind}": theirs[f"{old}{a}.{kind}"] for a, b in pairs.items() for kind in ("weight", "bias")}


def bert_layer(theirs: dict[str, Tensor], old: str, new: str, cross: bool) -> dict[str, Tensor]:
    self_names = ("attention.self.query", "attention.self.key", "attention.self.value")
    parts = {f"{new}attention.query_key_value.{k}": v for k, v in packed(theirs, old, self_names).items()}
    parts |= renamed(
        theirs,
        old,
        new,
        {
            "attention.output.dense": "attention.out",
            "attention.output.LayerNorm": "attention_norm",
            "intermediate.dense": "feed_forward.0",
            "output.dense": "feed_forward.2",
            "output.LayerNorm": "feed_forward_norm",
        },
    )
    if cross:
        names = ("crossattention.self.key", "crossattention.self.value")
        parts |= {f"{new}cross.key_value.{k}": v for k, v in packed(theirs, old, names).items()}
        pairs = {"self.query": "cross.query", "output.dense": "cross.out", "output.LayerNorm": "cross_norm"}
        parts |= renamed(theirs, f"{old}crossattention.", new, pairs)
    return parts


def clip_layer(theirs: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    parts = {f"{new}attention.query_key_value.{k}": v for k, v in packed(theirs, old, names).items()}
    pairs = {
        "self_attn.out_proj": "attention.out",
        "layer_norm1": "attention_norm",
        "mlp.fc1": "feed_forward.0",
        "mlp.fc2": "feed_forward.2",
        "layer_norm2": "feed_forward_norm",
    }
    return parts | renamed(theirs, old, new, pairs)


def bert_config(**more):
    return transformers.BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=96, **more
    )


def test_bert():
    model = randomised(transformers.BertModel(bert_config(max_position_embeddings=10), add_pooling_layer=False))
    theirs = model.state_dict()
    weights = {
        "words.weight": theirs["embeddings.word_embeddings.weight"],
        "positions": theirs["embeddings.position_embeddings.weight"]
        + theirs["embeddings.token_type_embeddings.weight"][0],
    } | renamed(theirs, "embeddings.", "", {"LayerNorm": "embedding_norm"})
    for layer in range(3):
        weights |= bert_layer(theirs, f"encoder.layer.{layer}.", f"stack.blocks.{layer}.", cross=False)
    config = TextTowerConfig(kind="bert", length=10, width=24, layers=3, heads=3, eps=1e-12)
    tower = load(TextTower(config, VOCABULARY), weights)
    want = model(input_ids=IDS, attention_mask=REAL.long()).last_hidden_state
    states = tower(IDS, REAL)
    torch.testing.assert_close(states[REAL], want[REAL], rtol=0, atol=1e-5)
    torch.testing.assert_close(tower.pool(states, REAL), want[:, 0], rtol=0, atol=1e-5)


def test_cross_encoder_is_berts_layers_with_cross_attention():
    config = bert_config(add_cross_attention=True, is_decoder=False)
    layers = randomised(transformers.models.bert.modeling_bert.BertEncoder(as_cross(config)))
    theirs = layers.state_dict()
    weights = {}
    for layer in range(3):
        weights |= bert_layer(theirs, f"layer.{layer}.", f"stack.blocks.{layer}.", cross=True)
    encoder = load(CrossEncoder(CrossEncoderConfig(width=24, layers=3, heads=3), memory_width=24), weights)
    x, memory = numbers(3, 7, 24).float(), numbers(3, 5, 24, seed=4).float()
    memory_real = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True, False, True, False, True]])
    want = layers(
        x,
        attention_mask=additive(REAL),
        encoder_hidden_states=memory,
        encoder_attention_mask=additive(memory_real),
    ).last_hidden_state
    got = encoder(x, REAL, memory, memory_real)
    torch.testing.assert_close(got[REAL], want[REAL], rtol=0, atol=1e-5)


def as_cross(config):
    """BERT only builds cross-attention in a decoder; the causal mask is ours to leave out."""
    config.is_decoder = True
    config._attn_implementation = "eager"
    return config


def additive(real: Tensor) -> Tensor:
    return torch.zeros(real.shape).masked_fill(~real, torch.finfo(torch.float32).min)[:, None, None, :]


def test_word_head_is_berts():
    model = randomised(transformers.BertForMaskedLM(bert_config(max_position_embeddings=10)))
    theirs = model.state_dict()
    stem = "cls.predictions."
    weights = {"bias": theirs[f"{stem}bias"]}
    pairs = {"transform.dense": "dense", "transform.LayerNorm": "norm"}
    head = load(WordHead(24, 50), weights | renamed(theirs, stem, "", pairs))
    states = model.bert(input_ids=IDS, attention_mask=REAL.long()).last_hidden_state
    want = model(input_ids=IDS, attention_mask=REAL.long()).logits
    got = head(states[REAL], theirs["bert.embeddings.word_embeddings.weight"])
    torch.testing.assert_close(got, want[REAL], rtol=0, atol=1e-5)


def test_clip_text_model():
    config = transformers.CLIPTextConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=8,
        hidden_act="quick_gelu",
        eos_token_id=49,
        bos_token_id=48,
        pad_token_id=0,
    )
    model = randomised(transformers.CLIPTextModel(config))
    theirs = {name.removeprefix("text_model."): value for name, value in model.state_dict().items()}
    weights = {
        "words.weight": theirs["embeddings.token_embedding.weight"],
        "positions": theirs["embeddings.position_embedding.weight"],
    } | renamed(theirs, "", "stack.", {"final_layer_norm": "norm"})
    for layer in range(2):
        weights |= clip_layer(theirs, f"encoder.layers.{layer}.", f"stack.blocks.{layer}.")
    ours = TextTowerConfig("clip", length=8, width=24, layers=2, heads=3, activation="quick_gelu", eps=1e-5)
    tower = load(TextTower(ours, VOCABULARY), weights)
    ids = torch.tensor([[48, 7, 9, 49, 0, 0], [48, 5, 6, 8, 20, 49], [48, 49, 0, 0, 0, 0]])
    real = torch.tensor([[True] * 4 + [False] * 2, [True] * 6, [True] * 2 + [False] * 4])
    want = model(input_ids=ids, attention_mask=real.long())
    states = tower(ids, real)
    torch.testing.assert_close(states[real], want.last_hidden_state[real], rtol=0, atol=1e-5)
    torch.testing.assert_close(tower.pool(states, real), want.pooler_output, rtol=0, atol=1e-5)


def clip_vision():
    config = transformers.CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=32,
        patch_size=8,
        hidden_act="quick_gelu",
    )
    model = randomised(transformers.CLIPVisionModel(config))
    theirs = {name.removeprefix("vision_model."): value for name, value in model.state_dict().items()}
    return model, theirs


def clip_tower(theirs: dict[str, Tensor], final_norm: bool) -> ImageTower:
    weights = {
        "class_token": theirs["embeddings.class_embedding"],
        "positions": theirs["embeddings.position_embedding.weight"],
        "patches.weight": theirs["embeddings.patch_embedding.weight"],
        "patches.bias": torch.zeros(24),
    } | renamed(theirs, "", "", {"pre_layrnorm": "pre_norm"})
    if final_norm:
        weights |= renamed(theirs, "", "stack.", {"post_layernorm": "norm"})
    for layer in range(2):
        weights |= clip_layer(theirs, f"encoder.layers.{layer}.", f"stack.blocks.{layer}.")
    config = ImageTowerConfig(
        side=32,
        patch=8,
        width=24,
        layers=2,
        heads=3,
        activation="quick_gelu",
        pre_norm=True,
        eps=1e-5,
        final_norm=final_norm,
    )
    return load(ImageTower(config), weights)


def test_clip_vision_model():
    model, theirs = clip_vision()
    pixels = numbers(2, 3, 32, 32).float()
    want = model(pixel_values=pixels)
    tower = clip_tower(theirs, final_norm=True)
    torch.testing.assert_close(tower.pool(tower(pixels)), want.pooler_output, rtol=0, atol=1e-5)
    raw = clip_tower(theirs, final_norm=False)  # what R2D2 feeds its cross encoders: CLIP's states without the norm
    torch.testing.assert_close(raw(pixels), want.last_hidden_state, rtol=0, atol=1e-5)


def vit():
    config = transformers.ViTConfig(
        hidden_size=24,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-6,
    )
    model = randomised(transformers.ViTModel(config, add_pooling_layer=False))
    theirs = model.state_dict()
    weights = {
        "class_token": theirs["embeddings.cls_token"][0, 0],
        "positions": theirs["embeddings.position_embeddings"][0],
    } | renamed(theirs, "", "", {"embeddings.patch_embeddings.projection": "patches", "layernorm": "stack.norm"})
    for layer in range(2):
        weights |= vit_layer(theirs, f"layers.{layer}.", f"stack.blocks.{layer}.")
    tower = load(ImageTower(ImageTowerConfig(side=32, patch=8, width=24, layers=2, heads=3)), weights)
    return model, tower


def vit_layer(theirs: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    names = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
    parts = {f"{new}attention.query_key_value.{k}": v for k, v in packed(theirs, old, names).items()}
    pairs = {
        "attention.o_proj": "attention.out",
        "layernorm_before": "attention_norm",
        "mlp.fc1": "feed_forward.0",
        "mlp.fc2": "feed_forward.2",
        "layernorm_after": "feed_forward_norm",
    }
    return parts | renamed(theirs, old, new, pairs)


def test_vit():
    model, tower = vit()
    pixels = numbers(2, 3, 32, 32).float()
    want = model(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(tower(pixels), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(48, 48), (16, 40), (32, 32)])
def test_positions_are_interpolated_as_vit_does(size):
    model, tower = vit()
    pixels = numbers(2, 3, *size).float()
    want = model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(tower(pixels), want, rtol=0, atol=1e-4 if size != (32, 32) else 1e-5)


def test_positions_at_their_own_grid_are_themselves():
    _, tower = vit()
    assert tower._positions((4, 4)) is tower.positions
    other = tower._positions((6, 3))
    torch.testing.assert_close(other[0], tower.positions[0])
    constant = torch.nn.Parameter(torch.full_like(tower.positions, 0.25))
    tower.positions = constant
    torch.testing.assert_close(tower._positions((7, 5)), torch.full((36, 24), 0.25))


def test_bytes_are_normalised_as_clip_does():
    _, tower = vit()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    assert [round(x, 4) for x in (*CLIP_MEAN, *CLIP_STD)] == [0.4815, 0.4578, 0.4082, 0.2686, 0.2613, 0.2758]
    by_hand = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(tower(pixels), tower(by_hand), rtol=0, atol=1e-6)


def test_mean_pooling_has_no_class_token():
    tower = ImageTower(ImageTowerConfig(side=16, patch=8, width=8, layers=1, heads=2, pool="mean"))
    tokens = tower(numbers(1, 3, 16, 16).float())
    torch.testing.assert_close(tower.pool(tokens)[0], sum(tokens[0]) / 4)
