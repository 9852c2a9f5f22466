"""The drawn explanation: bright where the word is, boxes where a system has them, glyphs for what is written."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tuwen.cli import main
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.images import to_pillow
from tuwen.explain.font import font_for
from tuwen.explain.maps import Explanation
from tuwen.explain.picture import draw
from tuwen.training import loop
from tuwen.training.config import RunConfig


def drawn(found: Explanation, folder, text="red") -> np.ndarray:
    draw(found, text, folder / "out.png")
    return np.asarray(Image.open(folder / "out.png").convert("RGB")).astype(int)


def example(**changes) -> Explanation:
    grey = torch.full((3, 32, 32), 60, dtype=torch.uint8)
    maps = torch.zeros(1, 2, 2)
    maps[0, 0, 1] = 1
    values = {"words": ["red"], "maps": maps, "how": "attention", "score": 0.5, "picture": grey, **changes}
    return Explanation(**values)


def test_the_map_lies_where_the_word_is(tmp_path):
    above = drawn(example(), tmp_path)
    below = drawn(example(maps=example().maps.flip(1)), tmp_path)
    changed = np.abs(above - below).sum(2)
    rows = np.flatnonzero(changed.max(1) > 100)
    middle = (rows.min() + rows.max()) / 2
    upper, lower = changed[rows.min() : int(middle)], changed[int(middle) + 1 : rows.max()]
    assert upper.sum() == pytest.approx(lower.sum(), rel=0.1)
    brighter = (above - below).sum(2)
    assert brighter[rows.min() : int(middle)].sum() > 0 > brighter[int(middle) + 1 : rows.max()].sum()


def test_beside_the_part_that_was_read_nothing_is_lit(tmp_path):
    grey = torch.full((3, 32, 64), 90, dtype=torch.uint8)
    middle = drawn(example(picture=grey, part=(0.25, 0.0, 0.75, 1.0)), tmp_path)
    everywhere = drawn(example(picture=grey), tmp_path)
    cold = drawn(example(picture=grey, maps=torch.zeros(1, 2, 2)), tmp_path)
    lit, wide = ((np.abs(image - cold).sum(2) > 60).any(0).nonzero()[0] for image in (middle, everywhere))
    width = 2 * (wide.max() + 1 - wide.min())  # warm is the right half of what was read
    assert lit.max() <= wide.max() - 0.2 * width
    assert lit.max() - lit.min() == pytest.approx((wide.max() - wide.min()) / 2, abs=0.05 * width)


def test_boxes_and_matches_are_drawn(tmp_path):
    plain = drawn(example(), tmp_path)
    box = torch.tensor([[0.1, 0.1, 0.9, 0.9]])
    ways = [example(located=SimpleNamespace(boxes=box[None])), example(boxes=box)]
    changed = [np.abs(drawn(way, tmp_path) - plain).sum(2) > 100 for way in ways]
    assert all(one.sum() > 100 for one in changed)
    assert not (changed[0] & changed[1]).any()  # of the whole text on the first panel, of a word on its own
    places = torch.eye(4).view(4, 2, 2)
    flow = torch.tensor([[0.0], [1.0], [0.0], [0.0]])
    matched = drawn(example(flow=flow, places=places), tmp_path)
    assert matched.shape[0] > 1.5 * plain.shape[0]
    other = drawn(example(flow=flow.flip(0), places=places), tmp_path)
    assert (np.abs(other - matched).sum(2) > 100).sum() > 50


def test_a_font_is_told_that_lacks_nothing_or_what_it_lacks():
    assert font_for("plain")[1] == ""
    nowhere = "\U0010fffd"
    assert nowhere in font_for(f"红{nowhere}")[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    changes = {"train.steps": 1, "train.batch_size": 8, "data.workers": 0, "train.threads": 1}
    for name in ("wukong", "albef", "slan"):
        own = {"model.fusion.layers": 2} if name == "albef" else {}
        config = RunConfig.of(name, "tiny", "scenes:count=16,side=32", changes=changes | own)
        loop.train(config, folder / name, quiet=True)
    to_pillow(Scenes(count=1, side=48).image(0)).save(folder / "picture.png")
    return folder


def test_regions_from_the_shell(run, capsys):
    out = run / "pictures" / "slan.png"
    text = "红色的苹果和一只猫"
    assert main(["explain", str(run / "slan"), str(run / "picture.png"), text, "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["how"], found["words"]) == ("regions", ["红色的苹果", "猫"])
    assert np.asarray(found["boxes"]).shape == (2, 4)
    assert Image.open(out).format == "PNG"


@pytest.mark.parametrize("name", ["wukong", "albef"])
def test_explain_from_the_shell(run, name, capsys):
    out = run / "pictures" / f"{name}.png"
    asked = ["explain", str(run / name), str(run / "picture.png"), "红色的苹果 and a cat", "--out", str(out)]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["words"][-3:] == ["and", "a", "cat"]
    assert "".join(found["words"][:-3]) == "红色的苹果"
    assert np.asarray(found["maps"]).shape == (len(found["words"]), 4, 4)
    assert found["how"] == {"wukong": "tokens", "albef": "attention"}[name]
    assert Image.open(io.BytesIO(out.read_bytes())).format == "PNG"
    assert main(asked) == 0
    assert "cat" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "why"),
    [({"--out": "x.jpg"}, "ends in .png"), ({"image": "none.png"}, "no such picture"), ({"text": "?"}, "no word")],
)
def test_mistakes_are_one_line(run, changed, why, capsys, tmp_path):
    image, text = str(run / changed.get("image", "picture.png")), changed.get("text", "red")
    assert (
        main(["explain", str(run / "wukong"), image, text, "--out", str(tmp_path / changed.get("--out", "x.png"))]) == 1
    )
    error = capsys.readouterr().err
    assert why in error
    assert len(error.splitlines()) == 1
