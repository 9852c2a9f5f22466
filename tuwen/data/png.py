"""How a PNG file is laid out, seen without decoding it."""

import zlib

from tuwen.data.corpus import BrokenImage


def check_png(data: bytes) -> None:
    """Checks the sums of the chunks that pixels are made of, which Pillow does not.

    Raises:
        BrokenImage: a wrong sum, or no end.
    """
    place = 8
    while place + 12 <= len(data):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        end = place + 8 + size
        if kind[:1].isupper() and zlib.crc32(data[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise BrokenImage("truncated" if end + 4 > len(data) else "damaged", f"wrong sum of PNG chunk {kind!r}")
        if kind == b"IEND":
            return
        place = end + 4
    raise BrokenImage("truncated", "the PNG ends before its end chunk")
