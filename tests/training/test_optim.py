"""Learning rates by step, layer and pattern; who decays; averaging with the start."""

import math

import pytest
import torch
from torch import nn

from tests.training import toy
from tuwen.data.batch import Images
from tuwen.data.text import Vocabulary
from tuwen.errors import UserError
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig
from tuwen.nn.towers import DualEncoder
from tuwen.tasks.ranking import RetrievalHead
from tuwen.training import optim
from tuwen.training.config import TrainConfig, train_config

VOCABULARY = Vocabulary(size=20, pad=0, unknown=1, cls=2, sep=3, mask=4)


def dual() -> DualEncoder:
    image, text = ImageTowerConfig(8, 4, 8, layers=3, heads=2), TextTowerConfig(width=8, layers=2, heads=2, length=8)
    return DualEncoder(image, text, 4, VOCABULARY)


def test_the_schedule_by_hand():
    schedule = optim.Schedule(total=10, warmup=2, floor=0.2)
    trace = [schedule(step) for step in range(11)]
    half = [0.2 + 0.8 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(9)]
    assert trace == pytest.approx([0.5, 1.0, *half])
    assert trace[2:4] == pytest.approx([1.0, 0.96955181])
    assert trace[6] == pytest.approx(0.6)
    assert trace[10] == pytest.approx(0.2)
    raised = optim.Schedule(total=10, warmup=4, floor=0.2, start=0.1)
    assert [raised(step) for step in range(5)] == pytest.approx([0.325, 0.55, 0.775, 1.0, 1.0])


def test_the_schedule_of_a_config():
    made = optim.schedule(TrainConfig(lr=1e-3, min_lr=1e-4, warmup=0.1), total=50)
    assert (made.total, made.warmup, made.floor) == (50, 5, pytest.approx(0.1))
    assert optim.Schedule(1, 0)(0) == 1.0
    made = optim.schedule(TrainConfig(lr=1e-3, warmup_from=1e-4, warmup=0.1), total=20)
    assert 1e-3 * made(0) == pytest.approx((1e-4 + 1e-3) / 2)
    with pytest.raises(ValueError, match=r"warmup_from 0\.01 is above lr"):
        TrainConfig(lr=1e-3, warmup_from=0.01)


def test_who_decays():
    optimizer = optim.build_optimizer(dual(), TrainConfig(weight_decay=0.3))
    decayed = {n for group in optimizer.param_groups if group["weight_decay"] for n in group["names"]}
    plain = {n for group in optimizer.param_groups if not group["weight_decay"] for n in group["names"]}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.3}
    assert {"image.patches.weight", "image_projection.weight"} <= decayed
    assert {"text.words.weight", "text.positions", "image.positions", "image.class_token"} <= plain
    assert all(name.endswith("weight") for name in decayed)
    assert not any("norm" in name or "bias" in name for name in decayed)
    assert len(decayed) + len(plain) == len(list(dual().parameters()))


def test_embeddings_and_norms_decay_where_the_paper_s_do():
    names = {name for name, _ in dual().named_parameters()}
    places = {"text.words.weight", "text.positions", "image.positions", "image.class_token"}
    decayed = {}
    for decays in ("maps", "matrices", "all"):
        optimizer = optim.build_optimizer(dual(), TrainConfig(weight_decay=0.3, decays=decays))
        decayed[decays] = {n for group in optimizer.param_groups if group["weight_decay"] for n in group["names"]}
    assert decayed["matrices"] - decayed["maps"] >= places
    assert not {n for n in decayed["matrices"] if "norm" in n or "bias" in n}
    assert decayed["all"] == names


def test_layers_further_down_learn_slower():
    factors = optim.factors(dual(), TrainConfig(layer_decay=0.5))
    assert factors["image_projection.weight"] == 1
    assert factors["image.stack.norm.weight"] == 1
    by_layer = {k: {v for n, v in factors.items() if n.startswith(f"image.stack.blocks.{k}.")} for k in range(3)}
    assert by_layer == {2: {0.5}, 1: {0.25}, 0: {0.125}}
    for name in ("image.patches.weight", "image.class_token", "image.positions"):
        assert factors[name] == 0.0625
    assert {v for n, v in factors.items() if n.startswith("text.stack.blocks.0.")} == {0.25}
    for name in ("text.words.weight", "text.positions", "text.embedding_norm.weight"):
        assert factors[name] == 0.125


