"""What every fuzz shares: bytes and JSON changed at random, and attempts in child processes, by how they end."""

import atexit
import contextlib
import copy
import importlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SECONDS = 20  # of computing that one attempt may take
WAITS = 10 * SECONDS  # seconds by the clock
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


def in_children(
    numbers: Iterable[int], attempt: Callable[..., str], *arguments: object, seconds: int = SECONDS, waits: int = WAITS
) -> dict[int, tuple[str, str]]:
    """What became of each number and its end: what `attempt(*arguments, number)` gives, or a fault.

    attempt: a function of a module, and arguments that JSON holds (paths as texts): it is called in a process that
    started bare, one for all calls of its module, and another where that one ended.
    "traceback": it raised; "killed": the process ended; "slow": it computed for more than `seconds`, or
    took more than `waits` by the clock.
    """
    ends: dict[int, tuple[str, str]] = {}
    waiting = list(numbers)
    while waiting:
        ends |= _in_child(waiting, attempt, [str(part) for part in arguments], (seconds, waits))
        waiting = [number for number in waiting if number not in ends]
    return ends


def faults(ends: dict[int, tuple[str, str]]) -> dict[int, tuple[str, str]]:
    """The attempts that ended neither as read nor in a line."""
    return {number: end for number, end in ends.items() if end[0] not in ("read", "line")}


def report(name: str, ends: dict[int, tuple[str, str]], began: float) -> Counter[str]:
    """Prints how many ended how, and the most frequent faults; the counts. began: by `time.monotonic`."""
    counts = Counter(what for what, _ in ends.values())
    print(f"{name:42} {dict(counts)} {time.monotonic() - began:.0f} s", flush=True)
    for fault, times in Counter(f"{what}: {end}" for what, end in faults(ends).values()).most_common(12):
        print(f"    {times} x {fault}", flush=True)
    return counts


_children: dict[str, subprocess.Popen[str]] = {}  # by the module whose attempts they do


def _in_child(numbers: list[int], attempt: Callable[..., str], arguments: list[str], limits: tuple[int, int]) -> dict:
    """Attempts in a child until all are done or it ends; the one it ended in is "killed" or "slow"."""
    module = attempt.__module__
    if module == "__main__":  # of a program, `python -m`
        module = sys.modules["__main__"].__spec__.name
    if module not in _children:
        command = [sys.executable, "-m", "tests.fuzzing"]
        _children[module] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(_children[module].kill)
    child = _children[module]
    child.stdin.write(json.dumps([module, attempt.__name__, arguments, numbers, limits]) + "\n")
    child.stdin.flush()
    ends: dict[int, tuple[str, str]] = {}
    begun = None
    for line in child.stdout:
        number, what, end = json.loads(line)
        if what == "begun":
            begun = number
        else:
            ends[number] = (what, end)
        if len(ends) == len(numbers):
            return ends
    status = child.wait()
    del _children[module]
    assert begun not in (None, *ends), f"the child of {module} ended by itself: {status}"
    slow = status in (-signal.SIGALRM, -signal.SIGPROF)
    return ends | {begun: ("slow" if slow else "killed", f"status {status}")}


def _child() -> None:
    """Does what it is sent, a line a list of attempts; tells of each when it begins and how it ended."""
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no event
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for line in sys.stdin:
        module, name, arguments, numbers, (seconds, waits) = json.loads(line)
        attempt = getattr(importlib.import_module(module), name)
        for number in numbers:
            pipe.write(json.dumps([number, "begun", ""]) + "\n")
            signal.setitimer(signal.ITIMER_PROF, seconds)
            signal.alarm(waits)
            pipe.write(json.dumps([number, *_ended(attempt, arguments, number)]) + "\n")
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)


def _ended(attempt: Callable[..., str], arguments: list[str], number: int) -> tuple[str, str]:
    """What an attempt came to, and the last that it wrote or where it raised."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stdout(errors), contextlib.redirect_stderr(errors):
            return attempt(*arguments, number), errors.getvalue()[-300:]
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-4:]
        place = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(last))
        return "traceback", f"{type(error).__name__}: {str(error)[:160]} | {place}"


def broken(number: int) -> str:
    """What a reader may do to a process: throw, end it, wait or compute for ever, print."""
    if number == 0:
        raise ValueError("thrown")
    if number == 1:
        os.kill(os.getpid(), 9)
    if number == 2:
        time.sleep(60)
    while number == 3:
        pass
    os.write(1, b"no event")
    return "line"


if __name__ == "__main__":
    _child()
