"""A run that stops and goes on is the run that never stopped, bit for bit."""

import itertools
import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.children import Child
from tests.training import toy
from tuwen.data import grouping as grouping_functions
from tuwen.data.subset import MixedCorpus
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.systems.system import Needs
from tuwen.training import checkpoint, loop, optim
from tuwen.training.grouping import Grouping
from tuwen.training.log import read_metrics
from tuwen.training.signals import Interrupted

TIMING = ("pairs_per_second", "data_wait", "core_wait", "memory_mb", "seconds")


@pytest.fixture(autouse=True)
def _toy():
    with toy.registered():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that is never stopped."""
    with toy.registered():
        return loop.train(toy.config(), tmp_path_factory.mktemp("runs") / "whole", corpus=toy.Memory(), quiet=True)


def same(one: Path, other: Path) -> None:
    """The same weights, teacher, queue, optimizer and record."""
    last = f"state/step-{checkpoint.steps(one)[-1]:08d}"
    assert checkpoint.steps(one)[-1] == checkpoint.steps(other)[-1]
    parts = ("weights.safetensors", "training.safetensors", "optimizer.safetensors")
    for name in ("weights.safetensors", *(f"{last}/{part}" for part in parts)):
        first, second = checkpoint.load_tensors(one / name), checkpoint.load_tensors(other / name)
        assert first.keys() == second.keys()
        for key in first:
            assert torch.equal(first[key], second[key]), (name, key)
    assert untimed(one) == untimed(other)


def untimed(run: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in TIMING} for line in read_metrics(run / "metrics.jsonl")]


def crash_at(monkeypatch, step: int) -> None:
    """The process is lost in the middle of a step."""
    real = loop.train_step

    def breaks(*given):
        if given[5].step == step:
            raise RuntimeError("lost")
        return real(*given)

    monkeypatch.setattr(loop, "train_step", breaks)


def stop_after(monkeypatch, step: int) -> None:
    """A signal has come in during a step."""
    seen = iter(range(1, 1000))
    monkeypatch.setattr(loop.parallel, "any_true", lambda *_: next(seen) == step)


def test_the_state_has_a_teacher_a_queue_and_moments(whole):
    weights = checkpoint.load_tensors(whole / "weights.safetensors")
    own = checkpoint.load_tensors(whole / "state/step-00000013/training.safetensors")
    assert not torch.equal(own["teacher.image.weight"], weights["image.weight"])
    assert own["queue.events"] == 13
    assert not weights.keys() & own.keys()
    moments = checkpoint.load_tensors(whole / "state/step-00000013/optimizer.safetensors")
    assert moments["exp_avg_sq.image.weight"].abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("xxp_avg.image.weight", None, "there are exp_avg, exp_avg_sq, step"),
        ("exp_avg.image.weight", torch.tensor(0.0), r"is \[\], not"),
        ("step.image.weight", torch.zeros(3), r"is \[3\], not \[\]"),
    ],
)
def test_moments_of_another_name_or_shape_are_refused_in_a_line(whole, tmp_path, name, tensor, says):
    """Three kinds there were, whatever they were called: the first step after it ended in a traceback."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    path = run / "state/step-00000013/optimizer.safetensors"
    tensors = checkpoint.load_tensors(path)
    old = tensors.pop("exp_avg.image.weight" if tensor is None else name)
    checkpoint.save_tensors(path, tensors | {name: old if tensor is None else tensor})
    system = toy.Toy(toy.config().model, Tokenizer.load(run / "tokenizer.json").vocabulary)
    with pytest.raises(UserError, match=says):
        checkpoint.load_checkpoint(run, system, optim.build_optimizer(system, toy.config().train))


