"""Bytes within a larger file: "FILE:OFFSET:SIZE", as sources name pictures in tars and TSVs."""

import os
import re
from pathlib import Path

from tuwen.data.corpus import BrokenImage

_PART = re.compile(r"(.+):(\d+):(\d+)")


def read_part(root: Path, image: str) -> bytes | None:
    """The bytes; None if the name is not of this form.

    Raises:
        BrokenImage: the file has gone, or has become shorter.
    """
    found = _PART.fullmatch(image)
    if found is None:
        return None
    offset, size = int(found[2]), int(found[3])
    try:
        with open(root / found[1], "rb") as file:
            data = os.pread(file.fileno(), size, offset)
    except OSError as error:
        raise BrokenImage("unreadable", f"{found[1]}: {error.strerror}") from None
    if not data:
        raise BrokenImage("empty", f"{found[1]} holds no bytes there")
    if len(data) < size:
        raise BrokenImage("truncated", f"{found[1]} ends before the picture does")
    return data
