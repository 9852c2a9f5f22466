"""Filters on metadata columns, as conditions of SQL (Lance) or of Milvus."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from tuwen.errors import UserError, quoted
from tuwen.search.record import field_of, literal

Filters = Mapping[str, Any]
_BOUNDS = {"min": ">=", "max": "<="}


def sql(filters: Filters | None, columns: Mapping[str, str]) -> str | None:
    """The condition that all filters hold; None where there are none.

    filters: column -> the value it must equal (of tags: must contain), a list of values of which one will do, or
        {"min": a, "max": b} of numbers, or of texts in the order of their letters (so dates as 2024-05-01), either end
        left out at will. columns: kinds by name, as `Index.columns`.

    Raises:
        UserError: no such column, or a value that its kind cannot have.
    """
    conditions = []
    for name, filter_value in (filters or {}).items():
        kind = _kind(name, columns)
        field = f"`{field_of(name)}`"
        if isinstance(filter_value, Mapping):
            conditions += [f"{field} {sign} {_sql(bound)}" for sign, bound in _bounds(name, kind, filter_value)]
            continue
        values = [
            _value(name, kind, value)
            for value in (filter_value if isinstance(filter_value, list | tuple) else [filter_value])
        ]
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
    for name, filter_value in (filters or {}).items():
        kind = _kind(name, columns)
        field = f'columns["{field_of(name)}"]'
        if isinstance(filter_value, Mapping):
            bounds = _bounds(name, kind, filter_value)
            conditions += [f"{field} {sign} {json.dumps(bound, ensure_ascii=False)}" for sign, bound in bounds]
            continue
        values = [
            _value(name, kind, value)
            for value in (filter_value if isinstance(filter_value, list | tuple) else [filter_value])
        ]
        if kind == "tags":
            conditions.append(f"json_contains_any({field}, {json.dumps(values, ensure_ascii=False)})")
        else:
            conditions.append(f"{field} in {json.dumps(values, ensure_ascii=False)}")
    return " and ".join(conditions)


def _kind(name: str, columns: Mapping[str, str]) -> str:
    if name not in columns:
        raise UserError(f"no column {quoted(name, 80)} to filter by; this index has {', '.join(columns) or 'none'}")
    return columns[name]


def _sql(value: str | float | bool) -> str:
    return literal(value) if isinstance(value, str) else repr(value).lower()


def _bounds(name: str, kind: str, bounds: Mapping) -> list[tuple[str, str | float | bool]]:
    if kind not in ("number", "text"):
        raise UserError(f"column {name!r} is {kind}, not a number or text: filter it by values, not by min and max")
    if not bounds or set(bounds) - set(_BOUNDS):
        raise UserError(
            f'filter {quoted(name, 80)}: give {{"min": a}}, {{"max": b}} or both, not {quoted(dict(bounds))}'
        )
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
    raise UserError(f"filter {quoted(name, 80)}: {quoted(value, 80)} is not {right}, which this column holds")
