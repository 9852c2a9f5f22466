"""Lines of a text file with their places; what cannot be read as text is a fault of its line."""

import codecs
import gzip
import zlib
from pathlib import Path

from tuwen.data.corpora.faults import Fault, Faults
from tuwen.errors import UserError, reason_of

MOST_UNPACKED = 4 * 2**30  # bytes that a .gz may hold
LONGEST = 16 * 2**20  # bytes; longer lines are a fault, so that a file without line ends does not fill the memory
VOTES = 1000  # lines that tell a table's encoding
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Lines:
    """Iterates over the lines of a file, line end included, from an offset on; a .gz is unpacked as it is read.

    A byte order mark is passed over. Lines too long, with NUL bytes or not UTF-8 go to `faults`.
    start, number: offset and number (from 1) of the line given last; of records of several lines see `begin`.
    mark: bytes of a byte order mark before that line.
    """

    def __init__(self, path: Path, faults: Faults, offset: int = 0, encoding: str = "UTF-8"):
        """encoding: "UTF-8", or "GB18030", in which no line end is part of a character either."""
        self._path, self._faults, self._encoding = path, faults, encoding
        try:
            self._packed = path.suffix == ".gz"
            self._file = gzip.open(path) if self._packed else open(path, "rb")  # noqa: SIM115 (closed by __exit__)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}; see to its permissions") from None
        self._file.seek(offset)
        self._next = offset
        self.start, self.number, self.mark = offset, 0, 0
        self._first: tuple[int, int, int] | None = None

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> str:
        while raw := self._line():
            self.start, self.number = self._next, self.number + 1
            self._next += len(raw)
            if len(raw) > LONGEST:
                self._pass_over_rest()
                self._fault("line too long", f"over {LONGEST // 2**20} MiB; one row a line, ended by a line feed")
                continue
            self.mark = 0
            if self.start == 0:
                if raw.startswith(_UTF16):
                    self._fault("UTF-16", "UTF-16, not UTF-8; save it as UTF-8")
                    break
                bare = raw.removeprefix(codecs.BOM_UTF8)
                self.mark, raw = len(raw) - len(bare), bare
            text = self._decoded(raw)
            if text is not None:
                self._first = self._first or (self.start, self.number, self._next)
                return text
        raise StopIteration

    def begin(self) -> None:
        """A record of perhaps several lines starts with the next line."""
        self._first = None

    @property
    def first(self) -> tuple[int, int]:
        """Offset and number of the first line given since `begin`; before any, of the line that would come."""
        return self._first[:2] if self._first else (self._next, self.number + 1)

    def restart(self) -> None:
        """Goes back to the line after `first`."""
        if self._first:
            _, self.number, self._next = self._first
            self._file.seek(self._next)

    def _line(self, most: int = LONGEST + 1) -> bytes:
        """The next bytes up to a line end; none at the end, and where a .gz breaks off or grows beyond all bounds."""
        try:
            if not self._packed or self._next < MOST_UNPACKED:
                return self._file.readline(most)
            what = f"over {MOST_UNPACKED // 2**30} GiB unpacked; no such file is published"
        except (OSError, EOFError, zlib.error) as error:
            what = f"breaks off after line {self.number} ({reason_of(error, 80)}); copy it again"
        self._fault("truncated", what)
        return b""

    def _pass_over_rest(self) -> None:
        while rest := self._line(LONGEST):
            self._next += len(rest)
            if rest.endswith(b"\n"):
                break

    def _decoded(self, raw: bytes) -> str | None:
        if b"\0" in raw:
            self._fault("NUL byte", "a NUL byte; the file is damaged, or UTF-16: save it as UTF-8")
            return None
        try:
            return raw.decode(self._encoding)
        except UnicodeDecodeError as error:
            if self._encoding != "UTF-8":
                self._fault(f"not {self._encoding}", f"not {self._encoding} as the lines before; save it as UTF-8")
                return None
            guess = guess_encoding(raw)
            self._fault("not UTF-8", f"not UTF-8 from byte {error.start + 1} on (perhaps {guess}); save it as UTF-8")
            return None

    def _fault(self, reason: str, what: str) -> None:
        self._faults.add(Fault(self._path, self.number, reason, what))


def table_encoding(path: Path) -> str:
    """ "GB18030" where most of a file's first lines beyond ASCII are so, and not UTF-8; else "UTF-8"."""
    votes = {"UTF-8": 0, "GB18030": 0}
    try:
        with open(path, "rb") as file:
            while sum(votes.values()) < VOTES and (raw := file.readline(LONGEST)):
                if raw.isascii():
                    continue
                try:
                    raw.decode()
                    votes["UTF-8"] += 1
                except UnicodeDecodeError:
                    votes["GB18030"] += guess_encoding(raw) == "GB18030"
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; see to its permissions") from None
    return "GB18030" if votes["GB18030"] > votes["UTF-8"] else "UTF-8"


def decoded(raw: bytes, path: Path) -> str:
    """A whole file's text, without its byte order mark.

    Raises:
        UserError: UTF-16, a NUL byte, or not UTF-8; with the line.
    """
    if raw.startswith(_UTF16):
        raise UserError(f"{path}:1: UTF-16, not UTF-8; save it as UTF-8")
    if b"\0" in raw:
        line = raw[: raw.index(b"\0")].count(b"\n") + 1
        raise UserError(f"{path}:{line}: a NUL byte; the file is damaged, or UTF-16: save it as UTF-8")
    try:
        return raw.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        line, start = raw[: error.start].count(b"\n") + 1, raw.rfind(b"\n", 0, error.start) + 1
        guess = guess_encoding(raw[start : raw.find(b"\n", error.start) % (len(raw) + 1)])
        what = f"not UTF-8 from byte {error.start - start + 1} on (perhaps {guess}); save it as UTF-8"
        raise UserError(f"{path}:{line}: {what}") from None


def guess_encoding(raw: bytes) -> str:
    """What bytes that are not UTF-8 most likely are: GB18030 where they make Han characters, else Latin-1."""
    try:
        text = raw.decode("gb18030")
    except UnicodeDecodeError:
        return "Latin-1"
    foreign = [c for c in text if not c.isascii()]
    han = sum("\u4e00" <= c <= "\u9fff" or "\u3000" <= c <= "\u303f" or "\uff00" <= c <= "\uffef" for c in foreign)
    return "GB18030" if 2 * han > len(foreign) else "Latin-1"
