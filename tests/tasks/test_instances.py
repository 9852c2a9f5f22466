"""Instance-level retrieval: the card's values by hand, the evaluator written again, the task, its file."""

import json
import random

import pytest
import torch

from tests.tasks.stub import Pairs, ready
from tuwen import cli
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.systems.system import Paper, System
from tuwen.tasks.instance_retrieval import InstanceRetrieval, evaluate_instance_retrieval, ranked_items
from tuwen.tasks.instances import average_precision_at, average_recall_at, instance_marks, precision_at


def test_values_of_the_card():
    """Section 11, checks 1 to 3."""
    right = [item in "bc" for item in "adbc"]
    assert average_precision_at(right, 2, 10) == 0
    assert average_precision_at(right, 4, 10) == pytest.approx((1 / 3 + 2 / 4) / 2)
    ranked = ["x"] * 2 + ["y"] * 8
    assert average_recall_at(ranked, ["x", "y", "y"], {"x": 2, "y": 50}, 10) == 1
    assert average_recall_at(ranked[2:], ["x", "y", "y"], {"x": 2, "y": 50}, 10) == 0.5
    assert precision_at([True, True, *[False] * 98], 2, 100) == 1
    assert average_recall_at(ranked, list("abcdefghijkl"), dict.fromkeys("abcdefghijkl", 1), 10) == 0  # pitfall 11


def evaluator(ranking: list[int], named: list[str], gallery: list[str], cutoff: int) -> tuple[float, float, float]:
    """(AP, AR, precision) as Product1M's script goes about it: lists of ids, loops, no shortcut."""
    positives = [item for name in named for item, shown in enumerate(gallery) if shown == name]
    k = min(cutoff, len(positives), len(ranking))
    hits, total = 0, 0.0
    for rank in range(1, k + 1):
        if ranking[rank - 1] in positives:
            hits += 1
            total += hits / rank
    precision, ap = hits / k if k else 0.0, total / hits if hits else 0.0
    share, quota = cutoff // len(named), {}
    for name in named:
        quota[name] = quota.get(name, 0) + share
    parts = []
    for name, wanted in quota.items():
        wanted = min(wanted, gallery.count(name))
        got = len([item for item in ranking[:cutoff] if gallery[item] == name])
        if wanted:
            parts.append(min(got, wanted) / wanted)
    return ap, sum(parts) / len(parts) if parts else 0.0, precision


def test_against_the_evaluator_written_again():
    draw = random.Random(3)
    gallery = [draw.choice("abcdefg") for _ in range(60)] + ["rare"]
    rankings, products = [], []
    for _ in range(40):
        rankings.append(draw.sample(range(61), draw.choice([3, 20, 61])))
        products.append(draw.choices([*"abcdefg", "rare"], k=draw.choice([1, 2, 3, 5])))
    products[7] = ["nowhere", "a"]
    marks = instance_marks(rankings, products, gallery)
    for cutoff in (1, 5, 10, 50, 100):
        each = [
            (0, 0, 0) if "nowhere" in named else evaluator(ranking, named, gallery, cutoff)
            for ranking, named in zip(rankings, products, strict=True)
        ]
        for name, column in zip(("map", "mar", "prec"), zip(*each, strict=True), strict=True):
            assert marks[f"{name}{cutoff}"] == pytest.approx(100 * sum(column) / 40), (name, cutoff)


class Sides(System):
    """Pictures and texts are looked up by their number."""

    paper = Paper("", "", "", "", "", "paper", "", "", "", ())
    config = None

    def __init__(self, pictures, texts=None):
        super().__init__()
        self.tables = pictures, texts

    def encode_images(self, images):
        return Encoded(self.tables[0][images.pixels[:, 2, 0, 0].long()])

    def encode_texts(self, texts):
        return Encoded(self.tables[1][texts.ids[:, 0]])


def unit(*angles: float) -> torch.Tensor:
    radians = torch.tensor(angles) * torch.pi / 180
    return torch.stack([radians.cos(), radians.sin()], 1)


# pictures say nothing of 2 and 3; titles say all
PICTURES, TITLES = unit(0, 10, 0, 10, 90), unit(0, 5, 90, 95, 180)
COLUMNS = [{"products": ["p"]}, {"products": ["p"]}, {"cls": "q"}, {"tags": {"en": ["q"], "zh": ["丘"]}}, {"cls": None}]


def rows(**changes) -> Pairs:
    return Pairs([{"en": [f"a {k}"]} for k in range(5)], columns=COLUMNS, **changes)


