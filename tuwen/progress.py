"""What is told while work goes on, in the person's language: lines, and bars for what takes long to measure.

`track` shows a bar where a command asked for it by `bars`.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tuwen.speech import spoken

Item = TypeVar("Item")
_shown: ContextVar[bool] = ContextVar("shown", default=False)


@contextmanager
def bars(shown: bool = True) -> Iterator[None]:
    """Within, `track` shows bars on standard error, where that is a terminal."""
    before = _shown.set(shown and sys.stderr.isatty())
    try:
        yield
    finally:
        _shown.reset(before)


def track(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """The items, with a bar over them if bars are shown; those inside another one are not."""
    if not _shown.get():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as bar

    with bars(False):
        yield from bar(items, spoken(what), total=total, console=Console(stderr=True), transient=True)


def announce(line: str) -> None:
    """A line on standard error."""
    print(spoken(line), file=sys.stderr)


def batches(rows: int, size: int) -> int:
    """How many batches of at most `size` rows."""
    return -(-rows // size)
