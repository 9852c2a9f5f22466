"""How a JPEG file is laid out, seen without decoding it."""

import re

from tuwen.data.dicom import is_dicom

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # none of these is inside a scan
_SCAN = re.compile(rb"\xff\xda\x00[\x06-\x0c]")
_CODE = b"\xff\x4f\xff\x51"  # a JPEG 2000 code stream
_END = b"\xff\xd9"


def first_scan(data: bytes) -> int:
    """Offset of the first scan, past the headers (a thumbnail there has an end marker too); -1 if there is none."""
    place = 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            return -1
        marker = data[place + 1]
        if marker == 0xDA:
            return place
        place += 1 if marker == 0xFF else _length(data, place)  # padding, or a segment
    return len(data)


def more_scans(data: bytes, most: int) -> bool:
    """Whether a decoder would go through more than so many scans."""
    if data.count(b"\xff\xda") <= most:  # quicker than to walk, and never too few
        return False
    scans, place = 0, 0
    while place >= 0 and place + 4 <= len(data) and data[place : place + 2] != _END and scans <= most:
        scans += data[place + 1] == 0xDA
        following = _MARKER.search(data, place + _length(data, place))
        place = following.start() if following else -1
    return scans > most


def scan_headers(data: bytes) -> int:
    """Headers of scans anywhere in a file that holds JPEGs among other things."""
    return len(_SCAN.findall(data))


def _length(data: bytes, place: int) -> int:
    """Bytes of the segment whose marker is at `place`; two markers have no length."""
    return 2 if data[place + 1] in (0x01, 0xD8) else 2 + int.from_bytes(data[place + 2 : place + 4], "big")


def is_jpeg2000(data: bytes) -> bool:
    """Whether the bytes begin as JPEG 2000 does, whose decoder is the slowest by far, or are a DICOM file that may."""
    return data.startswith((b"\x00\x00\x00\x0cjP  ", _CODE)) or (is_dicom(data) and _CODE in data)
