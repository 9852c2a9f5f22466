"""Weights by name: from a hub of our own that HF_ENDPOINT names, and what is said where none can be reached."""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.children import Child
from tests.exchange.checkpoints import TEXT, VISION, randomised, saved

t = pytest.importorskip("transformers")

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
            self.send_error(404)

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


def imported(folder: Path, place: Path, endpoint: str) -> tuple[int, str]:
    """Status and last line of `tuwen import tiny/clip` with that HF_ENDPOINT; what the hub keeps lies in `folder`."""
    here = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hub"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    words = ("import", "tiny/clip", "--out", str(place / "run"))
    child = Child(place / "child", "tuwen", *words, **here, no_proxy="127.0.0.1", TUWEN_LANG="en")
    status = child.end()
    lines = (child.out.read_text() + child.errors.read_text()).strip().splitlines()
    return status, lines[-1]


def test_a_mirror_is_asked_and_its_copy_kept(tmp_path):
    model = t.ChineseCLIPModel(t.ChineseCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12))
    folder = saved(randomised(model), tmp_path / "theirs")
    (folder / "flax_model.msgpack").write_bytes(b"not asked for")
    with hub(folder, "tiny/clip") as (endpoint, asked):
        status, line = imported(tmp_path, tmp_path / "a", endpoint)
    assert (status, line) == (0, f"run: {tmp_path}/a/run")
    fetched = {path.rpartition("/")[2] for path in asked if "/resolve/" in path}
    assert fetched == {
        "config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    assert (tmp_path / "a/run/weights.safetensors").exists()
    status, line = imported(tmp_path, tmp_path / "b", endpoint)  # the server has gone
    assert (status, line) == (0, f"run: {tmp_path}/b/run")


def test_no_hub_is_one_line_that_says_what_to_do(tmp_path):
    status, line = imported(tmp_path, tmp_path / "a", UNREACHABLE)
    assert status == 1
    assert line.startswith(f"tuwen: tiny/clip: no such folder, and the hub at {UNREACHABLE} did not give it (")
    for advice in ("HF_ENDPOINT", "config.json, preprocessor_config.json, weights and tokenizer's files", "weights.md"):
        assert advice in line
    assert not (tmp_path / "a/run").exists()


def test_a_name_that_the_hub_has_not(tmp_path):
    with hub(tmp_path, "other/clip") as (endpoint, _):
        status, line = imported(tmp_path, tmp_path / "a", endpoint)
    assert status == 1
    assert f"the hub at {endpoint} did not give it (404" in line
