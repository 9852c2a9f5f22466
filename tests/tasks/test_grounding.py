"""Grounding measured on boxes known beforehand: by hand, and by a system that knows the truth or only warms."""

import numpy as np
import pytest
import torch

from tests.tasks.stub import Pairs, ready
from tuwen.errors import UserError
from tuwen.systems.system import Located, System
from tuwen.tasks import grounding
from tuwen.tasks.grounding import box_of, evaluate_grounding, point_of

BOXES = {1: [0.0, 0.0, 0.5, 0.5], 2: [0.5, 0.5, 1.0, 1.0], 3: [0.0, 0.5, 0.2, 1.0]}


class Knows(System):
    """Answers text number n with a box of its own."""

    def __init__(self, answers, heat=False):
        super().__init__()
        self.answers, self.heat, self.config = answers, heat, None

    def locate(self, images, texts):
        assert len(images) == len(texts)
        boxes = torch.tensor([self.answers[int(ids[0])] for ids in texts.ids])
        if not self.heat:
            return Located(boxes[:, None])
        grid = (torch.arange(10) + 0.5) / 10
        across = (grid >= boxes[:, :1]) & (grid <= boxes[:, 2:3])
        down = (grid >= boxes[:, 1:2]) & (grid <= boxes[:, 3:])
        return Located(heat=(down[:, :, None] & across[:, None]).float())


def corpus(broken=()) -> Pairs:
    objects = [
        [{"phrase": "a 1", "box": BOXES[1]}, {"phrase": "b 2", "box": BOXES[2]}],
        [{"phrase": "a 3", "box": BOXES[3]}, {"phrase": "a 3", "box": BOXES[2]}],
    ]
    return Pairs([{"en": ["a 1"]}, {"en": ["a 3"]}], broken=broken, columns=[{"objects": x} for x in objects])


def measure(system, **options):
    return evaluate_grounding(ready(system, ["en"]), corpus(**options))


@pytest.mark.parametrize("heat", [False, True])
def test_the_truth_scores_all(heat):
    found = measure(Knows(BOXES, heat))["languages"]["en"]
    assert [found[key] for key in ("pointing", "iou", "iou50", "phrases")] == pytest.approx([100, 100, 100, 3])


def test_by_hand():
    """1: a quarter beside it, IoU 0; 2: the whole picture, 0.25; 3: the second of its two boxes, 1."""
    answers = {1: [0.5, 0.0, 1.0, 0.5], 2: [0.0, 0.0, 1.0, 1.0], 3: BOXES[2]}
    found = measure(Knows(answers))
    marks = found["languages"]["en"]
    assert marks["iou"] == pytest.approx(100 * (0 + 0.25 + 1) / 3)
    assert marks["iou50"] == pytest.approx(100 / 3)
    assert marks["pointing"] == pytest.approx(200 / 3)  # (0.5, 0.5) lies on the edge of box 2
    assert marks["whole"]["iou"] == pytest.approx(100 * 0.25)
    width, height = np.mean([0.5, 0.5, 0.2, 0.5]), 0.5  # four right boxes
    shared = (width / 2) * (height / 2)
    quarter = shared / (width * height + 0.25 - shared)
    assert marks["centre"]["iou"] == pytest.approx(100 * quarter)
    assert found["images"] == 2


def test_points_and_boxes_of_heat():
    heat = torch.zeros(1, 4, 8)
    heat[0, 2, 5], heat[0, 2, 4], heat[0, 1, 5] = 1.0, 0.5, 0.49
    assert point_of(Located(heat=heat)).tolist() == [[5.5 / 8, 2.5 / 4]]
    assert box_of(Located(heat=heat)).tolist() == [[4 / 8, 2 / 4, 6 / 8, 3 / 4]]
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]])
    assert point_of(Located(boxes, heat=heat)).tolist() == [[5.5 / 8, 2.5 / 4]]
    assert box_of(Located(boxes, heat=heat)).tolist() == [[0.0, 0.0, 0.5, 0.5]]


def test_broken_pictures_are_left_out_and_counted():
    found = measure(Knows(BOXES), broken=[0])
    assert found["broken"] == {"truncated": 1}
    assert found["images"] == 1
    assert found["languages"]["en"]["phrases"] == 1
    with pytest.raises(UserError, match="none of the pictures"):
        measure(Knows(BOXES), broken=[0, 1])


def test_batches_change_nothing():
    answers = {1: [0.1, 0.0, 0.6, 0.5], 2: [0.4, 0.4, 1.0, 1.0], 3: [0.0, 0.0, 0.1, 0.6]}
    one, all_ = (
        evaluate_grounding(ready(Knows(answers), ["en"]), corpus(), batch_size=size)["languages"] for size in (1, 64)
    )
    assert one == all_


def test_refusals():
    with pytest.raises(UserError, match="cannot locate"):
        measure(System())
    with pytest.raises(UserError, match="no language 'zh'"):
        evaluate_grounding(ready(Knows(BOXES), ["en"]), corpus(), languages=["zh"])
    assert grounding.box_overlap(np.array([0, 0, 1, 1.0]), np.array([[0.5, 0.5, 1, 1]])) == pytest.approx([0.25])
