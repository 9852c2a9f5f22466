"""The one exception a user's mistake raises, and how what others wrote is put into its line."""

import contextlib
import reprlib
import unicodedata
from collections.abc import Iterator

MOST = 200  # characters of a value, or of a library's reason, in a message
_JOINERS = "\u200c\u200d"  # Persian and emoji are written with them


class UserError(Exception):
    """A mistake the user can mend. The message is one line: what is wrong, where, and how to fix it.

    The command line prints it without a traceback and exits with status 1.
    """


def printable(text: object) -> str:
    """The text as a terminal shows it and does not obey it: line ends, controls, directions as \\n, \\x1b, \\u202e.

    For every name of a file, an id or a text that comes from a user's data and is printed as it is.
    """
    return "".join(map(_shown, str(text)))


def quoted(value: object, most: int = MOST) -> str:
    """The value as Python writes it, printable, in one line of at most `most` characters, however large it is."""
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxtuple, short.maxdict = 2, 8, 8, 8
    short.maxstring = short.maxother = short.maxlong = most
    try:
        text = short.repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        text = f"<{type(value).__name__} too long to write>"
    return _cut(printable(text), most)


def reason_of(error: BaseException, most: int = MOST) -> str:
    """The first line of what a library says, printable and at most `most` long; its kind where it says nothing."""
    lines = str(error)[: 10 * most].strip().splitlines()
    if not lines:
        return type(error).__name__
    kind = f"{type(error).__name__}: " if isinstance(error, LookupError) else ""  # says the key alone
    return _cut(printable(kind + lines[0]), most)


@contextlib.contextmanager
def refused(
    what: str,
    fix: str = "",
    kinds: tuple[type[Exception], ...] = (Exception,),
    raises: type[UserError] = UserError,
) -> Iterator[None]:
    """What a library raises on a user's file becomes `what (the library's reason); fix`.

    Rust's panics are among it: they are no `Exception`, and whoever catches that alone lets them through. Before our
    line stand the two that Rust itself writes of a panic: its hook cannot be reached from here, and what turned the
    process's standard error away meanwhile would lose the lines of other threads, a service's log among them.

    Raises:
        UserError, or the kind of it given by `raises`: in place of `kinds` and of panics.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, kinds) and not is_panic(error):
            raise
        raise raises(f"{what} ({reason_of(error)})" + (f"; {fix}" if fix else "")) from None


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust panicked."""
    return type(error).__name__ in ("PanicException", "RustPanic")  # RustPanic: of what ran in a task of its own


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, numpy's and Arrow's, a GPU's, or that of torch on the CPU."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "DefaultCPUAllocator" in str(error)[:200]


def _shown(character: str) -> str:
    if unicodedata.category(character)[0] not in "CZ" or character in _JOINERS:
        return character
    return character if unicodedata.category(character) == "Zs" else ascii(character)[1:-1]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
