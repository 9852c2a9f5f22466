"""The registry: every file of this folder that holds a system, found by its exact name."""

import difflib
import importlib
import pkgutil

from tuwen.errors import UserError
from tuwen.systems.system import System

_FEW = 12  # names in a line


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


def having(capability: str) -> list[str]:
    """Names of the systems that themselves provide a capability, a method of `System`; none where it is none."""
    return [name for name in names() if hasattr(System, capability) and find(name).can(capability)]


def refusal(system: type[System], asked: str, why: str, capability: str) -> UserError:
    """The error of asking a system for what it has not; those that have the capability are named where they are few."""
    name, others = system.__module__.rpartition(".")[2], having(capability)
    few = name not in others and 0 < len(others) <= _FEW
    which = f"{', '.join(others)} can" if few else "`tuwen systems` lists what each can do"
    return UserError(f"system {name} cannot {asked}: {why}; {which}")
