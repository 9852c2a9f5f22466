"""Connections that send nothing, or slowly: they are closed, and keep nobody out. All on loopback, few, and short."""

import asyncio
import contextlib
import socket
import threading
import time

import httpx
import pytest
import uvicorn

from tuwen.search.service.connections import bounded
from tuwen.search.service.guard import Guard
from tuwen.search.service.metrics import ServiceMetrics
from tuwen.search.service.settings import RequestLimits


async def app(scope, receive, send):
    """Answers at once; at /slow after two seconds; at /long with eight megabytes in pieces."""
    if scope["path"] == "/slow":
        await asyncio.sleep(2)
    if scope["path"] == "/long":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8000000")]})
        for k in range(80):
            await send({"type": "http.response.body", "body": bytes(100_000), "more_body": k < 79})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextlib.contextmanager
def served(**limits):
    """The port of a server with these limits, in a thread."""
    config = uvicorn.Config(app, http=bounded(RequestLimits(**limits)), log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            thread.join(10)
            assert not thread.is_alive()


def opened(port, stack, address="127.0.0.1", sends=b""):
    known = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5, source_address=(address, 0)))
    known.sendall(sends)
    return known


def is_closed(known, seconds=5.0) -> bool:
    known.settimeout(seconds)
    try:
        return known.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def answers(port, path="/", address="127.0.0.1") -> int:
    transport = httpx.HTTPTransport(local_address=address)
    with httpx.Client(transport=transport, timeout=10) as client:
        return client.get(f"http://127.0.0.1:{port}{path}").status_code


@pytest.mark.parametrize("sends", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_silent_connections_keep_nobody_out_and_are_closed(sends):
    with served(address=20, connections=50, header_seconds=1.5) as port, contextlib.ExitStack() as stack:
        silent = [opened(port, stack, sends=sends) for _ in range(60)]
        assert answers(port) == 200
        assert answers(port, address="127.0.0.2") == 200
        assert is_closed(silent[0], 0.5)  # gave way, the oldest first
        assert not is_closed(silent[-1], 0.05)
        began = time.monotonic()
        assert all(is_closed(known) for known in silent)
        assert time.monotonic() - began < 4


def test_silent_connections_of_many_addresses_give_way_too():
    with served(address=20, connections=50, header_seconds=30) as port, contextlib.ExitStack() as stack:
        silent = [opened(port, stack, f"127.0.1.{k % 8 + 1}") for k in range(80)]
        assert answers(port) == 200
        time.sleep(0.2)
        assert sum(not is_closed(known, 0.01) for known in silent) <= 50


def test_headers_that_come_byte_by_byte_have_the_time_of_all():
    with served(header_seconds=0.6) as port, contextlib.ExitStack() as stack:
        known, began = opened(port, stack), time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 5:
                known.sendall(b"G")
                time.sleep(0.1)
                if is_closed(known, 0.01):
                    break
        assert 0.5 < time.monotonic() - began < 2


def test_requests_in_hand_are_not_closed_and_an_address_has_only_so_many():
    request = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"
    with served(address=3, header_seconds=0.3) as port, contextlib.ExitStack() as stack:
        busy = [opened(port, stack, sends=request) for _ in range(3)]
        time.sleep(0.2)
        assert is_closed(opened(port, stack, sends=request), 1)
        assert answers(port, address="127.0.0.2") == 200
        for known in busy:  # longer in hand than headers may take
            known.settimeout(5)
            assert known.recv(15) == b"HTTP/1.1 200 OK"
        time.sleep(0.1)
        assert answers(port) == 200


LONG = b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n"


def test_an_answer_that_nobody_reads_is_given_up():
    """A request that comes again and again on one connection, too: its answers wait for the first to be read."""
    with served(address=2, header_seconds=30, write_seconds=0.5) as port, contextlib.ExitStack() as stack:
        began = time.monotonic()
        deaf = [opened(port, stack, sends=LONG * count) for count in (1, 5)]
        time.sleep(0.3)
        assert is_closed(opened(port, stack, sends=LONG), 1)  # both are in hand and give no way
        while answers_or_none(port) is None:
            assert time.monotonic() - began < 10
            time.sleep(0.1)
        for known in deaf:
            assert received(known) < 8_000_000


def answers_or_none(port):
    with contextlib.suppress(httpx.HTTPError):
        return answers(port)
    return None


def received(known, pause=0.0) -> int:
    """Bytes until the connection ends, or 8 MB and the head are there; a pause after each 100 kB."""
    known.settimeout(5)
    count = 0
    with contextlib.suppress(OSError):
        while (count < 8_000_000) and (part := known.recv(100_000)):
            count += len(part)
            time.sleep(pause)
    return count


def test_an_answer_that_is_read_slowly_comes_whole():
    """It takes longer than may pass without anything read."""
    with served(header_seconds=30, write_seconds=0.5) as port, contextlib.ExitStack() as stack:
        known, began = opened(port, stack, sends=LONG), time.monotonic()
        assert received(known, pause=0.01) >= 8_000_000
        assert time.monotonic() - began > 0.5


def test_a_kept_connection_serves_again_and_again():
    with served(address=1, header_seconds=1) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        assert [client.get("/").status_code for _ in range(5)] == [200] * 5
        two = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2
        with contextlib.ExitStack() as stack:
            known = opened(port, stack, "127.0.0.2", two)
            time.sleep(0.3)
            assert known.recv(1000).count(b"HTTP/1.1 200") == 2
            assert is_closed(known, 3)  # silent since


def test_requests_beyond_those_in_hand_are_503_but_health():
    sent = []

    async def slow(scope, receive, send):
        await asyncio.sleep(0.05 if scope["path"] == "/search" else 0)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def ask(path):
        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            if message["type"] == "http.response.start":
                sent.append((path, message["status"]))

        scope = {"type": "http", "path": path, "method": "GET", "headers": [(b"host", b"x")]}
        await guard(scope, receive, send)

    guard = Guard(slow, RequestLimits(), ServiceMetrics(), local=False, requests=3)

    async def crowd():
        await asyncio.gather(*[ask("/search") for _ in range(5)], ask("/health"), ask("/ready"))
        await ask("/search")

    asyncio.run(crowd())
    assert sorted(sent) == [("/health", 200), ("/ready", 200)] + [("/search", 200)] * 4 + [("/search", 503)] * 2
