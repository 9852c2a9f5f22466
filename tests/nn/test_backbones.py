"""Backbones from elsewhere, in training."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tuwen.errors import UserError
from tuwen.nn.backbones import ImageBackbone
from tuwen.nn.sizes import SIZES

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("told", [False, True], ids=["fresh", "told to train"])
def test_batch_norms_keep_their_statistics_while_all_weights_are_trained(told):
    kind = transformers.EfficientNetConfig(image_size=32, width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320)
    config = replace(SIZES["tiny"].image, backbone=kind.to_dict(), width=320, side=32, patch=32)
    tower = ImageBackbone(config)
    if told:
        tower.train()
    assert tower.training
    norms = [module for module in tower.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    before = [norm.running_mean.clone() for norm in norms]
    tower(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
    assert all(parameter.grad is not None for parameter in tower.parameters())


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"kept": torch.tensor([[0]])}, "asks its image tower for some patches alone"),
        ({"layers": [], "hidden": (torch.ones(1, 1, 1, dtype=torch.bool), torch.zeros(4))}, "hidden patches and the"),
    ],
)
def test_what_a_backbone_cannot_give_is_refused_in_a_line(asked, words):
    kind = transformers.ViTConfig(image_size=8, patch_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
    tower = ImageBackbone(replace(SIZES["tiny"].image, backbone=kind.to_dict(), width=4, side=8, patch=8))
    with pytest.raises(UserError, match=words):
        tower(torch.randn(1, 3, 8, 8), **asked)
    assert torch.equal(tower(torch.zeros(1, 3, 8, 8), kept=None), tower(torch.zeros(1, 3, 8, 8)))
