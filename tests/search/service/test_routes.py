"""The routes give what the searcher and the index give."""

import io
import json

import pytest
import torch
from PIL import Image

from tests.search.service.conftest import COUNT, pictures
from tuwen.search.build import build_index
from tuwen.search.index import Index
from tuwen.search.query import Query, Searcher


def found_directly(searcher, query, **options):
    found = searcher.search([query], **options)[0]
    return [(result.id, round(result.first, 5), round(result.score, 5)) for result in found.results]


def found(answer):
    assert answer.status_code == 200, answer.text
    return [(one["id"], round(one["first"], 5), round(one["score"], 5)) for one in answer.json()["results"]]


@pytest.mark.parametrize("text", ["一只红色的鸟", "a red bird above a car", "🐦"])
def test_a_text_finds_what_the_searcher_finds(client, searcher, text):
    answer = client.post("/search", json={"text": text, "top": 6, "candidates": 10})
    assert found(answer) == found_directly(searcher, Query(text=text), top=6, candidates=10)
    assert answer.json()["complete"] is True
    assert answer.json()["reranked"] == 6
    assert answer.json()["unknown"] == searcher.predictor.tokenizer.unknown_words(text)
    assert ("🐦" in answer.json()["unknown"]) is (text == "🐦")


def test_results_carry_texts_and_columns_but_no_path(client):
    one = client.post("/search", json={"text": "a cat", "top": 1}).json()["results"][0]
    right = {picture.id: picture for picture in pictures()}[one["id"]]
    assert one["texts"] == right.texts
    assert one["columns"] == right.columns
    assert set(one) == {"id", "texts", "columns", "first", "score", "thumbnail"}
    small = client.get("/" + one["thumbnail"])
    assert small.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(small.content)).size == (64, 64)


def test_without_candidates_the_first_stage_alone(client, searcher):
    answer = client.post("/search", json={"text": "a cat", "top": 4, "candidates": 0})
    assert found(answer) == found_directly(searcher, Query(text="a cat"), top=4, candidates=0)
    assert answer.json()["reranked"] == 0


def test_a_picture_and_a_picture_with_a_text(client, searcher):
    data = pictures()[5].image
    answer = client.post("/search/image", files={"picture": ("../../etc/passwd", data)}, data={"top": "3"})
    assert found(answer) == found_directly(searcher, Query(image=data), top=3, candidates=64)
    assert found(answer)[0][0] == "scene/0-5.jpg"
    both = client.post("/search/image", files={"picture": data}, data={"text": "a cat", "top": "3"})
    assert found(both) == found_directly(searcher, Query(text="a cat", image=data), top=3, candidates=64)


@pytest.mark.parametrize(
    ("filters", "meets"),
    [
        ({"shelf": "a"}, lambda row: row["shelf"] == "a"),
        ({"shelf": ["a", "b"], "new": True}, lambda row: row["shelf"] in "ab" and row["new"]),
        ({"price": {"min": 5, "max": 9}}, lambda row: 5 <= row["price"] <= 9),
        ({"price": {"max": 2.5}}, lambda row: row["price"] <= 2.5),
        ({"price": "5..9"}, lambda row: 5 <= row["price"] <= 9),
        ({"price": "20.."}, lambda row: row["price"] >= 20),
        ({"tags": "t1"}, lambda row: "t1" in row["tags"]),
        ({"标签": "t1"}, lambda row: "t1" in row["tags"]),  # as a table's header called it
        ({"shelf": "a' OR '1'='1"}, lambda row: False),
    ],
)
def test_filters(client, filters, meets):
    results = client.post("/search", json={"text": "cat", "top": 50, "filters": filters}).json()["results"]
    assert {one["id"] for one in results} == {p.id for p in pictures() if meets(p.columns)}
    form = {"filters": json.dumps(filters), "top": "50"}
    answer = client.post("/search/image", files={"picture": pictures()[0].image}, data=form)
    assert {one["id"] for one in answer.json()["results"]} == {one["id"] for one in results}
    asked = {"id": "scene/0-0.jpg", "filters": json.dumps(filters), "top": 50}
    alike = {one["id"] for one in client.get("/similar", params=asked).json()["results"]}
    assert alike == {one["id"] for one in results} - {"scene/0-0.jpg"}


