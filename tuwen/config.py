"""Configuration as nested frozen dataclasses: overriding by dotted name, and YAML in and out.

One typed walker serves the command line (`train.lr=3e-4`) and files alike; dataclasses check their own
ranges in `__post_init__`, and are rebuilt once with all changes, so that no half-changed config is checked.
"""

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from tuwen.errors import UserError, quoted, reason_of

Config = TypeVar("Config")
_MOST = 1.7e308  # of whole numbers that a float holds
_VALUES = 100_000  # in a file, written out
_NO_YAML = (yaml.YAMLError, ValueError, RecursionError)  # ValueError: no UTF-8, a number of too many digits, no date
_TRUE, _FALSE, _NONE = ("true", "yes", "on", "1"), ("false", "no", "off", "0"), ("none", "null", "")


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """The config with fields changed by dotted name, as {"train.lr": "3e-4"} or {"train": {"lr": 3e-4}}.

    Strings are read as the field's type; sequences as "0.9,0.98" or "[0.9, 0.98]".

    Raises:
        UserError: for an unknown name (the nearest are listed) or a value of the wrong type or range.
    """
    return _override(config, _tree(changes), "", field_names(config))


def dotted(changes: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name, whether they came nested or not."""
    values: dict[str, Any] = {}
    for name, value in changes.items():
        values |= dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return values


def field_names(config: Any, prefix: str = "") -> list[str]:
    """Dotted names of all fields that hold values."""
    dotted: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        dotted.extend(field_names(value, f"{prefix}{field.name}.") if nested else [prefix + field.name])
    return dotted


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain dictionaries, lists, strings and numbers, ready for YAML or JSON."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def dump(config: Any) -> str:
    """The config as YAML, fields in their declared order."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file as a dictionary of changes for `override`.

    Raises:
        UserError: if the file is missing, is no YAML, or is not a mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    except _NO_YAML as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML ({_yaml_reason(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected names with values, such as `train: {{lr: 0.001}}`")
    if _written_out(content, {}) > _VALUES:
        raise UserError(f"{path}: its anchors (&) make more than {_VALUES:,} values of it; write out what is meant")
    return {str(name): value for name, value in content.items()}


def _written_out(value: Any, counts: dict[int, float]) -> float:
    """Values within a value that anchors may share, each as often as it stands there; endless where it holds itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in counts:
        counts[id(value)] = math.inf  # met again before it is counted: within itself
        parts = value.values() if isinstance(value, dict) else value
        counts[id(value)] = 1 + sum(_written_out(part, counts) for part in parts)
    return counts[id(value)]


def _yaml_reason(error: Exception) -> str:
    return reason_of(ValueError(getattr(error, "problem", None) or error))


def _parsed(text: str, where: str) -> Any:
    """What a text of YAML says, as a value on the command line."""
    try:
        return yaml.safe_load(text)
    except _NO_YAML as error:
        raise UserError(f"config field {where}: {quoted(text, 80)} is not valid YAML ({_yaml_reason(error)})") from None


def _tree(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as nested dictionaries; later entries win."""
    tree: dict[str, Any] = {}
    for name, value in changes.items():
        *path, last = str(name).split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise UserError(f"config field {name}: {part} is given a value of its own as well; give one of the two")
        if isinstance(value, Mapping) and isinstance(node.get(last), dict):
            value = _merge(node[last], _tree(value))
        node[last] = _tree(value) if isinstance(value, Mapping) else value
    return tree


def _merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Both trees, entries of the second over those of the first."""
    both = dict(first)
    for name, value in second.items():
        old = both.get(name)
        both[name] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def _override(config: Any, tree: Mapping[str, Any], prefix: str, known: list[str]) -> Any:
    hints = get_type_hints(type(config))
    changed = {}
    for name, value in tree.items():
        where = prefix + name
        if name not in {field.name for field in dataclasses.fields(config)}:
            raise UserError(f"no config field {quoted(where)}; nearest: {', '.join(_nearest(where, known))}")
        old = getattr(config, name)
        if dataclasses.is_dataclass(old) and isinstance(value, Mapping):
            changed[name] = _override(old, value, where + ".", known)
        elif dataclasses.is_dataclass(old) and hints[name] is Any and not dataclasses.is_dataclass(value):
            _wrong(value, f"the fields of {type(old).__name__}", where)
        else:
            changed[name] = convert(value, hints[name], where)
    return _checked(lambda: dataclasses.replace(config, **changed), prefix)


def _nearest(name: str, known: list[str]) -> list[str]:
    """Up to three known names like the given one: the same last part first, then by spelling."""
    last = name.rpartition(".")[2]
    same = [other for other in known if other.rpartition(".")[2] == last]
    ends = {other.rpartition(".")[2]: other for other in known}
    spelt = [ends[end] for end in difflib.get_close_matches(last, ends, n=3, cutoff=0.5)]
    near = [*same, *difflib.get_close_matches(name, known, n=3, cutoff=0.6), *spelt]
    return list(dict.fromkeys(near))[:3] or known[:3]


def convert(value: Any, kind: Any, where: str) -> Any:
    """The value as the given type, which may be nested; `where` names the field in errors.

    Raises:
        UserError: if the value does not fit, naming the field and what was expected.
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, where)
    if origin is Literal:
        if value not in args and str(value) in map(str, args):
            value = next(choice for choice in args if str(choice) == str(value))
        return value if value in args else _wrong(value, " or ".join(map(repr, args)), where)
    if origin in (Union, types.UnionType):
        return _any_of(value, args, where)
    if origin in (tuple, list):
        return _sequence(value, origin, args, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        entries = _parsed(value, where) if isinstance(value, str) else value
        if not isinstance(entries, Mapping):
            _wrong(value, "names with values", where)
        return {convert(k, args[0], where): convert(v, args[1], f"{where}.{k}") for k, v in entries.items()}
    return _scalar(value, kind, where)


def _scalar(value: Any, kind: Any, where: str) -> Any:
    text = value.strip() if isinstance(value, str) else None
    if kind is bool:
        if isinstance(value, bool):
            return value
        return (
            (text.lower() in _TRUE)
            if text and text.lower() in _TRUE + _FALSE
            else _wrong(value, "true or false", where)
        )
    if kind in (int, float):
        number = value if text is None else _number(text, kind)
        right = (int,) if kind is int else (int, float)
        if isinstance(number, bool) or not isinstance(number, right) or not -math.inf < number < math.inf:
            _wrong(value, "a whole number" if kind is int else "a number", where)
        small = kind is int or (number is not None and -_MOST <= number <= _MOST)
        return kind(number) if small else _wrong(value, "a number", where)
    if kind is str:
        return value if isinstance(value, str) else _wrong(value, "a text (put it in quotes)", where)
    if kind is Path:
        return Path(value) if isinstance(value, str | Path) else _wrong(value, "a path", where)
    if isinstance(kind, type) and isinstance(value, kind):
        return value
    return _wrong(value, getattr(kind, "__name__", str(kind)), where)


def _number(text: str, kind: type) -> int | float | None:
    try:
        return kind(text)
    except ValueError:
        return None


def _any_of(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    """The first of several types that fits; None only where it is one of them."""
    if value is None or (isinstance(value, str) and value.strip().lower() in _NONE and type(None) in kinds):
        return None if type(None) in kinds else _wrong(value, _describe(kinds), where)
    real = [kind for kind in kinds if kind is not type(None)]
    for kind in real[:-1]:
        try:
            return convert(value, kind, where)
        except UserError:
            continue
    try:
        return convert(value, real[-1], where)
    except UserError:
        if len(kinds) == 1 or dataclasses.is_dataclass(real[-1]):
            raise
        return _wrong(value, _describe(kinds), where)


def _describe(kinds: tuple[Any, ...]) -> str:
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "none"}
    return " or ".join(plain.get(kind, str(kind)) for kind in kinds)


def _sequence(value: Any, origin: type, args: tuple[Any, ...], where: str) -> Any:
    if isinstance(value, str):
        value = _parsed(value, where) if value.lstrip().startswith("[") else [p for p in value.split(",") if p.strip()]
    if not isinstance(value, list | tuple):
        _wrong(value, "a list", where)
    if origin is list or (len(args) == 2 and args[1] is Ellipsis):
        return origin(convert(item, args[0], f"{where}[{k}]") for k, item in enumerate(value))
    if len(value) != len(args):
        _wrong(value, f"{len(args)} values", where)
    return tuple(convert(item, kind, f"{where}[{k}]") for k, (item, kind) in enumerate(zip(value, args, strict=True)))


def _build(kind: Any, value: Any, where: str) -> Any:
    """A dataclass from a mapping of its fields."""
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        _wrong(value, f"the fields of {kind.__name__}", where)
    hints = get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    for name in value:
        if name not in known:
            raise UserError(f"no config field {quoted(f'{where}.{name}')}; nearest: {', '.join(_nearest(name, known))}")
    fields = {name: convert(item, hints[name], f"{where}.{name}") for name, item in value.items()}
    required = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in fields]
    if missing:
        raise UserError(f"config field {where} lacks {', '.join(missing)}")
    return _checked(lambda: kind(**fields), where + ".")


def _checked(make, prefix: str) -> Any:
    """What `make` returns; a ValueError of a dataclass's own check becomes a line that names where it stands."""
    try:
        return make()
    except ValueError as error:
        raise UserError(f"config {prefix.rstrip('.') or 'value'}: {error}") from None


def _wrong(value: Any, expected: str, where: str) -> Any:
    raise UserError(f"config field {where}: expected {expected}, got {quoted(value)}")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