@pytest.mark.parametrize("step", random.Random(1).sample(range(1, 13), 3))
def test_stopped_and_resumed_is_never_stopped(whole, tmp_path, monkeypatch, step):
    stop_after(monkeypatch, step)
    with pytest.raises(Interrupted):
        loop.train(toy.config(), tmp_path / "run", corpus=toy.Memory(), quiet=True)
    assert checkpoint.steps(tmp_path / "run")[-1] == step
    monkeypatch.undo()
    with toy.registered():
        torch.manual_seed(99)  # nothing may hang on the state of the global generator
        loop.resume(tmp_path / "run", corpus=toy.Memory(), quiet=True)
    same(whole, tmp_path / "run")


@pytest.mark.parametrize("step", [2, 7, 12])
def test_lost_and_resumed_is_never_stopped(whole, tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        crash_at(patch, step)
        with pytest.raises(RuntimeError, match="lost"):
            loop.train(toy.config(), tmp_path / "run", corpus=toy.Memory(), quiet=True)
    assert (checkpoint.steps(tmp_path / "run") or [0])[-1] == step // 4 * 4
    loop.resume(tmp_path / "run", corpus=toy.Memory(), quiet=True)
    same(whole, tmp_path / "run")


GROUPED = {"train__order": "grouped", "train__group_search": 16, "train__group_queue": 32}


def entries_seen(monkeypatch) -> list[list[int]]:
    """Entries of every step that is taken from here on."""
    seen: list[list[int]] = []
    real = loop.train_step

    def sees(model, system, micro_batches, *rest):
        seen.append([entry for batch in micro_batches for entry in batch.entry.tolist()])
        return real(model, system, micro_batches, *rest)

    monkeypatch.setattr(loop, "train_step", sees)
    return seen


@pytest.mark.parametrize("texts", ["one", "all"])
@pytest.mark.parametrize("lost_at", [3, 7])
def test_a_grouped_order_is_resumed_in_the_middle_of_collecting(tmp_path, monkeypatch, texts, lost_at):
    """42 rows or 84 entries in batches of 8: two or four are left out."""
    corpus = toy.Memory(42)
    config = toy.config(**GROUPED, train__steps=22, data__texts=texts, train__checkpoint_every=2)
    with monkeypatch.context() as patch:
        seen = entries_seen(patch)
        loop.train(config, tmp_path / "whole", corpus=corpus, quiet=True)
    steps = (42 if texts == "one" else 84) // 8
    epochs = [[entry for batch in seen[k : k + steps] for entry in batch] for k in range(0, len(seen), steps)]
    whole = [epoch for epoch in epochs if len(epoch) == steps * 8]
    assert len(whole) == (4 if texts == "one" else 2)
    for before, after in itertools.pairwise(whole):
        assert len(set(after)) == len(after), "every entry once"
        assert set(range(42 if texts == "one" else 84)) - set(before) <= set(after), "what was left out comes next"
    assert whole[0] != sorted(whole[1]) != whole[1]
    with monkeypatch.context() as patch:
        crash_at(patch, lost_at)
        with pytest.raises(RuntimeError, match="lost"):
            loop.train(config, tmp_path / "run", corpus=corpus, quiet=True)
    held = checkpoint.load_tensors(tmp_path / f"run/state/step-{lost_at // 2 * 2:08d}/order.safetensors")
    assert {"held.entries", "held.images"} <= set(held), "vectors are waiting to be grouped"
    loop.resume(tmp_path / "run", corpus=corpus, quiet=True)
    same(tmp_path / "whole", tmp_path / "run")
    order = f"state/step-{22:08d}/order.safetensors"
    ends = [checkpoint.load_tensors(tmp_path / run / order) for run in ("whole", "run")]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_grouping_fires_when_the_queue_is_full_and_at_the_end_of_the_epoch(monkeypatch):
    """Card, check 6: a queue of six batches and fifteen steps: after 6, after 12, and three batches at the end."""
    sizes = []
    real = grouping_functions.grouped

    def counts(images, texts, entries, *rest):
        sizes.append((step, len(entries)))
        return real(images, texts, entries, *rest)

    monkeypatch.setattr(grouping_functions, "grouped", counts)
    held = Grouping(60, 4, 0, 8, 24)
    for step in range(1, 16):
        entries = torch.arange(4 * step - 4, 4 * step)
        held.add({"images": torch.randn(4, 3), "texts": torch.randn(4, 3), "entries": entries}, 0)
    plan = held.finish(0)
    assert sizes == [(6, 24), (12, 24), (15, 12)]
    assert sorted(plan.tolist()) == list(range(60))
    assert not held.state(), "nothing of the epoch is left"


def test_what_cannot_be_grouped_is_refused_before_any_step(tmp_path):
    for changes, corpus, message in (
        ({"model__pooled": False}, toy.Memory(), "this system gives no texts such a vector"),
        ({}, MixedCorpus([toy.Memory(), toy.Memory()], [1, 1]), "plans one corpus, and memory.memory mixes several"),
    ):
        with pytest.raises(UserError, match=message):
            loop.train(toy.config(**GROUPED | changes), tmp_path / "run", corpus=corpus, quiet=True)
        assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="group_search must be a multiple of batch_size"):
        toy.config(**GROUPED | {"train__group_search": 9})


