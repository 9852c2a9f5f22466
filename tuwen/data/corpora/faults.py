"""What is wrong with rows and files: one line each, and what to do about it."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tuwen.data.private import TABLES, UNSAID, hides
from tuwen.errors import UserError


@dataclass(frozen=True)
class Fault:
    """What is wrong with one row. `reason` is a short category for counting, `what` the line with its fix.

    line: from 1; 0 where the whole file is meant.
    """

    file: Path
    line: int
    reason: str
    what: str

    def __str__(self) -> str:
        return one_line(f"{self.file}:{self.line}: {self.what}" if self.line else f"{self.file}: {self.what}")

    def bare(self, corpus: str, number: int) -> "Fault":
        """What may be said of it where the corpus is private: no text, and no name but a table's."""
        file = self.file if self.file.suffix.lower() in TABLES else Path(corpus)
        return Fault(file, self.line, self.reason, f"{self.reason} (no. {number}), {UNSAID}")


KEPT = 100_000  # faults of a reason that are kept one by one


class Faults:
    """Stops at the first fault (a `UserError`), or counts them all by reason and keeps the first `KEPT` of each."""

    def __init__(self, on_bad: str, private: str = ""):
        """private: the name of the corpus, where it is private and its faults are told by number alone."""
        if on_bad not in ("stop", "skip"):
            raise UserError(f"on_bad is {on_bad!r}; choose 'stop' (at the first fault) or 'skip' (and count)")
        self.stop = on_bad == "stop"
        self.private = private if hides(bool(private)) else ""
        self.listed: list[Fault] = []
        self.counts: Counter[str] = Counter()

    def add(self, fault: Fault) -> None:
        self.counts[fault.reason] += 1
        if self.private:
            fault = fault.bare(self.private, self.counts[fault.reason])
        if self.stop:
            raise UserError(str(fault))
        if self.counts[fault.reason] <= KEPT:
            self.listed.append(fault)


class RowError(Exception):
    """A row that cannot be used: the reason for counting, and what is wrong with its fix."""

    def __init__(self, reason: str, what: str):
        super().__init__(what)
        self.reason = reason


def one_line(message: str, limit: int = 400) -> str:
    """The message on one printable line, cut in the middle where it is too long."""
    if len(message) > 2 * limit:  # before the rest is looked at letter by letter
        message = f"{message[:limit]} … {message[-limit:]}"
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in message)
    return shown if len(shown) <= limit else f"{shown[: limit // 2]} … {shown[-limit // 2 :]}"
