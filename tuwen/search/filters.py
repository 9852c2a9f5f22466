"""Filters on metadata columns, as conditions of SQL (Lance) or of Milvus."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from tuwen.data.corpora.columns import CHINESE
from tuwen.errors import UserError, quoted
from tuwen.search.columns import field_of
from tuwen.search.record import literal

Filters = Mapping[str, Any]
_BOUNDS = {"min": ">=", "max": "<="}
_DATE = re.compile(r"\d{4}-\d\d(-\d\d)?")
FORMS = {  # how a filter is written, by the kind of its column
    "number": '20, [10, 20] (one of them), "10..20", "10..", "..20" or {"min": 10, "max": 20}',
    "text": '"a", ["a", "b"] (one of them), {"min": "a", "max": "b"}, or of dates "2024-05-01..2024-05-31"',
    "flag": "true or false",
    "tags": '"a", or ["a", "b"] (one of them)',
}


def is_date(text: str) -> bool:
    """Whether a text is a day or a month as 2024-05-01 and 2024-05, whose order is that of its letters."""
    return _DATE.fullmatch(text) is not None


def sql(filters: Filters | None, columns: Mapping[str, str]) -> str | None:
    """The condition that all filters hold; None where there are none.

    filters: column, or the Chinese header it had in a table (标签 of tags) -> the value it must equal (of tags: must
        contain), a list of values of which one will do, or {"min": a, "max": b} of numbers, or of texts in the order of
        their letters (so dates as 2024-05-01), either end left out at will; "10..20", "10.." and "..20" are the same
        range, of numbers and of dates.
    columns: kinds by name, as `Index.columns`.

    Raises:
        UserError: no such column, or a value that its kind cannot have; it says the right form.
    """
    conditions = []
    for name, kind, bounds, values in _read(filters, columns):
        field = f"`{field_of(name)}`"
        conditions += [f"{field} {sign} {_sql(bound)}" for sign, bound in bounds]
        if values is None:
            continue
        # a chain of OR is parsed by recursion: some thousand values took minutes, and ended the process
        listed = ", ".join(map(_sql, values))
        listing = f"array_has_any({field}, [{listed}])" if kind == "tags" else f"{field} IN ({listed})"
        conditions.append(listing if values else "false")
    return " AND ".join(conditions) or None


def milvus(filters: Filters | None, columns: Mapping[str, str]) -> str:
    """The same for Milvus, "" where there are no filters.

    Raises:
        UserError: as `sql`.
    """
    conditions = []
    for name, kind, bounds, values in _read(filters, columns):
        field = f'columns["{field_of(name)}"]'
        conditions += [f"{field} {sign} {json.dumps(bound, ensure_ascii=False)}" for sign, bound in bounds]
        if values is None:
            continue
        if kind == "tags":
            conditions.append(f"json_contains_any({field}, {json.dumps(values, ensure_ascii=False)})")
        else:
            conditions.append(f"{field} in {json.dumps(values, ensure_ascii=False)}")
    return " and ".join(conditions)


def _read(filters: Filters | None, columns: Mapping[str, str]) -> Iterator[tuple[str, str, list[tuple], list | None]]:
    """(name, kind, bounds with signs, values of which one will do: None where there are bounds) of every filter."""
    for asked_name, asked in (filters or {}).items():
        name = column_called(asked_name, columns)
        kind = columns[name]
        ends = _range(kind, asked) if isinstance(asked, str) else asked
        if isinstance(ends, Mapping):
            yield name, kind, _bounds(name, kind, ends), None
        else:
            values = asked if isinstance(asked, list | tuple) else [asked]
            yield name, kind, [], [_value(name, kind, value) for value in values]


def _range(kind: str, text: str) -> dict[str, str | float] | None:
    """The ends of "10..20", "10.." or "..20", where a column of the kind can mean nothing else by it."""
    low, dots, high = text.partition("..")
    ends = {end: bound.strip() for end, bound in (("min", low), ("max", high)) if bound.strip()}
    if not dots or not ends:
        return None
    if kind == "text":
        return dict(ends) if all(map(_DATE.fullmatch, ends.values())) else None
    if kind == "number" and all(map(_is_number, ends.values())):
        return {end: float(bound) for end, bound in ends.items()}
    return None


def column_called(name: str, columns: Mapping[str, str]) -> str:
    """The column of a name, or of the Chinese header that tables have for it ("tags" of "标签").

    Raises:
        UserError: neither; it says which there are.
    """
    called = name if name in columns else CHINESE.get(name.lower(), name)
    if called not in columns:
        raise UserError(f"no column {quoted(name, 80)} to filter by; this index has {', '.join(columns) or 'none'}")
    return called


def _sql(value: str | float | bool) -> str:
    return literal(value) if isinstance(value, str) else repr(value).lower()


def _bounds(name: str, kind: str, bounds: Mapping) -> list[tuple[str, str | float | bool]]:
    if kind not in ("number", "text"):
        raise UserError(f"column {name!r} is {kind}, not a number or text, and has no ranges: write {FORMS[kind]}")
    if not bounds or set(bounds) - set(_BOUNDS):
        raise UserError(f"filter {quoted(name, 80)}: {quoted(dict(bounds), 80)} is no range: give {FORMS[kind]}")
    if kind == "text" and any(_is_number(bound) for bound in bounds.values()):  # "9" comes after "10"
        raise UserError(f"column {name!r} is text, not a number: it has an order of letters, as of 2024-05-31")
    return [(_BOUNDS[end], _value(name, kind, bound)) for end, bound in bounds.items()]


def _is_number(bound: Any) -> bool:
    try:
        float(bound)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _value(name: str, kind: str, value: Any) -> str | float | bool:
    """The value, if the column can have it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "number" and number and abs(value) <= sys.float_info.max:  # a whole number of JSON may be any length
        return float(value)
    if kind == "flag" and isinstance(value, bool):
        return value
    if kind in ("text", "tags") and isinstance(value, str):
        return value
    right = {"number": "a number", "flag": "true or false"}.get(kind, "a string")
    form = "" if kind == "flag" else f": write {FORMS[kind]}"
    raise UserError(f"filter {quoted(name, 80)}: {quoted(value, 80)} is not {right}, which this column holds{form}")
