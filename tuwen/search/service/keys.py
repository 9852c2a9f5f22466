"""Who may read and who may write: API keys, of which a file holds the SHA-256 digests alone.

A line of the file is `SCOPE NAME DIGEST`; lines that begin with # are remarks. Who may write may read. To take a key
back, delete its line and start the service again.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuwen.errors import UserError

SCOPES = ("read", "write")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Key:
    """name: for the log. scope: "read" or "write". digest: SHA-256 of the key."""

    name: str
    scope: str
    digest: bytes

    def may(self, scope: str) -> bool:
        return scope == "read" or self.scope == "write"


class ApiKeys:
    """The keys of a service."""

    def __init__(self, keys: Sequence[Key]):
        self.keys = tuple(keys)

    @classmethod
    def read(cls, path: str | os.PathLike) -> "ApiKeys":
        """The keys of a file.

        Raises:
            UserError: no such file, no key in it, or a line that is none.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; `tuwen key {path} NAME` makes a key") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error}); give a file made by `tuwen key`") from None
        keys = [_parsed(path, number, line) for number, line in enumerate(lines, 1) if line.strip() and line[0] != "#"]
        if not keys:
            raise UserError(f"{path}: no key in it; `tuwen key {path} NAME` makes one")
        return cls(keys)

    def find(self, presented: str) -> Key | None:
        """The key that was presented. Every digest is compared in constant time, whichever fits."""
        digest = _digest(presented)
        match = None
        for key in self.keys:
            if hmac.compare_digest(digest, key.digest):
                match = key
        return match


def create(path: str | os.PathLike, name: str, scope: str) -> str:
    """A new key of 256 random bits, whose digest is added to the file; the key itself is nowhere else.

    Raises:
        UserError: a scope or name that cannot be, a name that is taken, a file that is no file of keys.
    """
    if scope not in SCOPES:
        raise UserError(f"no scope {scope!r}; there are {' and '.join(SCOPES)}")
    if not _NAME.fullmatch(name):
        raise UserError(f"a key cannot be named {name!r}; use up to 64 letters, digits and . _ -")
    if Path(path).exists() and Path(path).read_bytes().strip():
        taken = {key.name for key in ApiKeys.read(path).keys}
        if name in taken:
            raise UserError(f"{path}: there is a key {name} already; choose another name or delete its line")
    key = "tuwen_" + secrets.token_urlsafe(32)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as file:
        file.write(f"{scope} {name} {_digest(key).hex()}\n")
    return key


def _parsed(path: str | os.PathLike, number: int, line: str) -> Key:
    parts = line.split()
    if len(parts) == 3 and parts[0] in SCOPES and _NAME.fullmatch(parts[1]) and re.fullmatch("[0-9a-f]{64}", parts[2]):
        return Key(parts[1], parts[0], bytes.fromhex(parts[2]))
    raise UserError(f"{path}:{number}: not a key; a line is SCOPE NAME DIGEST, made by `tuwen key {path} NAME`")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
