"""Broken, huge and malicious pictures, texts, forms: a clear refusal or a plain answer, and the service lives."""

import io
import json
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.search.service.conftest import pictures
from tuwen.search.build import build_index
from tuwen.search.query import Searcher
from tuwen.search.service.settings import RequestLimits


def encoded(image, form, **options):
    held = io.BytesIO()
    image.save(held, form, **options)
    return held.getvalue()


def noise(mode="RGB", size=(40, 30)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def png(width, height, rows=b""):
    """A PNG that says it is so large."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def searcher(run, tmp_path_factory):
    """An index of this file's own, which must be as it was after every test."""
    return Searcher(build_index(run, pictures(), tmp_path_factory.mktemp("hostile") / "index"))


JPEG, PNG = encoded(noise(), "JPEG"), encoded(noise(), "PNG")
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
XXE = b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><svg>&e;</svg>"
BROKEN = {
    "empty": (b"", 422),
    "text": (b"hello", 422),
    "svg": (SVG, 422),
    "svg with an entity": (XXE, 422),
    "html": (b"<html><script>alert(1)</script></html>", 422),
    "zip": (b"PK\x03\x04" + bytes(100), 422),
    "pdf": (b"%PDF-1.7\n1 0 obj", 422),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run", 422),
    "path": (b"/etc/passwd", 422),
    "url": (b"http://127.0.0.1:1/x.jpg", 422),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], 422),
    "truncated png": (PNG[: len(PNG) // 2], 422),
    "jpeg header alone": (JPEG[:20], 422),
    "damaged png": (PNG[:60] + b"\x00\x01\x02" + PNG[63:], 422),
    "bomb by its header": (png(50_000, 50_000), 413),
    "bomb, a strip": (png(1, 2**31 - 1), 413),
    "bomb, well compressed": (png(8000, 8000, bytes(8000 * 24001)), 413),
    "no pixels": (png(0, 0), 422),
    "random": (np.random.default_rng(1).bytes(5000), 422),
}
ODD = {
    "cmyk": encoded(noise("CMYK"), "JPEG"),
    "16 bits": encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), "PNG"),
    "animated gif": encoded(noise("P"), "GIF", save_all=True, append_images=[noise("P")] * 50),
    "animated webp": encoded(noise(), "WEBP", save_all=True, append_images=[noise()] * 3),
    "palette with transparency": encoded(noise("RGBA").quantize(8), "PNG"),
    "one pixel": encoded(noise(size=(1, 1)), "PNG"),
    "a line": encoded(noise(size=(2000, 1)), "PNG"),
    "polyglot with html": JPEG + b"<script>alert(1)</script>",
    "polyglot with zip": PNG + b"PK\x03\x04" + bytes(50),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures_are_refused_and_nothing_is_added(client, name):
    data, status = BROKEN[name]
    asked = client.post("/search/image", files={"picture": data})
    sent = client.post("/pictures", files={"pictures": data}, data={"records": json.dumps([{"id": "x"}])})
    for answer, where in ((asked, "picture"), (sent, "pictures.0")):
        assert answer.status_code == status, answer.text
        if data:
            assert answer.json()["detail"].startswith(f"{where}: ")
        assert "passwd" not in answer.json()["detail"] or name == "path"
    assert client.post("/search/image", files={"picture": PNG}).status_code == 200
    assert client.get("/similar", params={"id": "x"}).status_code == 404


