"""The contact sheet: pages through all rows, with their columns; the split that is there."""

import json
import re

from PIL import Image

from tuwen import cli
from tuwen.data.curate.show import contact_sheets
from tuwen.data.open import open_corpus


def corpus(folder, count: int, split: str = "train"):
    lines = []
    for n in range(count):
        Image.new("RGB", (8, 8), (20 * n, 0, 0)).save(folder / f"{n}.png")
        row = {"id": f"r{n}", "image": f"{n}.png", "texts": {"en": [f"red {n}"]}, "split": split, "价格": 9.5 + n}
        lines.append(json.dumps(row | {"note": "<b>" * 400, "empty": None}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder


def test_every_row_in_order_on_pages_that_lead_to_each_other(tmp_path):
    pages = contact_sheets(open_corpus(corpus(tmp_path, 7), "train"), tmp_path / "out" / "all rows.html", 2)
    assert [page.name for page in pages] == ["all rows.html", *(f"all rows-{n}.html" for n in (2, 3, 4))]
    texts = [page.read_text("utf-8") for page in pages]
    assert [re.findall(r"red \d", text) for text in texts] == [
        ["red 0", "red 1"], ["red 2", "red 3"], ["red 4", "red 5"], ["red 6"]
    ]  # fmt: skip
    assert "rows 4 to 5 of 7" in texts[2]
    links = re.findall(r"<nav>.*?</nav>", texts[2])
    assert len(links) == 2
    assert re.findall(r'href="([^"]+)">(\d)', links[0]) == [
        ("all%20rows.html", "1"), ("all%20rows-2.html", "2"), ("all%20rows-4.html", "4")
    ]  # fmt: skip
    assert "<b>3</b>" in links[0]
    contact_sheets(open_corpus(tmp_path, "train"), tmp_path / "out" / "all rows.html", 2)  # written again over itself


def test_columns_are_shown_in_one_short_line_each(tmp_path):
    (page,) = contact_sheets(open_corpus(corpus(tmp_path, 1), "train"), tmp_path / "all.html")
    text = page.read_text("utf-8")
    assert '<p class="id"><b>价格</b> 9.5</p>' in text
    (note,) = re.findall(r"<b>note</b> (.*?)</p>", text)
    assert note.startswith("&lt;b&gt;")
    assert len(note.replace("&lt;", "<").replace("&gt;", ">")) == 120 + len(" … ")
    assert "<b>empty</b>" not in text
    assert "<nav>" not in text


def test_the_split_that_is_there_is_shown(tmp_path, capsys):
    folder = corpus(tmp_path, 3, "test")
    assert cli.main(["data", "show", str(folder), "--out", str(tmp_path / "s.html")]) == 0
    assert "3 of 3 rows" in (tmp_path / "s.html").read_text("utf-8")
    words = ["data", "show", str(folder), "--all", "--count", "2", "--out", str(tmp_path / "s.html")]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [str(tmp_path / "s.html"), str(tmp_path / "s-2.html")]
