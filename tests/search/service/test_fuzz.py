"""Requests made up at random: an answer or a refusal in a line, never a failure of the service."""

import functools
import json
import random
from collections import Counter

import pytest
from starlette.testclient import TestClient

from tests.fuzzing import ended, faults, in_children
from tests.search.service.conftest import LOCAL, pictures
from tests.search.service.test_hostile import BROKEN, ODD
from tuwen.search.build import build_index
from tuwen.search.index import Index
from tuwen.search.query import Searcher
from tuwen.search.service.app import create_app
from tuwen.search.service.settings import Settings

TEXTS = (
    "cat",
    "红色的鸟",
    "",
    "\x00",
    "x" * 1001,
    "a' OR 1=1 --",
    "\u202e",
    "../../etc/passwd",
    "<script>",
    "\U0010ffff",
)
NUMBERS = (0, -1, 1, 7, 201, 10**30, 1.5, 1e308, True, None)
NAMES = ("shelf", "price", "new", "tags", "none", "", "`", "column_shelf", "__proto__", "x" * 65)
IDS = ("scene/0-1.jpg", "scene/0-99.jpg", "' OR '1'='1", "", "x" * 513, "\x1b", "../x")


def value(draw: random.Random, depth: int = 0):
    how = draw.randrange(8 if depth < 3 else 4)
    if how < 4:
        return draw.choice(TEXTS + NUMBERS + ("a", "b", "t1"))
    if how == 4:
        return [value(draw, depth + 1) for _ in range(draw.choice((0, 1, 3, 300)))]
    if how == 5:
        return {draw.choice(("min", "max", "$ne", "")): value(draw, depth + 1) for _ in range(2)}
    return {draw.choice(NAMES): value(draw, depth + 1) for _ in range(draw.choice((1, 2, 20)))}


def ask(client, draw: random.Random):
    """One request at random, most of its fields right."""
    fields = {"text": draw.choice(TEXTS), "top": draw.choice(NUMBERS), "candidates": draw.choice(NUMBERS)}
    fields |= {"filters": value(draw), "budget_ms": draw.choice(NUMBERS), draw.choice(NAMES): value(draw)}
    chosen = {name: fields[name] for name in draw.sample(sorted(fields), draw.randrange(len(fields)))}
    data = draw.choice([*ODD.values(), *(data for data, _ in BROKEN.values() if len(data) < 100_000)])
    match draw.randrange(7):
        case 0 | 1:
            return client.post("/search", json={"text": "cat"} | chosen)
        case 2:
            form = {name: item if isinstance(item, str) else json.dumps(item) for name, item in chosen.items()}
            return client.post("/search/image", files={"picture": data}, data=form)
        case 3:
            records = draw.choice(([{"id": draw.choice(IDS), "columns": value(draw)}], value(draw)))
            return client.post("/pictures", files={"pictures": data}, data={"records": json.dumps(records)})
        case 4:
            return client.post("/explain", json={"id": draw.choice(IDS), "text": draw.choice(TEXTS)})
        case 5:
            path = draw.choice(("/similar", "/pictures/thumbnail", "/nowhere", "/index", "/static/../../etc/passwd"))
            return client.get(path, params={"id": draw.choice(IDS), "top": str(draw.choice(NUMBERS))})
        case _:
            body = bytearray(json.dumps({"text": "cat", "filters": {"shelf": "a"}} | chosen).encode())
            body[draw.randrange(len(body))] = draw.randrange(256)
            return client.post("/search", content=bytes(body), headers={"Content-Type": "application/json"})


@functools.cache
def client_of(index: str) -> TestClient:
    """A service of an index that requests may change, one a process."""
    client = TestClient(create_app(Searcher(Index.open(index)), Settings(), None), base_url=LOCAL)
    return client.__enter__()


def attempt(index: str, seed: str, number: int) -> str:
    """One request: "read" where it is answered, "line" where it is refused; what is wrong with it raises."""
    client = client_of(index)
    answer = ask(client, random.Random(f"request {seed} {number}"))
    place = f"{answer.status_code} {answer.text[:300]}"
    assert answer.status_code < 500, place
    assert "root:" not in answer.text, place  # of /etc/passwd
    if answer.status_code == 201:
        for entry in answer.json()["entries"]:
            client.delete("/pictures", params={"id": entry["id"]})
    detail = answer.json()["detail"] if answer.status_code >= 400 else ""
    assert len(detail) < 600, place
    return ended([detail] if detail else [])


@pytest.fixture(scope="module")
def index(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked") / "index"
    build_index(run, pictures(12), folder)
    return folder


def alive(index: str, number: int) -> str:
    """The service that was asked before answers still."""
    assert client_of(index).post("/search", json={"text": "cat", "top": 3}).json()["results"]
    return "read"


@pytest.mark.parametrize(
    ("count", "seed"), [(100, 0), pytest.param(3000, 1, marks=pytest.mark.slow)], ids=["some", "many, 3 minutes"]
)
def test_requests_at_random(index, count, seed):
    ends = in_children(range(count), attempt, index, seed)
    assert faults(ends) == {}
    counts = Counter(what for what, _ in ends.values())
    assert min(counts["read"], counts["line"]) > count // 10
    assert faults(in_children([0], alive, index)) == {}
