"""Vectors without states: the shortened last block against the whole tower, forward and gradient."""

import pytest
import torch

from tuwen.data.text import Vocabulary
from tuwen.nn.initial import initialise
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig
from tuwen.nn.towers import DualEncoder

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
        images, texts = towers.encode_images(pixels, states), towers.encode_texts(ids, mask, states)
        assert bool(images.states) == bool(texts.states) == states
        loss = ((images.pooled + 2 * texts.pooled) * direction).sum()
        found.append((images.pooled, texts.pooled, torch.autograd.grad(loss, list(towers.parameters()))))
    (whole_images, whole_texts, whole), (images, texts, alone) = found
    torch.testing.assert_close(images, whole_images, rtol=0, atol=1e-12)
    torch.testing.assert_close(texts, whole_texts, rtol=0, atol=1e-12)
    for a, b in zip(alone, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
