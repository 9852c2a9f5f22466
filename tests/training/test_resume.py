"""A run that stops and goes on is the run that never stopped, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.training import toy
from tuwen.errors import UserError
from tuwen.training import checkpoint, loop
from tuwen.training.log import read_metrics
from tuwen.training.signals import Interrupted

ROOT = Path(__file__).parents[2]
TIMING = ("pairs_per_second", "data_wait", "memory_mb", "seconds")


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


def test_an_order_of_the_system_s_own_is_resumed_within_its_epoch(tmp_path, monkeypatch):
    config = toy.config(model__plan=True)
    loop.train(config, tmp_path / "whole", corpus=toy.Memory(), quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Interrupted):
            loop.train(config, tmp_path / "run", corpus=toy.Memory(), quiet=True)
    loop.resume(tmp_path / "run", corpus=toy.Memory(), quiet=True)
    same(tmp_path / "whole", tmp_path / "run")
    plain = toy.config()
    loop.train(plain, tmp_path / "plain", corpus=toy.Memory(), quiet=True)
    losses = [[line["loss"] for line in read_metrics(tmp_path / run / "metrics.jsonl")] for run in ("whole", "plain")]
    assert losses[0][:5] == losses[1][:5], "the first epoch has no plan yet"
    assert losses[0][5] != losses[1][5]


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


def start(action: str, run: Path, *settings: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.training.toy", action, str(run), *settings]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


def wait_for_step(run: Path, step: int) -> None:
    until = time.monotonic() + 60
    while not any(line["step"] >= step for line in read_metrics(run / "metrics.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.005)


def test_killed_then_terminated_then_resumed_is_never_stopped(whole, tmp_path):
    """kill -9 at a moment nobody chose, then SIGTERM on the resumed run, then to the end."""
    run = tmp_path / "run"
    process = start("train", run, "pause=0.003")
    wait_for_step(run, random.SystemRandom().randrange(1, 6))
    time.sleep(random.SystemRandom().random() * 0.03)
    process.kill()
    process.wait()

    process = start("resume", run, "pause=0.01")
    wait_for_step(run, 7)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors.decode()
    assert 7 <= checkpoint.steps(run)[-1] <= 13

    loop.resume(run, corpus=toy.Memory(), quiet=True)
    same(whole, run)
