"""The stamp of an index: that its last build left nothing to do, as `make` would know it.

A build reads every picture to tell what is new, and needs torch, which alone takes longer to import than looking at
files. So a build that took everything in notes which files it read, by name, size and times of change, and how many
pictures were what. While all are as they were, the index's own too, the next build has that answer at once.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tuwen.search.seal import STAMP, digest

RECENT = 1.0  # seconds: a file that young may change again without a new time, as some file systems tell time
_TAKEN = ("added", "replaced", "refitted", "updated", "unchanged")  # what the next build would find unchanged
_LISTS = ("corpus.json", ".txt")  # of other corpora, whose files are not looked at
COLUMNS = "columns"  # as in `tuwen.data.open`, which imports torch


@dataclass(frozen=True)
class Request:
    """What a build is asked for. settings: whatever else its answer hangs on, as JSON holds it."""

    run: str | os.PathLike
    pictures: str | os.PathLike
    out: str | os.PathLike
    settings: Mapping[str, Any]

    def answer(self) -> dict[str, Any] | None:
        """What the build would do, `tuwen.search.ingest.Built` as a dict; None: it has to be seen."""
        try:
            stamp = json.loads((Path(self.out) / STAMP).read_text(encoding="utf-8"))
            if stamp["index"] == digest(Path(self.out)) and stamp["read"] == self._read(stamp["folders"])[0]:
                return stamp["answer"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        return None

    def keep(self, built: Mapping[str, Any], folders: Iterable[str], began: float) -> None:
        """Notes what the next build would do, if this one left nothing to do, and removes an older note.

        built: what this one did. folders: that its pictures lie in. began: seconds since the epoch, when it had read
        nothing yet.
        """
        out = Path(self.out)
        if not out.is_dir():  # at a URL
            return
        with contextlib.suppress(OSError):
            (out / STAMP).unlink(missing_ok=True)
            if built["broken"] or built["skipped"] or self._lists_others():
                return
            places = sorted(folder for folder in set(folders) if Path(folder).is_dir())
            read, newest = self._read(places)
            if newest > began - RECENT:
                return
            counts = {"unchanged": sum(built["counts"].get(state, 0) for state in _TAKEN)}
            counts |= {state: built["counts"][state] for state in ("duplicate",) if state in built["counts"]}
            answer = {**built, "counts": {state: count for state, count in counts.items() if count}, "loss": {}}
            stamp = {"read": read, "index": digest(out), "folders": places, "answer": answer}
            (out / STAMP).write_text(json.dumps(stamp, ensure_ascii=False), encoding="utf-8")

    def _lists_others(self) -> bool:
        path = self._place
        return not path.exists() or (path / _LISTS[0]).is_file() or path.suffix.lower() == _LISTS[1]

    @property
    def _place(self) -> Path:
        """Of the pictures, without the words that say what a table's columns mean."""
        location = str(self.pictures)
        renamed = location.startswith(f"{COLUMNS}:") and not Path(location).exists()
        return Path(location.split(":", 2)[-1] if renamed else location)

    def _read(self, folders: list[str]) -> tuple[str, float]:
        """(digest of the request and of all files it reads, when the youngest of them changed)."""
        places = [str(Path(place).resolve()) for place in (self.run, self._place)]
        request = [version("tuwen"), places, str(self.pictures), sorted(self.settings.items())]
        state = hashlib.sha256(repr(request).encode())
        newest = 0.0
        apart = Path(self.out).resolve()
        deep = [(Path(place), True) for place in places]
        for folder, whole in deep + [(Path(folder), False) for folder in folders]:
            for path, status in _files(folder, whole, apart):
                state.update(os.fsencode(f"{path} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n"))
                newest = max(newest, status.st_mtime, status.st_ctime)
        return state.hexdigest(), newest


def _files(place: Path, deep: bool, apart: Path) -> Iterator[tuple[str, os.stat_result]]:
    """A file, or those in a folder (deep: and below it, but for the folder `apart`), in the order of their names.

    Raises:
        OSError: one cannot be looked at, or a link leads to another folder, which may change unseen.
    """
    if not place.is_dir():
        yield str(place), place.stat()
        return
    with os.scandir(place) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if not entry.is_dir():
            yield entry.path, entry.stat(follow_symlinks=os.path.exists(entry.path))
        elif deep and entry.is_symlink():
            raise OSError(f"{entry.path}: a link to a folder")
        elif deep and Path(entry.path) != apart:
            yield from _files(Path(entry.path), deep, apart)
