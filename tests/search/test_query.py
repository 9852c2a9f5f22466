"""Queries: both stages against slow ones, whatever is asked together, budget, filters, mistakes."""

import threading

import numpy as np
import pytest
import torch

import tuwen
from tests.search.common import TEXTS, picture
from tuwen.cli.search import _print_answer
from tuwen.data.images import encode_jpeg
from tuwen.errors import UserError
from tuwen.search import nearest
from tuwen.search.build import build_index
from tuwen.search.index import Index
from tuwen.search.pictures import Picture
from tuwen.search.query import Query, Result, SearchAnswer, Searcher

COUNT = 30


def jpeg(number):
    return encode_jpeg(picture(number))


@pytest.fixture(scope="module")
def index(run, tmp_path_factory):
    pictures = [
        Picture(
            jpeg(n),
            id=f"p{n}",
            texts={"en": [TEXTS[n % 5]]},
            columns={
                "price": n,
                "a.b ‘图’": ["one", "it's"][n % 2],
                "sale": n % 3 == 0,
                "tags": ["x", "y"][: 1 + n % 2],
            },
        )
        for n in range(COUNT)
    ]
    return build_index(run, pictures, tmp_path_factory.mktemp("index") / "i", batch_size=7)


@pytest.fixture(scope="module")
def searcher(index):
    return Searcher(index)


def as_told(found):
    return [(result.id, result.first, result.score) for result in found.results]


def test_two_stages_are_the_model_s_ranking(run, searcher):
    ranked = tuwen.load(run).rank([jpeg(n) for n in range(COUNT)], TEXTS, top_k=12)
    for text, expected in zip(TEXTS, ranked, strict=True):
        found = searcher.search([Query(text)], top=20, candidates=12)[0]
        assert found.reranked == 12
        assert found.complete
        scores = dict(zip(expected.images, expected.scores, strict=True))
        assert [int(result.id[1:]) for result in found.results[12:]] == expected.images[12:20]
        assert {int(result.id[1:]) for result in found.results[:12]} == set(expected.images[:12])
        for result in found.results:
            assert result.score == pytest.approx(scores[int(result.id[1:])], abs=2e-3)
        own = [result.score for result in found.results[:12]]
        assert own == sorted(own, reverse=True)


def test_scores_are_the_same_bits_whatever_is_asked_together(searcher):
    texts = [*TEXTS, "gold", "red red red red red red red", "颜色"]
    alone = [as_told(searcher.search([Query(text)], top=30, candidates=13)[0]) for text in texts]
    together = searcher.search([Query(text) for text in texts], top=30, candidates=13)
    assert [as_told(found) for found in together] == alone
    reverse = searcher.search([Query(text) for text in reversed(texts)], top=30, candidates=13)
    assert [as_told(found) for found in reversed(reverse)] == alone
    fewer = searcher.search([Query(texts[0])], top=3, candidates=13)[0]
    assert as_told(fewer) == alone[0][:3]


def test_first_stage_alone(run, searcher, clip_run, tmp_path):
    vectors = tuwen.load(run).embed(texts=["blue"], images=[jpeg(n) for n in range(COUNT)])
    scores = (vectors.images @ vectors.texts[0]).numpy()
    found = searcher.search([Query("blue")], top=5, candidates=0)[0]
    assert [int(r.id[1:]) for r in found.results] == np.argsort(-scores)[:5].tolist()
    assert [r.score for r in found.results] == [r.first for r in found.results]
    assert (found.reranked, found.complete) == (0, True)
    other = Searcher(build_index(clip_run, [Picture(jpeg(n), id=f"p{n}") for n in range(4)], tmp_path / "clip"))
    assert not other.reranks
    found = other.search([Query("blue")], top=9)[0]
    assert (len(found.results), found.reranked, found.complete) == (4, 0, True)