def test_a_system_that_mixes_sources_is_not_grouped(tmp_path, monkeypatch):
    asked = Needs(sources={"pairs": 1.0, "texts": 1.0})
    monkeypatch.setattr(toy.Toy, "needs", classmethod(lambda cls, config: asked))
    (tmp_path / "texts.txt").write_text("red\ngreen\n" * 8)
    config = toy.config(**GROUPED, data__sources={"texts": str(tmp_path / "texts.txt")})
    with pytest.raises(UserError, match="grouped plans one corpus of pairs, and this system mixes"):
        loop.train(config, tmp_path / "run", corpus=toy.Memory(), quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_grouped_run_killed_while_it_collects_goes_on_as_if_it_never_was(tmp_path):
    """kill -9 in the eighth step: two of the second epoch's are waiting to be grouped."""
    changes = GROUPED | {"train__checkpoint_every": 1}
    loop.train(toy.config(**changes), tmp_path / "whole", corpus=toy.Memory(), quiet=True)
    named = [f"{name.replace('__', '.')}={value}" for name, value in changes.items()]
    child = start("train", tmp_path / "run", *named, "kill=60")
    assert child.end() == -signal.SIGKILL
    assert checkpoint.steps(tmp_path / "run")[-1] == 7
    held = checkpoint.load_tensors(tmp_path / "run/state/step-00000007/order.safetensors")
    assert len(held["held.entries"]) == 16
    loop.resume(tmp_path / "run", corpus=toy.Memory(), quiet=True)
    same(tmp_path / "whole", tmp_path / "run")


def test_a_memory_comes_back(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        crash_at(patch, 7)
        with pytest.raises(RuntimeError, match="lost"):
            loop.train(toy.config(), tmp_path / "run", corpus=toy.Memory(), quiet=True)
    loop.resume(tmp_path / "run", corpus=toy.Memory(), quiet=True)
    last = "state/step-00000013/memory.safetensors"
    means = [checkpoint.load_tensors(run / last)["means"] for run in (whole, tmp_path / "run")]
    assert len(means[0]) == 3, "one at the start, one after each whole epoch"
    assert torch.equal(*means)
    monkeypatch.setattr(checkpoint, "MEMORY_BYTES", 4)
    with pytest.raises(UserError, match=r"remembers 8 bytes \(means\); at most 4 are kept"):
        loop.train(toy.config(), tmp_path / "large", corpus=toy.Memory(), quiet=True)


def test_evaluations_come_when_due_and_once(tmp_path, monkeypatch):
    config = toy.config(train__eval_every=6)
    called = []

    def evaluate(trained, step):
        assert not trained.predictor.system.training
        assert not torch.is_grad_enabled()
        called.append(step)
        return {"zh": {"r1": float(step)}}

    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        with pytest.raises(Interrupted):
            loop.train(config, tmp_path / "run", evaluate, toy.Memory(), quiet=True)
    loop.resume(tmp_path / "run", evaluate, toy.Memory(), quiet=True)
    assert called == [0, 6, 12, 13]
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(14))
    assert {line["step"]: line["eval"]["zh"]["r1"] for line in lines if "eval" in line} == {0: 0, 6: 6, 12: 12, 13: 13}


def test_an_evaluation_that_is_interrupted_is_made_up_for(tmp_path, monkeypatch):
    config = toy.config(train__eval_every=6)

    def interrupted(trained, step):
        if step == 6:
            raise loop.Stop
        return {"r1": step}

    with pytest.raises(Interrupted):
        loop.train(config, tmp_path / "run", interrupted, toy.Memory(), quiet=True)
    loop.resume(tmp_path / "run", lambda trained, step: {"r1": step}, toy.Memory(), quiet=True)
    loop.train(config, tmp_path / "whole", lambda trained, step: {"r1": step}, toy.Memory(), quiet=True)
    same(tmp_path / "whole", tmp_path / "run")


def test_metrics_lose_what_came_after_the_checkpoint_and_half_lines(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        crash_at(patch, 7)
        with pytest.raises(RuntimeError):
            loop.train(toy.config(), tmp_path / "run", corpus=toy.Memory(), quiet=True)
    path = tmp_path / "run" / "metrics.jsonl"
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4, 5, 6, 7]
    path.write_text(path.read_text() + '{"step": 8, "lo')
    loop.resume(tmp_path / "run", corpus=toy.Memory(), quiet=True)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(1, 14))