def test_patterns_freeze_and_scale_and_the_first_wins():
    system = dual()
    rates = ((r"image\.stack\.blocks\.[01]\.", 0.0), (r"image\.", 0.1))
    optimizer = optim.build_optimizer(system, TrainConfig(rates=rates))
    frozen = {name for name, parameter in system.named_parameters() if not parameter.requires_grad}
    expected = {
        n for n, _ in system.named_parameters() if n.startswith(("image.stack.blocks.0", "image.stack.blocks.1"))
    }
    assert frozen == expected
    factor = {name: group["factor"] for group in optimizer.param_groups for name in group["names"]}
    assert factor["image.positions"] == 0.1
    assert factor["image_projection.weight"] == 1.0, "a pattern is matched from the start, and the dot is asked for"
    assert not frozen & set(factor)
    optim.set_rate(optimizer, 2e-3)
    assert {g["factor"]: g["lr"] for g in optimizer.param_groups} == {
        0.1: pytest.approx(2e-4),
        1.0: pytest.approx(2e-3),
    }


def test_what_is_frozen_does_not_move_and_takes_no_gradient():
    system = dual()
    optimizer = optim.build_optimizer(system, TrainConfig(rates=(("image", 0.0),), lr=0.1))
    before = system.image.patches.weight.clone()
    loss = system.encode_images(Images(torch.rand(2, 3, 8, 8))).pooled.sum()
    loss = loss + system.encode_texts(torch.ones(2, 4).long(), torch.ones(2, 4).bool()).pooled.pow(3).sum()
    loss.backward()
    optimizer.step()
    assert system.image.patches.weight.grad is None
    assert torch.equal(before, system.image.patches.weight)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ((("imgae", 0.0),), "'imgae' matches no parameter; there are image"),
        ((("(", 0.0),), r"'\(' is no regular expression"),
        ((("(" * 100_000, 0.0),), r"^.{1,300}$"),
        ((("x" * 100_000, 0.0),), r"^.{1,400}$"),
        (((".*", 0.0),), "every parameter is frozen"),
    ],
)
def test_patterns_that_are_mistakes(rates, message):
    with pytest.raises(UserError, match=message):
        optim.build_optimizer(dual(), TrainConfig(rates=rates))


def test_a_teacher_is_never_the_optimizer_s():
    optimizer = optim.build_optimizer(toy.Toy(toy.ToyConfig(), VOCABULARY), TrainConfig())
    assert not any("teacher" in name for group in optimizer.param_groups for name in group["names"])


def test_averaging_with_the_start():
    start = {"a": torch.tensor([1.0, 2.0]), "n": torch.tensor(3), "gone": torch.ones(1)}
    end = {"a": torch.tensor([3.0, -2.0]), "n": torch.tensor(9), "new": torch.tensor([7.0])}
    mixed = optim.averaged(start, end, 0.25)
    assert mixed["a"].tolist() == [1.5, 1.0]
    assert mixed["n"] == 9
    assert mixed["new"].item() == 7
    assert "gone" not in mixed
    assert end["a"].tolist() == [3.0, -2.0]


def test_the_fine_tuning_preset_is_lower_layered_and_averaged():
    plain, tuned = train_config("base", "pretrain"), train_config("base", "finetune")
    assert tuned.lr == pytest.approx(plain.lr / 10)
    assert tuned.layer_decay < 1 == plain.layer_decay
    assert tuned.average < 1 == plain.average


def test_adamw_by_hand():
    """One parameter, one step: lr times (sign of the gradient plus decay times the weight)."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    optimizer = optim.build_optimizer(layer, TrainConfig(lr=0.1, weight_decay=0.5, eps=1e-12))
    layer.weight.grad = torch.tensor([[4.0]])
    optim.set_rate(optimizer, 0.1)
    optimizer.step()
    assert layer.weight.item() == pytest.approx(2 - 0.1 * (1 + 0.5 * 2))


def test_a_head_without_weights_needs_no_rate_of_its_own():
    """The default of every task names the head's rate; what tunes for retrieval has no weights of its own."""
    system, config = toy.Toy(toy.ToyConfig(), VOCABULARY), train_config("tiny", "finetune", task=True)
    with pytest.raises(UserError, match="matches no parameter"):
        optim.factors(system, config)
    system.attach(RetrievalHead(system))
    assert set(optim.factors(system, TrainConfig(rates=config.rates)).values()) == {1.0}
    with pytest.raises(UserError, match="'haed' matches no parameter"):
        optim.factors(system, TrainConfig(rates=(("haed", 2.0),)))
