"""Codes of few bytes: by hand, against slow ones, in an index that is built, changed, given codes later, or refuses."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from tests.search.common import TEXTS, picture, table, untrained
from tests.search.test_refit import crop
from tuwen.cli import main
from tuwen.data.images import encode_jpeg
from tuwen.errors import UserError
from tuwen.predictor import vectors
from tuwen.search import codes, nearest, seal
from tuwen.search.build import build_index
from tuwen.search.codes import Code, best_places, code_scores, ranks, shortlists
from tuwen.search.index import Index
from tuwen.search.pictures import Picture
from tuwen.search.query import Query, Searcher
from tuwen.search.record import IndexRecord
from tuwen.search.refit import refit

FORMS = [Code("int8", 5), Code("int8", 16), Code("binary", 1), Code("binary", 2)]  # of vectors of 16 numbers


def drawn(count, width, seed=0):
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def jpeg(number):
    return encode_jpeg(picture(number))


def test_codes_by_hand():
    vectors = torch.tensor([[3.0, -4.0, 12.0], [0.0, 0.0, 1.0]])
    assert Code("int8", 2).pack(vectors).tolist() == [[76, -102], [0, 0]]  # 127 x 0.6, 127 x -0.8
    bits = torch.tensor([[1.0, -1.0, 2.0, 0.0, -3.0, 1.0, 1.0, -1.0, 5.0], [-1.0] * 9])
    assert Code("binary", 1).pack(bits).tolist() == [[0b10100110], [0]]
    with pytest.raises(UserError, match="int8 codes of 1 to 9 bytes, not 10"):
        Code("int8", 10).check(9)
    with pytest.raises(UserError, match="binary codes of 1 to 1 bytes, not 2"):
        Code("binary", 2).check(9)


def slow_scores(code, keys, queries):
    """Python's whole numbers."""
    if code.kind == "int8":
        return [[sum(a * b for a, b in zip(q, key, strict=True)) for key in keys.tolist()] for q in queries.tolist()]
    return [
        [-sum((a ^ b).bit_count() for a, b in zip(q, key, strict=True)) for key in keys.tolist()]
        for q in queries.tolist()
    ]


@pytest.mark.parametrize(
    "code", [Code("int8", 7), Code("int8", 40), *(Code("binary", count) for count in (1, 2, 3, 4, 6, 8, 12, 16))]
)
def test_scores_are_the_slow_ones_whatever_is_computed_together(code, monkeypatch):
    monkeypatch.setattr(codes, "CHUNK", 100)
    keys, queries = (code.pack(drawn(count, 128, seed)) for count, seed in ((257, 1), (5, 2)))
    scores = code_scores(keys, queries)
    assert scores.tolist() == slow_scores(code, keys, queries)
    for row, query in zip(scores, queries, strict=True):
        assert np.array_equal(code_scores(keys, query[None])[0], row)


@pytest.mark.parametrize("code", [Code("int8", 4), Code("binary", 1)])
@pytest.mark.parametrize("k", [0, 1, 40, 257, 999])
@pytest.mark.parametrize("filtered", [False, True])
def test_shortlists_are_the_sorted_list_s_first(code, k, filtered, monkeypatch):
    monkeypatch.setattr(codes, "CHUNK", 100)
    monkeypatch.setattr(codes, "GROUP", 2)
    keys, queries = code.pack(drawn(257, 8, 1)), code.pack(drawn(5, 8, 2))
    keys[20:200:3] = keys[7]  # many of exactly the same
    allowed = np.arange(257) % 5 < 3 if filtered else None
    near = shortlists(keys, queries, k, allowed)
    for places, scores in zip(near, slow_scores(code, keys, queries), strict=True):
        order = [n for n in sorted(range(257), key=lambda n: (-scores[n], n)) if allowed is None or allowed[n]]
        assert places.tolist() == sorted(order[:k])
        own = np.array([3, 150, 256])
        every = sorted(range(257), key=lambda n: (-scores[n], n))
        assert ranks(np.array(scores), own).tolist() == [every.index(n) for n in own]