def test_by_picture_title_and_both():
    measured = evaluate_instance_retrieval(ready(Sides(PICTURES, TITLES), ["en"]), rows())
    assert (measured["queries"], measured["items"], measured["without_items"]) == (4, 4, 0)
    by = measured["by"]
    assert set(by) == {f"{a}-{b}" for a in ("picture", "title", "both") for b in ("picture", "title", "both")}
    assert by["picture-picture"]["map1"] == 0  # the equal one of another product comes first
    assert by["title-title"]["map1"] == by["both-both"]["map1"] == 100
    # pictures 2 and 3 lie by the titles of 0 and 1, of another product; pictures 0 and 1 by their own
    assert by["picture-title"]["map1"] == 50
    assert measured["colours"].keys() == measured["chance"].keys() == by["title-title"].keys()


def test_both_compares_like_with_like_and_one_side_sums():
    queries, items, rankings = ranked_items(ready(Sides(PICTURES, TITLES), ["en"]), rows(), None)
    p, t = (queries.sides[side].double() for side in ("picture", "title"))
    expected = {"both-both": p @ p.T + t @ t.T, "picture-both": p @ p.T + p @ t.T, "both-title": p @ t.T + t @ t.T}
    for how, scores in expected.items():
        for query, ranking in enumerate(rankings[how]):
            best = [k for k in scores[query].float().argsort(descending=True, stable=True).tolist() if k != query]
            assert ranking == best, how
    assert items.names == ["0", "1", "2", "3"]


def test_a_gallery_beside_and_queries_of_several_products():
    gallery = Pairs([{"en": ["a 0"]}, {"en": ["a 2"]}], columns=[{"products": ["p"]}, {"products": ["q"]}])
    gallery.split = "gallery"
    asked = Pairs(
        [{}, {}, {}], columns=[{"products": ["p", "q"]}, {"products": ["q", "nothing"]}, {"products": ["p", "p"]}]
    )
    predictor = ready(Sides(unit(0, 80, 0), TITLES), ["en"])
    measured = evaluate_instance_retrieval(predictor, asked, gallery=gallery)
    assert (measured["queries"], measured["items"], measured["without_items"]) == (3, 2, 1)
    assert set(measured["by"]) == {"picture-picture", "picture-title", "picture-both"}  # queries have no title
    marks = measured["by"]["picture-picture"]
    assert marks["map10"] == pytest.approx(100 * (1 + 0 + 1) / 3)  # the query without items counts, with 0
    assert marks["mar10"] == pytest.approx(200 / 3)
    alone = evaluate_instance_retrieval(ready(Sides(PICTURES, TITLES), ["en"]), rows(), limit=2)
    assert alone["queries"] == 2


def test_a_query_that_stands_in_the_gallery_is_not_its_own_answer():
    items = [{"item": "7", "products": ["p"]}, {"item": "8", "products": ["p"]}, {"item": "9", "products": ["q"]}]
    gallery = Pairs([{}, {}, {}], columns=items)
    gallery.split = "gallery"
    asked = Pairs([{}, {}], columns=[items[0], {"products": ["q"]}])
    queries, _, rankings = ranked_items(ready(Sides(unit(0, 40, 50)), ["en"]), asked, gallery)
    assert queries.names == ["7", "1"]
    assert rankings["picture-picture"] == [[1, 2], [1, 2, 0]]


def test_what_cannot_be_measured_is_said():
    predictor = ready(Sides(PICTURES, TITLES), ["en"])
    with pytest.raises(UserError, match="its rows name no products"):
        evaluate_instance_retrieval(predictor, Pairs([{"en": ["a 0"]}]))
    gallery = Pairs([{"en": ["a 0"]}], columns=[{"products": ["other"]}])
    with pytest.raises(UserError, match="no item shows a product that is asked for"):
        evaluate_instance_retrieval(predictor, rows(), gallery=gallery)


def test_lines_of_the_official_file():
    lines = list(InstanceRetrieval().predictions(ready(Sides(PICTURES, TITLES), ["en"]), None, rows()))
    assert [list(line.values())[:2] for line in lines] == [["0", "1"], ["1", "0"], ["2", "3"], ["3", "2"]]
    assert all(len(line) == 4 for line in lines)  # itself is not among them


def test_the_command_and_its_file(tmp_path, capsys):
    from tuwen.training import loop
    from tuwen.training.config import RunConfig

    corpus = "scenes:side=32,things=8,objects=2,count=60"
    changes = {"train.batch_size": 8, "train.steps": 1, "data.workers": 0}
    run = loop.train(RunConfig.of("clip", "tiny", corpus, changes=changes), tmp_path / "run", quiet=True)
    out = tmp_path / "best.csv"
    words = ["eval", str(run), "--corpus", corpus, "--task", "instance_retrieval", "--predictions", str(out)]
    assert cli.main([*words, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    lines = [line.split(",") for line in out.read_text().splitlines()]
    assert len(lines) == measured["queries"] > measured["items"] > 0
    assert all(len(line) in (measured["items"], measured["items"] + 1) for line in lines)
    assert cli.main(words[:-2]) == 0
    assert "colours alone" in capsys.readouterr().out
