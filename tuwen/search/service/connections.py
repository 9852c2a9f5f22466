"""Connections: how many there are, and how long one may be silent or leave its answer unread: it keeps nobody out."""

import asyncio
from collections import Counter
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from tuwen.search.service.settings import RequestLimits


class _Crowd:
    """All connections. silent: those in the middle of no request, the longest silent first."""

    def __init__(self, limits: RequestLimits):
        self.limits = limits
        self.addresses: Counter[str] = Counter()
        self.silent: dict[Any, str] = {}

    def room_for(self, address: str) -> bool:
        """Whether one more may come; for it a silent connection is closed where there are too many."""
        if self.addresses[address] >= self.limits.address:
            own = next((known for known, where in self.silent.items() if where == address), None)
            return own is not None and own.leave()
        if self.addresses.total() >= self.limits.connections:
            longest = next(iter(self.silent), None)
            return longest is not None and longest.leave()
        return True


def bounded(limits: RequestLimits) -> Any:
    """uvicorn's protocol, with the limits on connections and on the time for headers and for an answer to be read."""
    return type("Bounded", (_Bounded,), {"crowd": _Crowd(limits)})


class _Bounded(AutoHTTPProtocol):  # type: ignore[valid-type, misc]
    """One connection of a crowd. timer: until a silent one is closed; unread: until one is that reads no answer."""

    crowd: _Crowd
    address, timer, unread = "", None, None

    def connection_made(self, transport):
        super().connection_made(transport)
        address = self.client[0] if self.client else "here"
        if self.crowd.room_for(address):
            self.address = address
            self.crowd.addresses[address] += 1
            self.wait()
        else:
            transport.abort()

    def data_received(self, data):
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:  # a request is in hand
            self.hush()

    def on_response_complete(self):
        super().on_response_complete()
        if self.address and self.cycle.response_complete:  # unless the next request came with the last
            self.wait()

    def pause_writing(self):
        super().pause_writing()  # the answer waits until the client reads
        self.unread = asyncio.get_running_loop().call_later(self.crowd.limits.write_seconds, self.leave)

    def resume_writing(self):
        super().resume_writing()
        self.read()

    def connection_lost(self, exc):
        super().connection_lost(exc)
        self.leave()

    def wait(self) -> None:
        """From now on, until the headers of a request are in, the connection is silent."""
        self.hush()
        self.crowd.silent[self] = self.address
        self.timer = asyncio.get_running_loop().call_later(self.crowd.limits.header_seconds, self.leave)

    def hush(self) -> None:
        self.crowd.silent.pop(self, None)
        if self.timer is not None:
            self.timer.cancel()

    def read(self) -> None:
        """The client has read what waited for it."""
        if self.unread is not None:
            self.unread.cancel()

    def leave(self) -> bool:
        """Closes the connection, where it is open still, and counts it no more."""
        self.hush()
        self.read()
        if self.address:
            self.crowd.addresses[self.address] -= 1
            self.crowd.addresses += Counter()  # keeps those above 0 alone
            self.address = ""
            self.transport.abort()
        return True
