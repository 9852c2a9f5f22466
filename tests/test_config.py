"""Nested configs: by dotted name, typed, checked, in and out of YAML."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from tuwen import systems
from tuwen.config import dump, field_names, override, read_yaml, to_dict
from tuwen.errors import UserError
from tuwen.nn.sizes import SIZES
from tuwen.training.config import RunConfig, TrainConfig


@dataclass(frozen=True)
class Tower:
    width: int = 8
    heads: int = 2
    kind: Literal["a", "b"] = "a"

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide by {self.heads} heads")


@dataclass(frozen=True)
class Whole:
    tower: Any = field(default_factory=Tower)
    rate: float = 0.1
    steps: int | None = None
    flag: bool = False
    name: str = "x"
    where: Path = Path("a")
    pair: tuple[float, float] = (0.9, 0.98)
    rates: tuple[tuple[str, float], ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("rate", "3e-4", 3e-4),
        ("rate", 1, 1.0),
        ("steps", "12", 12),
        ("steps", "none", None),
        ("steps", None, None),
        ("flag", "yes", True),
        ("flag", "False", False),
        ("name", "none", "none"),
        ("where", "b/c", Path("b/c")),
        ("pair", "0.5,0.75", (0.5, 0.75)),
        ("pair", "[0.5, 1]", (0.5, 1.0)),
        ("pair", [0.5, 0.75], (0.5, 0.75)),
        ("rates", '[["image\\\\.", 0.5], ["text", 0]]', (("image\\.", 0.5), ("text", 0.0))),
        ("weights", "{a: 1, b: 0.5}", {"a": 1.0, "b": 0.5}),
        ("tower.kind", "b", "b"),
    ],
)
def test_values_are_read_as_their_field_s_type(name, text, value):
    changed = override(Whole(), {name: text})
    for part in name.split("."):
        changed = getattr(changed, part)
    assert changed == value
    assert type(changed) is type(value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tower.witdh": 3}, r"no config field 'tower.witdh'; nearest: tower.width"),
        ({"width": 3}, r"no config field 'width'; nearest: tower.width"),
        ({"tower.width.x": 3}, r"config field tower.width: expected int|a whole number"),
        ({"steps": "many"}, r"config field steps: expected a whole number or none, got 'many'"),
        ({"steps": 1.5}, r"steps: expected a whole number"),
        ({"steps": True}, r"steps: expected a whole number"),
        ({"rate": "nan"}, r"rate: expected a number, got 'nan'"),
        ({"rate": None}, r"rate: expected a number, got None"),
        ({"flag": "maybe"}, r"flag: expected true or false"),
        ({"flag": 1}, r"flag: expected true or false"),
        ({"name": 3}, r"name: expected a text"),
        ({"pair": "1,2,3"}, r"pair: expected 2 values"),
        ({"pair": 3}, r"pair: expected a list"),
        ({"rates": [["a", "b"]]}, r"rates\[0\]\[1\]: expected a number, got 'b'"),
        ({"tower.kind": "c"}, r"tower.kind: expected 'a' or 'b', got 'c'"),
        ({"tower": 3, "tower.width": 4}, r"tower is given a value of its own"),
        ({"tower.width": 9}, r"config tower: width 9 does not divide by 2 heads"),
    ],
)
def test_mistakes_are_named_with_their_field(changes, message):
    with pytest.raises(UserError, match=message) as error:
        override(Whole(), changes)
    assert "\n" not in str(error.value)


def test_changes_are_checked_together_not_one_by_one():
    changed = override(Whole(), {"tower.width": 9, "tower.heads": "3"})
    assert (changed.tower.width, changed.tower.heads) == (9, 3)


def test_a_file_s_tree_and_dotted_names_mix_and_the_later_wins():
    changed = override(Whole(), {"tower": {"width": 16, "heads": 4}, "tower.width": "32", "rate": 1})
    assert (changed.tower.width, changed.tower.heads, changed.rate) == (32, 4, 1.0)
    changed = override(Whole(), {"tower.width": "32", "tower": {"width": 16}})
    assert changed.tower.width == 16
    assert override(Whole(), {}) == Whole()


def test_a_config_comes_back_from_yaml(tmp_path):
    config = override(
        Whole(), {"rates": [["图.*", 0.5]], "steps": 3, "weights": {"a": 1}, "tower.kind": "b", "rate": 1e-9}
    )
    (tmp_path / "c.yaml").write_text(dump(config), encoding="utf-8")
    assert "图" in dump(config)
    assert override(Whole(), read_yaml(tmp_path / "c.yaml")) == config
    assert list(to_dict(config)) == ["tower", "rate", "steps", "flag", "name", "where", "pair", "rates", "weights"]


def test_names_are_all_the_leaves():
    assert field_names(Whole())[:4] == ["tower.width", "tower.heads", "tower.kind", "rate"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [1", "line 1: not valid YAML"), ("- 1", "expected names with values"), ("", "expected names with values")],
)
def test_files_that_are_no_config(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_yaml(path)
    with pytest.raises(UserError, match=r"none.yaml: cannot be read"):
        read_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize("system", systems.names())
@pytest.mark.parametrize("size", SIZES)
def test_the_config_of_every_run_comes_back(tmp_path, system, size):
    config = RunConfig.of(system, size, "scenes", "finetune", {"init": "runs/a", "train.rates": [["image", 0]]})
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    assert RunConfig.read(tmp_path) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.lr": 0}, "config train: lr must be above 0, got 0"),
        ({"train.warmup": 2}, "warmup must lie between 0 and 1"),
        ({"train.batch_size": 10, "train.accumulation": 4}, "batch_size 10 does not divide into 4 micro-batches"),
        ({"train.min_lr": 1}, "min_lr 1.0 is above lr"),
        ({"train.btas": 1}, "nearest: train.betas"),
        ({"model.image.widht": 1}, "nearest: model.image.width"),
    ],
)
def test_a_run_s_mistakes(changes, message):
    with pytest.raises(UserError, match=message):
        RunConfig.of("clip", "tiny", "scenes", changes=changes)


def test_unknown_systems_and_sizes_are_told():
    with pytest.raises(UserError, match="no system called 'clop'; did you mean clip"):
        RunConfig.of("clop", "tiny", "scenes")
    with pytest.raises(UserError, match="no size called 'huge'; sizes are tiny"):
        RunConfig.of("clip", "huge", "scenes")


def test_every_size_has_its_training():
    for size in SIZES:
        assert isinstance(RunConfig.of("clip", size, "scenes").train, TrainConfig)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("image.layers", "1000000000000", "layers must lie between 0 and 4096, got 1000000000000"),
        ("image.heads", "0", "heads must lie between 1"),
        ("image.patch", "-8", "patch must lie between 1"),
        ("image.patch", "64", "a side of 32 pixels has no patch of 64"),
        ("text.width", "-32", "width must lie between 1"),
        ("text.length", "0", "length must lie between 1"),
        ("image.dropout", "2", "dropout must lie between 0 and 1"),
        ("fusion.hidden", "0", "hidden must lie between 1"),
        ("fusion.layers", "9" * 4000, r"layers must lie between 0 and 4096, got 999+\.\.\.9+$"),
    ],
)
def test_numbers_that_could_size_no_part_are_refused(name, value, told):
    with pytest.raises(UserError, match=f"^config model.*: {told}") as caught:
        RunConfig.of("albef", "tiny", "x", changes={f"model.{name}": value})
    assert len(str(caught.value)) < 300


def test_a_value_is_quoted_within_bounds(tmp_path):
    """Anchors of nine each: 7,000 values as Python writes them."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 4)]
    (tmp_path / "laughs.yaml").write_text("\n".join([*lines, "train: {lr: *a3}", ""]))
    changes = {"train": read_yaml(tmp_path / "laughs.yaml")["train"]}
    with pytest.raises(UserError, match=r"config field train\.lr: expected a number, got") as caught:
        RunConfig.of("clip", "tiny", "x", changes=changes)
    assert len(str(caught.value)) < 300
    with pytest.raises(UserError, match="no config field") as caught:
        RunConfig.of("clip", "tiny", "x", changes={"x" * 100_000: 1})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("system", "name", "value", "told"),
    [
        ("albef", "queue", "1000000000000000", r"model\.queue must lie between 1 and 16777216, got 1000000000000000"),
        ("r2d2", "queue", "-1", r"model\.queue must lie between 1"),
        ("clip", "embed", "0", r"model\.embed must lie between 1"),
        ("clip", "nested", "[8, 0]", r"model\.nested must lie between 1"),
        ("cookie", "width", "-32", r"model\.width must lie between 1"),
        ("cookie", "heads", "5", r"model\.width 32 does not divide by 5 heads"),
        ("dvae", "codes.vocabulary", "10000000000", r"model\.codes\.vocabulary must lie between 1"),
        ("mvptr", "rows", "0", r"model\.rows must lie between 1"),
        ("wukong", "tokens", "1" * 30, r"model\.tokens must lie between 1"),
        ("albef", "image.heads", "5", "width 32 does not divide by 5 heads"),
        ("ernie_unix2", "decoder.heads", "5", "width 32 does not divide by 5 heads"),
    ],
)
def test_numbers_of_a_system_are_refused_before_anything_is_made(system, name, value, told):
    with pytest.raises(UserError, match=f"^config .*{told}") as caught:
        RunConfig.of(system, "tiny", "x", changes={f"model.{name}": value})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("system", systems.names())
