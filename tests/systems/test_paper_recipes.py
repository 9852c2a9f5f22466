"""What the recipes of papers resolve to, where they say that it is the paper's."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.systems.common import VOCABULARY
from tuwen import cli, systems
from tuwen.cli.train import config_of
from tuwen.config import read_yaml
from tuwen.nn.transformer import Attention
from tuwen.training.config import RunConfig

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def resolved(name: str, recipe: str):
    words = f"train {name} --corpus scenes --out x --config {RECIPES / recipe}"
    return config_of(cli.parser().parse_args(words.split()))


@pytest.mark.parametrize("name", ["albef", "r2d2", "simla", "grit_vlp"])
def test_text_tower_and_cross_encoders_drop_a_tenth_and_the_picture_nothing(name):
    """BERT's dropout of the official codes, in attention too; their ViT has none, and the teacher runs without."""
    config = resolved(name, f"{name}_paper.yaml").model
    with torch.device("meta"):
        system = systems.find(name)(config, VOCABULARY)
    system.train()
    shares: dict[str, set[float]] = {}
    for path, module in system.named_modules():
        part = "picture" if ".image" in path else "teacher" if path.startswith("teacher") else "text and fusion"
        if isinstance(module, nn.Dropout) and not path.endswith("_dropout"):
            shares.setdefault(part, set()).add(module.p if module.training else 0.0)
        elif isinstance(module, Attention):
            shares.setdefault(part, set()).add(module.dropout if module.training else 0.0)
    teacher = {} if name == "grit_vlp" else {"teacher": {0.0}}
    assert shares == {"picture": {0.0}, "text and fusion": {0.1}} | teacher


def test_albef_has_the_published_momentum_and_queue():
    config = resolved("albef", "albef_paper.yaml").model
    assert (config.momentum, config.momentum_rises, config.queue, config.queue_share) == (0.995, False, 65536, 1.0)
    assert (config.embed, config.image.side, config.text.layers, config.text.length) == (256, 256, 6, 25)


def test_r2d2_has_the_released_picture_tower():
    """CLIP's: no bias of the patches, a norm before the blocks, none after them."""
    config = resolved("r2d2", "r2d2_paper.yaml").model
    tower = config.image
    assert (tower.patch_bias, tower.pre_norm, tower.final_norm, tower.activation) == (False, True, False, "quick_gelu")
    assert config.embed == 768


def test_grit_vlp_groups_whole_batches_and_takes_the_hardest():
    config = resolved("grit_vlp", "grit_vlp_paper.yaml")
    assert (config.train.order, config.train.group_search, config.train.group_queue) == ("grouped", 2048, 51200)
    assert (config.model.hardness, config.model.mask_share, config.model.consistency) == (1.0, 0.5, 0.2)


def test_simla_has_one_bert_of_twelve_layers_and_dall_e_s_codes():
    config = resolved("simla", "simla_paper.yaml").model
    assert (config.text.layers, config.codes.vocabulary, config.votes, config.keywords) == (12, 8192, 4, 5)
    assert (config.momentum, config.momentum_rises, config.queue, config.queue_share) == (0.995, False, 65536, 1.0)


@pytest.mark.parametrize(
    ("name", "recipe", "decays", "warmup_from", "strength"),
    [
        ("albef", "albef_paper.yaml", "matrices", 1e-5, 7),
        ("grit_vlp", "grit_vlp_paper.yaml", "matrices", 1e-5, 7),
        ("r2d2", "r2d2_paper.yaml", "all", 0.0, 5),
        ("r2d2", "finetune.yaml", "all", 1e-6, 5),
    ],
)
def test_decay_warm_up_and_augmentation_are_the_codes(name, recipe, decays, warmup_from, strength):
    """Cards, section 5: positions and words decay, the rate rises from 1e-5, pictures are mirrored."""
    changes = read_yaml(RECIPES / recipe)
    config = RunConfig.of(name, changes.pop("size", "base"), "scenes", changes=changes)
    assert (config.train.decays, config.train.warmup_from) == (decays, warmup_from)
    assert (config.data.augment, config.data.strength, config.data.flip) == ("crop+randaugment", strength, True)