def test_the_best_places_of_scores_that_are_all_alike():
    assert best_places(np.zeros(5, dtype=np.float32), 3).tolist() == [0, 1, 2]
    assert best_places(np.array([1, -np.inf, 1, 2], dtype=np.float32), 2).tolist() == [0, 3]


# ---- in an index


def answers(searcher, **options):
    asked = [*map(Query, TEXTS), Query(image=jpeg(3)), Query("blue", jpeg(4))]
    return [[(r.id, r.first, r.score) for r in a.results] for a in searcher.search(asked, **options)]


@pytest.mark.parametrize("code", FORMS, ids=str)
@pytest.mark.parametrize("system", ["r2d2", "wukong", "clip"])
def test_where_all_are_looked_at_answers_are_those_of_whole_vectors(code, system, tmp_path):
    """Codes choose who is looked at and nothing else: the scores have the same bits, filtered, re-scored, re-ranked."""
    run = untrained(tmp_path / "run", system)
    shown = [Picture(jpeg(n), f"p{n}", {"en": [TEXTS[n % 5]]}, {"n": n}) for n in range(60)]
    plain = Searcher(build_index(run, shown, tmp_path / "plain"))
    lines = []
    form = {"first_bytes": code.bytes, "first_code": code.kind}
    few = Searcher(build_index(run, shown, tmp_path / "few", say=lines.append, **form))
    assert few.index.snapshot.vectors is None
    assert few.index.snapshot.codes.shape == (60, code.bytes)
    for options in ({"candidates": 0}, {"candidates": 8}, {"top": 70}, {"filters": {"n": {"max": 20}}}):
        assert answers(few, **options) == answers(plain, **options)
    assert few.similar("p5", 4).results == plain.similar("p5", 4).results
    for own, other in zip(few.scores("blue"), plain.scores("blue"), strict=True):
        assert torch.equal(own, other)
    told = few.index.about["codes"]
    assert (told["kind"], told["bytes"], told["depth"], told["recall"]) == (code.kind, code.bytes, 256, 1.0)
    assert any(f"{code.kind} codes of {code.bytes} bytes: 100.0%" in line and "with texts" in line for line in lines)


def test_only_the_nearest_by_code_are_looked_at(run, tmp_path, monkeypatch):
    """With a small depth the answer is the best by whole vectors among the best by code, reckoned slowly."""
    monkeypatch.setattr(nearest, "DEPTHS", (6,))
    index = build_index(run, [Picture(jpeg(n), f"p{n}") for n in range(50)], tmp_path / "i", first_bytes=2)
    assert index.depth == 6
    assert 0 < index.about["codes"]["recall"] < 1
    assert index.about["codes"]["by"] == "pictures"
    stored = index.vectors(index.snapshot, np.arange(50))
    query = vectors(index.predictor.texts(["blue"]))
    code = Code("int8", 2)
    (scores,) = slow_scores(code, code.pack(stored), code.pack(query))
    short = sorted(range(50), key=lambda n: (-scores[n], n))[:8]  # 4 times the two that are asked for
    right = sorted(short, key=lambda n: (-float((stored[n].double() @ query[0].double()).float()), n))[:2]
    results = Searcher(index).search([Query("blue")], top=2, candidates=0)[0].results
    assert [r.id for r in results] == [f"p{n}" for n in right]


