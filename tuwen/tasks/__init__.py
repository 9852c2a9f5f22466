"""What a trained system is measured on, and what it can be tuned to: one file a task, the one registry of tasks.

A task called `x` is the file `x.py` with one class derived from `Task`, which says what a system must be able to.
"""

import difflib
import importlib
import pkgutil
from typing import Any

from tuwen.errors import UserError, quoted

_PARTS = (  # what tasks are built from
    *("answers", "areas", "blind", "choosing", "encoding", "heads", "instances", "labels"),
    *("likeness", "marks", "metrics", "ranking", "task", "text_metrics"),
)


def task_names() -> list[str]:
    """Names of all tasks, which are the names of their files."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _PARTS)


def find_task(name: str) -> Any:
    """The class of a task by its exact name.

    Raises:
        UserError: if there is no such task; all are listed, the nearest first.
    """
    if name not in task_names():
        near = difflib.get_close_matches(name, task_names(), n=3, cutoff=0.4)
        every = ", ".join([*near, *(other for other in task_names() if other not in near)])
        raise UserError(f"no task called {quoted(name)}; there are {every}")
    from tuwen.tasks.task import Task  # not at the top: the command line lists names before it needs torch

    module = importlib.import_module(f"{__name__}.{name}")
    return next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__
    )


def of(config: Any) -> Any:
    """The task of a run's config, which is a `TaskConfig`."""
    return find_task(config.name)(config)


def rows_at(task: str, location: Any) -> Any:
    """Where a task's rows are: in its own file beside a corpus's pairs, where there is one; else in the corpus."""
    from pathlib import Path

    file = find_task(task).file
    beside = Path(location) / file if file else None
    return str(beside) if beside is not None and beside.is_file() else location


def with_verb(verb: str) -> tuple[str, ...]:
    """The tasks that a verb of `tuwen.load(RUN)` stands for."""
    return tuple(name for name in task_names() if find_task(name).verb == verb)


def able(system: str, task: str) -> Any:
    """The task, where the system can do it; asked before any work by every command that names both.

    Raises:
        UserError: an unknown task or system; or the reason why not, and the systems that can.
    """
    from tuwen import systems

    task_class, system_class = find_task(task), systems.find(system)
    if not can(system_class, task_class):
        others = [name for name in systems.names() if can(systems.find(name), task_class)]
        several = f" of {task_class.pictures} pictures a row" if task_class.pictures > 1 else ""
        ways = " or ".join(need.replace(" ", " and ") for need in task_class.needs)
        raise UserError(
            f"system {system} cannot do {task}: {task_class.why}, which needs {ways}{several}, and {system} has "
            f"{system_class.paper.interaction} alone; systems that can: {', '.join(others) or 'none'}"
        )
    return task_class


def can(system: Any, task: Any) -> bool:
    """Whether a class of system has one of the alternatives that a task needs."""
    return any(all(_has(system, part, task.pictures) for part in need.split()) for need in task.needs)


def of_system(system: Any) -> tuple[str, ...]:
    """The tasks that a class of system can do."""
    return tuple(name for name in task_names() if can(system, find_task(name)))


def _has(system: Any, capability: str, pictures: int) -> bool:
    if capability in ("vectors", "has_places", "translates"):
        return getattr(system, capability)
    few = capability == "fuse" and system.fuses is not None and system.fuses < pictures
    return system.can(capability) and not few
