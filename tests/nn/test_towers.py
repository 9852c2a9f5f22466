"""Vectors without states: the shortened last block against the whole tower; visible patches against each picture's
subset encoded by hand; forward and gradient."""

import pytest
import torch

from tuwen.data.batch import Images
from tuwen.data.text import Vocabulary
from tuwen.errors import UserError
from tuwen.nn.initial import initialise
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig
from tuwen.nn.towers import DualEncoder, ImageTower, unit

WORDS = Vocabulary(30, pad=0, unknown=1, cls=2, sep=3, mask=4)


def encoders(pool: str, kind: str) -> DualEncoder:
    image = ImageTowerConfig(side=16, patch=8, width=12, layers=2, heads=2, pool=pool)
    text = TextTowerConfig(kind, length=8, width=12, layers=2, heads=2)
    made = DualEncoder(image, text, 6, WORDS)
    initialise(made, 3)
    return made.double()


@pytest.mark.parametrize(("pool", "kind"), [("class", "bert"), ("class", "clip"), ("mean", "clip"), ("max", "bert")])
def test_vectors_without_states_are_those_with_states(pool, kind):
    towers = encoders(pool, kind)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=generator).double() / 255
    ids = torch.randint(5, 30, (3, 7), generator=generator)
    mask = torch.arange(7) < torch.tensor([7, 3, 5])[:, None]
    direction = torch.randn(3, 6, dtype=torch.float64, generator=generator)
    found = []
    for states in (True, False):
        images, texts = towers.encode_images(Images(pixels), states), towers.encode_texts(ids, mask, states)
        assert bool(images.states) == bool(texts.states) == states
        loss = ((images.pooled + 2 * texts.pooled) * direction).sum()
        found.append((images.pooled, texts.pooled, torch.autograd.grad(loss, list(towers.parameters()))))
    (whole_images, whole_texts, whole), (images, texts, alone) = found
    torch.testing.assert_close(images, whole_images, rtol=0, atol=1e-12)
    torch.testing.assert_close(texts, whole_texts, rtol=0, atol=1e-12)
    for a, b in zip(alone, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def by_hand(tower: ImageTower, picture: torch.Tensor, patches: list[int]) -> torch.Tensor:
    """[1, N, W]: tokens of one picture [3, H, W] whose listed patches alone are there, cut out one by one."""
    patch, across = tower.config.patch, picture.shape[2] // tower.config.patch
    x = []
    for number in range(tower.first):
        token = tower.class_token if number == 0 and tower.class_token is not None else tower.register_tokens[0]
        x.append(token + tower.positions[number])
    for number in patches:
        row, column = divmod(number, across)
        cut = picture[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        seen = (tower.patches.weight * ((cut - tower.mean) / tower.std)).flatten(1).sum(1)
        x.append(
            seen + (0 if tower.patches.bias is None else tower.patches.bias) + tower.positions[tower.first + number]
        )
    return tower.stack(tower.pre_norm(torch.stack(x))[None])


@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        {"pool": "class"},
        {"pool": "class", "registers": 1, "pre_norm": True},
        {"pool": "mean", "patch_bias": False},
        {"pool": "map"},
    ],
    ids=str,
)
def test_visible_patches_are_each_pictures_own_subset(config, states):
    generator = torch.Generator().manual_seed(5)
    image = ImageTowerConfig(side=24, patch=8, width=12, layers=2, heads=2, **config)
    towers = DualEncoder(image, TextTowerConfig(length=8, width=12, layers=1, heads=2), 6, WORDS)
    initialise(towers, 3)
    towers = towers.double()
    with torch.no_grad():
        for parameter in towers.parameters():  # class token and registers too, which start at 0
            parameter += 0.2 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    pixels = torch.rand(3, 3, 24, 24, dtype=torch.float64, generator=generator)
    kept = torch.stack([torch.randperm(9, generator=generator)[:4] for _ in range(3)])
    encoded = towers.encode_images(Images((pixels - towers.image.mean) / towers.image.std), states, kept)
    tokens = [by_hand(towers.image, pixels[row], kept[row].tolist()) for row in range(3)]
    vectors = torch.cat([unit(towers.image_projection(towers.image.pooled(x))) for x in tokens])
    torch.testing.assert_close(encoded.pooled, vectors, rtol=0, atol=1e-12)
    ours, theirs = encoded.pooled.cos().sum(), vectors.cos().sum()
    if states:
        torch.testing.assert_close(encoded.states["last"], torch.cat(tokens), rtol=0, atol=1e-12)
        ours, theirs = ours + encoded.states["last"].sin().sum(), theirs + torch.cat(tokens).sin().sum()
    weights = dict(towers.image.named_parameters())
    pairs = zip(*(torch.autograd.grad(x, list(weights.values())) for x in (ours, theirs)), strict=True)
    for name, (a, b) in zip(weights, pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11, msg=name)


@pytest.mark.parametrize("pool", ["class", "mean", "max", "map"])
def test_all_patches_in_order_are_the_whole_picture(pool):
    generator = torch.Generator().manual_seed(5)
    tower = ImageTower(ImageTowerConfig(side=24, patch=8, width=12, layers=2, heads=2, pool=pool))
    initialise(tower, 3)
    pixels = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8, generator=generator)
    assert torch.equal(tower(pixels, kept=torch.arange(9).expand(2, -1)), tower(pixels))
    larger = torch.randint(0, 256, (2, 3, 40, 24), dtype=torch.uint8, generator=generator)  # positions interpolated
    assert torch.equal(tower(larger, kept=torch.arange(15).expand(2, -1)), tower(larger))
    assert not torch.equal(tower(pixels, kept=torch.arange(9).flip(0).expand(2, -1)), tower(pixels))


def test_tokens_from_disk_are_whole_pictures():
    tower = ImageTower(ImageTowerConfig(side=16, patch=8, width=12, layers=2, heads=2, locked=True))
    tokens = torch.randn(2, 5, 12)
    assert tower.tokens(Images(features=tokens)) is tokens
    pixels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    assert torch.equal(tower.tokens(Images(pixels, features=tokens)), tower(pixels))  # regions of somebody else's
    for asked in ({"kept": torch.zeros(2, 1, dtype=torch.int64)}, {"layers": []}):
        with pytest.raises(UserError, match=f"asks for {next(iter(asked))} too"):
            tower.tokens(Images(features=tokens), **asked)
