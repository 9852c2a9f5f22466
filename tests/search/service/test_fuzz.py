"""Requests made up at random: an answer or a refusal in a line, never a failure of the service."""

import json
import random
from collections import Counter

import pytest

from tests.search.service.conftest import pictures
from tests.search.service.test_hostile import BROKEN, ODD

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


def outcomes(client, count: int, seed: int = 0) -> Counter:
    """Requests by the status of the answer; whatever is wrong with one fails at once."""
    counts = Counter()
    for number in range(count):
        answer = ask(client, random.Random(f"request {seed} {number}"))
        counts[answer.status_code] += 1
        place = f"{number}: {answer.status_code} {answer.text[:300]}"
        assert answer.status_code < 500, place
        assert "root:" not in answer.text, place  # of /etc/passwd
        if answer.status_code >= 400:
            detail = answer.json()["detail"]
            assert len(detail) < 600, place
            assert "\n" not in detail, place
        if answer.status_code == 201:
            for entry in answer.json()["entries"]:
                client.delete("/pictures", params={"id": entry["id"]})
    print(dict(counts))
    return counts


@pytest.fixture
def kept(run, tmp_path, serve):
    """A service of an index that requests may change."""
    from tuwen.search.build import build_index
    from tuwen.search.query import Searcher

    return serve(Searcher(build_index(run, pictures(12), tmp_path / "index")))


def test_requests_at_random(kept):
    counts = outcomes(kept, 100)
    assert counts[200] > 10
    assert counts[422] > 10
    assert kept.post("/search", json={"text": "cat", "top": 3}).json()["results"]


@pytest.mark.slow  # 3 minutes
def test_requests_at_random_long(kept):
    counts = outcomes(kept, 3000, seed=1)
    assert counts[200] > 300
    assert kept.post("/search", json={"text": "cat", "top": 3}).json()["results"]