def test_pictures_and_both(searcher):
    own = searcher.search([Query(image=jpeg(11))], top=3)[0]
    assert own.results[0].id == "p11"
    assert own.results[0].first == pytest.approx(1, abs=1e-5)
    text = searcher.search([Query("blue")], top=COUNT, candidates=0)[0]
    image = searcher.search([Query(image=jpeg(11))], top=COUNT, candidates=0)[0]
    firsts = [{r.id: r.first for r in found.results} for found in (text, image)]
    both = searcher.search([Query("blue", jpeg(11))], top=COUNT, candidates=0)[0]
    for result in both.results:
        assert result.first == pytest.approx((firsts[0][result.id] + firsts[1][result.id]) / 2, abs=1e-6)
    mixed = searcher.search([Query("blue", jpeg(11)), Query(image=jpeg(3)), Query("blue")], top=4, candidates=4)
    assert [found.reranked for found in mixed] == [4, 0, 4]


def test_similar(searcher):
    found = searcher.similar("p4", top=5)
    assert "p4" not in {result.id for result in found.results}
    asked = searcher.search([Query(image=jpeg(4))], top=6)[0]
    assert [r.id for r in found.results] == [r.id for r in asked.results[1:]]
    with pytest.raises(KeyError):
        searcher.similar("p99")


@pytest.mark.parametrize(
    ("filters", "right"),
    [
        ({"price": {"min": 10, "max": 12}}, lambda n: 10 <= n <= 12),
        ({"price": {"max": 2.5}}, lambda n: n <= 2.5),
        ({"price": 7}, lambda n: n == 7),
        ({"price": [7, 8, 99]}, lambda n: n in (7, 8)),
        ({"a.b ‘图’": "it's"}, lambda n: n % 2 == 1),
        ({"sale": True, "a.b ‘图’": ["one"]}, lambda n: n % 6 == 0),
        ({"tags": "y"}, lambda n: n % 2 == 1),
        ({"tags": ["y", "nothing"]}, lambda n: n % 2 == 1),
        ({"标签": "y"}, lambda n: n % 2 == 1),  # as a table's header called it
        ({"price": []}, lambda n: False),
        ({"price": [k + 0.5 for k in range(20_000)] + [3]}, lambda n: n == 3),
        ({"a.b ‘图’": [f"v{k}" for k in range(20_000)] + ["it's"]}, lambda n: n % 2 == 1),
        ({"tags": [f"v{k}" for k in range(5_000)] + ["y"]}, lambda n: n % 2 == 1),
        ({"sale": [True, False]}, lambda n: True),
        ({"a.b ‘图’": "' OR true --"}, lambda n: False),
        ({"a.b ‘图’": {"min": "it", "max": "it's"}}, lambda n: n % 2 == 1),
        ({"a.b ‘图’": {"min": "it't"}}, lambda n: n % 2 == 0),
        ({"price": "10..12"}, lambda n: 10 <= n <= 12),
        ({"price": "27.5 .."}, lambda n: n >= 28),
        ({"price": "..2"}, lambda n: n <= 2),
        ({"price": "5..-5"}, lambda n: False),
        ({"a.b ‘图’": "2024-05-01..2024-05-31"}, lambda n: False),
        ({"a.b ‘图’": "0001-01-01.."}, lambda n: True),  # letters come after digits: a range, no value
        ({"a.b ‘图’": "a..z"}, lambda n: False),  # of texts that are no dates, a value like another
    ],
)
def test_filters(searcher, filters, right):
    expected = {f"p{n}" for n in range(COUNT) if right(n)}
    found = searcher.search([Query("blue"), Query(image=jpeg(2))], top=COUNT, candidates=5, filters=filters)
    assert {result.id for result in found[0].results} == expected
    assert {result.id for result in found[1].results} == expected
    everything = searcher.search([Query("blue")], top=COUNT, candidates=0)[0]
    kept = [r.id for r in everything.results if r.id in expected]
    alone = searcher.search([Query("blue")], top=COUNT, candidates=0, filters=filters)[0]
    assert [r.id for r in alone.results] == kept


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"colour": "red"}, "no column 'colour'"),
        ({"price": "cheap"}, r'not a number, which this column holds: write 20, .*"10\.\.20"'),
        ({"price": {"above": 3}}, r'give 20, .*"\.\.20" or \{"min": 10, "max": 20\}'),
        ({"price": ".."}, r'not a number.*"10\.\."'),
        ({"price": "1..2..3"}, "not a number"),
        ({"price": "nan.."}, "not a number"),
        ({"price": ["1..2"]}, "not a number"),
        ({"sale": {"min": 1}}, "no ranges: write true or false"),
        ({"tags": {"min": "a"}}, 'no ranges: write "a", or'),
        ({"sale": "yes"}, "true or false"),
        ({"price": float("nan")}, "not a number"),
        ({"price": True}, "not a number"),
        ({"price": 10**400}, "not a number"),
        ({"a.b ‘图’": {"min": 1}}, "is text, not a number"),
        ({"a.b ‘图’": {"min": "9", "max": "10"}}, "order of letters"),
        ({"a.b ‘图’": "\udcff"}, "not UTF-8"),
    ],
)
def test_wrong_filters(searcher, filters, message):
    with pytest.raises(UserError, match=message):
        searcher.search([Query("blue")], filters=filters)


