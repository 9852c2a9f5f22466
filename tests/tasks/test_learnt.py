"""Tasks of pictures learnt by the loop: a run ends with its best weights, and is loaded and measured with its head."""

import pytest

import tuwen
from tuwen import tasks
from tuwen.benchmark.measure import measure_task as measure
from tuwen.errors import UserError
from tuwen.training.config import RunConfig
from tuwen.training.log import read_metrics
from tuwen.training.loop import train
from tuwen.training.validation import task_rows

CORPUS = "scenes:count=24,side=32,things=12,objects=2"
SETTINGS = {
    "train.steps": 4,
    "train.batch_size": 8,
    "train.eval_every": 2,
    "train.lr": 3e-3,
    "train.precision": "float32",
    "train.threads": 1,
    "data.workers": 0,
    "tokenizer.size": 200,
}
LEARNT = [
    ("classification", "clip"),
    ("referring", "blip"),
    ("matching", "r2d2"),
    ("retrieval", "albef"),
    ("captioning", "clip"),
    ("captioning", "ernie_unix2"),
]


@pytest.mark.parametrize(("task", "system"), LEARNT)
def test_a_run_ends_with_its_best_weights_and_is_used_with_its_head(task, system, tmp_path):
    config = RunConfig.of(system, "tiny", CORPUS, changes=SETTINGS, task=task)
    run = train(config, tmp_path / "run", quiet=True)
    scores = [line["eval"]["score"] for line in read_metrics(run / "metrics.jsonl") if "eval" in line]
    assert len(scores) == 3
    model = tuwen.load(run)
    rows = task_rows(model.config, new=False).validation
    chosen = tasks.of(model.config.task)
    again = chosen.validate(model.predictor, model.system.head, rows)["score"]
    assert again == pytest.approx(max(scores), rel=1e-4, abs=1e-6)
    measured = measure(run, CORPUS, "test", task, {"limit": 8})
    assert (measured["task"], measured["system"]) == (task, system)
    pictures = [rows.image(0), rows.image(1)]
    if chosen.verb and task != "captioning":
        answers = chosen.use(model.predictor, model.system.head, pictures, ["a cat", "a dog"])
        assert len(answers) == 2
        if task == "classification":
            assert answers == model.classify(pictures)
            assert {choice.name for choice in answers} <= set(model.config.task.classes)
            assert all(1 / len(model.config.task.classes) <= choice.probability <= 1 for choice in answers)
        else:
            assert answers == model.ground(pictures, ["a cat", "a dog"])
            assert all(0 <= low <= high <= 1 for box in answers for low, high in (box[::2], box[1::2]))
    if task == "captioning":
        made = model.caption(pictures, language="zh")
        assert made == chosen.use(model.predictor, model.system.head, pictures, None, language="zh")
        assert all(made)
        with pytest.raises(UserError, match="no language 'fr'"):
            chosen.use(model.predictor, model.system.head, pictures, None, language="fr")


def test_what_a_run_has_not_learnt_is_refused(tmp_path):
    config = RunConfig.of("clip", "tiny", CORPUS, changes={**SETTINGS, "train.steps": 1})
    run = train(config, tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="has not learnt classification; learn it with"):
        measure(run, CORPUS, "test", "classification", {})
    with pytest.raises(UserError, match="learn one with `tuwen train --task captioning`"):
        measure(run, CORPUS, "test", "captioning", {})
    probed = measure(run, CORPUS, "test", "linear_probe", {})
    assert probed["fitted_on"] > 0


@pytest.mark.parametrize(
    ("task", "classes"), [("vqa", "answers"), ("entailment", "labels"), ("two_pictures", "labels")]
)
def test_a_baseline_s_class_that_is_none_is_a_line(task, classes):
    """Of a run's config that was edited: found where it is read, not in the middle of measuring."""
    changes = {f"task.{classes}": ["a", "b"], "task.beginnings": {"what": 1}}
    assert RunConfig.of("albef", "tiny", "x", changes=changes, task=task).task.beginnings == {"what": 1}
    for number in (2, -1):
        with pytest.raises(UserError, match=f"beginnings: 'what' has class {number} of 2"):
            RunConfig.of("albef", "tiny", "x", changes=changes | {"task.beginnings": {"what": number}}, task=task)
