"""The application under uvicorn: the socket, the signals, the last requests."""

import logging
import socket
import time

import uvicorn

from tuwen.errors import UserError
from tuwen.search.query import Searcher
from tuwen.search.service import log
from tuwen.search.service.app import create_app
from tuwen.search.service.connections import bounded
from tuwen.search.service.keys import ApiKeys
from tuwen.search.service.settings import Settings

AGAIN = 1.0  # seconds within which a second signal says what the first did: `timeout` and shells send it twice


class _Server(uvicorn.Server):
    """Told to stop, it takes no more connections and finishes what it has; told again later, it goes at once."""

    signalled = 0.0

    def handle_exit(self, sig, frame) -> None:
        self.config.app.state.service.draining = True  # type: ignore[union-attr]
        if not self.should_exit:
            self.should_exit, self.signalled = True, time.monotonic()
        elif time.monotonic() - self.signalled > AGAIN:
            self.force_exit = True
            logging.getLogger("uvicorn.error").disabled = True  # its traceback of what it breaks off


def bind(settings: Settings) -> socket.socket:
    """The listening socket; port 0 takes a free one.

    Raises:
        UserError: if the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {settings.host}:{settings.port}: {reason}; give another --port") from None


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run_service(searcher: Searcher, settings: Settings, keys: ApiKeys | None, listening: socket.socket) -> None:
    """Serves until SIGTERM or Ctrl-C, then finishes what is in hand."""
    log.start()
    app = create_app(searcher, settings, keys)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # an address in a header is a claim
        ws="none",
        http=bounded(settings.limits),
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    log.note_event("serving", url=url_of(listening))
    _Server(config).run(sockets=[listening])
    log.note_event("stopped")
