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

SEAL, LOCK = "seal", "lock"
SECONDS, BYTES = 120, 8 << 30  # of time and memory; what takes more to open is no index

# all that opening reads: both manifests, the row ids, and the first row with all its columns
_OPEN = """
import resource, sys, lancedb
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]), resource.getrlimit(resource.RLIMIT_DATA)[1]))
database = lancedb.connect(sys.argv[1])
for name in ("about", "pictures"):
    dataset = database.open_table(name).to_lance()
    dataset.to_table(columns=[], with_row_id=True)
    dataset.to_table(limit=1)
"""


def seal(folder: Path, files: str | None = None) -> None:
    """Says that the files (by `digest`; as they are now) open; where nothing can be written, nothing is."""
    with contextlib.suppress(OSError):
        (folder / SEAL).write_text(files or digest(folder))


def survives(folder: Path) -> bool:
    """Whether opening an index leaves the process that does it alive; its files are sealed if so."""
    files = digest(folder)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if (folder / SEAL).read_text() == files:
            return True
    command = [sys.executable, "-I", "-c", _OPEN, str(folder.resolve()), str(BYTES)]
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            env={**os.environ, "RUST_BACKTRACE": "0"},  # printing one while memory is out can wait for ever
        )
    except subprocess.TimeoutExpired:
        return False
    if ended.returncode == 0:
        seal(folder, files)
    return ended.returncode >= 0  # what it raises, the caller will meet and say


def digest(folder: Path) -> str:
    """Of the names, sizes and times of change of an index's files, in hexadecimal."""
    lines = []
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # a writer took it away
            if path.is_file() and path.name not in (SEAL, LOCK):
                status = path.stat()
                lines.append(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
