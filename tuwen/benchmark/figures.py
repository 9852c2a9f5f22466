"""One figure out of what a task measured, by its path, and seed by seed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuwen.errors import UserError


def figure_of(measured: Mapping[str, Any], metric: str) -> float:
    """The figure at the first of the paths that there is.

    metric: keys apart by dots, * for the mean over all keys there, alternatives apart by |:
    "languages.*.reranked.mean_recall|languages.*.first.mean_recall".

    Raises:
        UserError: at none of them stands a number.
    """
    for path in metric.split("|"):
        values = list(_at(measured, path.split(".")))
        if values and all(_number(value) for value in values):
            return float(sum(values) / len(values))
    raise UserError(f"what was measured has no figure {metric}; it has {', '.join(map(str, measured))}")


def _at(value: Any, keys: Sequence[str]) -> Iterator[Any]:
    if not keys:
        yield value
    elif isinstance(value, Mapping):
        for name in value if keys[0] == "*" else [keys[0]]:
            yield from _at(value.get(name), keys[1:])
    else:
        yield None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
