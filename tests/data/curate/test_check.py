"""The check of a corpus and its contact sheet."""

import html.parser
import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tuwen.data.curate.check import check
from tuwen.data.curate.show import contact_sheet
from tuwen.data.open import open_corpus
from tuwen.data.shards import write_shards
from tuwen.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for n in range(6):
        Image.effect_noise((20 + n, 10), 50).save(tmp_path / "images" / f"{n}.png")
    return tmp_path


def row(n, split="train", **changes) -> dict:
    return {"id": f"r{n}", "image": f"images/{n}.png", "texts": {"en": [f"text {n}"]}, "split": split} | changes


def write(folder, *rows):
    """The table, and none of the pictures that it does not name."""
    table = "\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows)
    (folder / "pairs.jsonl").write_text(table)
    for picture in (folder / "images").iterdir():
        if picture.name not in table:
            picture.unlink()
    return folder


def printed(findings) -> str:
    page = io.StringIO()
    Console(width=200, file=page).print(findings)
    return page.getvalue()


def test_a_sound_corpus(folder):
    rows = [row(0), row(1, texts={"en": ["text 0", "text 0"], "zh": ["一只狗"]}), row(2, "test"), row(3, texts={})]
    findings = check(write(folder, *rows), quiet=True)
    assert not findings
    train = findings.splits["train"]
    assert (train.rows, train.pictures, train.texts, train.distinct_texts, train.rows_without_text) == (3, 3, 4, 2, 1)
    assert train.languages == {"en": 3, "zh": 1}
    assert train.width == [20, 21, 23]
    assert train.height == [10, 10, 10]
    assert train.characters == [3, 6, 6]
    assert findings.shared == {"test and train": {"pictures": 0, "texts": 0, "pairs": 0}}
    assert "no faults" in printed(findings)


def test_every_fault_of_every_split_once(folder):
    broken = bytearray((folder / "images/4.png").read_bytes())
    broken[-30] ^= 255
    (folder / "images/4.png").write_bytes(broken)
    rows = [row(0), "{", row(1, texts={"en": [""]}), row("x"), row(0, "test"), row(4, "test"), row(5, "test")]
    findings = check(write(folder, *rows), quiet=True)
    start = f"{folder}/pairs.jsonl:"
    (unused,) = (fault for fault in findings.faults if fault.reason == "no text")
    assert unused.message.startswith(f"{folder / 'images/1.png'}: in no row")  # its only row is faulty
    findings.faults.remove(unused)
    places = {fault.message.removeprefix(start).split(":")[0]: fault.reason for fault in findings.faults}
    assert places == {"2": "broken JSON", "3": "empty text", "4": "missing", "5": "duplicate id", "6": "damaged"}
    assert len(findings.faults) == 5
    assert findings.reasons == dict.fromkeys(("broken JSON", "empty text", "duplicate id", "missing", "damaged"), 1)
    told = json.loads(json.dumps(findings.to_json()))
    assert len(told["faults"]) == 5
    assert told["reasons"]["missing"] == 1
    assert told["splits"]["test"]["rows"] == 1
    assert "5 faults" in printed(findings)


