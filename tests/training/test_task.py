"""A task learnt on top of a system, and frozen runs in roles: what is trained, kept, resumed, shared and refused."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import tuwen
from tests.training import toy
from tests.training.test_parallel import together
from tests.training.test_resume import same, stop_after
from tuwen import cli, tasks
from tuwen.errors import UserError
from tuwen.training import checkpoint, loop
from tuwen.training.config import RunConfig
from tuwen.training.log import read_metrics
from tuwen.training.signals import Interrupted


@pytest.fixture(autouse=True)
def _toys():
    with toy.registered():
        yield


def trained(folder, corpus=None, **changes):
    return loop.train(toy.config(**changes), folder, corpus=corpus or toy.Memory(), quiet=True)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A pre-training run."""
    with toy.registered():
        return trained(tmp_path_factory.mktemp("runs") / "before", train__steps=3)


def learnt(before, **changes):
    """Settings of a run that learns the toy task from it, with both roles."""
    roles = {"data__teachers__elder": str(before), "data__teachers__painter": str(before)}
    return {"task": "red", "init": str(before), "task__elder": True, "task__painter": True, **roles, **changes}


@pytest.fixture(scope="module")
def whole(before, tmp_path_factory):
    with toy.registered():
        return trained(tmp_path_factory.mktemp("runs") / "whole", **learnt(before))


def test_what_is_learnt_is_the_head_s_and_starts_from_the_run_before(before, tmp_path):
    """The first step's losses, from the weights of `init` and a head drawn by (seed, name)."""
    run = trained(tmp_path / "run", **learnt(before, train__steps=1, model__dropout=0.0))
    line = read_metrics(run / "metrics.jsonl")[0]
    assert set(line["losses"]) == {"label", "copy", "elder", "painter"}
    other = trained(tmp_path / "other", **learnt(before, train__steps=1, train__lr=1e-12, model__dropout=0.0))
    start, weights = (
        checkpoint.load_tensors(before / "weights.safetensors"),
        checkpoint.load_tensors(other / "weights.safetensors"),
    )
    for name in start:
        torch.testing.assert_close(weights[name], start[name], rtol=0, atol=1e-9)
    assert not any(name.startswith("head.teacher") for name in weights)  # only training needs it
    torch.testing.assert_close(weights["head.scale"], start["temperature"])  # `begin`, after the weights of init

    config = RunConfig.read(other)
    corpus = tasks.of(config.task).rows(toy.Memory(), "train")
    system = tuwen.load(other).system
    made = loop.make_loader(
        {"pairs": corpus},
        loop.Tokenizer.load(other / "tokenizer.json"),
        config.data,
        toy.Toy.reads(None),
        toy.Needs(columns=("label",)),
        8,
        0,
        config.model.image.fit,
        8,
    )[0]
    with torch.no_grad():
        pair = system.encode_images(made.images), system.encode_texts(made.texts)
        logits = (
            torch.cat([pair[0].pooled, pair[1].pooled], 1) @ weights["head.logit.weight"][0]
            + weights["head.logit.bias"]
        )
        logits = logits * (1 + weights["head.scale"])
        label = F.binary_cross_entropy_with_logits(logits, made.columns["label"].float())
        elder = (logits - system.match(*pair)[:, 0]).pow(2).mean()
        painter = (logits - pair[0].pooled.sum(1)).pow(2).mean()
    losses = read_metrics(other / "metrics.jsonl")[0]["losses"]
    assert losses["label"] == pytest.approx(float(label), abs=1e-5)
    assert losses["elder"] == pytest.approx(float(elder), abs=1e-5)
    assert losses["painter"] == pytest.approx(float(painter), abs=1e-5)
    assert losses["copy"] == pytest.approx(0.0, abs=1e-6)  # the copy is of the weights it starts from


