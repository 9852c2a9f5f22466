"""The registry: every file of this folder that holds a system, found by its exact name."""

import difflib
import importlib
import pkgutil

from tuwen.errors import UserError
from tuwen.systems.system import System


def names() -> list[str]:
    """Names of all systems, which are the names of their files."""
    modules = (module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    return sorted(name for name in modules if name != "system")


def find(name: str) -> type[System]:
    """The class of a system by its exact name.

    Raises:
        UserError: if there is no such system; the nearest names are listed.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.4) or names()
        raise UserError(f"no system called {name!r}; did you mean {', '.join(near)}? `tuwen systems` lists all")
    module = importlib.import_module(f"{__name__}.{name}")
    return next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, System) and value.__module__ == module.__name__
    )