@pytest.mark.parametrize("price", ["cheap", {"above": 3}, {}, [[1]], None])
def test_a_refused_filter_says_the_right_form(client, price):
    filters = {"price": price}
    form = {"filters": json.dumps(filters)}
    for answer in (
        client.post("/search", json={"text": "cat", "filters": filters}),
        client.post("/search/image", files={"picture": pictures()[0].image}, data=form),
        client.get("/similar", params={"id": "scene/0-0.jpg"} | form),
    ):
        assert answer.status_code == 422
        assert all(word in answer.json()["detail"] for word in ("price", '"10..20"', '{"min": 10, "max": 20}'))
    assert client.get("/similar", params={"id": "scene/0-0.jpg", "filters": "{"}).json()["detail"].endswith("no JSON")


def test_similar(client, searcher):
    answer = client.get("/similar", params={"id": "scene/0-3.jpg", "top": 5})
    direct = searcher.similar("scene/0-3.jpg", 5)
    assert [one["id"] for one in answer.json()["results"]] == [one.id for one in direct.results]
    assert client.get("/similar", params={"id": "../0-3.jpg"}).status_code == 404


def test_what_is_searched(client):
    about = client.get("/index").json()
    assert about["pictures"] == COUNT
    assert about["system"] == "r2d2"
    assert about["second_stage"] == {"score": "published"}
    assert about["codes"] is None
    assert about["columns"]["price"] == {"kind": "number", "values": [], "min": 0.0, "max": COUNT - 1.0}
    assert sorted(about["columns"]["shelf"]["values"]) == ["a", "b", "c"]
    assert sorted(about["columns"]["tags"]["values"]) == ["a", "t0", "t1"]


def test_an_index_of_codes_is_served_like_any_other(run, tmp_path, serve, client):
    few = serve(Searcher(build_index(run, pictures(COUNT), tmp_path / "few", first_bytes=2, first_code="binary")))
    about = few.get("/index").json()["codes"]
    assert (about["kind"], about["bytes"], about["depth"]) == ("binary", 2, 256)
    for asked in ({"text": "blue", "top": 5}, {"text": "red", "filters": {"price": {"max": 3}}}):
        own, whole = (served.post("/search", json=asked).json()["results"] for served in (few, client))
        assert own == whole


def test_pictures_come_and_go(run, tmp_path, serve):
    index = build_index(run, pictures(4), tmp_path / "index")
    client = serve(Searcher(index))
    new = pictures(2, seed=1)
    records = [{"id": one.id, "texts": one.texts, "columns": {"shelf": "z"}} for one in new]
    files = [("pictures", ("x.jpg", one.image)) for one in new]
    answer = client.post("/pictures", files=files, data={"records": json.dumps(records)})
    assert answer.status_code == 201
    assert answer.json() == {"entries": [{"id": one.id, "state": "added"} for one in new], "pictures": 6}
    hit = client.post("/search/image", files={"picture": new[1].image}, data={"top": "1"}).json()["results"][0]
    assert (hit["id"], hit["columns"]) == (new[1].id, {"shelf": "z"})
    again = client.post("/pictures", files=files[:1], data={"records": json.dumps(records[:1])})
    assert again.json()["entries"] == [{"id": new[0].id, "state": "unchanged"}]
    alias = json.dumps([{"id": "other name"}])
    copy = client.post("/pictures", files=files[:1], data={"records": alias})
    assert copy.json()["entries"] == [{"id": new[0].id, "state": "duplicate"}]
    gone = client.delete("/pictures", params={"id": [new[0].id, "never there"]})
    assert gone.json() == {"deleted": 1, "pictures": 5}
    assert client.get("/pictures/thumbnail", params={"id": new[0].id}).status_code == 404
    assert len(Index.open(tmp_path / "index")) == 5
    assert client.get("/index").json()["pictures"] == 5