@pytest.mark.parametrize("step", [4, 7])
def test_stopped_and_resumed_is_never_stopped(before, whole, tmp_path, monkeypatch, step):
    stop_after(monkeypatch, step)
    with pytest.raises(Interrupted):
        trained(tmp_path / "run", **learnt(before))
    monkeypatch.undo()
    with toy.registered():
        loop.resume(tmp_path / "run", corpus=toy.Memory(), quiet=True)
    same(whole, tmp_path / "run")


def test_two_processes_are_one(before, tmp_path):
    changes = learnt(before, model__dropout=0.0, train__steps=4)
    one = trained(tmp_path / "one", **changes)
    settings = {name.replace("__", "."): str(value) for name, value in changes.items()}
    together(2, "train", tmp_path / "two", **settings)
    first, second = (checkpoint.load_tensors(run / "weights.safetensors") for run in (one, tmp_path / "two"))
    assert first.keys() == second.keys()
    for name in first:
        if "attention.query_key_value.bias" not in name:  # the key's has no gradient but rounding
            torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_run_is_loaded_with_its_head_and_what_its_training_split_decided(whole):
    model = tuwen.load(whole)
    weights = checkpoint.load_tensors(whole / "weights.safetensors")
    assert torch.equal(model.system.head.logit.weight, weights["head.logit.weight"])
    assert not hasattr(model.system.head, "teacher")
    corpus = toy.Memory()
    assert model.config.task.threshold == int(torch.tensor(corpus.colours[:, 0, 0, 0]).double().quantile(0.5))
    assert sum(tasks.of(model.config.task).rows(corpus, "train").record(k).columns["label"] for k in range(40)) == 20
    assert model.system.roles == {}  # nobody asks a teacher in use


def test_roles_are_no_part_of_the_system_and_never_learn(before, tmp_path, monkeypatch):
    seen = {}
    real = loop.train_step

    def watched(model, system, *given):
        seen["roles"], seen["modules"] = system.roles, list(system.modules())
        seen["state"], seen["model"] = system.state_dict(), {id(p) for p in model.parameters()}
        system.train()
        return real(model, system, *given)

    monkeypatch.setattr(loop, "train_step", watched)
    run = trained(tmp_path / "run", **learnt(before, train__steps=2))
    assert set(seen["roles"]) == {"elder", "painter"}
    for teacher in seen["roles"].values():
        assert not teacher.training
        assert teacher not in seen["modules"]
        assert not any(id(p) in seen["model"] or p.requires_grad or p.grad is not None for p in teacher.parameters())
        start = checkpoint.load_tensors(before / "weights.safetensors")
        assert all(torch.equal(tensor, start[name]) for name, tensor in teacher.state_dict().items())
    assert not any("elder" in name or "painter" in name for name in seen["state"])
    origin = json.loads((run / "provenance.json").read_text())["teachers"]
    assert origin["elder"]["run"] == str(before)
    assert len(origin["elder"]["weights"]) == 64


def test_a_teacher_that_has_changed_stops_a_resumed_run(before, tmp_path, monkeypatch):
    elder = trained(tmp_path / "elder", init=str(before), train__steps=1)
    stop_after(monkeypatch, 1)
    changes = learnt(before, data__teachers__elder=str(elder))
    with pytest.raises(Interrupted):
        trained(tmp_path / "run", **changes)
    monkeypatch.undo()
    weights = checkpoint.load_tensors(elder / "weights.safetensors")
    checkpoint.save_tensors(elder / "weights.safetensors", {name: tensor + 1 for name, tensor in weights.items()})
    with toy.registered(), pytest.raises(UserError, match=r"the run in role elder, .* has other weights"):
        loop.resume(tmp_path / "run", corpus=toy.Memory(), quiet=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"data__teachers__elder": None},
            r"learns from a elder, a run that can match: give --set data\.teachers\.elder=RUN",
        ),
        ({"data__teachers__uncle": "x"}, r"asks for no 'uncle'; its roles: elder, painter"),
        ({"model__text__length": 6}, r"as elder .* its model\.text\.length is another \(8, here 6\)"),
        ({"model__image__side": 12}, r"as elder .* its model\.image\.fit is another"),
        ({"init": None, "tokenizer__size": 40}, r"as elder .* its tokenizer is another"),
    ],
)
def test_a_run_that_cannot_play_its_role_is_refused_in_a_line(before, tmp_path, changes, words):
    settings = learnt(before, **changes)
    if changes.get("data__teachers__elder", "given") is None:
        del settings["data__teachers__elder"]
    with pytest.raises(UserError, match=words) as error:
        trained(tmp_path / "run", **settings)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_role_that_sees_pictures_alone_may_have_another_tokenizer_and_another_size(before, tmp_path):
    painter = trained(tmp_path / "painter", tokenizer__size=40, model__image__side=12, train__steps=1)
    own = {"task__elder": False, "data__teachers": {"painter": str(painter)}}
    given = {name: value for name, value in learnt(before, **own).items() if not name.startswith("data__teachers__")}
    run = trained(tmp_path / "run", **given, train__steps=1)
    assert set(read_metrics(run / "metrics.jsonl")[0]["losses"]) == {"label", "copy", "painter"}


