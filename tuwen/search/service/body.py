"""The body of a request on its way in: not too long, not too slow."""

import asyncio
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from tuwen.search.service.settings import RequestLimits


class Body:
    """ASGI's `receive`, with the limits of the service."""

    def __init__(self, receive: Receive, headers: Headers, limits: RequestLimits):
        self._receive, self._limits = receive, limits
        form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        self._most = limits.upload if form else limits.json
        length = headers.get("content-length", "0")
        self._refused = not length.isdecimal() or int(length) > self._most
        self._waits = "expect" in headers  # the client sends its body only when it is asked for
        self._deadline = time.monotonic() + limits.read_seconds
        self._taken, self._whole = 0, False

    async def receive(self) -> Message:
        """The next piece.

        Raises:
            HTTPException: 413 too long, 408 too slow.
        """
        if self._refused:
            raise HTTPException(413, f"the body has more than {self._most:,} bytes")
        if self._whole:
            return await self._receive()  # nothing but the end of the connection is left to come
        message = await self._next()
        self._taken += len(message.get("body", b""))
        self._refused = self._taken > self._most
        return await self.receive() if self._refused else message

    async def discard(self) -> None:
        """Takes what is still to come of a body that nobody reads, within bounds.

        A connection that is closed while the client is sending loses the answer.
        """
        taken = 0
        self._deadline = min(self._deadline, time.monotonic() + self._limits.refused_seconds)
        try:
            while not self._whole and not self._waits and taken < 4 * self._limits.upload:
                taken += len((await self._next()).get("body", b""))
        except HTTPException:
            pass

    async def _next(self) -> Message:
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._deadline - time.monotonic()))
        except TimeoutError:
            raise HTTPException(408, f"the body took longer than {self._limits.read_seconds:g} s") from None
        self._whole = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message
