"""What could not teach is refused before step 0; a full disk and a corpus that was moved are no end of a run."""

import errno
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tests.training import toy
from tests.training.test_resume import same, stop_after
from tuwen import systems
from tuwen.config import override
from tuwen.data.corpus import Record
from tuwen.errors import UserError
from tuwen.run import finished, provenance
from tuwen.training import checkpoint, log, loop
from tuwen.training.config import RunConfig
from tuwen.training.signals import Interrupted


@pytest.fixture(autouse=True)
def _toy():
    with toy.registered():
        yield


class Alike(toy.Memory):
    """Rows that show one of so many pictures and have one of so many texts."""

    def __init__(self, pictures: int, texts: int):
        super().__init__(16)
        self.pictures_there, self.texts_there = pictures, texts

    def record(self, row):
        return Record(str(row), {"en": [f"red {row % self.texts_there}"]}, row % self.pictures_there)


def refusal(corpus, **changes) -> str:
    with pytest.raises(UserError) as error:
        loop.train(toy.config(**changes), "never", corpus=corpus, quiet=True)
    return str(error.value)


def test_micro_batches_are_refused_where_rows_are_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = refusal(toy.Memory(), train__accumulation=2)
    assert told.startswith(
        "config field train.accumulation: toy compares the rows of a batch with each other, so 2 micro"
    )
    assert "train.accumulation=1" in told
    assert not (tmp_path / "never").exists()
    config = toy.config(train__accumulation=2, train__steps=1, model__contrast=False, model__dropout=0)
    plain = toy.config(train__steps=1, model__contrast=False, model__dropout=0)
    for name, each in (("parts", config), ("whole", plain)):
        loop.train(each, tmp_path / name, corpus=toy.Memory(), quiet=True)
    one, two = (checkpoint.load_tensors(tmp_path / name / "weights.safetensors") for name in ("parts", "whole"))
    for name in one:
        torch.testing.assert_close(one[name], two[name])


def test_every_system_that_declares_row_by_row_learns_row_by_row():
    alone = [
        name for name in systems.names() if not systems.find(name).compares_rows(RunConfig.of(name, "tiny", "x").model)
    ]
    # a system that declares it needs a test that its losses in parts are those of the whole
    assert alone == ["dino"]
    assert not systems.find("dvae").compares_rows(RunConfig.of("dvae", "tiny", "x", changes={"model.uniform": 0}).model)


def test_batches_without_a_wrong_pair_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "a batch of 1 has no wrong one" in refusal(toy.Memory(), train__batch_size=1)
    assert "all its rows have one and the same picture" in refusal(Alike(1, 9))
    assert "all its rows have one and the same text" in refusal(Alike(9, 1))
    assert not (tmp_path / "never").exists()
    config = toy.config(train__batch_size=1, train__steps=1, model__contrast=False)
    loop.train(config, tmp_path / "run", corpus=toy.Memory(), quiet=True)


def test_a_batch_that_happens_to_hold_none_is_told_and_counted(tmp_path, capsys):
    """Row r is one of two pairs by turns, so a batch of two rows is alike about half the time."""
    config = toy.config(train__batch_size=2, train__steps=16)
    loop.train(config, tmp_path / "run", corpus=Alike(2, 2))
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("are of one picture or one text, so it holds no wrong pair") == 1
    count = int(told.split(" of the batches held no wrong pair")[0].rsplit(" ", 1)[1])
    assert 3 <= count <= 13


@pytest.mark.parametrize("full", ["save_tensors", "write", "metrics"])
def test_a_full_disk_is_a_line_and_the_run_goes_on_after(tmp_path, monkeypatch, full):
    """At the second checkpoint, and at the record of step 6."""
    loop.train(toy.config(), tmp_path / "whole", corpus=toy.Memory(), quiet=True)
    calls = 0

    def fails(real, after):
        def call(*arguments):
            nonlocal calls
            calls += 1
            if calls > after:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments)

        return call

    with monkeypatch.context() as patch:
        if full == "metrics":
            patch.setattr(log.MetricsLog, "write", fails(log.MetricsLog.write, 5))
        elif full == "write":
            patch.setattr(checkpoint, "write", fails(checkpoint.write, 4))
        else:
            patch.setattr(checkpoint, "save_tensors", fails(checkpoint.save_tensors, 4))
        with pytest.raises(UserError, match=r"\(\[Errno 28\] No space left on device\); .* --resume "):
            loop.train(toy.config(), tmp_path / "run", corpus=toy.Memory(), quiet=True)
    loop.resume(tmp_path / "run", corpus=toy.Memory(), quiet=True)
    same(tmp_path / "whole", tmp_path / "run")


def test_a_corpus_that_was_moved_is_read_where_it_is_now(tmp_path, monkeypatch):
    config = override(toy.config(train__steps=3), {"corpus": "scenes:count=40,side=32"})
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Interrupted):
            loop.train(config, tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="fingerprint"):
        loop.resume(tmp_path / "run", quiet=True, moved="scenes:count=41,side=32")
    assert RunConfig.read(tmp_path / "run").corpus == "scenes:count=40,side=32"
    loop.resume(tmp_path / "run", quiet=True, moved="scenes:side=32,count=40")
    assert RunConfig.read(tmp_path / "run").corpus == "scenes:side=32,count=40"


def test_a_tuned_run_knows_its_languages_by_their_places(tmp_path):
    """The weights it starts from know en and zh by their places in the table: there they stay."""
    loop.train(toy.config(train__steps=1), tmp_path / "first", corpus=toy.Memory(), quiet=True)
    corpus = toy.Memory()
    corpus.languages = ("de", "zh")
    seen = {}

    def evaluate(trained, step):
        seen[step] = trained.predictor.languages
        return {}

    config = toy.config(train__steps=1, init=str(tmp_path / "first"))
    loop.train(config, tmp_path / "next", evaluate, corpus, quiet=True)
    assert seen[1] == ("en", "zh", "de")
    assert provenance(tmp_path / "next")["corpus"]["languages"] == ["en", "zh", "de"]
    assert json.loads((tmp_path / "next/provenance.json").read_text())["corpus"]["name"] == "memory"


def test_a_corpus_that_is_gone_is_told_with_the_option_that_names_its_new_place(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    for n in range(8):
        Image.new("RGB", (8, 8), (20 * n, 0, 0)).save(tmp_path / "there" / f"{n}.png")
        (tmp_path / "there" / f"{n}.txt").write_text(f"red {n}")
    config = replace(toy.config(train__batch_size=4), corpus=str(tmp_path / "there"))
    monkeypatch.setattr(loop.parallel, "any_true", lambda *_: True)
    with pytest.raises(Interrupted):
        loop.train(config, tmp_path / "run", quiet=True)
    (tmp_path / "there").rename(tmp_path / "moved")
    told = rf"there: no such.*`tuwen train --resume {tmp_path}/run --corpus ITS-NEW-PLACE`"
    with pytest.raises(UserError, match=told) as caught:
        loop.resume(tmp_path / "run", quiet=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such file") as caught:  # a new run has nothing that could be moved
        loop.train(config, tmp_path / "other", quiet=True)
    assert "--resume" not in str(caught.value)
    monkeypatch.setattr(loop.parallel, "any_true", lambda *_: False)
    loop.resume(tmp_path / "run", quiet=True, moved=str(tmp_path / "moved"))
    assert finished(tmp_path / "run")
