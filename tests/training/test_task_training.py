"""A task learnt on a run of one's own: batches that fit, weights of the best step, crashes, what a loaded run does."""

import json

import numpy as np
import pytest
import torch

import tuwen
from tests.training import toy
from tests.training.test_resume import crash_at, untimed
from tuwen import cli, systems
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.items import split_off
from tuwen.errors import UserError
from tuwen.run import provenance
from tuwen.tasks.two_pictures import Boxes
from tuwen.training import checkpoint, loop, validation
from tuwen.training.config import LEAST_STEPS, RunConfig, TrainConfig, fitting_batch
from tuwen.training.log import read_metrics

PLACE = "scenes:count=60,side=32,things=9,objects=2"
SETTINGS = {
    "train.batch_size": 4,
    "train.threads": 1,
    "train.precision": "float32",
    "train.log_every": 1,
    "train.checkpoint_every": 2,
    "data.workers": 0,
    "data.languages": ["en"],
}


ASKED = {"arl": {"tokenizer.lexicon": "scenes"}, "ernie_unix2": {"data.languages": ["en", "zh"]}}  # of pre-training


def pretrained(folder, system: str, steps: int = 1):
    changes = {**SETTINGS, "train.steps": steps, "tokenizer.size": 300, **ASKED.get(system, {})}
    config = RunConfig.of(system, "tiny", PLACE, "pretrain", changes)
    return loop.train(config, folder, quiet=True)


def learnt(folder, base, system: str, task: str, **changes):
    settings = {**SETTINGS, "train.steps": 5, "train.eval_every": 2, "init": str(base)}
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    return loop.train(RunConfig.of(system, "tiny", PLACE, "finetune", settings, task), folder, quiet=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("runs") / "base", "albef")


@pytest.fixture(scope="module")
def answering(base, tmp_path_factory):
    return learnt(tmp_path_factory.mktemp("runs") / "vqa", base, "albef", "vqa")


def test_a_batch_fits_the_corpus():
    """771 rows and a batch of 512 made one step an epoch, and taught nothing."""
    large = TrainConfig(batch_size=512, least_steps=LEAST_STEPS)
    assert fitting_batch(large, 771).batch_size == 32
    assert 771 // 32 >= LEAST_STEPS > 771 // 64
    assert fitting_batch(large, 10**6) == large
    assert fitting_batch(TrainConfig(batch_size=512), 771).batch_size == 512  # pre-training, or told so
    told = RunConfig.of("clip", "base", "x", "finetune", {"train.batch_size": 512})
    assert (told.train.batch_size, told.train.least_steps) == (512, 1)
    assert RunConfig.of("clip", "base", "x", "finetune", {"train": {"batch_size": 64}}).train.least_steps == 1
    assert RunConfig.of("clip", "base", "x", "finetune").train.least_steps == LEAST_STEPS
    odd = TrainConfig(batch_size=12, accumulation=3, least_steps=LEAST_STEPS)
    assert fitting_batch(odd, 30).batch_size == 3  # never less than a row a micro-batch


def test_a_tenth_of_the_pictures_is_kept_aside():
    corpus = Scenes(count=300, side=32)
    rest, aside = split_off(corpus)
    assert 15 <= len(aside) <= 50
    assert sorted([*rest.rows, *aside.rows]) == list(range(300))
    assert not set(rest.image_ids()) & set(aside.image_ids())
    again, _ = split_off(corpus)
    assert np.array_equal(rest.rows, again.rows)
    assert split_off(Scenes(count=1, side=32))[1] is None


@pytest.mark.parametrize(("scores", "best"), [([1, 5, 3, 5, 2], 4), ([9, 1, 1, 1, 1], 0), ([1, 2, 3, 4, 5], 13)])
def test_a_run_ends_with_the_weights_of_its_best_step(tmp_path, scores, best):
    """Evaluations after 0, 4, 8, 12 and 13 steps; of equals the earlier."""
    marks = iter(scores)
    with toy.registered():
        config = toy.config(train__choose="best", train__eval_every=4, train__checkpoint_every=1, train__keep=20)
        first = {}

        def evaluate(trained, step):
            if step == 0:
                first.update({k: v.clone() for k, v in checkpoint.parted(trained.predictor.system)[0].items()})
            return {"score": next(marks)}

        run = loop.train(config, tmp_path / "run", evaluate, corpus=toy.Memory(), quiet=True)
    expected = first or None
    if best:
        expected = checkpoint.load_tensors(run / f"state/step-{best:08d}/weights.safetensors")
    weights = checkpoint.load_tensors(run / "weights.safetensors")
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert provenance(run)["finished"]["best_step"] == best
    assert not list((run / "state").glob("best-*"))