@pytest.mark.parametrize(
    "second",
    [{"shelf": 5}, {"depth": "a word"}, {"count": 2**60}],
    ids=["another kind than the index has", "another kind than the first", "too many digits"],
)
def test_of_pictures_that_are_sent_all_or_none_are_taken(run, tmp_path, serve, second):
    index = build_index(run, pictures(4), tmp_path / "index")
    client = serve(Searcher(index))
    new = pictures(2, seed=1)
    records = [{"id": new[0].id, "columns": {"depth": 1}}, {"id": new[1].id, "columns": second}]
    files = [("pictures", ("x.jpg", one.image)) for one in new]
    answer = client.post("/pictures", files=files, data={"records": json.dumps(records)})
    assert answer.status_code == 422
    assert len(Index.open(tmp_path / "index")) == 4
    assert "depth" not in Index.open(tmp_path / "index").columns()


def test_changes_of_another_process_are_seen(run, tmp_path, serve):
    index = build_index(run, pictures(4), tmp_path / "index")
    client = serve(Searcher(index), refresh_seconds=0.02)
    Index.open(tmp_path / "index").add(pictures(1, seed=1))
    for _ in range(500):
        if client.get("/index").json()["pictures"] == 5:
            break
    assert client.get("/similar", params={"id": "scene/1-0.jpg"}).status_code == 200


def test_while_another_writes_changes_are_refused(run, tmp_path, serve):
    index = build_index(run, pictures(4), tmp_path / "index")
    client = serve(Searcher(index))
    with Index.open(tmp_path / "index")._record.writing():
        answer = client.delete("/pictures", params={"id": "scene/0-0.jpg"})
    assert answer.status_code == 409
    assert str(tmp_path) not in answer.text
    assert client.delete("/pictures", params={"id": "scene/0-0.jpg"}).json()["deleted"] == 1


def test_words_are_mapped(client, searcher):
    answer = client.post("/explain", json={"id": "scene/0-2.jpg", "text": "a red bird"})
    assert answer.status_code == 200, answer.text
    from tuwen.explain import word_maps

    words, maps, part = word_maps(searcher.predictor, searcher.index.picture("scene/0-2.jpg"), "a red bird")
    told = answer.json()["words"]
    assert [one["word"] for one in told] == list(words)
    assert answer.json()["part"] == list(part) == [0, 0, 1, 1]
    torch.testing.assert_close(torch.tensor([one["map"] for one in told]), maps, atol=6e-4, rtol=0)
    assert client.post("/explain", json={"id": "none", "text": "a red bird"}).status_code == 404


def test_health_readiness_and_metrics(client):
    assert client.get("/health").json() == client.get("/ready").json() == {"status": "ok"}
    client.post("/search", json={"text": "a cat"})
    client.post("/search", json={"text": ""})
    client.get("/no/such/place")
    text = client.get("/metrics").text
    assert 'tuwen_requests_total{method="POST",route="/search",status="200"} 1.0' in text
    assert 'tuwen_requests_total{method="POST",route="/search",status="422"} 1.0' in text
    assert 'tuwen_requests_total{method="GET",route="other",status="404"} 1.0' in text
    assert f"tuwen_pictures {COUNT}.0" in text
    assert "tuwen_batch_searches_count 1.0" in text
    assert "process_resident_memory_bytes" in text
    client.app.state.service.draining = True
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200


def test_the_document_has_an_example_for_every_request(client):
    document = client.get("/openapi.json").json()
    routes = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert routes >= {("post", "/search"), ("post", "/search/image"), ("post", "/pictures"), ("delete", "/pictures")}
    assert routes >= {
        ("post", "/explain"),
        ("get", "/similar"),
        ("get", "/health"),
        ("get", "/ready"),
        ("get", "/metrics"),
    }
    example = document["components"]["schemas"]["TextSearch"]["examples"][0]
    assert client.post("/search", json=example | {"filters": {}}).status_code == 200
    for name in ("Found", "Explained", "Added", "Deleted", "About", "Problem"):
        assert document["components"]["schemas"][name]["examples"]


def test_the_page_is_served_whole_and_nothing_beside_it(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    import re

    for name in re.findall(r'(?:src|href)="([a-z.]+)"', page.text):
        assert client.get(f"/{name}").status_code == 200, name
    assert client.get("/page.js").headers["content-type"].startswith("text/javascript")
    for path in ("/%2e%2e/service/app.py", "/..%2fservice/app.py", "/etc/passwd", "/index.html/x", "/page"):
        assert client.get(path).status_code == 404
