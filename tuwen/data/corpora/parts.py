"""Files below a folder, and bytes within them: "FILE:OFFSET:SIZE", as sources name pictures in tars and TSVs."""

import contextlib
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from tuwen.data.corpus import BrokenImage
from tuwen.data.private import UNSAID, hides

_PART = re.compile(r"(.+):(\d+):(\d+)")


def path_inside(root: Path, name: str) -> str:
    """The real path of a file named from the folder.

    Raises:
        BrokenImage: the name is no path from the folder, or leaves it, by a link or by "..".
    """
    if not _encodable(name):
        raise BrokenImage("unreadable", "half a character in the name; write it as UTF-8")
    if "\0" in name or os.path.isabs(name) or "://" in name or name[1:2] == ":":
        raise BrokenImage("outside", "not a path from the folder")
    real = os.path.realpath(root)
    path = os.path.realpath(os.path.join(real, name))
    if os.path.commonpath([real, path]) != real:
        raise BrokenImage("outside", "the path leaves the folder")
    return path


def _encodable(name: str) -> bool:
    """Whether a file can be called so: names of broken encodings can, a lone \\ud800 of JSON cannot."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


_inside = lru_cache(maxsize=1024)(path_inside)  # of the few files that hold many pictures


def read_part(root: Path, image: str) -> bytes | None:
    """The bytes; None if the name is not of this form.

    Raises:
        BrokenImage: the file has gone, has become shorter, or lies outside the folder.
    """
    match = _PART.fullmatch(image)
    if match is None:
        return None
    offset, size = int(match[2]), int(match[3])
    try:
        with open(_inside(root, match[1]), "rb") as file:
            data = os.pread(file.fileno(), size, offset)
    except OSError as error:
        raise BrokenImage("unreadable", f"{match[1]}: {error.strerror}") from None
    if not data:
        raise BrokenImage("empty", f"{match[1]} holds no bytes there")
    if len(data) < size:
        raise BrokenImage("truncated", f"{match[1]} ends before the picture does")
    return data


@contextlib.contextmanager
def veiled(private: bool) -> Iterator[None]:
    """Why a picture cannot be used, by its reason alone where the corpus is private."""
    try:
        yield
    except BrokenImage as error:
        if hides(private):
            raise BrokenImage(error.reason, UNSAID) from None
        raise
