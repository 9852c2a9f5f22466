"""What a user names, one of ours or a YAML file of their own: suites and claims."""

import difflib
from pathlib import Path

from tuwen.errors import UserError, quoted


def listed(folder: Path) -> list[str]:
    """The names of ours in a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def listed_file(kind: str, name: str, folder: Path) -> Path:
    """The file of what is named; kind ("suite", "claim"): for the refusal.

    Raises:
        UserError: there is none, with near names, or all where none is near.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        near = ", ".join(difflib.get_close_matches(name, listed(folder), n=3))
        hint = f"did you mean {near}?" if near else f"there are {', '.join(listed(folder))};"
        raise UserError(f"no {kind} {quoted(name)}; {hint} or name a .yaml file")
    return path
