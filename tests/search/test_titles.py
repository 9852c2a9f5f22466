"""Entries found by their pictures, by the titles beside them, or by both; asked by picture, by title, or by both."""

import json
from itertools import product

import pytest
import torch

import tuwen
from tests.search.common import encoded, picture, table, untrained
from tuwen.errors import UserError
from tuwen.predictor import vectors
from tuwen.search.build import build_index
from tuwen.search.query import Query, Searcher

NUMBERS = range(9)
BARE = 4  # a picture without texts


def goods(folder, texts):
    """A pair table of numbered pictures with these texts."""
    path = table(folder, NUMBERS)
    rows = [json.loads(line) | {"texts": own} for line, own in zip((path / "pairs.jsonl").open(), texts, strict=True)]
    (path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """(pair table, its texts): one or two in English, perhaps one in Chinese, of one picture none."""
    texts = [
        {"en": [f"grey teal {'gold ' * k}"] + ["pink"] * (k % 2)} | ({"zh": ["颜色"]} if k % 3 else {}) for k in NUMBERS
    ]
    texts[BARE] = {}
    return goods(tmp_path_factory.mktemp("shop") / "goods", texts), texts


@pytest.mark.parametrize("by", ["picture", "title", "both"])
def test_a_score_is_the_mean_of_the_cosines_of_its_sides(by, shop, clip_run, tmp_path):
    path, texts = shop
    predictor = tuwen.load(clip_run).predictor
    searcher = Searcher(build_index(clip_run, path, tmp_path / "index", by=by))
    sides = {"picture": vectors(encoded(predictor, [path / f"images/{k}.jpg" for k in NUMBERS])).double()}
    told = [[vectors(predictor.texts([text])) for own in row.values() for text in own] for row in texts]
    sides["title"] = torch.stack(
        [torch.cat(own).double().mean(0) if own else sides["picture"][k] for k, own in enumerate(told)]
    )
    sides["both"] = (sides["picture"] + sides["title"]) / 2
    asked = {"text": vectors(predictor.texts(["teal gold"])), "image": vectors(encoded(predictor, [picture(77)]))}
    for query in (Query("teal gold"), Query(image=picture(77)), Query("teal gold", picture(77))):
        parts = [asked[name].double() for name in asked if getattr(query, name) is not None]
        wanted = torch.stack([(part @ sides[by].T)[0] for part in parts]).mean(0)
        results = searcher.search([query], top=9)[0].results
        scores = {result.id: result.score for result in results}
        assert scores == pytest.approx({f"p{k}": float(wanted[k]) for k in NUMBERS}, abs=1e-6)
        assert [result.id for result in results] == [f"p{k}" for k in wanted.argsort(descending=True).tolist()]


def test_changed_texts_are_read_again_where_entries_are_found_by_them(shop, clip_run, tmp_path):
    _, texts = shop
    path, stored = goods(tmp_path / "goods", texts), {}
    for by, again in product(("picture", "both"), (False, True)):
        goods(tmp_path / "goods", [*texts[:3], {"en": ["rust"]}, *texts[4:]] if again else texts)
        index = build_index(clip_run, path, tmp_path / by, by=by)
        assert index.built.counts == ({"unchanged": 8, "updated": 1} if again else {"added": 9})
        places = index.snapshot.among([f"p{k}" for k in NUMBERS])
        stored[by, again] = {name: index.vectors(index.snapshot, place)[0] for name, place in _arrays(places)}
    changed = {
        by: [n for n, v in stored[by, True].items() if not torch.equal(v, stored[by, False][n])]
        for by in ("picture", "both")
    }
    assert changed == {"picture": [], "both": ["p3"]}


def _arrays(places):
    return ((name, torch.tensor([place]).numpy()) for name, place in sorted(places.items()))


def test_what_titles_bring_is_no_loss_of_what_is_kept(run, tmp_path):
    """Final scores from kept tokens are compared with those from whole ones, by the same first stage."""
    path = table(tmp_path / "goods", range(40))
    loss = build_index(run, path, tmp_path / "index", by="title", tokens="float32").built.loss
    assert loss["largest"] < 1e-5
    assert loss["best_kept"] == 1


def test_what_an_index_cannot_be_found_by_is_told(shop, clip_run, tmp_path):
    path, _ = shop
    build_index(clip_run, path, tmp_path / "index", by="title")
    assert build_index(clip_run, path, tmp_path / "index").built.counts == {"unchanged": 9}
    for by, out, words in (
        ("both", "index", "found by title, not 'both'"),
        ("name", "new", "picture, title or both, not"),
    ):
        with pytest.raises(UserError, match=words):
            build_index(clip_run, path, tmp_path / out, by=by)
    tokens = untrained(tmp_path / "tokens", "wukong")
    with pytest.raises(UserError, match="wukong cannot be found by both"):
        build_index(tokens, path, tmp_path / "new", by="both")
    assert not (tmp_path / "new").exists()
