"""A client of the search service, of the standard library alone; what is refused is raised with the reason."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuwen.errors import UserError

Filters = Mapping[str, Any]
TRIES = 4  # of a request that the service is too busy for


class Refused(UserError):
    """What the service did not do. status: of HTTP, 0 where it did not answer; the message is the service's reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class WrongKey(Refused):
    """No key, one it does not know, or one that may not do this (401, 403)."""


class NotThere(Refused):
    """No such picture (404)."""


class TryAgain(Refused):
    """Too many requests wait, or the index is being written elsewhere (409, 429, 503); try again later."""


_KINDS = {401: WrongKey, 403: WrongKey, 404: NotThere, 409: TryAgain, 429: TryAgain, 503: TryAgain}


class Client:
    """A service of `tuwen serve`, by its address.

        client = Client("http://127.0.0.1:8000", key=os.environ.get("TUWEN_KEY"))
        for picture in client.search("一只红色的鸟", top=5, filters={"price": "10..20"})["results"]:
            print(picture["id"], picture["score"])

    Answers are as the service's own description (/docs) has them. A picture is a path or bytes. All methods raise
    `Refused`, or a kind of it, with the service's reason.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = 60.0):
        """key: of `tuwen key`. timeout: seconds that an answer may take."""
        self.url, self.key, self.timeout = url.rstrip("/") + "/", key, timeout

    def about(self) -> dict[str, Any]:
        """What is searched, and the columns it can be filtered by."""
        return json.loads(self._ask("GET", "index"))

    def search(self, text: str, **options: Any) -> dict[str, Any]:
        """Pictures for a text. options: top, candidates, budget_ms, filters."""
        return self._json("search", {"text": text, **options})

    def search_picture(self, picture: Any, text: str = "", **options: Any) -> dict[str, Any]:
        """Pictures like one that is sent, or like it and for a text. options: as `search`."""
        fields = {name: value for name, value in options.items() if name != "filters"} | (
            {"text": text} if text else {}
        )
        fields["filters"] = json.dumps(options.get("filters", {}))
        return json.loads(self._form("search/image", [("picture", picture)], fields))

    def similar(self, id: str, **options: Any) -> dict[str, Any]:
        """Pictures like one of the index. options: top, filters."""
        return json.loads(self._ask("GET", "similar", {"id": id, **_texts(options)}))

    def pictures(self, **options: Any) -> dict[str, Any]:
        """The pictures of the index as they were put in. options: top, filters."""
        return json.loads(self._ask("GET", "pictures", _texts(options)))

    def explain(self, id: str, text: str) -> dict[str, Any]:
        """Where in a picture of the index each word of a text matched."""
        return self._json("explain", {"id": id, "text": text})

    def thumbnail(self, id: str) -> bytes:
        """A small JPEG of a picture of the index."""
        return self._ask("GET", "pictures/thumbnail", {"id": id})

    def add(self, pictures: Iterable[Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Takes pictures in. records: for each {"id", "texts": {language: [...]}, "columns": {...}}."""
        files = [("pictures", picture) for picture in pictures]
        return json.loads(self._form("pictures", files, {"records": json.dumps(list(records))}))

    def delete(self, ids: Sequence[str]) -> dict[str, Any]:
        """Takes pictures out by their ids."""
        return json.loads(self._ask("DELETE", "pictures", [("id", id) for id in ids]))

    # ---- pieces

    def _json(self, path: str, value: Any) -> dict[str, Any]:
        return json.loads(self._ask("POST", path, (), json.dumps(value).encode(), "application/json"))

    def _form(self, path: str, files: list[tuple[str, Any]], fields: Mapping[str, Any]) -> bytes:
        """A form with files and fields (multipart/form-data)."""
        mark = uuid.uuid4().hex
        parts = []
        for name, value in fields.items():
            parts.append((f'Content-Disposition: form-data; name="{name}"', str(value).encode()))
        for name, file in files:
            data = file if isinstance(file, bytes) else Path(file).read_bytes()
            head = f'Content-Disposition: form-data; name="{name}"; filename="picture"\r\nContent-Type: image/jpeg'
            parts.append((head, data))
        body = b"".join(f"--{mark}\r\n{head}\r\n\r\n".encode() + data + b"\r\n" for head, data in parts)
        kind = f"multipart/form-data; boundary={mark}"
        return self._ask("POST", path, (), body + f"--{mark}--\r\n".encode(), kind)

    def _ask(self, method: str, path: str, query: Any = (), body: bytes | None = None, kind: str = "") -> bytes:
        address = urllib.parse.urljoin(self.url, path) + (f"?{urllib.parse.urlencode(query)}" if query else "")
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        if kind:
            headers["Content-Type"] = kind
        for left in reversed(range(TRIES)):
            request = urllib.request.Request(address, body, headers, method=method)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return answer.read()
            except urllib.error.HTTPError as error:
                if error.code != 429 or not left:
                    raise _KINDS.get(error.code, Refused)(error.code, _reason(error)) from None
                time.sleep(float(error.headers.get("Retry-After") or 1))
            except OSError as error:
                why = getattr(error, "reason", error)
                raise Refused(0, f"{self.url}: does not answer ({why}); is `tuwen serve` running there?") from None
        raise AssertionError("the last try raised")


def _texts(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: json.dumps(value) if name == "filters" else value for name, value in options.items()}


def _reason(error: urllib.error.HTTPError) -> str:
    """The "detail" of a refusal."""
    try:
        return str(json.loads(error.read())["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"
