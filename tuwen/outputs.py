"""A file that a command writes never takes the place of one that tuwen did not make."""

import os
import stat
from pathlib import Path

from tuwen.errors import UserError

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
