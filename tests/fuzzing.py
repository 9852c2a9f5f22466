"""What every fuzz shares: bytes and JSON changed at random, and attempts in child processes, by how they end."""

import copy
import io
import json
import os
import random
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SECONDS = 20  # that one attempt may take
LONGEST = 1200  # characters of a message
ODD = [b"null", b"true", b"[]", b"{}", b'""', b"-1", b"1e999", b"NaN", b"99999999999999999999", b'"\\ud800"', b'"../x"']
ODD += [b'"\\u001b[2J"', b'"' + b"x" * 3000 + b'"', b"[[[[1]]]]", b'{"en": null}', b"0.5", b'["a", null]', b"1" * 5000]
DEEP = json.loads("[" * 200 + "]" * 200)
VALUES = (0, -1, 1, 3, 10**12, -(10**12), 1.5, 1e308, float("nan"), "", "many", "\x1b[2J\n", None, True, [], {}, [1, 2])
VALUES += ([[]], {"a": {"b": 1}}, DEEP, "x" * 100_000, 2**31, 2**63, [10**9] * 3, "(a+)+$", "../../etc/passwd")


def mutate(data: bytes, dice: random.Random) -> bytes:
    """The bytes with one to three changes: of bits, of length, or of a number or string for an odd one."""
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        start = dice.randrange(len(data) + 1)
        stop = min(len(data), start + dice.choice((1, 1, 2, 4, 8, 40)))
        kind = dice.randrange(8)
        if kind == 0:
            data = data[:start]
        elif kind == 1:
            data = data[:start] + data[stop:]
        elif kind == 2:
            data = data[:stop] + data[start:]
        elif kind == 3:
            data = data[:start] + dice.randbytes(dice.choice((1, 2, 8))) + data[start:]
        elif kind == 4:
            data = data[:start] + dice.choice((b"\0", b"\xff", b"\x80", b"\x7f")) * (stop - start) + data[stop:]
        elif kind == 5 and start < len(data):
            data = data[:start] + bytes([data[start] ^ 1 << dice.randrange(8)]) + data[start + 1 :]
        elif tokens := _tokens(data):
            start, stop = dice.choice(tokens)
            data = data[:start] + dice.choice(ODD) + data[stop:]
    return data


def _tokens(data: bytes) -> list[tuple[int, int]]:
    """Where numbers and quoted strings stand in a text."""
    return [match.span() for match in re.finditer(rb'"[^"\n]{0,60}"|-?\d+(?:\.\d+)?', data[:20_000])]


def changed_json(value: Any, dice: random.Random) -> Any:
    """A copy with one place changed, taken away, or doubled."""
    out = copy.deepcopy(value)
    places = list(_places(out))
    holder, key = dice.choice(places)
    how = dice.random()
    if how < 0.15:
        del holder[key]
    elif how < 0.25 and isinstance(holder, dict):
        holder[dice.choice(VALUES[9:12])] = holder[key]
    else:
        holder[key] = copy.deepcopy(dice.choice(VALUES))
    return out


def _places(value: Any) -> Iterable[tuple[Any, Any]]:
    for key in range(len(value)) if isinstance(value, list) else value:
        yield value, key
        if isinstance(value[key], dict | list) and len(value[key]) < 2_000:
            yield from _places(value[key])


def ended(lines: list[str]) -> str:
    """ "line", or "read" where there is none, or "flood" where one is too long or not one line."""
    long = [line for line in lines if len(line) > LONGEST or not line.isprintable()]
    if long:
        print(f"flood: {long[0][:300]!r}", file=sys.stderr)
    return "flood" if long else "line" if lines else "read"


def in_children(numbers: Iterable[int], attempt: Callable[[int], str]) -> dict[int, tuple[str, str]]:
    """What became of each number and its end: what `attempt` of it gives, or a fault.

    "traceback": it raised; "killed": the process ended; "slow": it took more than `SECONDS`.
    """
    ends: dict[int, tuple[str, str]] = {}
    waiting = list(numbers)
    while waiting:
        ends |= _in_child(waiting, attempt)
        waiting = [number for number in waiting if number not in ends]
    return ends


def _in_child(numbers: list[int], attempt: Callable[[int], str]) -> dict[int, tuple[str, str]]:
    """Attempts in a child until all are done or it ends; the one it ended in is "killed" or "slow"."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _work(numbers, attempt, writer)
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        events = [json.loads(line) for line in pipe if line.endswith("\n")]
    _, status = os.waitpid(child, 0)
    ends = {number: (what, end) for number, what, end in events if what != "begun"}
    begun = [number for number, what, _ in events if what == "begun" and number not in ends]
    if begun:
        signal_number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        what = "slow" if signal_number == signal.SIGALRM else "killed"
        ends[begun[-1]] = (what, f"status {status}")
    return ends


def _work(numbers: list[int], attempt: Callable[[int], str], writer: int) -> None:
    errors = io.StringIO()
    sys.stdout = sys.stderr = errors
    with open(writer, "w", buffering=1) as pipe:
        for number in numbers:
            pipe.write(json.dumps([number, "begun", ""]) + "\n")
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            errors.seek(0)
            errors.truncate()
            try:
                what, end = attempt(number), errors.getvalue()[-300:]
            except BaseException as error:
                last = traceback.extract_tb(error.__traceback__)[-4:]
                end = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(last))
                what, end = "traceback", f"{type(error).__name__}: {str(error)[:160]} | {end}"
            pipe.write(json.dumps([number, what, end]) + "\n")
    signal.alarm(0)
