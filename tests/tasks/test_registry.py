"""One registry of tasks: every file is one, every command asks it, and every system that is listed really can."""

import pytest
import torch
from torch import nn

from tests.systems.common import build
from tests.systems.test_survey import spanned
from tuwen import cli, systems, tasks
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.predictor import Predictor
from tuwen.tasks.task import Task
from tuwen.training.config import RunConfig


class Statement(Task):
    """Is a sentence true of two pictures? As NLVR2."""

    what, why, metric = "a sentence about two pictures", "both pictures are read with the sentence", "accuracy"
    needs, pictures = ("fuse",), 2


@pytest.fixture(scope="module")
def scenes():
    return Scenes(count=40, side=32, split="test", things=8)


@pytest.fixture(scope="module")
def tokenizer(scenes):
    texts = [text for row in range(len(scenes)) for spoken in scenes.record(row).texts.values() for text in spoken]
    return Tokenizer.train(texts, size=300)


def test_every_task_says_what_it_is_and_what_it_needs():

    for name in tasks.task_names():
        task = tasks.find_task(name)
        assert task.name() == name
        assert all((task.what, task.why, task.metric))
        assert task().config.name == name
        for need in task.needs:
            assert all(hasattr(systems.System, capability) for capability in need.split()), name


# one of every kind; the others are like one of these, and take minutes together
QUICK = {"albef", "arl", "dino", "dvae", "ege_cmp", "ernie_unix2", "mlm", "slan"}
EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in systems.names()]


@pytest.mark.parametrize("name", EVERY)
def test_every_system_does_the_tasks_it_is_listed_for_and_refuses_the_others(name, scenes, tokenizer):
    able = tasks.of_system(systems.find(name))
    for task in tasks.task_names():
        if task not in able:
            with pytest.raises(UserError, match=f"system {name} cannot do {task}: "):
                tasks.able(name, task)
    if not able:
        return
    config = RunConfig.of(name, "tiny", "scenes")
    system = build(name, vocabulary=tokenizer.vocabulary).eval()
    predictor = Predictor(system, tokenizer, scenes.languages, config.model)
    for task in able:
        chosen = tasks.able(name, task)()
        beside = {"train": scenes} if "train" in chosen.beside else {}
        head, rows = None, scenes
        if type(chosen).head is not Task.head:  # without training
            chosen = tasks.of(chosen.prepare(scenes))
            head, rows = chosen.head(system, tokenizer).eval(), chosen.rows(scenes, "test")
        measured = chosen.measure(predictor, head, rows, limit=12, languages=["en", "zh"], **beside)
        assert (measured["task"], measured["system"]) == (task, name)
        _, head, rows = chosen.table(measured)
        assert rows
        assert all(len(row) == len(head) for row in rows)


@pytest.mark.parametrize("name", [name for name in systems.names() if systems.find(name).can("fuse")])
def test_fuse_takes_as_many_pictures_as_it_says(name):
    system, batch = build(name).eval(), spanned()
    with torch.no_grad():
        images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
        other = images.select(torch.tensor([1, 2, 3, 4, 5, 0]))
        alone = system.fuse([images], texts).pooled
        assert torch.isfinite(alone).all()
        if tasks.can(type(system), Statement):
            both = system.fuse([images, other], texts).pooled
            assert torch.isfinite(both).all()
            assert not torch.equal(both, alone)
            return
        with pytest.raises(UserError, match=f"system {name} cannot fuse: it reads one picture a text, not 2"):
            system.fuse([images, other], texts)


def test_two_pictures_a_row_are_for_those_that_fuse_them(monkeypatch):
    real = tasks.find_task
    monkeypatch.setattr(tasks, "find_task", lambda name: Statement if name == "statement" else real(name))
    assert tasks.able("albef", "statement") is Statement
    words = r"slan cannot do statement: .* needs fuse of 2 pictures a row.* systems that can: albef, "
    with pytest.raises(UserError, match=words) as error:
        tasks.able("slan", "statement")
    assert "slan" not in str(error.value).split("systems that can")[1]


def test_one_vocabulary_on_the_command_line(capsys):
    for command in (["systems", "--task", "vpq"], ["train", "clip", "--corpus", "x", "--out", "y", "--task", "vpq"]):
        assert cli.main(command) == 1
        words = capsys.readouterr().err
        assert "no task called 'vpq'" in words
        assert all(name in words for name in tasks.task_names())
    assert cli.main(["train", "clip", "--corpus", "x", "--out", "y", "--task", "translation"]) == 1
    assert "system clip cannot do translation: " in capsys.readouterr().err


def test_what_is_only_measured_is_not_learnt():
    with pytest.raises(UserError, match="task zero_shot has no head"):
        tasks.find_task("zero_shot")().head(nn.Identity(), None)
