"""The command, the process it starts, and how that ends."""

import json
import signal
import socket
import sys
import threading
import time

import httpx
import pytest

from tests.search.service.live import serving
from tuwen import cli
from tuwen.cli import serve as serve_command
from tuwen.search.service import run
from tuwen.search.service.keys import ApiKeys


def failing(capsys, *words):
    assert cli.main(["serve", *map(str, words)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_mistakes_are_one_line_before_anything_is_loaded(index_folder, tmp_path, capsys, key_file):
    assert "no index there" in failing(capsys, tmp_path / "none", "--no-keys", "--port", "0")
    assert "0.0.0.0 could read and change" in failing(capsys, index_folder, "--no-keys", "--host", "0.0.0.0")
    assert "no such file" in failing(capsys, index_folder, "--keys", tmp_path / "keys")
    assert "cannot listen" in failing(capsys, index_folder, "--keys", key_file[0], "--host", "203.0.113.7")
    assert "cannot listen" in failing(capsys, index_folder, "--no-keys", "--port", "99999")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "give another --port" in failing(capsys, index_folder, "--no-keys", "--port", port)


def test_whoever_watches_is_told_what_serve_waits_for_in_their_language(index_folder, monkeypatch, capsys):
    from argparse import Namespace

    asked = Namespace(index=index_folder, run_folder=None, token=None)
    searcher = serve_command._searcher(asked)
    assert capsys.readouterr().err == ""  # nobody watches: standard error is the log, a JSON object a line
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    serve_command._searcher(asked)
    run_folder = searcher.index.run
    lines = [f"opening the index {index_folder}", f"loading the run {run_folder}"]
    assert capsys.readouterr().err.splitlines() == [*lines, "searching once, so that all is loaded"]
    monkeypatch.setenv("TUWEN_LANG", "zh")
    serve_command._searcher(asked)
    lines = [f"打开索引 {index_folder}", f"加载 run {run_folder}", "先搜索一次，把一切都加载好"]
    assert capsys.readouterr().err.splitlines() == lines


def test_keys_must_be_decided_on(index_folder, capsys):
    with pytest.raises(SystemExit):
        cli.main(["serve", str(index_folder)])
    assert "one of the arguments --keys --no-keys is required" in capsys.readouterr().err


def test_a_key_is_printed_and_opens(tmp_path, capsys):
    assert cli.main(["key", str(tmp_path / "keys"), "shop", "--scope", "write"]) == 0
    (key,) = capsys.readouterr().out.split()
    assert ApiKeys.read(tmp_path / "keys").find(key).scope == "write"


def test_the_settings_of_the_command_line():
    words = "serve x --no-keys --queue 3 --max-upload-mb 2 --max-megapixels 1 --max-text 9 --budget-ms 70 --log-queries"
    settings = cli.serve.service_settings(cli.parser().parse_args(words.split()))
    assert (settings.queue, settings.budget_ms, settings.log_queries, settings.batch) == (3, 70, True, 16)
    assert (settings.limits.upload, settings.limits.pixels, settings.limits.text) == (2 * 2**20, 1_000_000, 9)


def test_it_serves_drains_and_goes(index_folder, key_file):
    file, read, _ = key_file
    with serving(index_folder, "--keys", str(file)) as live:
        headers = {"Authorization": f"Bearer {read}"}
        with httpx.Client(base_url=live.url, headers=headers, timeout=30) as client:
            assert client.get("/ready").status_code == 200
            found = client.post("/search", json={"text": "红色的鸟", "top": 3}).json()
            assert len(found["results"]) == 3
            late = send_slowly(live.url, read)
            for _ in range(2):  # as `timeout` does, and Ctrl-C in a shell's group
                live.process.send_signal(signal.SIGTERM)
                time.sleep(0.05)
            time.sleep(0.2)  # it is draining now: the request whose body is still on its way is waited for
            assert live.process.poll() is None
            late.finish()
            assert late.status == 200
            assert live.process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{live.url}/health")
    lines = [json.loads(line) for line in live.log]
    assert [line["event"] for line in lines][0 :: len(lines) - 1] == ["serving", "stopped"]
    assert {line["key"] for line in lines if line.get("route") == "/search"} == {"shop"}
    assert "红色" not in "".join(live.log)


class send_slowly:
    """A search whose body is half sent."""

    def __init__(self, url, key):
        host, port = url.removeprefix("http://").split(":")
        self.body = json.dumps({"text": "a cat", "top": 2}).encode()
        head = f"POST /search HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(self.body)}\r\n\r\n"
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self.socket.sendall(head.encode() + self.body[:5])
        time.sleep(0.2)

    def finish(self):
        self.socket.sendall(self.body[5:])
        self.status = int(self.socket.makefile("rb").readline().split()[1])
        self.socket.close()


def test_over_the_wire_large_bodies_and_wrong_keys_get_their_answer_and_told_again_it_goes_at_once(
    index_folder, key_file
):
    """One process for both: it takes seconds to begin."""
    with serving(index_folder, "--keys", str(key_file[0]), "--max-upload-mb", "1") as live:
        good = {"Authorization": f"Bearer {key_file[1]}"}
        with httpx.Client(base_url=live.url, timeout=30) as client:
            for _ in range(3):
                answer = client.post("/search", json={"text": "x" * 2**20}, headers=good)
                assert (answer.status_code, "bytes" in answer.json()["detail"]) == (413, True)
                answer = client.post("/search/image", files={"picture": bytes(3 * 2**20)}, headers=good)
                assert answer.status_code == 413
                answer = client.post("/pictures", files={"pictures": bytes(3 * 2**20)}, headers={"Authorization": "x"})
                assert answer.status_code == 401
        for raw in (
            b"\x00\x01\x02\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET " + b"a" * 100_000,
            b"\x16\x03\x01\x02\x00",
        ):
            with socket.create_connection(("127.0.0.1", int(live.url.rsplit(":", 1)[1])), timeout=5) as wire:
                wire.sendall(raw)
                wire.shutdown(socket.SHUT_WR)
                assert b" 500 " not in wire.recv(4096)
        assert httpx.post(f"{live.url}/search", json={"text": "a cat"}, headers=good, timeout=30).status_code == 200

        late = send_slowly(live.url, key_file[1])
        live.process.send_signal(signal.SIGTERM)
        time.sleep(1.3)
        assert live.process.poll() is None
        live.process.send_signal(signal.SIGTERM)
        live.process.wait(20)
        late.socket.close()
    assert [json.loads(line)["event"] for line in live.log][-1] == "stopped"
    assert "Traceback" not in "".join(live.log)


def test_a_full_queue_is_429_and_searches_share_their_passes(searcher, serve, monkeypatch):
    client = serve(searcher, queue=4, batch=3)
    hold, real, sizes = threading.Event(), searcher.search, []

    def slow(queries, *options):
        sizes.append(len(queries))
        hold.wait(10)
        return real(queries, *options)

    monkeypatch.setattr(searcher, "search", slow)
    statuses = []

    def ask(number):
        answer = client.post("/search", json={"text": f"cat {number}", "top": 2})
        statuses.append((answer.status_code, answer.headers.get("retry-after")))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(7)]
    threads[0].start()
    while not sizes:
        time.sleep(0.01)
    for thread in threads[1:]:
        thread.start()
    while len(statuses) < 2:  # one is in hand, four wait, two are refused
        time.sleep(0.01)
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200
    hold.set()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [(200, None)] * 5 + [(429, "1")] * 2
    assert sizes == [1, 3, 1]
    assert client.get("/ready").status_code == 200


def test_the_wait_counts_into_the_budget(searcher, serve, monkeypatch):
    client = serve(searcher, budget_ms=5000)
    budgets = []
    real = searcher.search

    def watched(queries, top, candidates, budget_ms, filters):
        budgets.append(budget_ms)
        time.sleep(0.2)
        return real(queries, top, candidates, budget_ms, filters)

    monkeypatch.setattr(searcher, "search", watched)
    threads = [
        threading.Thread(target=client.post, args=("/search",), kwargs={"json": {"text": "cat", "top": top}})
        for top in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(budgets) > 4900
    assert 4000 < min(budgets) < 4850
    spent = client.post("/search", json={"text": "cat", "budget_ms": 1}).json()
    assert spent["complete"] is False
    assert spent["reranked"] == 0
    assert len(spent["results"]) == 20
    assert "tuwen_incomplete_total 1.0" in client.get("/metrics").text


def test_addresses():
    from tuwen.search.service.settings import Settings

    with run.bind(Settings(port=0)) as listening:
        assert run.url_of(listening).startswith("http://127.0.0.1:")
    with run.bind(Settings(host="::1", port=0)) as listening:
        assert run.url_of(listening).startswith("http://[::1]:")
