"""The registry: every file of this folder that holds a system, found by its exact name."""

import difflib
import importlib
import pkgutil

from tuwen.errors import UserError
from tuwen.systems.survey.axes import TASKS, lacking
from tuwen.systems.system import System

# what a capability of the code gives to a task
_GIVES = {"fuse": "fusion", "match": "fusion", "generate": "decoder", "likelihood": "decoder", "locate": "locator"}


def names() -> list[str]:
    """Names of all systems, which are the names of their files."""
    found = (module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    return sorted(name for name in found if name != "system")


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


def tasks_of(system: type[System]) -> tuple[str, ...]:
    """The downstream tasks a system can do, by what its code provides."""
    return tuple(name for name in TASKS if not lacking(TASKS[name].requires, _given(system)))


def refuse_impossible(name: str, task: str) -> None:
    """Refuses a task that a system cannot do, whatever is trained (the survey's table of compatibility).

    Tasks the survey does not know are let through: they refuse by themselves.

    Raises:
        UserError: with the reason, and the systems that can.
    """
    system = find(name)
    missing = lacking(TASKS[task].requires, _given(system)) if task in TASKS else ""
    if missing:
        able = [other for other in names() if task in tasks_of(find(other))]
        raise UserError(
            f"system {name} cannot do {task}: {TASKS[task].why}, which needs {missing}, and {name} has "
            f"{system.paper.interaction} alone; systems that can: {', '.join(able) or 'none'}"
        )


def _given(system: type[System]) -> frozenset[str]:
    given = {gift for capability, gift in _GIVES.items() if system.can(capability)}
    if system.can("encode_images") and system.can("encode_texts"):
        given.add("dual")
    return frozenset(given)