def test_a_folder_that_holds_a_run_is_refused(whole):
    before = (whole / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=f"--resume {whole}"):
        loop.train(toy.config(), whole, corpus=toy.Memory(), quiet=True)
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_stays_as_it_is(whole):
    assert loop.finished(whole)
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    loop.resume(whole, corpus=toy.Memory(), quiet=True)
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


def test_another_corpus_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            loop.train(toy.config(), tmp_path / "run", corpus=toy.Memory(), quiet=True)
    with pytest.raises(UserError, match=r"corpus memory has changed .*memory-1 then, memory-2 now"):
        loop.resume(tmp_path / "run", corpus=toy.Memory(fingerprint="memory-2"), quiet=True)


def test_no_run_to_resume(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        loop.resume(tmp_path)


def test_a_refusal_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match="batch"):
        loop.train(toy.config(train__batch_size=64), tmp_path / "run", corpus=toy.Memory(), quiet=True)
    assert not (tmp_path / "run").exists()


def start(action: str, run: Path, *settings: str) -> Child:
    child = Child(run.with_name(f"{run.name} {action}"), "tests.training.toy", action, str(run), *settings)
    until = time.monotonic() + 60
    while not (child.out.exists() and child.out.read_text() == "ready\n"):
        assert time.monotonic() < until, child.errors.read_text()
        time.sleep(0.005)
    return child


def wait_for_step(run: Path, step: int) -> None:
    until = time.monotonic() + 60
    while not any(line["step"] >= step for line in read_metrics(run / "metrics.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.005)


def test_killed_then_terminated_then_resumed_is_never_stopped(whole, tmp_path):
    """kill -9 at a moment nobody chose, then SIGTERM on the resumed run, then to the end."""
    run = tmp_path / "run"
    child = start("train", run, "pause=0.003")
    wait_for_step(run, random.SystemRandom().randrange(1, 6))
    time.sleep(random.SystemRandom().random() * 0.03)
    child.kill(signal.SIGKILL)
    assert child.end() == -signal.SIGKILL

    child = start("resume", run, "pause=0.01")
    wait_for_step(run, 7)
    child.kill(signal.SIGTERM)
    assert child.end() == 130, child.errors.read_text()
    assert 7 <= checkpoint.steps(run)[-1] <= 13

    loop.resume(run, corpus=toy.Memory(), quiet=True)
    same(whole, run)
