"""Published towers changed at random, and in the ways that are known to hurt: taken, or refused in a line."""

import json
import time
import zipfile
from collections import OrderedDict

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, normalizers, pre_tokenizers

from tests.exchange.checkpoints import saved
from tests.exchange.fuzz import KINDS, outcomes
from tests.exchange.test_parity import DUAL
from tests.fuzzing import faults
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.exchange.importing import import_model
from tuwen.nn.published.towers import image_weights, text_weights


@pytest.mark.parametrize("kind", KINDS)
def test_changed_at_random(kind):
    ends = outcomes(kind, 12)
    assert faults(ends) == {}
    assert "line" in {what for what, _ in ends.values()}


@pytest.mark.slow  # 5 minutes
@pytest.mark.parametrize("kind", KINDS)
def test_changed_at_random_long(kind):
    ends = outcomes(kind, 400, seed=1)
    assert faults(ends) == {}
    assert {what for what, _ in ends.values()} == {"read", "line"}


@pytest.fixture
def folder(tmp_path):
    return saved(DUAL["clip"](), tmp_path / "theirs")


def refused(folder, *words, **options) -> None:
    """Import and, where they read the same file, towers refuse the folder in a line with these words."""
    began = time.monotonic()
    with pytest.raises(UserError) as raised:
        import_model(str(folder), folder / "run", **options)
    for word in words:
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)
    assert time.monotonic() - began < 20
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("vision_config", "num_hidden_layers", 10**12),
        ("vision_config", "hidden_size", 0),
        ("vision_config", "patch_size", -8),
        ("vision_config", "image_size", 1e9),
        ("text_config", "num_attention_heads", 0),
        ("text_config", "max_position_embeddings", 2**63),
        ("text_config", "hidden_size", True),
        ("text_config", "layer_norm_eps", "small"),
        ("text_config", "hidden_act", ["gelu"]),
    ],
)
def test_numbers_that_cannot_be(folder, part, name, value):
    config = json.loads((folder / "config.json").read_text())
    config[part][name] = value
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "config.json", name)
    for read in (image_weights, text_weights):
        with pytest.raises(UserError):
            read(str(folder))


def test_sizes_that_may_be_but_the_weights_have_not_allocate_nothing(folder):
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= {"hidden_size": 65_536, "intermediate_size": 2**20, "num_hidden_layers": 20}
    (folder / "config.json").write_text(json.dumps(config))  # 4 terabytes, were they made
    refused(folder, "lacks")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "preprocessor_config.json"])
def test_a_git_lfs_pointer_is_called_one(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 1234\n")
    refused(folder, name, "git lfs pull")


def test_a_zip_bomb_is_refused_by_what_it_declares(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "plain.bin")
    with zipfile.ZipFile(folder / "plain.bin") as plain, zipfile.ZipFile(folder / "pytorch_model.bin", "w") as bomb:
        for part in plain.infolist():
            bomb.writestr(part.filename, plain.read(part), zipfile.ZIP_DEFLATED)
        bomb.writestr("plain/data/1000", bytes(50_000_000), zipfile.ZIP_DEFLATED)
    assert (folder / "pytorch_model.bin").stat().st_size < 1_000_000
    refused(folder, "its parts would be", "bytes and the file has")
    (folder / "plain.bin").rename(folder / "pytorch_model.bin")
    assert import_model(str(folder), folder / "run").taken


def test_views_larger_than_their_file_are_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1).expand(10**9)}, folder / "pytorch_model.bin")
    refused(folder, "many times larger")


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod."])
def test_a_wrappers_prefix_is_named_and_taken_off(folder, prefix):
    tensors = load_file(folder / "model.safetensors")
    plain = import_model(str(folder), folder / "plain")
    save_file({prefix + name: value for name, value in tensors.items()}, folder / "model.safetensors")
    refused(folder, f"begin with {prefix}", f"--prefix {prefix}")
    assert import_model(str(folder), folder / "run", prefix=prefix).taken == plain.taken


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_of_towers_too(folder, number):
    tensors = load_file(folder / "model.safetensors")
    for name in ("vision_model.post_layernorm.weight", "text_model.final_layer_norm.weight"):
        tensors[name][0] = number
    save_file(tensors, folder / "model.safetensors")
    refused(folder, "not finite")
    for read in (image_weights, text_weights):
        with pytest.raises(UserError, match="not finite"):
            read(str(folder))


def changed_tokenizer(folder, **parts) -> None:
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for name, value in parts.items():
        setattr(inner, name, value)
    inner.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    "steps",
    [
        [normalizers.Replace("a", "a" * 1000)],
        [normalizers.Replace("a", "aa")] * 40,
        [normalizers.Sequence([normalizers.Replace(Regex("a*"), "bb")] * 6)],
        [normalizers.Prepend("a" * 100_000)],
        [normalizers.NFC()] * 65,
    ],
    ids=["long", "doubling", "nested", "prepended", "many"],
)
def test_a_tokenizer_that_multiplies_is_refused_before_it_reads_a_text(folder, steps):
    changed_tokenizer(folder, normalizer=normalizers.Sequence(steps))
    refused(folder, "many times as long")
    with pytest.raises(UserError, match="many times as long"):
        Tokenizer.load(folder)


def test_padding_without_end_is_not_done(folder):
    state = json.loads((folder / "tokenizer.json").read_text())
    state["padding"] = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None}
    state["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    (folder / "tokenizer.json").write_text(json.dumps(state))
    assert import_model(str(folder), folder / "run").taken


def test_a_pattern_that_panics_is_a_line(folder):
    changed_tokenizer(folder, pre_tokenizer=pre_tokenizers.Split(Regex(r"(a+)+$|(a|a)*b"), "isolated"))
    words = Tokenizer.load(folder)
    assert len(words.ids(["ab"])) == 1
    for read in (words.ids, words.places, lambda texts: words.unknown_words(texts[0])):
        with pytest.raises(UserError, match="fails on a text"):
            read(["a" * 40 + "c"])


@pytest.mark.parametrize("rules", ["[]", "{", '{"size": 1e99}', '{"cls": ["a"]}', '{"normalise": 3}', '{"x": 1}'])
def test_rules_beside_a_tokenizer_are_checked(folder, rules):
    (folder / "tokenizer_rules.json").write_text(rules)
    with pytest.raises(UserError):
        Tokenizer.load(folder / "tokenizer.json")


def test_a_name_within_a_pickle_is_told_printable(folder):
    (folder / "model.safetensors").unlink()
    torch.save(OrderedDict(a=torch.zeros(2)), folder / "whole.bin")
    with zipfile.ZipFile(folder / "whole.bin") as whole, zipfile.ZipFile(folder / "pytorch_model.bin", "w") as file:
        for name in whole.namelist():
            file.writestr(name, whole.read(name).replace(b"OrderedDict", b"Ordered\tict"))
    (folder / "whole.bin").unlink()
    refused(folder, "running what it holds is not safe", "Ordered\\tict")