def test_the_depth_is_the_least_that_keeps_enough_of_the_ten_nearest(run, tmp_path, monkeypatch):
    monkeypatch.setattr(nearest, "DEPTHS", (5, 10, 20, 40, 80))
    shown = [Picture(jpeg(n), f"p{n}", {"en": [" ".join(TEXTS[k % 5] for k in (n, n // 5))]}) for n in range(80)]
    index = build_index(run, shown, tmp_path / "i", first_bytes=3)
    snapshot, code = index.snapshot, Code("int8", 3)
    stored = index.vectors(snapshot, np.arange(80))
    queries, by = nearest._own_queries(snapshot, lambda texts: vectors(index.predictor.texts(texts)))
    assert by == "texts"
    shares = {}
    for depth in (5, 10, 20, 40, 80):
        hits = []
        for query in queries:
            truth = sorted(range(80), key=lambda n: (-float(stored[n] @ query), n))[:10]
            (scores,) = slow_scores(code, code.pack(stored), code.pack(query[None]))
            short = sorted(range(80), key=lambda n: (-scores[n], n))[:depth]
            hits.append(len(set(truth) & set(short)) / 10)
        shares[depth] = sum(hits) / len(hits)
    least = min(depth for depth, share in shares.items() if share >= nearest.RECALL)
    assert least > 5
    assert index.depth == least
    assert index.about["codes"]["recall"] == pytest.approx(shares[least], abs=0.01)  # equal scores either way


def codes_of(index):
    ids = index.snapshot.rows(np.arange(len(index)), ["id"])["id"]
    return dict(zip(ids, index.snapshot.codes.tolist(), strict=True))


def test_pictures_that_come_change_and_go_have_codes(run, tmp_path):
    few = Code("binary", 2)
    pictures = table(tmp_path / "in", range(7))
    index = build_index(run, pictures, tmp_path / "i", first_bytes=2, first_code="binary", batch_size=3)
    index.add([Picture(jpeg(40), "new"), Picture(jpeg(41), "p2")])
    index.remove(["p4"])
    again = build_index(run, table(tmp_path / "in", range(9)), tmp_path / "i")  # it stays as it is
    for opened in (index, again, Index.open(tmp_path / "i")):
        opened.refresh()
        stored = opened.vectors(opened.snapshot, np.arange(len(opened)))
        assert opened.snapshot.codes.tolist() == few.pack(stored).tolist()
    assert {"new", "p2", "p4", "p8"} <= set(codes_of(again))
    assert [r.id for r in Searcher(again).search([Query(image=jpeg(40))], 1)[0].results] == ["new"]


def test_an_index_is_given_codes_others_and_none_without_embedding(run, tmp_path, monkeypatch):
    pictures = table(tmp_path / "in", range(12))
    index = build_index(run, pictures, tmp_path / "i")
    whole = answers(Searcher(index))
    reader = Index.open(tmp_path / "i")  # a service that runs meanwhile
    for form in (Code("int8", 4), Code("binary", 1), Code("int8", 16), None):
        options = {"first_bytes": form.bytes, "first_code": form.kind} if form else {"first_bytes": 0}
        index = build_index(run, pictures, tmp_path / "i", **options)
        assert index.built.counts == {"unchanged": 12}
        assert IndexRecord.open(tmp_path / "i").code == form
        reader.refresh()
        for opened in (index, reader, Index.open(tmp_path / "i")):
            assert (opened.snapshot.codes is None) == (form is None)
            assert answers(Searcher(opened)) == whole
        assert index.about["sizes"].get("code", 0) == (form.bytes if form else 0)
    assert index.about["codes"] == {}


def test_stopped_between_its_word_and_the_codes_it_is_searched_by_vectors(run, tmp_path, monkeypatch):
    pictures = table(tmp_path / "in", range(8))
    whole = answers(Searcher(build_index(run, pictures, tmp_path / "i")))
    monkeypatch.setattr(IndexRecord, "set_code", lambda self, code: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build_index(run, pictures, tmp_path / "i", first_bytes=3)
    monkeypatch.undo()
    assert answers(Searcher(Index.open(tmp_path / "i"))) == whole
    assert build_index(run, pictures, tmp_path / "i", first_bytes=3).snapshot.codes.shape == (8, 3)


def test_refitted_pictures_have_codes_of_their_new_vectors(tmp_path):
    run = untrained(tmp_path / "run", "r2d2")
    pictures = table(tmp_path / "in", range(9))
    index = build_index(run, pictures, tmp_path / "i", first_bytes=8)
    old = codes_of(index)
    crop(run)
    with pytest.raises(UserError, match="--refit"):
        build_index(run, pictures, tmp_path / "i", first_bytes=0)
    again = refit(tmp_path / "i")
    fresh = build_index(run, pictures, tmp_path / "fresh", first_bytes=8)
    assert codes_of(again) == codes_of(fresh) != old


def test_codes_in_place_of_lance_s_index(run, tmp_path):
    shown = [Picture(jpeg(n), f"p{n}") for n in range(300)]
    index = build_index(run, shown, tmp_path / "i", exact=200)
    assert "lance" in index.about
    assert index.snapshot.vectors is None
    index = build_index(run, shown, tmp_path / "i", exact=200, first_bytes=16)
    assert index.snapshot.codes.shape == (300, 16)
    plain = Searcher(build_index(run, shown, tmp_path / "plain"))
    assert answers(Searcher(index), candidates=0) == answers(plain, candidates=0)
    index = build_index(run, shown, tmp_path / "i", exact=200, first_bytes=0)
    assert index.snapshot.vectors is None
    assert index.snapshot.codes is None
    assert Searcher(index).search([Query(image=jpeg(7))], 1)[0].results[0].id == "p7"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_bytes": 17}, "int8 codes of 1 to 16 bytes, not 17"),
        ({"first_bytes": 3, "first_code": "binary"}, "binary codes of 1 to 2 bytes, not 3"),
        ({"first_bytes": 3, "first_code": "float"}, "int8 or binary"),
        ({"first_code": "binary"}, "how many bytes"),
        ({"first_bytes": 4, "milvus": "http://127.0.0.1:9"}, "Milvus has whole vectors"),
    ],
)
def test_codes_that_cannot_be_are_refused_and_nothing_is_left(run, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        build_index(run, [Picture(jpeg(1))], tmp_path / "i", **options)
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (pa.string(), "damaged"),
        (pa.list_(pa.int8()), "damaged"),
        (pa.list_(pa.float32(), 4), "damaged"),
        (pa.list_(pa.int8(), 17), "int8 codes of 1 to 16 bytes, not 17"),
    ],
)
def test_a_column_that_holds_no_codes_is_told_of(kind, message, run, tmp_path):
    build_index(run, [Picture(jpeg(1))], tmp_path / "i")
    record = IndexRecord.open(tmp_path / "i")
    record.dataset().add_columns([pa.field("code", kind)])
    seal.seal(tmp_path / "i")  # else it is opened in a process of its own first, which takes seconds
    with pytest.raises(UserError, match=message):
        Index.open(tmp_path / "i")


def test_from_the_shell(run, tmp_path, capsys):
    pictures = str(table(tmp_path / "in", range(40)))
    out = str(tmp_path / "i")
    assert main(["index", str(run), pictures, "--out", out, "--first-bytes", "2", "--first-code", "binary"]) == 0
    assert "binary codes of 2 bytes: 100.0% of the ten nearest" in capsys.readouterr().out
    assert main(["search", out, "blue", "--json"]) == 0
    few = json.loads(capsys.readouterr().out)["results"]
    assert main(["index", str(run), pictures, "--out", out, "--first-bytes", "0"]) == 0
    capsys.readouterr()
    assert main(["search", out, "blue", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == few
    with pytest.raises(SystemExit):
        main(["index", "--refit", "--out", out, "--first-bytes", "4"])
    assert "--refit keeps" in capsys.readouterr().err


def test_an_index_of_no_pictures_takes_them_later(run, tmp_path):
    index = build_index(run, [], tmp_path / "i", first_bytes=4)
    assert Searcher(index).search([Query("blue")])[0].results == []
    index.add([Picture(jpeg(1), "first")])
    assert Searcher(index).search([Query("blue")])[0].results[0].id == "first"


def test_a_system_without_vectors_has_no_codes(tmp_path):
    """BridgeTower without its contrast matches every pair."""
    run = untrained(tmp_path / "run", "bridgetower", **{"model.contrast": False})
    with pytest.raises(UserError, match="no first-stage vectors"):
        build_index(run, [Picture(jpeg(1))], tmp_path / "i", first_bytes=4)
    assert build_index(run, [Picture(jpeg(1))], tmp_path / "i", first_bytes=0).about["width"] == 0
