"""The registry: every file of this folder that measures a task, found by its exact name.

A task called `x` is the file `x.py` with a function `evaluate_x`.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable

from tuwen.errors import UserError

_PARTS = ("encoding", "metrics", "text_metrics")  # what tasks are built from


def names() -> list[str]:
    """Names of all tasks, which are the names of their files."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _PARTS)


def find(name: str) -> Callable[..., dict]:
    """The evaluation of a task by its exact name: (predictor, corpus, ...) -> JSON.

    Raises:
        UserError: if there is no such task; the nearest names are listed.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.4) or names()
        raise UserError(f"no task called {name!r}; did you mean {', '.join(near)}?")
    return getattr(importlib.import_module(f"{__name__}.{name}"), f"evaluate_{name}")
