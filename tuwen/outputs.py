"""What a command writes never takes the place of what tuwen did not make."""

import os
import stat
from collections.abc import Collection
from pathlib import Path

from tuwen.errors import UserError, quoted

PAGE_MARK = '<meta name="generator" content="tuwen">'  # in the head of every HTML page that tuwen writes
HEAD = 4096  # bytes in which a mark is looked for


def check_free(path: str | os.PathLike, mark: str = "") -> Path:
    """The path, if a file may be written there: nothing is there, or a file that begins with tuwen's mark.

    mark: stands in the first bytes of what tuwen writes; "": its files of this kind bear none, and none is replaced.

    Raises:
        UserError: something else is there.
    """
    path = Path(path)
    try:
        info = os.stat(path)
    except OSError:
        if os.path.islink(path):
            raise UserError(f"{path}: a link to nothing; name a file") from None
        return path
    if stat.S_ISDIR(info.st_mode):
        raise UserError(f"{path}: cannot be written: a folder; choose another file")
    if not stat.S_ISREG(info.st_mode):  # /dev/stdout, a pipe: nothing is lost there
        return path
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if head and (not mark or mark.encode() not in head):
        raise UserError(f"{path}: is there already and was not made by this command; delete it or choose another file")
    return path


def check_folder(path: str | os.PathLike, mark: str, own: Collection[str] = ()) -> Path:
    """The folder, if files may be written into it: it is not there, or empty, or one that tuwen wrote into before.

    mark: a file that stands there then. own: names that an interrupted command may have left without it.

    Raises:
        UserError: it holds something else, or is a file.
    """
    path = Path(path)
    try:
        others = set() if (path / mark).is_file() else {entry.name for entry in path.iterdir()} - set(own)
    except FileNotFoundError:
        return path
    except NotADirectoryError:
        raise UserError(f"{path}: is a file; choose a folder") from None
    if others:
        raise UserError(f"{path}: holds something else ({quoted(min(others))}) and no {mark}; choose another folder")
    return path
