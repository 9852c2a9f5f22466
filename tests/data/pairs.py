"""Tables of pairs for tests: a folder of pictures, rows, and what is said of a faulty one."""

import json

import pytest
from PIL import Image

from tuwen.data.corpora.table import open_table
from tuwen.errors import UserError

PIXELS = {"1.png": 10, "2.png": 20, "3.png": 30}


def with_pictures(tmp_path):
    """A folder with three pictures and no table yet."""
    root = tmp_path / "pairs"
    (root / "images").mkdir(parents=True)
    for name, grey in PIXELS.items():
        Image.new("RGB", (6, 4), (grey, grey, grey)).save(root / "images" / name)
    return root


def row(n=1, **changes) -> dict:
    return {"id": str(n), "image": f"images/{n}.png", "texts": {"en": [f"picture {n}"]}, "split": "train"} | changes


def write(folder, *rows):
    """pairs.jsonl of objects, or of lines as they are."""
    lines = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in rows]
    (folder / "pairs.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return folder


def fault(folder, **options) -> str:
    """What "stop" says, which is one line."""
    with pytest.raises(UserError) as caught:
        open_table(folder, **({"split": "train"} | options))
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    return message
