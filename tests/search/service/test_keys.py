"""API keys: only digests are kept, every route asks for the right scope, before the body."""

import hashlib
import hmac
import json

import pytest

from tests.search.service.conftest import pictures
from tuwen.errors import UserError
from tuwen.search.service import keys
from tuwen.search.service.keys import ApiKeys, create
from tuwen.search.service.settings import refuse_open_service

READ = [("get", "/metrics"), ("get", "/index"), ("post", "/search"), ("post", "/search/image"), ("get", "/similar")]
READ += [("post", "/explain"), ("get", "/pictures/thumbnail"), ("get", "/pictures")]
WRITE = [("post", "/pictures"), ("delete", "/pictures")]
OPEN = [("get", "/health"), ("get", "/ready"), ("get", "/"), ("get", "/page.js"), ("get", "/openapi.json")]


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def test_every_route_is_in_one_of_the_lists(locked):
    document = locked.get("/openapi.json").json()
    routes = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert routes == set(READ + WRITE) | {("get", "/health"), ("get", "/ready")}


@pytest.mark.parametrize(("method", "path"), READ + WRITE)
def test_without_a_right_key_nothing(locked, key_file, method, path):
    _, read, _ = key_file
    wrong = ["", "x", read[:-1], read + "a", read.upper(), "tuwen_" + "A" * 43, "ключ", "a" * 10_000]
    for headers in [{}, *({"Authorization": f"Bearer {key}".encode()} for key in wrong)]:
        answer = locked.request(method, path, headers=headers)
        assert answer.status_code == 401, (headers, answer.text)
        assert answer.headers["www-authenticate"] == "Bearer"
    for other in (f"Basic {read}", read, f"Bearer{read}"):
        assert locked.request(method, path, headers={"Authorization": other}).status_code == 401
    assert locked.request(method, path, params={"key": read}, cookies={"key": read}).status_code == 401


def test_scopes(locked, key_file):
    _, read, write = key_file
    for key in (read, write):
        answer = locked.post("/search", json={"text": "a cat", "top": 1}, headers=bearer(key))
        assert answer.status_code == 200
    for method, path in WRITE:
        answer = locked.request(method, path, headers=bearer(read))
        assert answer.status_code == 403
        assert answer.json()["detail"] == "the key shop may read, not write"
        assert locked.request(method, path, headers=bearer(write)).status_code == 422  # let through, and incomplete
    assert len(locked.app.state.service.searcher.index) == len(pictures())


def test_a_body_is_not_read_before_the_key(locked, monkeypatch):
    from tuwen.search.service import body

    monkeypatch.setattr(body.Body, "receive", lambda self: pytest.fail("the body was read"))
    assert locked.post("/search", json={"text": "x"}).status_code == 401
    assert locked.post("/pictures", files={"pictures": b"x" * 2**20}, data={"records": "[]"}).status_code == 401


def test_what_is_open_to_all(locked):
    for method, path in OPEN:
        assert locked.request(method, path).status_code == 200


def test_the_file_holds_digests_alone(tmp_path):
    path = tmp_path / "keys.txt"
    first, second = create(path, "a", "read"), create(path, "b", "write")
    held = path.read_text()
    assert first not in held
    assert second not in held
    assert held.split()[2] == hashlib.sha256(first.encode()).hexdigest()
    assert path.stat().st_mode & 0o077 == 0
    assert len(first) >= 49
    read = ApiKeys.read(path)
    assert [read.find(key).name for key in (first, second)] == ["a", "b"]
    assert read.find("a") is None
    assert read.find("\ud800") is None


def test_every_digest_is_compared_in_constant_time(tmp_path, monkeypatch):
    made = [create(tmp_path / "keys", name, "read") for name in "abc"]
    read = ApiKeys.read(tmp_path / "keys")
    compared = []

    def spy(a, b):
        compared.append(b)
        return hmac.compare_digest(a, b)

    class Module:
        compare_digest = staticmethod(spy)

    monkeypatch.setattr(keys, "hmac", Module)
    for key in (made[0], made[2], "none"):
        compared.clear()
        read.find(key)
        assert compared == [one.digest for one in read.keys]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no key in it"),
        ("# nothing\n", "no key in it"),
        ("read shop abc\n", ":1: not a key"),
        ("# x\nadmin shop " + "0" * 64, ":2: not a key"),
        ("read sh/op " + "0" * 64, ":1: not a key"),
    ],
)
def test_files_that_hold_no_keys(tmp_path, text, message):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UserError, match=message):
        ApiKeys.read(tmp_path / "keys")


def test_mistakes_in_making_a_key(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        ApiKeys.read(tmp_path / "none")
    create(tmp_path / "keys", "a", "read")
    for name, scope, message in [("a", "read", "a key a already"), ("a b", "read", "named"), ("c", "all", "no scope")]:
        with pytest.raises(UserError, match=message):
            create(tmp_path / "keys", name, scope)
    (tmp_path / "notes").write_text("my notes")
    with pytest.raises(UserError, match="not a key"):
        create(tmp_path / "notes", "a", "read")
    assert (tmp_path / "notes").read_text() == "my notes"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "shop.example", "", "127.0.0.1.example"])
def test_no_keys_on_loopback_alone(host):
    with pytest.raises(UserError, match="--no-keys with --host"):
        refuse_open_service(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.4.5", "::1", "localhost"])
def test_loopback(host):
    refuse_open_service(host)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "192.168.1.4", "", "[", "127.0.0.1.nip.io"])
def test_without_keys_other_hosts_are_refused(client, host):
    assert client.get("/index", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000"])
def test_without_keys_loopback_hosts_are_answered(client, host):
    assert client.get("/index", headers={"Host": host}).status_code == 200
    own = client.post("/search", json={"text": "cat"}, headers={"Host": host, "Origin": f"http://{host}"})
    assert own.status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9", "http://[", ""])
def test_without_keys_pages_of_other_origins_are_refused(client, origin):
    records = json.dumps([{"id": "a"}])
    files = {"pictures": pictures(1)[0].image}
    answer = client.post("/pictures", files=files, data={"records": records}, headers={"Origin": origin})
    assert answer.status_code == 403