def test_every_whole_number_of_a_system_has_bounds(system):
    """Also those that are yet to come: none is taken at -1 or at 10^15."""
    config = RunConfig.of(system, "tiny", "x")
    whole = [name for name in field_names(config.model) if type(leaf(config.model, name)) is int]
    assert len(whole) > 2
    for name in whole:
        for value in (-1, 10**15):
            with pytest.raises(UserError):
                override(config, {f"model.{name}": value})


def leaf(config, name):
    for part in name.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(
    "name", ["train.batch_size", "train.threads", "train.steps", "train.seed", "tokenizer.size", "data.workers"]
)
def test_numbers_of_a_run_are_bounded(name):
    with pytest.raises(UserError, match=name.rpartition(".")[2]):
        RunConfig.of("clip", "tiny", "x", changes={name: 10**30})


@pytest.mark.parametrize("inner", ["[{}]", "{{x: {}}}"], ids=["lists", "names"])
def test_anchors_that_multiply_or_hold_themselves_are_refused_at_once(tmp_path, inner):
    parts = ", ".join(f"k{n}: *a{{0}}" if "x" in inner else "*a{0}" for n in range(9))
    shape = "{{" + parts + "}}" if "x" in inner else "[" + parts + "]"
    lines = ["a0: &a0 " + inner.format(1), *(f"a{k}: &a{k} " + shape.format(k - 1) for k in range(1, 12))]
    for text in ("\n".join(lines), "train: &t " + inner.format("*t")):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(UserError, match=r"c\.yaml: its anchors \(&\) make more than 100,000 values"):
            read_yaml(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("a: &a {lr: 1}\nb: *a\nc: *a")
    assert read_yaml(tmp_path / "c.yaml") == {name: {"lr": 1} for name in "abc"}


@pytest.mark.parametrize("text", ["a: \0", "a: " + "1" * 5000, "[" * 5000, "a: 2026-99-99", "a: \x1b"])
def test_yaml_that_its_library_chokes_on_is_one_line(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=r"c\.yaml.*not valid YAML") as caught:
        read_yaml(tmp_path / "c.yaml")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("name", "text"), [("pair", "[0.5, "), ("weights", "{a: 1"), ("weights", "a: " + "1" * 5000)])
def test_a_setting_that_is_no_yaml_is_told(name, text):
    with pytest.raises(UserError, match=f"config field {name}: .* is not valid YAML") as caught:
        override(Whole(), {name: text})
    assert len(str(caught.value)) < 400
