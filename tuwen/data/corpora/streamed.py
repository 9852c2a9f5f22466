"""Sources of several large files of which no row is kept in memory: a position is a file and an offset."""

from pathlib import Path

from tuwen.data.corpora.files import CorpusEntry, Source
from tuwen.data.corpora.parts import read_part
from tuwen.data.corpus import BrokenImage

_BITS = 44  # of an offset, 16 TiB a file


class Streamed(Source):
    """files: what is read, in order. A row's picture is a file, "FILE:OFFSET:SIZE" in another, or an address."""

    files: list[Path]

    def position(self, file: int, offset: int) -> int:
        return file << _BITS | offset

    def at(self, position: int) -> tuple[Path, int]:
        """The file and offset of a position."""
        return self.files[position >> _BITS], position & (1 << _BITS) - 1

    def place(self, entry: CorpusEntry) -> tuple[Path, int]:
        return self.at(entry.position)[0], entry.line

    def url(self, entry: CorpusEntry) -> str:
        return str(entry.columns.get("url", ""))

    def read(self, image: str) -> bytes:
        if image.startswith(("http://", "https://")):
            raise BrokenImage("missing", "not fetched yet")
        return read_part(self.root, image) or super().read(image)
