"""Parts of an encoding as bytes: rounding, pooling, masks; systems that score by tokens, or match without vectors."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.search.common import encoded, make_run, picture
from tuwen.data.images import encode_jpeg
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.search.build import build_index
from tuwen.search.parts import Layout, pooled_rows
from tuwen.search.pictures import Picture
from tuwen.search.query import Query, Searcher
from tuwen.systems.r2d2 import R2D2


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(count):
    return [Picture(encode_jpeg(picture(n)), f"p{n}", {"en": ["red green"]}) for n in range(count)]


def through(layout, encoded):
    return layout.read(layout.write(encoded), encoded.pooled)


def test_float16_and_int8_by_hand():
    states = torch.tensor([[[1.0, -2.0, 0.5], [1e6, -3.0, 0.0]]])
    encoded = Encoded(torch.ones(1, 2), states={"last": states})
    kept = through(Layout.of(("pooled", "states.last"), encoded, "float16", None), encoded)
    assert kept.states["last"].tolist() == [[[1.0, -2.0, 0.5], [65504.0, -3.0, 0.0]]]  # what float16 can hold
    assert kept.pooled is encoded.pooled
    kept = through(Layout.of(("states.last",), encoded, "int8", None), encoded)
    first, second = 2 / 127, 1e6 / 127  # one step of each row
    by_hand = [[[64 * first, -2.0, 32 * first], [1e6, 0 * second, 0.0]]]
    torch.testing.assert_close(kept.states["last"], torch.tensor(by_hand))
    zeros = Encoded(states={"last": torch.zeros(1, 2, 3)})
    assert through(Layout.of(("states.last",), zeros, "int8", None), zeros).states["last"].abs().max() == 0


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_masked_rows_are_not_kept_and_come_back_as_padding(precision):
    mask = torch.tensor([[True, True, False, True], [False, True, False, False]])
    tokens = F.normalize(drawn(2, 4, 6), dim=2)
    encoded = Encoded(None, tokens, mask, {"last": drawn(2, 4, 5, seed=1), "map": drawn(2, 3, 2, 2, seed=2)}, mask)
    layout = Layout.of(("tokens", "token_mask", "states"), encoded, precision, None)
    assert layout == Layout.from_json(layout.to_json())
    kept = through(layout, encoded)
    assert kept.token_mask.tolist() == kept.state_mask.tolist() == [[True, True, True], [True, False, False]]
    torch.testing.assert_close(kept.tokens[0], tokens[0, mask[0]], atol=2e-2, rtol=0)
    torch.testing.assert_close(kept.tokens[1, :1], tokens[1, 1:2], atol=2e-2, rtol=0)
    torch.testing.assert_close(kept.tokens[kept.token_mask].norm(dim=1), torch.ones(4))
    torch.testing.assert_close(kept.states["last"][0], encoded.states["last"][0, mask[0]], atol=3e-2, rtol=0)
    torch.testing.assert_close(kept.states["map"], encoded.states["map"], atol=3e-2, rtol=0)


def test_pooling_keeps_the_class_token_and_averages_the_grid():
    grid = torch.arange(16.0).view(4, 4)
    x = torch.cat([torch.tensor([100.0]), grid.flatten()])[:, None]
    assert pooled_rows(x, 5)[:, 0].tolist() == [100.0, 2.5, 4.5, 10.5, 12.5]
    assert pooled_rows(x, 9)[:, 0].tolist() == [100.0, 2.5, 4.5, 10.5, 12.5]  # the largest square that fits
    assert pooled_rows(x[1:], 4)[:, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pooled_rows(torch.arange(6.0)[:, None], 3)[:, 0].tolist() == [0.5, 2.5, 4.5]
    assert pooled_rows(x, 1)[0, 0] == pytest.approx(220 / 17)
    layout = Layout.of(("states.last",), Encoded(states={"last": x[None]}), "float16", 5)
    assert len(layout.write(Encoded(states={"last": x[None]}))["states.last"][0]) == 10


def test_budgets_and_mistakes(run, tmp_path):
    whole = Searcher(build_index(run, pictures(9), tmp_path / "whole"))
    pooled = Searcher(build_index(run, pictures(9), tmp_path / "pooled", token_budget=5))
    bare = Searcher(build_index(run, pictures(9), tmp_path / "bare", token_budget=0))
    assert pooled.index.encoded(pooled.index.snapshot, np.array([0])).states["last"].shape[1] == 5
    assert bare.index.layout.parts == ()
    assert bare.index.about["sizes"]["picture"] > 0
    one, two, three = (
        {r.id: r.score for r in s.search([Query("red green")], 9)[0].results} for s in (whole, pooled, bare)
    )
    for name, score in one.items():
        assert three[name] == pytest.approx(score, abs=2e-2)  # a JPEG and an encoding away
        assert two[name] != score
    exactly = bare.search([Query("red green"), Query("blue")], 9)
    assert {r.id: r.score for r in exactly[0].results} == three
    for options, message in (({"tokens": "int4"}, "not 'int4'"), ({"token_budget": -1}, "makes no sense")):
        with pytest.raises(UserError, match=message):
            build_index(run, [], tmp_path / "wrong", **options)


@pytest.mark.parametrize(
    ("options", "told"), [({}, "float16"), ({"token_budget": 5}, "5 tokens"), ({"token_budget": 0}, "JPEG")]
)
def test_the_loss_told_at_a_build_is_that_of_its_scores(run, tmp_path, options, told):
    lines: list[str] = []
    rows = [*pictures(20), Picture(encode_jpeg(picture(99)), "p3", {"en": ["blue"]})]  # an id given twice is the last
    index = build_index(run, rows, tmp_path / "index", **options, say=lines.append)
    line = next(line for line in lines if line.startswith("kept as"))
    assert told in line
    predictor = index.predictor
    exact = encoded(predictor, [encode_jpeg(picture(99 if n == 3 else n)) for n in range(20)])
    searcher = Searcher(index)
    differences = []
    for text in ("red green", "blue"):
        asked = predictor.texts([text])
        match = predictor.system.match(exact, asked.select(torch.zeros(20, dtype=torch.int64)))
        right = predictor.system.rerank(match, (exact.pooled @ asked.pooled.T)[:, 0])
        kept = {result.id: result.score for result in searcher.search([Query(text)], 20)[0].results}
        differences += [abs(kept[f"p{n}"] - right[n].item()) for n in range(20)]
    assert index.about["loss"]["largest"] == pytest.approx(max(differences), rel=0.02, abs=1e-6)
    assert index.about["loss"]["pairs"] % 20 == 0


@pytest.mark.parametrize(("system", "told"), [("wukong", True), ("clip", False)])
def test_pictures_encoded_again_have_a_loss_where_they_are_scored_again(system, told, tmp_path):
    run = make_run(tmp_path / "run", system)
    index = build_index(run, pictures(20), tmp_path / "index", token_budget=0)
    assert ("loss" in index.about) is told
    if told:
        assert 0 < index.about["loss"]["largest"] < 0.1


@pytest.mark.parametrize("system", ["wukong", "tokenflow"])
def test_token_wise_systems_score_the_shortlist_by_their_own_similarity(system, tmp_path):
    run = make_run(tmp_path / "run", system)
    searcher = Searcher(build_index(run, pictures(12), tmp_path / "index"))
    predictor = searcher.predictor
    images = encoded(predictor, [encode_jpeg(picture(n)) for n in range(12)])
    for text in ("red green", "颜色 pink"):
        right = predictor.system.scores(images, predictor.texts([text])).t2i[:, 0]
        found = searcher.search([Query(text)], top=12)[0]
        assert len(found.results) == 12
        for result in found.results:
            assert result.score == pytest.approx(float(right[int(result.id[1:])]), abs=3e-3)
        assert [r.score for r in found.results] == sorted((r.score for r in found.results), reverse=True)
        few = searcher.search([Query(text)], top=3, candidates=3)[0]  # a shortlist of three by vector
        alone = {r.id: r.score for r in found.results}
        assert all(r.score == pytest.approx(alone[r.id], abs=1e-6) for r in few.results)


def test_a_system_without_vectors_is_matched_with_every_picture(run, tmp_path, monkeypatch):
    plain = R2D2.encode_images
    monkeypatch.setattr(R2D2, "encode_images", lambda self, images: Encoded(states=plain(self, images).states))
    monkeypatch.setattr(R2D2, "rerank", lambda self, match, first: match.mean(1))
    searcher = Searcher(build_index(run, pictures(11), tmp_path / "index"))
    assert searcher.index.snapshot.vectors is None
    found = searcher.search([Query("blue")], top=4, candidates=2)[0]
    assert (found.reranked, found.complete, len(found.results)) == (4, True, 4)
    predictor = searcher.predictor
    images = encoded(predictor, [encode_jpeg(picture(n)) for n in range(11)])
    texts = predictor.texts(["blue"] * 11)
    right = predictor.system.match(images, texts).mean(1)
    assert [int(r.id[1:]) for r in found.results] == right.argsort(descending=True)[:4].tolist()
    for ask in (lambda: searcher.search([Query(image=encode_jpeg(picture(1)))]), lambda: searcher.similar("p1")):
        with pytest.raises(UserError, match="no first-stage vectors"):
            ask()
