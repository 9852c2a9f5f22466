"""Small files that a user was given: read within bounds, and a line where one cannot be read."""

import json
from pathlib import Path
from typing import Any

from tuwen.errors import UserError, reason_of, refused

MOST_TEXT = 256 * 2**20  # bytes; Gemma's tokenizer.json, the largest in use, has 34 million
POINTED = "a Git LFS pointer, not the file itself; fetch that with `git lfs pull`"
_POINTER = b"version https://git-lfs.github.com/"


def is_pointer(data: bytes) -> bool:
    """Whether these first bytes are of what Git LFS leaves in place of a large file that was not fetched."""
    return data.startswith(_POINTER)


def refuse_pointer(path: Path) -> None:
    """Refuses a file that Git LFS did not fetch; one that is not there is for others to miss.

    Raises:
        UserError: that it is one.
    """
    try:
        with path.open("rb") as file:
            pointed = is_pointer(file.read(len(_POINTER)))
    except OSError:
        return
    if pointed:
        raise UserError(f"{path}: {POINTED}")


def text_of(path: Path, most: int = MOST_TEXT) -> str:
    """The text of a file of at most so many bytes.

    Raises:
        UserError: it cannot be read, is larger, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from None
    if len(data) > most:
        raise UserError(f"{path}: has more than {most:,} bytes, which no such file needs")
    if is_pointer(data):
        raise UserError(f"{path}: {POINTED}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}; save it as UTF-8") from None


def json_of(path: Path, most: int = MOST_TEXT) -> dict[str, Any]:
    """The object of names and values in a JSON file.

    Raises:
        UserError: as `text_of`; not JSON, or no object.
    """
    text = text_of(path, most)
    with refused(f"{path}: not valid JSON", kinds=(ValueError, RecursionError)):
        value = json.loads(text)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected names with values")
    return value
