"""A run killed at any file operation of any checkpoint goes on to the same bits, and is finished only when it is."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from torch.utils import tensorboard

from tests.training import toy
from tests.training.test_resume import same
from tuwen.run import CONFIG, METRICS, finished
from tuwen.training import checkpoint, log, loop

OPERATIONS = ("link", "rename", "replace", "fsync", "unlink", "rmdir", "mkdir", "chmod")


class NoEvents:
    """In place of TensorBoard's writer, which is slow to begin."""

    def __init__(self, *_, **__):
        pass

    def add_scalar(self, *_):
        pass

    def close(self):
        pass


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(tensorboard, "SummaryWriter", NoEvents)
    monkeypatch.setattr(log, "_commit", lambda: None)  # three calls of git
    with toy.registered():
        yield


class Snapshots:
    """Copies of a run's folder as kill -9 leaves it before every file operation, and with every write not quite done.

    Folders that look alike are kept once.
    """

    def __init__(self, run: Path, folder: Path, monkeypatch):
        self.run, self.folder, self.busy = run, folder, False
        self.seen: dict[str, Path] = {}
        for name in OPERATIONS:
            monkeypatch.setattr(os, name, self.before(getattr(os, name)))
        monkeypatch.setattr(Path, "write_text", self.torn(Path.write_text, lambda path, *_: path))
        monkeypatch.setattr(checkpoint, "save_file", self.torn(checkpoint.save_file, lambda _, path: path))
        metrics = self.torn(log.MetricsLog.write, lambda *_: run / METRICS)
        monkeypatch.setattr(log.MetricsLog, "write", metrics)

    def before(self, real):
        def call(*arguments, **options):
            self.take()
            return real(*arguments, **options)

        return call

    def torn(self, real, file_of):
        def call(*arguments, **options):
            given = real(*arguments, **options)
            self.take(file_of(*arguments))
            return given

        return call

    def take(self, torn: Path | None = None) -> None:
        """The folder now; `torn`: without the end of this file."""
        if self.busy or not self.run.exists():
            return
        self.busy = True
        copy = self.folder / str(len(self.seen))
        shutil.copytree(self.run, copy)
        if torn is not None and torn.is_relative_to(self.run):
            cut = copy / torn.relative_to(self.run)
            cut.write_bytes(cut.read_bytes()[:-7])
        if self.seen.setdefault(look(copy), copy) != copy:
            shutil.rmtree(copy)
        self.busy = False


def look(run: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(run.rglob("*")):
        digest.update(str(path.relative_to(run)).encode() + (path.read_bytes() if path.is_file() else b"/"))
    return digest.hexdigest()


def files(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*")}


@pytest.mark.parametrize("averaged", [False, True])
def test_killed_at_any_file_operation_it_ends_as_if_it_never_was(tmp_path, monkeypatch, averaged):
    """Three steps with a checkpoint each: the first, one that removes an older one, and the last."""
    steps = 1 if averaged else 3
    config = toy.config(train__steps=steps, train__checkpoint_every=1, train__keep=1)
    if averaged:  # the weights it started from are kept, and what it ends with is made after the last checkpoint
        config = toy.config(train__steps=steps, train__checkpoint_every=1, train__keep=1, train__average=0.25)
    with monkeypatch.context() as patch:
        snapshots = Snapshots(tmp_path / "whole", tmp_path / "killed", patch)
        loop.train(config, tmp_path / "whole", corpus=toy.Memory(), quiet=True)
    killed = list(snapshots.seen.values())
    assert len(killed) > (20 if averaged else 50)
    expected = files(tmp_path / "whole")
    for run in killed:
        done = finished(run) if (run / CONFIG).exists() else False
        if (run / CONFIG).exists():
            loop.resume(run, corpus=toy.Memory(), quiet=True)
        else:
            loop.train(config, run, corpus=toy.Memory(), quiet=True)
        same(tmp_path / "whole", run)
        assert finished(run)
        assert done or files(run) == expected, run.name
        shutil.rmtree(run)
