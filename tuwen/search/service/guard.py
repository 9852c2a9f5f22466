"""What stands before every route: limits on the body, the Host of a service without keys, headers, log, metrics."""

import json
import secrets
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuwen.search.service import log
from tuwen.search.service.body import Body
from tuwen.search.service.metrics import ServiceMetrics
from tuwen.search.service.settings import RequestLimits, is_loopback

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
ALWAYS = ("/health", "/ready")  # answered however many requests are in hand


class Guard:
    """An ASGI application around another, through which every request and every answer goes.

    local: the service has no keys. Then only requests whose Host is loopback are answered, and none that a page of
    another origin sent: no web page that the user visits can reach the service through the user's browser.
    requests: in hand at once; one more is answered 503, unless it asks whether the service lives.
    """

    def __init__(self, app: ASGIApp, limits: RequestLimits, metrics: ServiceMetrics, local: bool, requests: int):
        self.app, self.limits, self.metrics, self.local, self.requests = app, limits, metrics, local, requests
        self._in_hand = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1000})
        headers = Headers(scope=scope)
        body = Body(receive, headers, self.limits)
        answer = _Answer(send, body)
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope  # the server leaves the body out
        self._in_hand += 1
        try:
            if self.local and not _is_local(headers):
                await answer.problem(403, "a service without keys answers requests of this machine's own pages alone")
            elif self._in_hand > self.requests and scope["path"] not in ALWAYS:
                await answer.problem(503, "too many requests at once; try again")
            else:
                await self.app(asked, body.receive, answer.send)
        except Exception as error:
            log.note_error("failed", error, request=answer.id)
            if not answer.status:
                await answer.problem(500, f"the service failed; its log says where, at request {answer.id}")
        finally:
            self._in_hand -= 1
            self._count(asked, scope["method"], answer)

    def _count(self, scope: Scope, asked: str, answer: "_Answer") -> None:
        """Into metrics and log: the route, never the address that was asked for."""
        route = getattr(scope.get("route"), "path", "") or "other"
        method = asked if asked in ("GET", "HEAD", "POST", "DELETE") else "other"
        seconds = time.perf_counter() - answer.start
        self.metrics.requests.labels(method, route, str(answer.status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        known = scope.get("state", {}).get("noted", {})
        place = {"request": answer.id, "method": method, "route": route, "status": answer.status}
        log.note_event("request", **place, ms=round(1000 * seconds, 1), **known)


class _Answer:
    """One answer on its way out: its number, its status once it has begun, the headers that all answers have."""

    def __init__(self, send: Send, body: Body):
        self._send, self._body = send, body
        self.id, self.start, self.status = secrets.token_hex(8), time.perf_counter(), 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._body.discard()
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers["X-Request-Id"] = self.id
            headers.setdefault("Cache-Control", "no-store")
        await self._send(message)

    async def problem(self, status: int, detail: str) -> None:
        body = json.dumps({"detail": detail}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def _is_local(headers: Headers) -> bool:
    """Whether the Host is loopback, and the page that asks, if it is one, is of the same origin."""
    host, origin = headers.get("host", ""), headers.get("origin")
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return is_loopback(name) and (origin is None or _host_of(origin) == host)


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
