"""Weights by name: from a hub of our own that HF_ENDPOINT names, and what is said where none can be reached."""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.children import Child

pytest.importorskip("huggingface_hub")

SHA = "a" * 40
UNREACHABLE = "http://127.0.0.1:9"  # discard: nobody listens


@contextlib.contextmanager
def hub(folder: Path, name: str):
    """The address of a server that gives a folder as the hub gives the model `name`, and the paths asked of it."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = self.path.split("?")[0]
            asked.append(path)
            if path == f"/api/models/{name}/revision/main":
                files = [{"rfilename": file.name} for file in folder.iterdir()]
                return self.give(json.dumps({"id": name, "sha": SHA, "siblings": files}).encode())
            if path == f"/api/models/{name}/tree/{SHA}":
                return self.give(json.dumps([entry(file) for file in sorted(folder.iterdir())]).encode())
            file = folder / path.removeprefix(f"/{name}/resolve/{SHA}/")
            if path.startswith(f"/{name}/resolve/") and file.is_file():
                return self.give(file.read_bytes())
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def give(self, body: bytes):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", SHA)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def entry(file: Path) -> dict:
    digest = hashlib.sha1(file.read_bytes()).hexdigest()
    return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": digest}


def asked_for(place: Path, endpoint: str, kept: Path, module: str = "tests.exchange.ask_hub", *words: str):
    """Status and last line of a program that looks for tiny/clip with that HF_ENDPOINT; kept: what the hub keeps."""
    here = {"HF_ENDPOINT": endpoint, "HF_HOME": str(kept), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TUWEN_LANG": "en"}
    child = Child(place, module, *(words or ("tiny/clip",)), **here, no_proxy="127.0.0.1")
    status = child.end()
    lines = (child.out.read_text() + child.errors.read_text()).strip().splitlines()
    return status, lines[-1]


def test_a_mirror_is_asked_and_its_copy_kept(tmp_path):
    (folder := tmp_path / "theirs").mkdir()
    names = {"config.json", "model.safetensors", "vocab.txt"}
    for name in (*names, "flax_model.msgpack", "pytorch_model.bin"):
        (folder / name).write_bytes(name.encode())
    with hub(folder, "tiny/clip") as (endpoint, asked):
        status, copy = asked_for(tmp_path / "a", endpoint, tmp_path / "hub")
    assert status == 0
    assert {path.name: path.read_text() for path in Path(copy).iterdir()} == {name: name for name in names}
    assert {path.rpartition("/")[2] for path in asked if "/resolve/" in path} == names
    assert asked_for(tmp_path / "b", endpoint, tmp_path / "hub") == (0, copy)  # the server has gone


def test_no_hub_is_one_line_that_says_what_to_do(tmp_path):
    words = ("import", "tiny/clip", "--out", str(tmp_path / "run"))
    status, line = asked_for(tmp_path / "a", UNREACHABLE, tmp_path / "hub", "tuwen", *words)
    assert status == 1
    assert line.startswith(f"tuwen: tiny/clip: no such folder, and the hub at {UNREACHABLE} did not give it (")
    for advice in ("HF_ENDPOINT", "config.json, preprocessor_config.json, weights and tokenizer's files", "weights.md"):
        assert advice in line
    assert not (tmp_path / "run").exists()


def test_a_name_that_the_hub_has_not(tmp_path):
    words = ("import", "tiny/clip", "--out", str(tmp_path / "run"))
    with hub(tmp_path, "other/clip") as (endpoint, _):
        status, line = asked_for(tmp_path / "a", endpoint, tmp_path / "hub", "tuwen", *words)
    assert status == 1
    assert f"the hub at {endpoint} did not give it (404" in line
