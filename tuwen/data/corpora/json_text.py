"""JSON that others wrote: one value of a line or file, or what is wrong with it in one line."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.lines import Lines, decoded
from tuwen.data.private import UNSAID
from tuwen.errors import UserError, quoted

LARGEST = 4 * 2**30  # bytes of a JSON file that is read at once


def parse(text: str, constants: bool = False) -> Any:
    """The JSON value of a line.

    constants: NaN and Infinity, which Python's json writes though they are no JSON, become null.

    Raises:
        RowError: it is none; a key stands twice; it holds half a character, NaN, or too deep a nesting.
    """
    try:
        value = (_WITH_CONSTANTS if constants else _JSON).decode(text.rstrip())
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        raise RowError("broken JSON", "half a character (a lone \\ud... escape); write the character itself") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text[error.pos - 1 : error.pos] == "\r":
            raise RowError("broken JSON", "lines end in CR alone; save the file with LF or CRLF line ends") from None
        raise RowError("broken JSON", f"broken JSON at column {error.colno}: {error.msg}; mend it") from None
    except RecursionError:
        raise RowError("broken JSON", "JSON nested too deeply; write it flat") from None
    except ValueError as error:
        raise RowError("broken JSON", f"broken JSON: {error}; mend it") from None


def objects(path: Path, faults: Faults, offset: int = 0) -> Iterator[tuple[dict[str, Any], Lines]]:
    """The objects of a file of JSON lines, each with the reader that knows its place; blank lines are passed over."""
    with Lines(path, faults, offset) as lines:
        for text in lines:
            if not text.strip():
                continue
            try:
                value = parse(text)
                if not isinstance(value, dict):
                    raise RowError("wrong type", f"a line is an object {{...}}, not {json_kind(value)}")
            except RowError as error:
                faults.add(Fault(path, lines.number, error.reason, str(error)))
            else:
                yield value, lines


def load_json(path: Path, smaller: Callable[[dict[str, Any]], Any] | None = None, private: bool = False) -> Any:
    """The value of a whole JSON file.

    smaller: what stands for each object, innermost first, so that a large file needs less memory.
    private: whether what stands in the file is left unsaid.

    Raises:
        UserError: FILE:LINE and what is wrong there.
    """
    try:
        if os.path.getsize(path) > LARGEST:
            raise UserError(f"{path}: over {LARGEST // 2**30} GiB; this format is read at once")
        text = decoded(path.read_bytes(), path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; see to its permissions") from None
    try:
        return (_JSON if smaller is None else _decoder(smaller)).decode(text)
    except json.JSONDecodeError as error:
        end = "the file is cut short" if error.pos >= len(text.rstrip()) else error.msg
        raise UserError(f"{path}:{error.lineno}: broken JSON at column {error.colno}: {end}; mend it") from None
    except RecursionError:
        raise UserError(f"{path}: JSON nested too deeply; write it flat") from None
    except ValueError as error:
        what = UNSAID if private else error
        raise UserError(f"{path}: broken JSON: {what}; mend it") from None


def field(value: Any, key: str, kind: type | tuple[type, ...]) -> Any:
    """A value's entry of that kind.

    Raises:
        RowError: no object, no such key, or of another kind.
    """
    if not isinstance(value, dict):
        raise RowError("wrong type", f"an object {{...}} stands here, not {json_kind(value)}")
    if key not in value:
        there = ", ".join(map(str, list(value)[:8])) or "nothing"
        raise RowError("missing key", f"no key {key!r}; there are {there}")
    content = value[key]
    if not isinstance(content, kind) or (isinstance(content, bool) and kind is not bool):
        raise RowError("wrong type", f"{key} is {json_kind(content)}; see the format's description")
    return content


def json_kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"key {quoted(key, 60)} stands twice")
    return value


def _decoder(smaller: Callable[[dict[str, Any]], Any]) -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=lambda pairs: smaller(_object(pairs)), parse_constant=_no_constant)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


_JSON = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)
_WITH_CONSTANTS = json.JSONDecoder(object_pairs_hook=_object, parse_constant=lambda name: None)