def test_out_of_time_it_gives_what_it_has(searcher, monkeypatch):
    full = searcher.search([Query("blue")], top=COUNT, candidates=24)[0]
    clock = iter(range(10_000))
    monkeypatch.setattr("tuwen.search.query.monotonic", lambda: next(clock) / 1000)  # a millisecond a look
    searcher._chunk_seconds = 0
    found = searcher.search([Query("blue")], top=COUNT, candidates=24, budget_ms=5)[0]
    assert not found.complete
    assert found.reranked in (8, 16)
    scores = {r.id: r.score for r in full.results[:24]}
    first = searcher.search([Query("blue")], top=COUNT, candidates=0)[0].results
    best = {r.id for r in first[: found.reranked]}
    assert {r.id for r in found.results[: found.reranked]} == best  # the likeliest were re-ranked
    for result in found.results[: found.reranked]:
        assert result.score == scores[result.id]
    assert [r.id for r in found.results[found.reranked :]] == [r.id for r in first if r.id not in best]
    assert all(r.score == r.first for r in found.results[found.reranked :])
    searcher._chunk_seconds = 9.0
    none = searcher.search([Query("blue")], top=5, candidates=24, budget_ms=5)[0]
    assert (none.reranked, none.complete, len(none.results)) == (0, False, 5)
    searcher._chunk_seconds = 0


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (Query(), {}, "needs a text"),
        (Query("  \n"), {}, "empty query"),
        (Query("\udcff"), {}, "not UTF-8"),
        (Query(image=b"no picture"), {}, "not a picture"),
        (Query("blue"), {"top": 0}, "positive"),
        (Query("blue"), {"candidates": -1}, "positive"),
        (Query("blue"), {"budget_ms": 0}, "positive"),
    ],
)
def test_mistakes(searcher, query, options, message):
    with pytest.raises(UserError, match=message):
        searcher.search([query], **options)


@pytest.mark.parametrize(("query", "shown"), [("红鸟", "一只鸟"), ("red", "a bird"), ("", "ein Vogel")])
def test_the_text_shown_is_in_the_language_of_the_query(query, shown, capsys):
    texts = {"de": ["ein Vogel"], "en": ["a bird"], "zh": ["一只鸟"]}
    _print_answer(SearchAnswer([Result("p1", "", texts, 0.5, 0.5, {})], 0, True, 1.0), query)
    told = capsys.readouterr().out
    assert [text for several in texts.values() for text in several if text in told] == [shown]


def test_words_that_the_model_never_reads_are_named(searcher, capsys):
    queries = [Query("blue яблоко"), Query("blue"), Query(image=jpeg(1)), Query("яблоко", jpeg(1))]
    found = searcher.search(queries, top=2, candidates=2)
    assert [one.unknown for one in found] == [["яблоко"], [], [], ["яблоко"]]
    _print_answer(found[0], "blue яблоко")
    assert "not in the model's vocabulary: яблоко" in capsys.readouterr().err


