"""Grounding measured on boxes known beforehand: by hand, and by a system that knows the truth or only warms."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.systems.common import build, example
from tests.tasks.stub import Pairs, ready
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.nn.relations import recorded
from tuwen.nn.sizes import size
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


def test_the_best_given_box_by_hand():
    """Heat 4 in the left upper cell of 2 x 2, 1 elsewhere. The whole: 7 / 1. Left upper quarter: 4 / 0.5 = 8. Right
    half: 2 / 0.707. A box over half of the hot cell's width: 2 / 0.354 = 5.7."""
    heat = torch.tensor([[4.0, 1.0], [1.0, 1.0]])
    boxes = np.array([[0, 0, 1, 1], [0.5, 0, 1, 1], [0, 0, 0.5, 0.5], [0, 0, 0.25, 0.5]])
    assert grounding.best_proposal(heat, None, boxes).tolist() == [0, 0, 0.5, 0.5]
    assert grounding.best_proposal(heat, None, boxes[[0, 1, 3]]).tolist() == [0, 0, 1, 1]
    assert grounding.best_proposal(torch.flip(heat, (1,)), None, boxes[1:]).tolist() == [0.5, 0, 1, 1]
    middle, part = boxes.copy(), torch.tensor([[0.25, 0.0, 0.75, 1.0]], dtype=torch.float64)
    middle[:, ::2] = 0.25 + 0.5 * middle[:, ::2]  # heat over the middle half of a picture: the same boxes, narrower
    outside = np.array([[0.0, 0.0, 0.25, 1.0]])
    assert grounding.best_proposal(heat, part, np.concatenate([outside, middle])).tolist() == middle[2].tolist()


class Warms(System):
    """Its match hangs on the quarter of the picture that a text's number names."""

    config = None

    def match(self, images, texts):
        raise AssertionError("only where it looked is asked")

    def encode_images(self, images):
        return Encoded(states={"last": torch.zeros(len(images), 4, 1)})

    def encode_texts(self, texts):
        return Encoded(states={"last": texts.ids[:, :1].float()})

    def match_heat(self, images, texts):
        number = texts.states["last"][:, 0].long()
        return torch.nn.functional.one_hot(number, 4).float().view(-1, 2, 2)


def test_the_heat_of_a_match_points_and_chooses():
    """Cell 1 is the right upper quarter, 2 the left lower, 3 the right lower; boxes of both rows are given."""
    boxes = [[0.5, 0.0, 1.0, 0.5], [0.0, 0.5, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]]
    rows = [
        {"objects": [{"phrase": "a 1", "box": boxes[0]}, {"phrase": "b 2", "box": boxes[1]}], "boxes": boxes},
        {"objects": [{"phrase": "a 3", "box": boxes[1]}], "boxes": boxes},  # it points to another one
    ]
    corpus = Pairs([{"en": ["a 1"]}, {"en": ["a 3"]}], columns=rows)
    marks = evaluate_grounding(ready(Warms(), ["en"], side=8), corpus)["languages"]["en"]
    assert marks["pointing"] == pytest.approx(200 / 3)
    assert marks["proposals"] == {
        name: pytest.approx(100 * x) for name, x in (("iou50", 2 / 3), ("any", 1 / 3), ("largest", 1 / 3))
    }
    del rows[1]["boxes"]
    assert "proposals" not in evaluate_grounding(ready(Warms(), ["en"], side=8), corpus)["languages"]["en"]


def slow_albef_heat(system, image, text, mask, layers):
    """Card, section 6: by numeric differences, the logit of a match as a function of the attention of one layer."""
    layer = (layers - 1) // 2
    cross = system.fusion.stack.blocks[layer].cross
    with torch.no_grad(), recorded(system, rf"fusion\.stack\.blocks\.{layer}\.cross") as relations:
        system.fusion(text, mask, image, None)
    ((_, _, attention),) = relations.values()

    def logit(weights):
        real, heads = cross.forward, cross.heads

        def forced(x, memory=None, mask=None, *rest, **more):
            value = cross.key_value(memory).chunk(2, -1)[1].unflatten(-1, (heads, -1)).transpose(1, 2)
            return cross.out((weights @ value).transpose(1, 2).flatten(2))

        cross.forward = forced
        try:
            with torch.no_grad():
                return float(system.match_head(system.fusion(text, mask, image, None)[0, 0])[1])
        finally:
            cross.forward = real

    total, step = torch.zeros(attention.shape[-1], dtype=torch.float64), 1e-5
    for place in np.ndindex(*attention.shape):
        up, down = attention.clone(), attention.clone()
        up[place] += step
        down[place] -= step
        slope = (logit(up) - logit(down)) / (2 * step)
        if mask[0, place[2]]:
            total[place[3]] += float(attention[place]) * max(0.0, slope)
    return total[1:] / (attention.shape[1] * attention.shape[2])  # without the class token; mean of heads and tokens


