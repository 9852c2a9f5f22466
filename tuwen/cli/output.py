"""What a command prints: tables for people, or one JSON object for programs."""

import contextlib
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TextIO

from tuwen import speech
from tuwen.errors import printable

_OBEYED = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")  # by a terminal, and no JSON escapes them


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output; numbers that are not finite become null."""
    utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    text = json.dumps(_plain(value), ensure_ascii=not utf8, allow_nan=False, indent=2)
    print(_OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", text))


def print_line(text: str, file: TextIO | None = None) -> None:
    """One line in the person's language, at once, on standard output unless another file is given; what does not print
    is escaped."""
    print(printable(speech.spoken(text)), file=file or sys.stdout, flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextlib.contextmanager
def only_json(as_json: bool) -> Iterator[None]:
    """While it lasts, whatever is printed goes to standard error, if JSON is wanted on standard output."""
    if not as_json:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], whole: Sequence[str] = ()) -> None:
    """A table on standard output; columns of numbers are right-aligned, those named in `whole` never wrapped.

    In a pipe or a file every row is one line, however long. Cells may come from files: what does not print is escaped.
    """
    from rich.console import Console
    from rich.table import Table

    if title:
        print_line(title)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(head):
        numbers = bool(rows) and all(_is_number(row[place]) for row in rows)
        longest = max((len(word) for row in rows for word in row[place].split()), default=0)
        justify: Literal["right", "left"] = "right" if numbers else "left"
        table.add_column(
            speech.spoken(name), justify=justify, no_wrap=numbers or name in whole, min_width=min(longest, 16)
        )
    for row in rows:
        table.add_row(*map(printable, row))
    terminal = sys.stdout.isatty()
    Console(highlight=False, markup=False, width=None if terminal else 10_000).print(table)


def _is_number(cell: str) -> bool:
    return not any(letter.isalpha() for letter in cell)