def test_nothing_to_find(run, searcher, tmp_path):
    assert searcher.search([]) == []
    empty = Searcher(build_index(run, [], tmp_path / "empty"))
    found = empty.search([Query("blue"), Query(image=jpeg(1))])
    assert [one.results for one in found] == [[], []]
    empty.index.add([Picture(jpeg(1), id="first")])
    assert [r.id for r in empty.search([Query("blue")])[0].results] == ["first"]


def test_threads_search_while_pictures_come_and_go(run, tmp_path):
    index = build_index(run, [Picture(jpeg(n), id=f"p{n}") for n in range(12)], tmp_path / "out")
    searcher, wrong = Searcher(index), []
    expected = as_told(searcher.search([Query("blue")], top=12, candidates=6)[0])
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            found = searcher.search([Query("blue")], top=100, candidates=6)[0]
            told = [one for one in as_told(found) if one[0] in {f"p{n}" for n in range(12)}]
            if len(told) != 12:
                wrong.append(told)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for n in range(20, 24):
        index.add([Picture(jpeg(n), id=f"q{n}")])
    index.remove([f"q{n}" for n in range(20, 24)])
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert as_told(searcher.search([Query("blue")], top=12, candidates=6)[0]) == expected


# ---- the nearest vectors


def slow_nearest(vectors, query, k, allowed):
    scores = (vectors.double() @ query.double()).float().tolist()
    order = sorted((n for n in range(len(scores)) if allowed is None or allowed[n]), key=lambda n: (-scores[n], n))
    return order[:k], [scores[n] for n in order[:k]]


@pytest.mark.parametrize("k", [1, 7, 300, 5000])
@pytest.mark.parametrize("filtered", [False, True])
def test_exact_search_is_the_sorted_list(monkeypatch, k, filtered):
    monkeypatch.setattr(nearest, "CHUNK", 100)
    generator = torch.Generator().manual_seed(k)
    vectors = torch.nn.functional.normalize(torch.randn(1037, 12, generator=generator), dim=1)
    vectors[100:900:3] = vectors[50]  # many of exactly the same
    queries = torch.cat([torch.nn.functional.normalize(torch.randn(4, 12, generator=generator), dim=1), vectors[50:51]])
    allowed = (np.arange(1037) % 5 < 3) if filtered else None
    places, scores = nearest.exact(vectors, queries, k, allowed)
    for n, query in enumerate(queries):
        expected = slow_nearest(vectors, query, k, allowed)
        assert places[n].tolist() == expected[0]
        assert scores[n].tolist() == expected[1]


def test_lance_s_own_index_beyond_a_limit(run, tmp_path, capfd):
    pictures = [Picture(jpeg(n), id=f"p{n}", columns={"n": n}) for n in range(300)]
    told = []
    index = build_index(run, pictures[:290], tmp_path / "many", exact=200, say=told.append)
    assert any("of the ten nearest are found" in line for line in told)
    assert index.about["lance"]["recall"] > 0.9
    assert index.snapshot.vectors is None
    index.add(pictures[290:])  # not yet in Lance's index, and found all the same
    searcher = Searcher(Index.open(tmp_path / "many"))
    assert [r.id for r in searcher.search([Query(image=jpeg(295))], top=1)[0].results] == ["p295"]
    exactly = Searcher(build_index(run, pictures, tmp_path / "exact"))
    for filters in (None, {"n": {"max": 100}}):
        expected = exactly.search([Query("blue")], top=10, candidates=0, filters=filters)[0]
        found = searcher.search([Query("blue")], top=10, candidates=0, filters=filters)[0]
        scores = {r.id: r.score for r in expected.results}
        assert len(scores.keys() & {r.id for r in found.results}) >= 8
        assert all(r.score == scores[r.id] for r in found.results if r.id in scores)
    assert "WARN" not in capfd.readouterr().err  # of Lance, at each search
    assert searcher.similar("p295", top=3).results[0].id == exactly.similar("p295", top=3).results[0].id