def test_a_run_must_be_able_to_what_its_role_asks(before, tmp_path, monkeypatch):
    monkeypatch.setattr(toy.RedHead, "momentum", ())
    monkeypatch.setattr(toy, "Red", toy.Red)
    real = toy.RedHead.__init__

    def asks(self, config):
        real(self, config)
        self.teachers = {"elder": "generate"}

    monkeypatch.setattr(toy.RedHead, "__init__", asks)
    with pytest.raises(UserError, match="is asked to generate as elder, and system toy cannot"):
        trained(tmp_path / "run", task="red", data__teachers={"elder": str(before)})


def test_a_head_goes_on_only_with_its_own_task_s(before, whole, tmp_path, monkeypatch):
    again = trained(tmp_path / "again", **learnt(whole, train__steps=1, train__lr=1e-12))
    weights, start = (checkpoint.load_tensors(run / "weights.safetensors") for run in (again, whole))
    torch.testing.assert_close(weights["head.logit.weight"], start["head.logit.weight"], rtol=0, atol=1e-9)
    assert start["head.scale"] != start["temperature"]
    torch.testing.assert_close(weights["head.scale"], start["head.scale"], rtol=0, atol=1e-9)  # not copied anew
    monkeypatch.setattr(RunConfig, "task_name", property(lambda self: "red" if self.init == str(whole) else "other"))
    other = trained(tmp_path / "other", **learnt(whole, train__steps=1, train__lr=1e-12))
    weights = checkpoint.load_tensors(other / "weights.safetensors")
    assert (weights["head.logit.weight"] - start["head.logit.weight"]).abs().max() > 1e-3
    torch.testing.assert_close(weights["head.scale"], start["temperature"], rtol=0, atol=1e-9)
    torch.testing.assert_close(weights["image.weight"], start["image.weight"], rtol=0, atol=1e-9)


# ---- the command line


def test_an_unknown_task_is_an_error_that_lists_what_there_is(tmp_path, capsys):
    asked = ["clip", "--corpus", "scenes:count=400", "--out", str(tmp_path / "run"), "--task", "telepathy"]
    assert cli.main(["train", *asked]) == 1
    words = capsys.readouterr().err
    assert "no task called 'telepathy'" in words
    assert all(name in words for name in tasks.task_names())
    assert not (tmp_path / "run").exists()


def test_settings_of_a_task_need_its_name():
    with pytest.raises(UserError, match=r"settings task\.\* .* --task"):
        toy.config(task__threshold=3)
    with pytest.raises(UserError, match=r"no config field 'task\.treshold'"):
        toy.config(task="red", task__treshold=3)


def test_the_resolved_config_is_read_as_it_was_written(whole):
    config = RunConfig.read(whole)
    assert config.task == toy.RedConfig("red", config.task.threshold, True, True)
    assert config.task.threshold > 0
    assert replace(config.task, threshold=0).name == "red"