def test_pictures_that_are_slow_to_decode_are_refused_at_once(client, searcher, serve):
    """30 KB of scans took 4 s, and 2 KB of JPEG 2000 took 10 s."""
    whole = encoded(Image.new("RGB", (1500, 1500)), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    scans = whole[:-2] + 1500 * last + b"\xff\xd9"
    assert len(scans) < 40_000
    began = time.process_time()
    answer = client.post("/search/image", files={"picture": scans})
    assert (answer.status_code, "more than 355 scans" in answer.json()["detail"]) == (413, True), answer.text
    assert time.process_time() - began < 1
    assert client.post("/search/image", files={"picture": whole}).status_code == 200
    client = serve(searcher, limits=RequestLimits(slow_pixels=1200))
    for size, status in (((40, 30), 200), ((41, 30), 413)):
        for form, right in (("JPEG2000", status), ("PNG", 200)):
            answer = client.post("/search/image", files={"picture": encoded(noise(size=size), form)})
            assert answer.status_code == right, answer.text


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_are_read_and_given_back_as_plain_jpeg(client, name):
    answer = client.post("/search/image", files={"picture": ODD[name]}, data={"top": "1"})
    assert answer.status_code == 200, answer.text
    sent = client.post("/pictures", files={"pictures": ODD[name]}, data={"records": json.dumps([{"id": "odd"}])})
    assert sent.status_code == 201, sent.text
    small = client.get("/pictures/thumbnail", params={"id": "odd"})
    image = Image.open(io.BytesIO(small.content))
    assert (image.format, image.mode, getattr(image, "n_frames", 1)) == ("JPEG", "RGB", 1)
    assert b"script" not in small.content
    assert b"PK\x03\x04" not in small.content
    assert client.delete("/pictures", params={"id": "odd"}).json()["deleted"] == 1


def test_too_many_pixels_are_not_decoded(searcher, serve, monkeypatch):
    client = serve(searcher, limits=RequestLimits(pixels=1199))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *a, **k: pytest.fail("decoded"))
    for data in (PNG, JPEG):
        assert client.post("/search/image", files={"picture": data}).status_code == 413


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", 422),
        (" \t\n　", 422),
        ("a\x00b", 422),
        ("\x1b[31mred", 422),
        ("a\x7fb", 422),
        ("a\x85b", 422),
        ("x" * 1001, 422),
        ("鸟" * 1001, 422),
        ("x" * 2**20, 413),
        ("x" * 1000, 200),
        ("鸟" * 1000, 200),
        ("a\u202eb\u200d\ufeff", 200),
        ("e" + "\u0301" * 900, 200),
        ("ﷺ" * 1000, 200),
        ("'; DROP TABLE pictures; --", 200),
        ("${jndi:ldap://127.0.0.1/a}", 200),
        ("../../../etc/passwd", 200),
        ("[MASK] [SEP] <pad>", 200),
        ("\U0010ffff", 200),
    ],
)
def test_texts(client, text, status):
    for path, more in (("/search", {}), ("/explain", {"id": "scene/0-1.jpg"})):
        answer = client.post(path, json={"text": text, **more})
        if path == "/explain" and answer.status_code == 422 and status == 200:
            assert answer.json()["detail"].startswith("no word in the text")
            continue
        assert answer.status_code == status, answer.text
        if status != 200:
            assert len(answer.json()["detail"]) < 100
    if status == 422 and text:
        form = client.post("/search/image", files={"picture": PNG}, data={"text": text})
        assert form.status_code == 422


RAW = {
    b"": 422,
    b"{": 422,
    b"[]": 422,
    b"null": 422,
    b'{"text": "\\ud800"}': 422,
    b'{"text": 5}': 422,
    b'{"text": ["cat"]}': 422,
    b'{"text": "cat", "top": 0}': 422,
    b'{"text": "cat", "top": 1e400}': 422,
    b'{"text": "cat", "top": -1}': 422,
    b'{"text": "cat", "top": 99999999999999999999}': 422,
    b'{"text": "cat", "budget_ms": NaN}': 422,
    b'{"text": "cat", "unknown": 1}': 422,
    b'{"text": "cat", "filters": {"none": 1}}': 422,
    b'{"text": "cat", "filters": {"price": "x"}}': 422,
    b'{"text": "cat", "filters": {"price": {"min": "x"}}}': 422,
    b'{"text": "cat", "filters": {"price": {"min": NaN}}}': 422,
    b'{"text": "cat", "filters": {"price": {}}}': 422,
    b'{"text": "cat", "filters": {"price": ' + b"9" * 400 + b"}}": 422,
    b'{"text": "cat", "filters": {"shelf": "\\ud800"}}': 422,
    b'{"text": "cat", "filters": {"tags": ["\\ud800"]}}': 422,
    b'{"text": "cat", "filters": {"shelf": {"min": "b", "max": "b"}}}': 200,
    b'{"text": "cat", "filters": {"shelf": {"$ne": ""}}}': 422,
    b'{"text": "cat", "filters": {"shelf": []}}': 200,
    b'{"text": "cat", "filters": {"__proto__": "x"}}': 422,
    b'{"text": "cat", "filters": {"shelf": [' + b'"",' * 256 + b'""]}}': 422,  # one more than may be
    b'{"text": "cat", "filters": {"shelf": [' + b'"",' * 255 + b'""]}}': 200,
    b'{"text": "cat", "filters": {"tags": [' + b'"",' * 20_000 + b'""]}}': 422,
    b"\xff\xfe\x00": 400,
    b"[" * 60_000: 400,
    b'{"text": "cat", "filters": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}": 422,
}


