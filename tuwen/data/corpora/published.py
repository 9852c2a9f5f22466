"""Public corpora in the layout they are published in: a file a format, found by their `FORMATS`; there is no list.

A format reads a folder of files as they were downloaded. `tuwen data list` prints what each needs; wherever a corpus is
named, `NAME:DIR` reads one, and `tuwen data build NAME --from DIR` writes it as shards.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tuwen.data import corpora
from tuwen.data.corpora.files import Source
from tuwen.errors import UserError


@dataclass(frozen=True)
class Format:
    """A public corpus or annotation format.

    languages: of its texts. needs: the files it reads, from the folder named on. ask: where they are to be had.
    licence: in a few words, and whose it is to keep. records: of a full copy, by split.
    """

    name: str
    title: str
    languages: tuple[str, ...]
    needs: str
    ask: str
    licence: str
    records: str
    read: Callable[[Path], Source]

    def source(self, folder: str | Path) -> Source:
        """The rows of a copy of it.

        Raises:
            UserError: no such folder, or a file it needs is not there.
        """
        path = Path(folder)
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; {self.name} is read from {self.needs}")
        source = self.read(path)
        source.name, source.notice = self.name, f"{self.title}: {self.licence}; {self.ask}"
        return source


@cache
def formats() -> dict[str, Format]:
    """Every public format by name, sorted."""
    by_name: dict[str, Format] = {}
    for module in pkgutil.iter_modules(corpora.__path__):
        for entry in getattr(importlib.import_module(f"{corpora.__name__}.{module.name}"), "FORMATS", ()):
            by_name[entry.name] = entry
    return dict(sorted(by_name.items()))


def find_format(name: str) -> Format:
    """The format of that name.

    Raises:
        UserError: there is none.
    """
    known = formats()
    if name not in known:
        near = " or ".join(difflib.get_close_matches(name.lower(), known, n=2))
        hint = f"; did you mean {near}?" if near else ""
        raise UserError(f"no public format {name!r}{hint}; `tuwen data list` names them all")
    return known[name]
