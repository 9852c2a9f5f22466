"""LMDB files of others, read in a process of their own (`lmdb_child`): a damaged one may end that one, and not ours."""

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO, cast

from tuwen.data.corpora import lmdb_child
from tuwen.errors import UserError, printable


class DamagedLmdb(Exception):
    """What is wrong with the file, in a line."""


class Lmdb:
    """The values of a data.mdb by their keys. A forked process starts a child of its own; threads take turns.

    A child ends when its standard input does, with the last process that holds it.
    """

    def __init__(self, data: Path):
        if importlib.util.find_spec("lmdb") is None:
            raise UserError("LMDB is read by the package lmdb; install tuwen[formats]")
        self.data = data
        self._child: subprocess.Popen | None = None
        self._owner = 0  # process that the child answers
        self._lock = threading.Lock()

    def get(self, key: bytes) -> bytes | None:
        """The value, None where there is none.

        Raises:
            DamagedLmdb: it cannot be read.
        """
        with self._lock:
            self._ask(f"get {key.hex()}")
            return self._answer()

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every key with its value.

        Raises:
            DamagedLmdb: reading goes no further.
        """
        with self._lock:
            try:
                self._ask("items")
                while (key := self._answer()) is not None:
                    yield key, self._answer() or b""
            except GeneratorExit:
                self._end()  # whatever it would still say
                raise

    def _ask(self, question: str) -> None:
        if self._owner != os.getpid() or self._child is None:
            words = [sys.executable, "-P", lmdb_child.__file__, str(self.data.parent)]
            pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
            self._child = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=nothing)
            self._owner = os.getpid()
        try:
            stdin = cast(IO[bytes], self._child.stdin)
            stdin.write(question.encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # its last words are still to be read

    def _answer(self) -> bytes | None:
        length = lmdb_child.LENGTH.unpack(self._read(lmdb_child.LENGTH.size))[0]
        if length == lmdb_child.MISSING:
            return None
        if length != lmdb_child.WRONG:
            return self._read(length)
        text = self._read(lmdb_child.LENGTH.unpack(self._read(lmdb_child.LENGTH.size))[0])
        self._end()
        raise DamagedLmdb(printable(text.decode(errors="replace")))

    def _read(self, size: int) -> bytes:
        child = cast(subprocess.Popen, self._child)
        data = cast(IO[bytes], child.stdout).read(size)
        if len(data) < size:
            self._end()
            raise DamagedLmdb("the process that read it was ended by it; build it again")
        return data

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None and self._owner == os.getpid():
            child.kill()
            child.communicate()


@cache
def opened(data: Path) -> Lmdb:
    """The LMDB of a data.mdb, one and the same in all of the process."""
    return Lmdb(data)