def test_damage_in_the_middle_is_found(folder):
    picture = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(picture).save(folder / "images/0.jpg", quality=95)
    data = bytearray((folder / "images/0.jpg").read_bytes())
    del data[len(data) // 2 : len(data) // 2 + 5000]
    (folder / "images/0.jpg").write_bytes(data)
    findings = check(write(folder, row(0, image="images/0.jpg"), row(1)), quiet=True)
    assert [fault.reason for fault in findings.faults] in (["truncated"], ["damaged"])
    assert "pairs.jsonl:1: " in findings.faults[0].message


def test_leaks_by_content_and_by_identity(folder):
    image = Image.open(folder / "images/0.png")
    image.save(folder / "again.bmp")  # other bytes, same pixels
    rows = [row(0), row(1, image_id="cup"), row(2), row(3, "val", image="again.bmp", texts={"en": ["text  0"]})]
    rows += [row(4, "val", image_id="cup"), row(5, "val", texts={"en": ["text 2"]})]
    findings = check(write(folder, *rows), quiet=True)
    assert findings.shared == {"train and val": {"pictures": 2, "texts": 2, "pairs": 1}}
    assert findings.reasons == {"leak": 2}
    assert {fault.message.split("pairs.jsonl:")[1].split(":")[0] for fault in findings.faults} == {"4", "5"}
    assert "is in split train too" in findings.faults[0].message


def test_nothing_usable(folder):
    assert check(write(folder, "{", "["), quiet=True).reasons == {"broken JSON": 2}
    assert check(write(folder, row("x")), quiet=True).reasons == {"missing": 1}
    assert check(write(folder, row("x", split=None)), quiet=True).reasons == {"missing": 1}
    assert check(write(folder), quiet=True).reasons == {"no rows": 1}
    with pytest.raises(UserError):
        check(folder / "none", quiet=True)


def test_messages_are_no_markup(folder):
    findings = check(write(folder, row("[bold]x[/nothing]"), row(1)), quiet=True)
    assert "[bold]x[/nothing]" in printed(findings)


def test_other_corpora(folder, tmp_path):
    assert not check("scenes:count=4,side=32", quiet=True)
    rows = [row(0), row(1), row(0, "test", id="copy")]
    corpora = {split: open_corpus(write(folder, *rows), split) for split in ("train", "test")}
    write_shards(corpora, tmp_path / "built", progress=False)
    findings = check(tmp_path / "built", quiet=True)
    assert findings.reasons == {"leak": 1}
    assert findings.splits["train"].texts == 2


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def test_contact_sheet(folder):
    evil = '<script>alert("x")</script>'
    rows = [row(n, texts={"en": [evil], "zh": ["一只狗"]}, id=f"{evil}{n}") for n in range(6)]
    corpus = open_corpus(write(folder, *rows), "train")
    (folder / "images/3.png").unlink()
    page = Page(contact_sheet(corpus, folder / "new" / "sheet.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.tags].count("figure") == 6
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(sources) == 5
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert sum(evil in words for words in page.words) == 12
    assert page.words.count(" 一只狗") == 6
    assert any("missing" in words for words in page.words)


def test_contact_sheet_draws_by_seed(folder):
    corpus = open_corpus(write(folder, *(row(n) for n in range(6))), "train")
    pages = [contact_sheet(corpus, folder / f"{k}.html", 2, seed).read_text() for k, seed in enumerate((0, 0, 1, 2, 3))]
    assert pages[0] == pages[1]
    assert len(set(pages)) > 2
    with pytest.raises(UserError, match="cannot be written"):
        contact_sheet(corpus, folder)


def test_what_programs_write_for_no_text_is_remarked_on(folder):
    texts = ["nan", "NULL", "N/A", "#VALUE!", "naan bread", "null island"]
    findings = check(write(folder, *(row(n, texts={"en": [text]}) for n, text in enumerate(texts))), quiet=True)
    assert findings.faults == []
    remarks = [remark for remark in findings.remarks if remark.reason == "placeholder text"]
    assert [remark.row for remark in remarks] == [0, 1, 2, 3]
    line = "pairs.jsonl:2: 'NULL' for a text, as programs write an empty cell; write one, or take it out"
    assert remarks[1].message.endswith(line)


def test_pictures_of_rare_endings_are_named(tmp_path):
    for place, name in enumerate(("a.jpg", "b.jpe", "c")):
        Image.new("RGB", (80, 80), (90 * place, 9, 200)).save(tmp_path / name, "JPEG")
        (tmp_path / name).with_suffix(".txt").write_text(f"thing {place}")
    findings = check(tmp_path, quiet=True)
    assert not findings
    assert findings.remarkable["rare ending"] == 2
    assert "b.jpe: read, though its ending is .jpe" in printed(findings).replace("\n", "")
