"""XML that others wrote, without declarations, which could name other files or grow without bound."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from tuwen.data.corpora.faults import RowError
from tuwen.data.corpora.lines import decoded
from tuwen.errors import UserError, reason_of

LARGEST = 2**20  # bytes of a file
_DECLARATION = re.compile(r"<!(?!--)")


def load_xml(path: Path) -> ET.Element:
    """The root element of a small file.

    Raises:
        RowError: broken XML, one with declarations of its own (a DOCTYPE), or a file that is too large.
    """
    try:
        data = path.read_bytes() if path.stat().st_size <= LARGEST else b""
        text = decoded(data, path)
        if not data or _DECLARATION.search(text):
            raise RowError("broken XML", f"over {LARGEST:,} bytes, empty, or with declarations; take the official file")
        return ET.fromstring(text)
    except UserError as error:
        raise RowError("broken XML", str(error)) from None
    except (ET.ParseError, ValueError, OSError, RecursionError) as error:
        raise RowError("broken XML", f"no annotation ({reason_of(error, 80)}); take the official file") from None
