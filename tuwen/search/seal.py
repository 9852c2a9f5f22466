"""An index's seal: which files it had when it was last known to open.

Lance believes the lengths that stand in its manifests: a damaged one makes it ask for more memory than there is, which
ends the process, not the call. So an index whose files are not those of its seal (copied from elsewhere, a writer
killed, touched by other hands) is opened in a process of its own first. Damage that keeps a file's size and time of
change is not seen here.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

SEAL, LOCK, STAMP = "seal", "lock", "stamp"
SECONDS, BYTES = 120, 8 << 30  # of time and memory; what takes more to open is no index

_OPEN = """
import resource, sys, lance
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]), resource.getrlimit(resource.RLIMIT_DATA)[1]))
for name in ("about", "pictures"):
    try:
        table = lance.dataset(f"{sys.argv[1]}/{name}.lance")
    except (ValueError, FileNotFoundError):  # not there, or never finished
        continue
    table.to_table(columns=[], with_row_id=True)
"""


def seal(folder: Path, files: str | None = None) -> None:
    """Says that the files (by `digest`; as they are now) open; where nothing can be written, nothing is."""
    with contextlib.suppress(OSError):
        (folder / SEAL).write_text(files or digest(folder))


def opens(folder: Path) -> bool:
    """Whether the tables of an index open, tried in another process unless its files are those of its seal."""
    if not (folder / "about.lance").is_dir():  # another's folder, where nothing is to be written
        return True
    files = digest(folder)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if (folder / SEAL).read_text() == files:
            return True
    command = [sys.executable, "-P", "-c", _OPEN, str(folder.resolve()), str(BYTES)]
    environment = {**os.environ, "RUST_BACKTRACE": "0"}  # printing one while memory is out can wait for ever
    nothing = subprocess.DEVNULL
    try:
        subprocess.run(
            command, stdin=nothing, stdout=nothing, stderr=nothing, timeout=SECONDS, check=True, env=environment
        )
    except subprocess.SubprocessError:  # its end of whatever kind, or no end
        return False
    seal(folder, files)
    return True


def digest(folder: Path) -> str:
    """Of the names, sizes and times of change of an index's files, in hexadecimal."""
    lines = []
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # a writer took it away
            if path.is_file() and path.name not in (SEAL, LOCK, STAMP):
                status = path.stat()
                lines.append(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
