"""What rows are told to earn adds up to the figure that counts, for every task that is a mean over rows; two runs are
paired on it."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tuwen import tasks
from tuwen.benchmark.figures import figure_of
from tuwen.benchmark.judge_task import judge_task
from tuwen.benchmark.measure import ready_for
from tuwen.cli import main
from tuwen.errors import UserError
from tuwen.tasks.marks import Marks
from tuwen.tasks.matching import tell_area
from tuwen.training import loop
from tuwen.training.config import RunConfig

CORPUS = "scenes:count=60,side=32,objects=2,things=12"
CHANGES = {"train.steps": 2, "train.batch_size": 8, "train.threads": 1, "data.workers": 0, "tokenizer.size": 300}
DUAL = ("retrieval", "zero_shot", "image_retrieval", "text_retrieval", "cross_lingual", "linear_probe")
DUAL += ("oversight", "instance_retrieval")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """clip with two seeds, and albef."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for name, system, seed in (("clip", "clip", 0), ("other", "clip", 1), ("albef", "albef", 0)):
        config = RunConfig.of(system, "tiny", CORPUS, changes=CHANGES | {"train.seed": seed})
        made[name] = loop.train(config, folder / name, quiet=True)
    return made


@pytest.mark.parametrize(("name", "task"), [*(("clip", task) for task in DUAL), ("albef", "grounding")])
def test_marks_add_up_to_the_figure(runs, name, task):
    ready, marks = ready_for(runs[name], CORPUS, "val", task), Marks()
    measured = ready.task.measure(ready.model.predictor, ready.head, ready.rows, marks=marks, **ready.options)
    assert marks.figure() == pytest.approx(figure_of(measured, type(ready.task).figure))
    assert all(len(part.values) == len(part.pictures) > 0 for part in marks.parts.values())


def test_an_area_is_the_mean_of_its_placements_and_moves_as_delong_says():
    generator = np.random.default_rng(3)
    labels = np.array([1, 0] * 40)
    scores = np.round(generator.normal(labels, 1.0), 1)  # with ties
    marks = Marks()
    tell_area(marks, "en", labels, scores, list(range(80)))
    whole = roc_auc_score(labels, scores)
    assert marks.figure() == pytest.approx(whole)
    left_out = labels != 1
    left_out[np.flatnonzero(labels == 1)[1:]] = True  # all but the first right pair
    own = marks.parts["en.right"].values
    without = (own.sum() - own[0]) / (len(own) - 1)
    exact = roc_auc_score(labels[left_out], scores[left_out])
    assert (without + marks.parts["en.wrong"].values.mean()) / 2 == pytest.approx(exact, abs=2e-3)


def test_every_task_says_its_figure():
    assert all(tasks.find_task(name).figure for name in tasks.task_names())


def test_two_runs_are_paired_on_any_task(runs, tmp_path, capsys):
    judged = judge_task([runs["clip"], runs["other"]], CORPUS, "zero_shot", "val")
    rows = {row["what"]: row for row in judged["differences"]}
    assert set(rows) == {"all", "en", "zh"}
    figures = [run["figure"] for run in judged["runs"].values()]
    assert rows["all"]["difference"] == pytest.approx(figures[1] - figures[0])
    for row in rows.values():
        assert row["interval"][0] <= row["difference"] <= row["interval"][1]
        assert row["p"] <= row["p_holm"] <= 1
    words = ["compare", "--runs", str(runs["clip"]), str(runs["other"]), "--corpus", CORPUS, "--task", "zero_shot"]
    assert main([*words, "--split", "val", "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"] == judged["differences"]
    assert {path.name for path in tmp_path.iterdir()} == {"judged.json", "judged.md", "judged.csv", "judged.tex", "report.html"}  # fmt: skip # noqa: E501


def test_runs_that_cannot_be_paired_are_told(runs):
    with pytest.raises(UserError, match="has not learnt vqa"):
        judge_task([runs["clip"], runs["other"]], CORPUS, "vqa", "val")
    with pytest.raises(UserError, match="cannot do grounding"):
        judge_task([runs["clip"], runs["albef"]], CORPUS, "grounding", "val")
