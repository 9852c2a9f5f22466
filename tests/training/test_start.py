"""What a run begins with: weights of another run, positions of another size, the averaged end, provenance."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.training import toy
from tuwen.data.corpus import BrokenImage
from tuwen.data.text import Tokenizer, Vocabulary
from tuwen.errors import UserError
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig
from tuwen.nn.towers import ImageTower, TextTower
from tuwen.training import checkpoint, loop, start
from tuwen.training.log import read_metrics

VOCABULARY = Vocabulary(size=20, pad=0, unknown=1, cls=2, sep=3, mask=4)


@pytest.fixture(autouse=True)
def _toy():
    with toy.registered():
        yield


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    with toy.registered():
        return loop.train(toy.config(), tmp_path_factory.mktemp("runs") / "first", corpus=toy.Memory(), quiet=True)


def test_first_weights_are_a_function_of_the_seed(tmp_path):
    seen = {}
    tokenizer = start.make_tokenizer(toy.config(), [toy.Memory()])
    for seed in (0, 0, 1):
        config = toy.config(train__seed=seed, train__steps=1)
        system = toy.Toy(config.model, VOCABULARY)
        torch.manual_seed(len(seen))
        start.first_weights(tmp_path, config, system, print, tokenizer)
        seen.setdefault(seed, []).append(system.image.weight.detach().clone())
    assert torch.equal(seen[0][0], seen[0][1])
    assert not torch.equal(seen[0][0], seen[1][0])


def test_a_run_from_another_starts_with_its_weights_and_tokenizer(first, tmp_path):
    config = toy.config(init=str(first), train__steps=2, train__average=0.5)
    loop.train(config, tmp_path / "next", corpus=toy.Memory(), quiet=True)
    assert (tmp_path / "next/tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
    began = checkpoint.load_tensors(tmp_path / "next/state/start.safetensors")
    was = checkpoint.load_tensors(first / "weights.safetensors")
    assert torch.equal(began["image.weight"], was["image.weight"])
    assert began.keys() == was.keys(), "no teacher is averaged"


def test_a_teacher_starts_as_its_student_or_goes_on_as_it_was(first):
    weights = checkpoint.load_tensors(first / "weights.safetensors")
    taught = checkpoint.load_tensors(first / "state/step-00000013/training.safetensors")["teacher.image.weight"]
    assert not torch.equal(taught, weights["image.weight"])
    for init, expected in ((str(first), weights["image.weight"]), (f"{first}:state", taught)):
        system = toy.Toy(toy.config().model, Tokenizer.load(first / "tokenizer.json").vocabulary)
        start.take_init(system, init, print)
        assert torch.equal(system.image.weight, weights["image.weight"])
        assert torch.equal(system.teacher.image.weight, expected)
        assert system.queue.events == 0, "a queue starts empty"


def test_a_run_without_a_checkpoint_has_no_teacher_to_go_on_with(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint in state/"):
        start.take_init(nn.Linear(2, 2), f"{tmp_path}:state", print)


def test_scales_and_temperatures_become_each_other():
    """Scores are multiplied by exp(log_scale), and divided by temperature: log_scale = -log(temperature)."""
    there, told = start.scaled({"temperature": torch.tensor(0.05)}, ["log_scale"])
    assert there["log_scale"].exp().item() == pytest.approx(20)
    assert told == "log_scale 2.996 from its temperature"
    there, told = start.scaled({"log_scale": torch.tensor(2.995732)}, ["temperature", "log_scale"])
    assert list(there) == ["temperature"], "its other scale is of other scores"
    assert there["temperature"].item() == pytest.approx(0.05)
    assert told == "temperature 0.05 from its log_scale"
    for names in (["temperature"], ["temperature", "log_scale"], ["other"]):
        assert start.scaled({"temperature": torch.tensor(0.05)}, names) == ({"temperature": torch.tensor(0.05)}, "")

    system = nn.Module()
    system.temperature = nn.Parameter(torch.tensor(1.0))
    said = []
    start.take_weights(system, {"log_scale": torch.tensor(0.0).add(10).log()}, "clip's", said.append)
    assert system.temperature.item() == pytest.approx(0.1)
    assert said == ["1 weights taken from clip's; temperature 0.1 from its log_scale"]


def test_weights_that_are_not_finite_are_refused_by_name():
    system = nn.Linear(2, 2)
    broken = {"weight": torch.ones(2, 2), "bias": torch.tensor([0.0, float("nan")])}
    with pytest.raises(UserError, match=r"^there: bias holds 1 numbers that are not finite"):
        start.take_weights(system, broken, "there", print)
    assert not torch.equal(system.weight, torch.ones(2, 2)), "nothing was taken"


def test_what_does_not_fit_is_new_and_told(tmp_path):
    checkpoint.save_tensors(tmp_path / "w.safetensors", {"0.weight": torch.ones(2, 2), "1.weight": torch.ones(5, 5)})
    system = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    kept = system[1].weight.clone()
    said = []
    start.take_weights(system, checkpoint.load_tensors(tmp_path / "w.safetensors"), "w", said.append)
    assert torch.equal(system[0].weight, torch.ones(2, 2))
    assert torch.equal(system[1].weight, kept)
    assert said[0].startswith("1 weights taken from")
    assert "new: 0.bias, 1.weight, 1.bias (3 in all)" in said[0]
    with pytest.raises(UserError, match="none of its weights fit"):
        start.take_weights(nn.Conv2d(3, 3, 3), checkpoint.load_tensors(tmp_path / "w.safetensors"), "w", said.append)


def test_positions_are_fitted():
    small = ImageTower(ImageTowerConfig(8, 4, 8, layers=1, heads=2))
    large = ImageTower(ImageTowerConfig(16, 4, 8, layers=1, heads=2))
    nn.init.normal_(small.positions)
    start.take_weights(large, small.state_dict(), "small", print)
    assert torch.equal(large.positions[0], small.positions[0])
    grid = small.positions[1:].T.reshape(1, 8, 2, 2)
    expected = F.interpolate(grid, (4, 4), mode="bicubic", align_corners=False)[0]
    torch.testing.assert_close(large.positions[1:].T.reshape(8, 4, 4), expected)

    short, long = (TextTower(TextTowerConfig(length=n, width=8, layers=1, heads=2), VOCABULARY) for n in (4, 6))
    nn.init.normal_(short.positions)
    nn.init.normal_(long.positions)
    tail = long.positions[4:].clone()
    start.take_weights(long, short.state_dict(), "short", print)
    assert torch.equal(long.positions[:4], short.positions)
    assert torch.equal(long.positions[4:], tail)


def test_the_final_weights_are_averaged_and_are_what_is_measured(first, tmp_path):
    seen = {}

    def evaluate(trained, step):
        seen[step] = trained.predictor.system.image.weight.detach().clone()
        return {}

    config = toy.config(init=str(first), train__steps=4, train__average=0.25)
    loop.train(config, tmp_path / "run", evaluate, toy.Memory(), quiet=True)
    began = checkpoint.load_tensors(first / "weights.safetensors")["image.weight"]
    ended = checkpoint.load_tensors(tmp_path / "run/state/step-00000004/weights.safetensors")["image.weight"]
    used = checkpoint.load_tensors(tmp_path / "run/weights.safetensors")["image.weight"]
    torch.testing.assert_close(used, 0.75 * began + 0.25 * ended)
    assert torch.equal(seen[0], began)
    assert torch.equal(seen[4], used)


def test_an_averaged_run_that_is_lost_at_its_very_end_still_ends_averaged(first, tmp_path, monkeypatch):
    config = toy.config(init=str(first), train__steps=4, train__average=0.25)
    loop.train(config, tmp_path / "whole", corpus=toy.Memory(), quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(loop.optim, "averaged", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loop.train(config, tmp_path / "run", corpus=toy.Memory(), quiet=True)
    assert not loop.finished(tmp_path / "run")
    loop.resume(tmp_path / "run", corpus=toy.Memory(), quiet=True)
    one, other = (checkpoint.load_tensors(tmp_path / run / "weights.safetensors") for run in ("whole", "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert loop.finished(tmp_path / "run")


def test_rows_that_cannot_be_used_are_listed_and_cuts_are_told(tmp_path, capsys):
    corpus = toy.Memory()
    whole = corpus.image

    def image(row):
        if row in (3, 17):
            raise BrokenImage("truncated", "ends early")
        return whole(row)

    corpus.image = image
    config = toy.config(train__steps=5, model__text__length=4)
    loop.train(config, tmp_path / "run", corpus=corpus)
    listed = json.loads((tmp_path / "run/skipped.json").read_text())
    assert listed == {row: {"id": row, "why": "truncated: ends early"} for row in ("3", "17")}
    said = capsys.readouterr().err
    assert "2 rows could not be used (2 truncated)" in said
    assert "of the texts were cut to 4 tokens" in said


def test_init_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"holds no tokenizer.json to start from"):
        loop.train(toy.config(init=str(tmp_path)), tmp_path / "run", corpus=toy.Memory(), quiet=True)
    assert not (tmp_path / "run").exists()


def test_what_a_run_folder_says_of_itself(first):
    origin = json.loads((first / "provenance.json").read_text())
    wanted = {"name": "memory", "fingerprint": "memory-1", "rows": 40, "languages": ["en", "zh"], "notice": ""}
    assert origin["corpus"] == wanted
    assert origin["packages"]["torch"] == torch.__version__
    assert origin["finished"]["step"] == 13
    assert {path.name for path in first.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "provenance.json",
        "state",
        "tensorboard",
        "tokenizer.json",
        "weights.safetensors",
    }
    line = read_metrics(first / "metrics.jsonl")[6]
    assert line["step"] == 7
    assert line["epoch"] == 1.4
    assert line["loss"] == pytest.approx(sum(line["losses"].values()), rel=1e-5)
    assert set(line) >= {"lr", "grad_norm", "metrics", "pairs_per_second", "data_wait", "memory_mb", "seconds"}
    assert 0 <= line["data_wait"] <= 1


@pytest.mark.parametrize("key", ["-1", "1.5", "x", "", "٣", "²", "9" * 30, "\x1b[2J", "0x1"])
def test_a_list_of_skipped_rows_with_another_key_is_refused_in_a_line(tmp_path, key):
    start.list_skipped(tmp_path, toy.Memory(), {10: "unreadable: no picture", 3: "unreadable: no picture"})
    path = tmp_path / "skipped.json"
    start.list_skipped(tmp_path, toy.Memory(), {4: "truncated: x"})
    assert list(json.loads(path.read_text())) == ["3", "4", "10"]  # by number, and added to
    path.write_text(json.dumps({key: {"id": "a", "why": "b"}}))
    before = path.read_bytes()
    with pytest.raises(UserError, match="is no row of a corpus; restore the file, or remove it") as raised:
        start.list_skipped(tmp_path, toy.Memory(), {4: "truncated: x"})
    assert str(raised.value).isprintable()
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["[]", "3", "null", "{", "", '{"1": 5', '\ufeff{"1": {}}'])
def test_a_list_of_skipped_rows_of_another_form_is_refused_in_a_line(tmp_path, text):
    (tmp_path / "skipped.json").write_text(text)
    with pytest.raises(UserError, match="skipped"):
        start.list_skipped(tmp_path, toy.Memory(), {4: "truncated: x"})