def test_a_run_lost_while_a_task_is_learnt_ends_bit_equal(base, answering, tmp_path, monkeypatch):
    """The process is lost in the middle of step 3, after checkpoint 2, with the best weights so far beside it."""
    crash_at(monkeypatch, 3)
    with pytest.raises(RuntimeError, match="lost"):
        learnt(tmp_path / "run", base, "albef", "vqa")
    monkeypatch.undo()
    loop.resume(tmp_path / "run", quiet=True)
    for name in ("weights.safetensors", "state/step-00000005/weights.safetensors"):
        first, second = checkpoint.load_tensors(answering / name), checkpoint.load_tensors(tmp_path / "run" / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert untimed(answering) == untimed(tmp_path / "run")
    assert [line["step"] for line in read_metrics(answering / "metrics.jsonl") if "eval" in line] == [0, 2, 4, 5]
    assert validation.best_step(answering)[0] == provenance(answering)["finished"]["best_step"]


def test_answers_come_from_the_training_split_alone(answering):
    config = RunConfig.read(answering).task
    train = {answer for row in range(60) for answer in _answers("train", row)}
    assert set(config.answers) <= train | {"0"}
    assert config.beginnings[""] in range(len(config.answers))


def _answers(split: str, row: int):
    from tuwen.tasks.answers import plain_answer
    from tuwen.tasks.vqa import questions_of

    rows = questions_of(Scenes(split=split, count=60, side=32, things=9, objects=2))
    return [plain_answer(answer) for answer in rows.record(row).columns["answers"]]


def test_a_loaded_run_answers_and_says_what_it_cannot(answering, base):
    model, picture = tuwen.load(answering), Scenes(count=1, side=32).image(0)
    (choice,) = model.answer([picture], ["How many things are in the picture?"])
    assert choice.name in model.config.task.answers
    assert 0 < choice.probability <= 1
    with pytest.raises(UserError, match="has not learnt to judge; tasks that teach it: entailment, two_pictures"):
        model.judge([picture], ["There is a dog."])
    with pytest.raises(UserError, match="has not learnt to answer; tasks that teach it: vqa"):
        tuwen.load(base).answer([picture], ["What?"])
    with pytest.raises(UserError, match="1 rows of pictures and 2 texts"):
        model.answer([picture], ["What?", "Where?"])
    with pytest.raises(UserError, match="texts must be a list"):
        model.answer([picture], "What?")


def test_the_command_line_measures_and_writes_predictions(answering, base, tmp_path, capsys):
    place = "scenes:count=12,side=32,things=9,objects=2"
    asked = ["eval", str(answering), "--corpus", place, "--predictions", str(tmp_path / "a.json"), "--json"]
    assert cli.main(asked) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["task"] == "vqa"
    assert set(measured["baselines"]) == {"majority", "blind", "other_picture", "other_text"}
    entries = json.loads((tmp_path / "a.json").read_text())
    assert len(entries) == 12
    assert all(set(entry) == {"question_id", "answer"} for entry in entries)
    assert cli.main(["eval", str(base), "--corpus", place, "--task", "vqa"]) == 1
    assert "has not learnt vqa; learn it with" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["eval", str(answering), "--corpus", place, "--predictions", "a.txt"])
    assert "its name must end in .json, .jsonl, .csv" in capsys.readouterr().err


def test_a_wide_picture_is_cut_into_its_boxes():
    """NLVR: 400 x 100 with boxes at 0, 150 and 300."""

    class Wide(toy.Memory):
        def image(self, row):
            return (torch.arange(400) // 50).to(torch.uint8).expand(3, 100, 400)

    shown = Boxes(Wide(), 3).shown(0)
    assert [tuple(picture.shape) for picture in shown] == [(3, 100, 100)] * 3
    assert [sorted(set(picture[0, 0].tolist())) for picture in shown] == [[0, 1], [3, 4], [6, 7]]


@pytest.mark.parametrize("task", ["two_pictures", "entailment"])
def test_statements_are_learnt_and_judged(base, tmp_path, task):
    run = learnt(tmp_path / "run", base, "albef", task, train__steps=2)
    model, scene = tuwen.load(run), Scenes(count=2, side=32)
    pictures = [scene.image(0), scene.image(1)] if task == "two_pictures" else scene.image(0)
    (choice,) = model.judge([pictures], ["There is a dog."])
    assert choice.name in model.config.task.labels
    losses = [line["losses"]["task"] for line in read_metrics(run / "metrics.jsonl") if "losses" in line]
    assert 0 < losses[0] < 3


@pytest.mark.slow  # 4 minutes on a busy machine; dide asks for a teacher, see tests/systems/test_dide_runs.py
@pytest.mark.parametrize("name", [n for n in systems.names() if systems.find(n).can("fuse") and n != "dide"])
def test_a_task_starts_from_every_fusion_system_s_pre_training(name, tmp_path):
    base = pretrained(tmp_path / "base", name)
    for task in ("vqa", "entailment"):
        run = learnt(tmp_path / task, base, name, task, train__steps=1, train__lr=1e-12)
        before, after = (checkpoint.load_tensors(folder / "weights.safetensors") for folder in (base, run))
        same = [key for key in before if key in after]
        assert len(same) > 0.5 * len(before)
        for key in same:
            torch.testing.assert_close(after[key], before[key], rtol=0, atol=1e-6, msg=key)


def test_a_tokenizer_of_questions_knows_their_answers(tmp_path):
    """Answers that no question says ("yes", "no", "1", "2", 灰色, 黄色) were all the one unknown word to a decoder."""
    changes = {"train.steps": 1, "train.batch_size": 8, "data.workers": 0, "train.threads": 1, "tokenizer.size": 400}
    corpus = "scenes:count=64,things=12,objects=2,whole=true,side=32"
    config = RunConfig.of("albef", "tiny", corpus, changes=changes, task="vqa")
    model = tuwen.load(loop.train(config, tmp_path / "run", quiet=True))
    ids, _ = model.tokenizer.encode(model.config.task.answers, 12)
    assert len({tuple(row) for row in ids.tolist()}) == len(ids) > 20
