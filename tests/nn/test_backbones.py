"""Backbones from elsewhere, in training."""

from dataclasses import replace

import pytest
import torch
from torch import nn

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