def test_albef_s_heat_is_the_card_s():
    fusion = dataclasses.replace(size("tiny").fusion, layers=3)
    system, batch = build("albef", fusion=fusion).double().eval(), example([1])
    with torch.no_grad():
        for k, parameter in enumerate(system.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k)))
        image, text = system.encode_images(batch.images), system.encode_texts(batch.texts)
    heat = system.match_heat(image, text)
    expected = slow_albef_heat(system, image.states["last"], text.states["last"], batch.texts.mask, 3)
    assert heat.shape == (1, 4, 4)
    torch.testing.assert_close(heat[0].double().flatten(), expected, rtol=1e-4, atol=1e-9)
    assert float(heat.max()) > 0


@pytest.mark.parametrize("name", ["albef", "blip", "r2d2"])
def test_heat_of_a_pair_hangs_on_no_other_pair(name):
    system, batch = build(name).eval(), example()
    with torch.no_grad():
        images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
        whole = system.match_heat(images, texts)
        alone = system.match_heat(images.select(torch.tensor([4])), texts.select(torch.tensor([4])))
    torch.testing.assert_close(whole[4:5], alone, rtol=1e-4, atol=1e-9)
    assert (whole >= 0).all()
    assert (whole.amax((1, 2)) > 0).all()


def test_a_box_for_each_phrase_as_it_is_measured():
    """The warm cell of 8 x 8 pixels made of 2 x 2: 1 is the right upper quarter, 2 the left lower."""
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    boxes = grounding.Grounding().use(ready(Warms(), ["en"], side=8), None, [picture, picture], ["a 1", "a 2"])
    assert boxes[0][0] >= 0.375
    assert boxes[0][3] <= 0.625
    assert boxes[1][2] <= 0.625
    assert boxes[1][1] >= 0.375


class Wide(Pairs):
    """Pictures twice as wide as high; their number is in the left half of the middle square."""

    def image(self, row):
        pixels = torch.zeros(3, 8, 16, dtype=torch.uint8)
        pixels[0, :, 4:8] = 255
        return pixels


class Bright(System):
    """Locates what is bright, by a box, by heat, or both."""

    def __init__(self, how):
        super().__init__()
        self.how, self.config = how, None

    def locate(self, images, texts):
        heat = images.pixels[:, 0].float() / 255
        boxes = torch.stack([box_of(Located(heat=one[None]))[0] for one in heat])[:, None]
        return Located(boxes if "box" in self.how else None, heat=heat if "heat" in self.how else None)


@pytest.mark.parametrize("how", ["box", "heat", "box and heat"])
@pytest.mark.parametrize("shorter_side", [4, None])
def test_boxes_are_of_the_whole_picture_also_where_a_tower_reads_its_middle(how, shorter_side):
    """The bright box lies at 1/4 to 1/2 of the width; in the middle square, at 0 to 1/2."""
    objects = [{"phrase": "a 1", "box": [0.25, 0.0, 0.5, 1.0]}]
    pictures = Wide([{"en": ["a 1"]}], columns=[{"objects": objects}])
    found = evaluate_grounding(ready(Bright(how), ["en"], side=4, shorter_side=shorter_side), pictures)
    assert found["languages"]["en"]["iou"] == pytest.approx(100)
    assert found["languages"]["en"]["pointing"] == 100
    asked = ready(Bright(how), ["en"], side=4, shorter_side=shorter_side)
    boxes = grounding.Grounding().use(asked, None, [pictures.image(0)], ["a 1"])
    assert boxes == [pytest.approx((0.25, 0.0, 0.5, 1.0))]
