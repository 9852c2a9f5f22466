"""What a service is told when it starts."""

import ipaddress
from dataclasses import dataclass, field

from tuwen.errors import UserError


@dataclass(frozen=True)
class RequestLimits:
    """What one request may bring. Beyond it the answer is 408, 413, 422 or 503, and nothing is decoded.

    text: characters of a query, of a text beside a picture, or of a value. id: characters of a picture's name. json:
    bytes of a JSON body. upload: bytes of a form with pictures. pixels: of one picture, read from its header;
    slow_pixels: of JPEG 2000, whose decoder takes five times as long (a JPEG's scans are bounded by its pixels,
    `tuwen.data.images`). pictures: in one form. filters: columns a search is filtered by. values: in one filter. texts:
    of one picture in one language. tags: in one of its columns. columns: of one picture. top: results. candidates:
    pictures re-ranked. deleted: ids in one request. header_seconds: until the headers are in. read_seconds: until the
    body is in. write_seconds: until the client has read enough of an answer for more to be written. refused_seconds:
    for the rest of a body that nobody reads. connections: open at once; address: of one address. Beyond these two, one
    that has sent no request gives way to the new one.
    """

    text: int = 1000
    id: int = 512
    json: int = 64 * 2**10
    upload: int = 20 * 2**20
    pixels: int = 50_000_000
    slow_pixels: int = 10_000_000
    pictures: int = 32
    filters: int = 16
    values: int = 256
    texts: int = 64
    tags: int = 256
    columns: int = 64
    top: int = 200
    candidates: int = 1000
    deleted: int = 1000
    header_seconds: float = 10.0
    read_seconds: float = 30.0
    write_seconds: float = 30.0
    refused_seconds: float = 2.0
    connections: int = 512
    address: int = 128


@dataclass(frozen=True)
class Settings:
    """A service: where it listens and how it works.

    top: results where a request asks no number. candidates: pictures of the first stage that are re-ranked.
    budget_ms: time for one search, its wait included; None: no bound. batch: searches done together.
    queue: jobs that may wait; one more is answered 429. drain_seconds: for the requests in hand at the end.
    refresh_seconds: between two looks whether another process changed the index.
    log_queries: write the texts of queries into the log.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    top: int = 20
    candidates: int = 64
    budget_ms: int | None = None
    batch: int = 16
    queue: int = 128
    drain_seconds: int = 30
    refresh_seconds: float = 10.0
    log_queries: bool = False
    limits: RequestLimits = field(default_factory=RequestLimits)

    @property
    def requests(self) -> int:
        """In hand at once; one more is answered 503."""
        return 4 * self.queue + 64


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_open_service(host: str) -> None:
    """A service without keys may listen on loopback only.

    Raises:
        UserError: if others could reach the host.
    """
    if not is_loopback(host):
        raise UserError(
            f"--no-keys with --host {host}: anyone who reaches {host} could read and change the index; "
            "give --keys FILE (`tuwen key` makes one) or --host 127.0.0.1"
        )
