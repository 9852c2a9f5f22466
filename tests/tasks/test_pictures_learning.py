"""Tasks of pictures learnt from nothing on scenes, above their baselines by more than the intervals: a minute each.

The figures stand in docs/tasks.md.
"""

import pytest

from tuwen.benchmark.measure import measure_task as measure
from tuwen.training.config import RunConfig
from tuwen.training.loop import train

CORPUS = "scenes:count=600,things=12,objects=2,whole=true,side=64"
SETTINGS = {
    "train.batch_size": 32,
    "train.lr": 3e-3,
    "train.threads": 1,
    "data.workers": 0,
    "tokenizer.size": 400,
    "model.image.side": 64,
    "model.image.patch": 16,
}

pytestmark = pytest.mark.slow


def learnt(task: str, system: str, steps: int, folder) -> dict:
    changes = {**SETTINGS, "train.steps": steps, "train.eval_every": steps}
    run = train(RunConfig.of(system, "tiny", CORPUS, changes=changes, task=task), folder / "run", quiet=True)
    return measure(run, CORPUS, "val", task, {})


def test_classes(tmp_path):
    marks = learnt("classification", "clip", 300, tmp_path)
    assert marks["head"]["top1"] > marks["majority"]["top1"] + 10  # of 253 pictures, the interval is below 6


def test_boxes_hang_on_picture_and_phrase(tmp_path):
    for marks in learnt("referring", "albef", 500, tmp_path)["languages"].values():
        for blind in ("other_picture", "other_text", "centre", "whole"):
            assert marks["iou50"] - marks["interval"] > marks[blind]["iou50"], blind


def test_captions_are_of_their_own_picture(tmp_path):
    for marks in learnt("captioning", "albef", 400, tmp_path)["languages"].values():
        assert marks["cider_d"] > 2 * marks["shuffled"]["cider_d"]