@pytest.mark.parametrize("body", RAW, ids=lambda body: repr(body[:40]))
def test_bodies(client, body):
    answer = client.post("/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in ({400, 422} if RAW[body] != 200 else {200}), answer.text
    assert isinstance(answer.json().get("detail", ""), str)
    assert client.post("/search", json={"text": "cat"}).status_code == 200


def test_forms(client):
    right = {"pictures": PNG}
    cases = [
        ({"records": "[]"}, right),
        ({"records": "{"}, right),
        ({"records": "[" * 5000}, right),
        ({"records": '[{"id": "a"}, {"id": "b"}]'}, right),
        ({"records": '[{"id": ""}]'}, right),
        ({"records": '[{"id": "a\\u0000"}]'}, right),
        ({"records": '[{"id": "a", "texts": {"en": ["\\u0001"]}}]'}, right),
        ({"records": '[{"id": "a", "columns": {"price": "cheap"}}]'}, right),
        ({"records": '[{"id": "a", "columns": {"x": NaN}}]'}, right),
        ({"records": '[{"id": "a", "columns": {"x": {"y": 1}}}]'}, right),
        ({"records": '[{"id": "a", "columns": {"x": "\\u0007"}}]'}, right),
        ({"records": '[{"id": "a", "columns": {"x`; DROP": "y"}}]'}, right),
        ({"records": '[{"id": "a", "columns": {"": "y"}}]'}, right),
        ({"records": '[{"id": "a", "image": "/etc/passwd"}]'}, right),
        ({"records": '[{"id": "a", "source": "http://127.0.0.1/"}]'}, right),
        ({}, right),
        ({"records": '[{"id": "a"}]'}, {}),
        ({"records": '[{"id": "a"}]', "pictures": "not a file"}, {}),
    ]
    before = client.get("/index").json()
    for data, files in cases:
        answer = client.post("/pictures", data=data, files=files)
        assert answer.status_code == 422, (data, answer.text)
    many = [("pictures", PNG)] * 33
    answer = client.post("/pictures", files=many, data={"records": json.dumps([{"id": f"{k}"} for k in range(33)])})
    assert answer.status_code == 422
    for form in (b"", b"--x\r\n", b"--x\r\nContent-Disposition: form-data\r\n\r\n", b"--x--", b"\x00" * 100):
        answer = client.post("/search/image", content=form, headers={"Content-Type": "multipart/form-data; boundary=x"})
        assert answer.status_code in (400, 422), answer.text
    answer = client.post("/search/image", content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert answer.status_code == 400
    assert client.get("/index").json() == before


def test_uploads_beyond_the_limit(client):
    assert client.post("/search/image", files={"picture": bytes(21 * 2**20)}).status_code == 413


def test_no_request_writes_a_file(client, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda *a, **k: pytest.fail("a file was written"))
    large = encoded(noise(size=(1500, 1200)), "PNG")
    assert len(large) > 4 * 2**20
    assert client.post("/search/image", files={"picture": large}).status_code == 200


@pytest.mark.parametrize("name", ["../../../etc/passwd", "a\x00.jpg", "C:\\x", "http://127.0.0.1/x.jpg", "x" * 10_000])
def test_names_of_files_mean_nothing(client, name):
    quoted = name.replace("\\", "\\\\").encode()
    body = b'--x\r\nContent-Disposition: form-data; name="picture"; filename="' + quoted + b'"\r\n'
    body += b"Content-Type: text/html\r\n\r\n" + PNG + b"\r\n--x--\r\n"
    answer = client.post("/search/image", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code in (200, 400)
    assert "passwd" not in answer.text


@pytest.mark.parametrize(
    "id", ["../../../etc/passwd", "/etc/passwd", "http://127.0.0.1/", "a' OR '1'='1", "x" * 600, "\x00"]
)
def test_ids_are_names_and_nothing_else(client, id):
    for path in ("/pictures/thumbnail", "/similar"):
        assert client.get(path, params={"id": id}).status_code in (404, 422)
    assert client.post("/explain", json={"id": id, "text": "cat"}).status_code in (404, 422)
    assert client.delete("/pictures", params={"id": id}).json().get("deleted", 0) == 0
    assert client.get("/index").json()["pictures"] == len(pictures())
