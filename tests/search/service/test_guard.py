"""Limits on bodies, headers of every answer, and a log that tells no more than it should."""

import asyncio
import json
import logging
import time

import pytest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from tuwen.search.service import log
from tuwen.search.service.body import Body
from tuwen.search.service.guard import HEADERS
from tuwen.search.service.settings import RequestLimits


def body_of(pieces, headers=None, **limits):
    """A body that arrives in pieces (None: one that never comes)."""
    left = list(pieces)

    async def receive():
        piece = left.pop(0) if left else None
        if piece is None:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    return Body(receive, Headers(headers or {}), RequestLimits(**limits)), left


def read(body):
    async def whole():
        got = b""
        while True:
            message = await body.receive()
            got += message["body"]
            if not message["more_body"]:
                return got

    return asyncio.run(whole())


@pytest.mark.parametrize(("sent", "status"), [(10, 200), (11, 413), (1000, 413)])
def test_the_limit_is_exact_with_and_without_a_length(sent, status):
    for headers in ({}, {"content-length": str(sent)}):
        body, _ = body_of([b"x"] * sent, headers, json=10)
        if status == 200:
            assert read(body) == b"x" * sent
            continue
        with pytest.raises(HTTPException) as raised:
            read(body)
        assert raised.value.status_code == status


def test_the_rest_of_a_body_that_nobody_reads_is_waited_for_in_short():
    body, _ = body_of([b"x", None, b"x"], json=10, read_seconds=30, refused_seconds=0.2)
    began = time.monotonic()
    asyncio.run(body.discard())
    assert 0.1 < time.monotonic() - began < 2


def test_forms_have_a_limit_of_their_own():
    form = {"content-type": "multipart/form-data; boundary=x"}
    assert read(body_of([b"x" * 20], form, json=10, upload=30)[0]) == b"x" * 20
    with pytest.raises(HTTPException):
        read(body_of([b"x" * 31], form, json=10, upload=30)[0])


@pytest.mark.parametrize("length", ["-1", "1e3", "abc", "99999999999999999999"])
def test_lengths_that_cannot_be(length):
    with pytest.raises(HTTPException, match="413"):
        read(body_of([b"x"], {"content-length": length})[0])


def test_a_slow_body_is_given_up():
    body, _ = body_of([b"x", None], read_seconds=0.05)
    with pytest.raises(HTTPException, match="408"):
        read(body)


def test_what_is_not_read_is_taken_off_the_line_within_bounds():
    body, left = body_of([b"x"] * 50, json=10, upload=10)
    asyncio.run(body.discard())
    assert left == [b"x"] * 10  # four times the limit is gone
    waiting, left = body_of([b"x"] * 5, {"expect": "100-continue"})
    asyncio.run(waiting.discard())
    assert len(left) == 5


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("HEAD", "/health", 200),
        ("HEAD", "/search", 405),
        ("GET", "/nowhere", 404),
        ("PUT", "/search", 405),
        ("POST", "/search", 422),
    ],
)
def test_every_answer_has_the_headers(client, method, path, status):
    answer = client.request(method, path)
    assert answer.status_code == status
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    assert len(answer.headers["x-request-id"]) == 16
    assert "cache-control" in answer.headers
    assert "access-control-allow-origin" not in answer.headers


def test_a_failure_is_500_without_its_message(client, monkeypatch, lines):
    service = client.app.state.service

    def fail(*arguments):
        raise RuntimeError("secret of the query")

    monkeypatch.setattr(service.searcher, "search", fail)
    answer = client.post("/search", json={"text": "my secret words"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    failed = next(line for line in lines() if line["event"] == "failed")
    assert failed["error"] == "RuntimeError"
    assert any("test_guard.py" in place for place in failed["where"])
    assert "secret" not in json.dumps(lines())
    monkeypatch.undo()
    assert client.post("/search", json={"text": "a cat"}).status_code == 200


@pytest.fixture
def lines():
    """What the log has, line by line."""
    written = []

    class Kept(logging.Handler):
        def emit(self, record):
            written.append(log.JsonFormatter().format(record))

    handler = Kept()
    log.LOGGER.addHandler(handler)
    before, log.LOGGER.level = log.LOGGER.level, logging.INFO
    log.LOGGER.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in written]
    log.LOGGER.removeHandler(handler)
    log.LOGGER.setLevel(before)


def test_a_request_is_one_line_without_its_text(locked, key_file, lines):
    headers = {"Authorization": f"Bearer {key_file[1]}"}
    answer = locked.post("/search", json={"text": "my secret words"}, headers=headers)
    locked.get("/similar?id=my-secret.jpg", headers=headers)
    locked.get("/my-secret-path")
    first, second, third = lines()
    assert first["event"] == "request"
    assert (first["route"], first["status"], first["key"], first["characters"]) == ("/search", 200, "shop", 15)
    assert first["request"] == answer.headers["x-request-id"]
    assert first["ms"] > 0
    assert (second["route"], second["status"]) == ("/similar", 404)
    assert (third["route"], third["status"]) == ("other", 404)
    assert "secret" not in json.dumps(lines())
    assert key_file[1] not in json.dumps(lines())


def test_texts_are_logged_when_asked_for_and_break_no_line(searcher, serve, lines):
    client = serve(searcher, log_queries=True)
    client.post("/search", json={"text": '一只\n{鸟}\u2028 "x"'})
    (line,) = lines()
    assert line["text"] == '一只\n{鸟}\u2028 "x"'
