"""Files that tests make: pictures that no other number gives, JSON lines, whatever is to lie in a folder."""

import io
import json

from PIL import Image


def picture(grey: int, kind: str = "JPEG") -> bytes:
    """A picture that no other number gives."""
    out = io.BytesIO()
    Image.new("RGB", (12, 8), (grey, grey, grey)).save(out, kind)
    return out.getvalue()


def put(folder, path: str, content: bytes | str):
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def json_lines(*rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
