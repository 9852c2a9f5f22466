"""Parts of a picture searched for by themselves: given boxes, boxes a system finds, the command."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tests.search.common import TEXTS, make_run, picture
from tests.tasks.stub import ready
from tuwen import cli
from tuwen.data.batch import Images
from tuwen.data.images import encode_jpeg
from tuwen.errors import UserError
from tuwen.nn.encoded import Located
from tuwen.search.build import build_index
from tuwen.search.pictures import Picture
from tuwen.search.query import Query, Searcher
from tuwen.search.within import boxes_named, checked_box, cropped
from tuwen.systems.system import Paper, System


def test_the_part_is_of_whole_pixels():
    pixels = torch.arange(3 * 4 * 10, dtype=torch.uint8).view(3, 4, 10)
    assert torch.equal(cropped(pixels, (0.2, 0.25, 0.5, 0.75)), pixels[:, 1:3, 2:5])
    assert torch.equal(cropped(pixels, (0.0, 0.0, 1.0, 1.0)), pixels)
    assert torch.equal(cropped(pixels, (0.25, 0.3, 0.26, 0.31)), pixels[:, 1:2, 2:3])  # never empty


@pytest.mark.parametrize(
    "box", [[0, 0, 1], [0, 0, 0, 1], [0.5, 0, 0.2, 1], [-0.1, 0, 1, 1], "abcd", [0, 0, "1", 1], None]
)
def test_what_is_no_box(box):
    with pytest.raises(UserError, match="a box "):
        checked_box(box)


@pytest.fixture(scope="module")
def index(run, tmp_path_factory):
    pictures = [Picture(encode_jpeg(picture(n)), id=f"p{n}", texts={"en": [TEXTS[n % 5]]}) for n in range(12)]
    return build_index(run, pictures, tmp_path_factory.mktemp("within") / "i", batch_size=5)


def beside(left: int, right: int) -> torch.Tensor:
    return torch.cat([picture(left), picture(right)], 2)


def test_each_part_finds_its_own(index):
    """Two pictures side by side: each half gives what the picture itself gives, exactly."""
    searcher = Searcher(index)
    both = beside(3, 8)
    halves = searcher.search([Query(image=both, box=box) for box in ((0, 0, 0.5, 1), (0.5, 0, 1, 1))], top=4)
    alone = searcher.search([Query(image=picture(n)) for n in (3, 8)], top=4)
    for part, whole in zip(halves, alone, strict=True):
        assert [(r.id, r.score) for r in part.results] == [(r.id, r.score) for r in whole.results]
    whole = searcher.search([Query(image=both)], top=4)[0]
    assert [(r.id, r.score) for r in whole.results] != [(r.id, r.score) for r in halves[0].results]


class Pointing(System):
    """Points at the right half for even numbers, at the left for odd ones, of what it reads."""

    paper = Paper("", "", "", "", "", "paper", "", "", "", ())
    config = SimpleNamespace()

    def locate(self, images, texts):
        right = torch.tensor([0.5, 0.0, 1.0, 1.0])
        boxes = [right if n % 2 == 0 else 1 - right[[2, 3, 0, 1]] for n in texts.ids[:, 0].tolist()]
        return Located(boxes=torch.stack(boxes)[:, None], scores=torch.ones(len(boxes), 1))

    def encode_texts(self, texts):
        raise AssertionError


def test_what_is_found_lies_in_the_whole_picture():
    """A tower that reads the middle square of a picture twice as wide as high: its halves are quarters of that."""
    wide = torch.zeros(3, 4, 8, dtype=torch.uint8)
    predictor = ready(Pointing(), ["en"], side=4, shorter_side=4)
    assert boxes_named(predictor, wide, ["a 2", "b 3"]) == [(0.5, 0.0, 0.75, 1.0), (0.25, 0.0, 0.5, 1.0)]
    plain = ready(Pointing(), ["en"], side=4)
    assert boxes_named(plain, wide, ["a 2"]) == [(0.5, 0.0, 1.0, 1.0)]


def test_the_command(index, tmp_path, capsys):
    path = tmp_path / "both.png"
    Image.fromarray(beside(3, 8).permute(1, 2, 0).numpy()).save(path)
    words = ["search", str(index.path), "--image", str(path), "--top", "3"]
    assert cli.main([*words, "--box", "0,0,0.5,1", "--box", "0.5,0,1,1", "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert [part["box"] for part in parts] == [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]
    expected = [
        [r.id for r in answer.results]
        for answer in Searcher(index).search([Query(image=picture(n)) for n in (3, 8)], 3)
    ]
    assert [[result["id"] for result in part["results"]] for part in parts] == expected
    assert cli.main([*words, "--box", "0,0,0.5,1"]) == 0
    assert "part: 0.00, 0.00, 0.50, 1.00" in capsys.readouterr().out
    assert cli.main([*words, "--find", "cat"]) == 1
    assert "cannot locate" in capsys.readouterr().err
    for wrong in (["--box", "0,0,2,1"], ["--box", "0,0,1"], ["--box", "a,b,c,d"]):
        with pytest.raises(SystemExit):
            cli.main([*words, *wrong])
    assert "'a,b,c,d' is not X0,Y0,X1,Y1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["search", str(index.path), "a cat", "--box", "0,0,1,1"])


@pytest.mark.slow  # half a minute
def test_the_command_finds_what_a_run_of_slan_locates(tmp_path, capsys):
    """The boxes are the best that the system itself gives of each name, and each is searched for by its part."""
    run = make_run(tmp_path / "run", "slan", **{"train.steps": 3})
    pictures = [Picture(encode_jpeg(picture(n)), id=f"p{n}") for n in range(8)]
    index = build_index(run, pictures, tmp_path / "i", batch_size=5)
    path = tmp_path / "both.png"
    Image.fromarray(beside(3, 6).permute(1, 2, 0).numpy()).save(path)
    names, words = ["red", "teal gold"], ["search", str(index.path), "--image", str(path), "--top", "3", "--json"]
    assert cli.main([*words, "--find", *names]) == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert [part["name"] for part in parts] == names
    predictor = index.predictor
    with torch.no_grad():
        pixels = predictor.pixels(path)[None].repeat(2, 1, 1, 1)
        located = predictor.system.eval().locate(Images(pixels), predictor.tokens(names))
    best = located.boxes[torch.arange(2), located.scores.argmax(1)]
    for part, box in zip(parts, best.tolist(), strict=True):  # a squashing fit: shares of the square are of the whole
        assert part["box"] == pytest.approx(box, abs=1e-6)
        assert cli.main([*words, "--box", ",".join(map(str, part["box"]))]) == 0
        (given,) = json.loads(capsys.readouterr().out)["parts"]
        assert [(r["id"], r["score"]) for r in given["results"]] == [(r["id"], r["score"]) for r in part["results"]]
    assert parts[0]["box"] != parts[1]["box"]
    assert cli.main([*words, "--box", "0,0,1,1"]) == 0
    (whole,) = json.loads(capsys.readouterr().out)["parts"]
    assert [r["score"] for r in whole["results"]] != [r["score"] for r in parts[0]["results"]]
