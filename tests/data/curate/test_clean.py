"""Remarks of the check, its page, and a corpus written without what was found."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.curate.test_check import Page
from tests.data.pairs import write
from tuwen.cli import main
from tuwen.data.built import open_shards
from tuwen.data.curate.check import check
from tuwen.data.curate.check_page import write_page
from tuwen.data.curate.clean import clean
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError


def blocks(seed: int, size=(120, 90)) -> Image.Image:
    """Large patches of colour, as photographs have."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def row(name: str, texts, split="train") -> dict:
    return {"id": name, "image": f"images/{name}.png", "texts": texts, "split": split}


@pytest.fixture
def folder(tmp_path):
    """One row a finding; "fine" has none."""
    images = tmp_path / "corpus" / "images"
    images.mkdir(parents=True)
    made = {
        "fine": blocks(1),
        "first": blocks(2),
        "copy": blocks(2),
        "alike": blocks(2).resize((100, 75)),
        "tiny": blocks(3, (40, 50)),
        "long": blocks(4, (400, 90)),
        "grey": blocks(5).convert("L").convert("RGB"),
        "blank": Image.new("RGB", (100, 100), (250, 250, 250)),
        "german": blocks(6),
        "near": blocks(7),
        "test": blocks(1),
        "likewise": blocks(2).resize((90, 68)),
    }
    for name, picture in made.items():
        picture.save(images / f"{name}.png")
    shutil.copy(images / "first.png", images / "copy.png")
    rows = [
        row("fine", {"en": ["A dog runs over the wet grass of the park in the evening."]}),
        row("first", {"zh": ["紅色的房子，ＡＢＣ"], "en": ["Two children in red coats wait for the bus by the road."]}),
        row("copy", {"zh": ["一只猫"]}),
        row("alike", {"zh": ["两只猫"]}),
        row("tiny", {"zh": ["三只猫"]}),
        row("long", {"zh": ["四只猫"]}),
        row("grey", {"zh": ["五只猫"]}),
        row("blank", {"zh": ["六只猫"]}),
        row("german", {"en": ["Ein schwarzer Hund und ein gefleckter Hund kämpfen", "Dogs"]}),
        row("near", {"en": ["A dog runs over the wet grass of the park in the evening!!"]}),
        row("test", {"zh": ["七只猫"]}, "test"),
        row("likewise", {"zh": ["八只猫"]}, "test"),
    ]
    return write(tmp_path / "corpus", *rows)


EXPECTED = {
    "copy": "duplicate picture",
    "alike": "similar picture",
    "tiny": "small picture",
    "long": "extreme picture",
    "grey": "grey picture",
    "blank": "empty picture",
    "german": "other language",
    "near": "similar text",
}


def told(findings) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for one in findings.remarks:
        found.setdefault(findings.corpora[one.split].record(one.row).id, set()).add(one.reason)
    return found


def test_every_remark_at_its_row(folder):
    findings = check(folder, quiet=True)
    found = told(findings)
    assert found.pop("blank") == {"empty picture", "grey picture"}
    # the order of splits is test, train: the later one is told
    assert found.pop("first") == {"similar picture in another split"}
    assert found.pop("alike") == {"similar picture in another split"}
    assert found == {name: {kind} for name, kind in EXPECTED.items() if name not in ("blank", "alike")}
    assert findings.reasons == {"leak": 1}
    german = next(one for one in findings.remarks if one.reason == "other language")
    assert german.text.startswith("Ein schwarzer")
    assert "said to be en, looks like de" in german.message
    assert "pairs.jsonl:9: " in german.message
    copy = next(one for one in findings.remarks if one.reason == "duplicate picture")
    assert copy.other == ("train", 1)
    plain = json.loads(json.dumps(findings.to_json()))
    assert plain["remarkable"] == findings.remarkable
    assert plain["remarks"][0].keys() == {"reason", "message", "split", "row", "text", "other"}


def test_rows_that_name_one_picture_are_no_copies(folder):
    rows = [row("fine", {"zh": [f"第{n}只猫"]}) | {"id": f"r{n}"} for n in range(3)]
    assert check(write(folder, *rows), quiet=True).remarkable == {}


def test_truncated_texts(folder):
    texts = ["一二三四五六", "一二三"]
    tokenizer = Tokenizer.train(texts, size=60)
    findings = check(write(folder, row("fine", {"zh": texts})), tokenizer, quiet=True, length=6)
    assert findings.splits["train"].truncated == 1 if "train" in findings.splits else findings.splits["test"].truncated
    remark = next(one for one in findings.remarks if one.reason == "truncated text")
    assert (remark.text, "6 tokens, 2 over" in remark.message) == ("一二三四五六", True)


def test_copies_in_another_corpus(folder, tmp_path):
    other = tmp_path / "other"
    (other / "images").mkdir(parents=True)
    shutil.copy(folder / "images/german.png", other / "images/same.png")
    blocks(7, (100, 75)).save(other / "images/like.png")
    write(other, row("same", {"zh": ["甲"]}), row("like", {"zh": ["乙"]}))
    found = told(check(folder, quiet=True, against=[other]))
    assert "picture in another corpus" in found["german"]
    assert "similar picture in another corpus" in found["near"]
    assert "picture in another corpus" not in {reason for name in found if name != "german" for reason in found[name]}


def test_page(folder, tmp_path):
    evil = '<script>alert("x")</script>'
    shutil.copy(folder / "images/tiny.png", folder / "images/evil.png")
    lines = (folder / "pairs.jsonl").read_text()
    (folder / "pairs.jsonl").write_text(lines + json.dumps(row("evil", {"zh": [evil]})))
    page = Page(write_page(check(folder, quiet=True), tmp_path / "new" / "page.html").read_text(encoding="utf-8"))
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    headings = {words.strip() for words in page.words}
    assert {"leak", "similar picture in another split", *EXPECTED.values()} - headings == {"similar picture"}
    assert evil in headings
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(sources) > 10
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    with pytest.raises(UserError, match="cannot be written"):
        write_page(check(folder, quiet=True), tmp_path)


def test_page_and_terminal_are_chinese(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TUWEN_LANG", "zh")
    assert main(["data", "check", str(folder), "--page", str(tmp_path / "page.html")]) == 1
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    words = {words.strip() for words in page.words}
    assert {"泄漏", "另一划分中的相似图片", "小图片", "灰度图片", "行数", "不同的文字", "各行自己写明"} <= words
    assert "1 个问题，10 条提示。问题是错误；提示值得看一看。" in words
    told = [words for words in words if "pairs.jsonl:" in words]
    assert len(told) == 11
    assert all(re.search("[\u4e00-\u9fff]", line.partition(": ")[2]) for line in told)
    out = capsys.readouterr().out
    assert "1 个问题: 1 泄漏" in out
    assert "请只留在一个划分里" in out
    assert "test 和 train 共有 1 图片" in out


def test_clean_removes_what_was_chosen_and_tells_all_of_it(folder, tmp_path):
    findings = check(folder, quiet=True)
    kinds = ["leak", "empty picture", "other language", "similar text"]
    removed = clean(findings, tmp_path / "out", kinds, simplified=True, half=True, progress=False)
    assert removed == {
        "test": {},
        "train": {"leak": 1, "empty picture": 1, "other language": 1, "similar text": 1},
    }
    built = open_shards(tmp_path / "out", "train")
    ids = [built.record(k).id for k in range(len(built))]
    assert ids == ["first", "copy", "alike", "tiny", "long", "grey", "german"]
    assert dict(built.record(0).texts)["zh"] == ["红色的房子,ABC"]
    assert dict(built.record(6).texts)["en"] == ["Dogs"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "removed.jsonl").read_text().splitlines()]
    assert [(line["id"], line["reason"], bool(line["text"])) for line in lines] == [
        ("fine", "leak", False),
        ("blank", "empty picture", False),
        ("german", "other language", True),
        ("near", "similar text", True),
    ]
    assert not check(tmp_path / "out", quiet=True).faults


def test_clean_refuses_what_was_not_found(folder, tmp_path):
    findings = check(folder, quiet=True)
    with pytest.raises(UserError, match=r"nothing is found of a kind 'smal picture'; there are: leak, "):
        clean(findings, tmp_path / "out", ["smal picture"])
    write(folder, row("tiny", {"zh": ["猫"]}))
    with pytest.raises(UserError, match="nothing is left without small picture"):
        clean(check(folder, quiet=True), tmp_path / "out", ["small picture"])
    assert not (tmp_path / "out").exists()


def test_clean_tells_of_lines_that_are_no_rows_and_takes_kinds_of_which_none_was_found(folder, tmp_path):
    write(folder, row("fine", {"zh": ["猫"]}), row("gone", {"zh": ["狗"]}))
    for picture in (folder / "images").iterdir():
        if picture.stem != "fine":
            picture.unlink()
    removed = clean(check(folder, quiet=True), tmp_path / "out", ["similar text", "truncated text"], progress=False)
    assert removed == {"": {"missing": 1}, "train": {}}
    (line,) = map(json.loads, (tmp_path / "out" / "removed.jsonl").read_text().splitlines())
    assert (line["split"], line["row"], line["id"], line["reason"]) == ("", -1, "", "missing")
    assert "pairs.jsonl:2: picture 'images/gone.png'" in line["message"]


def test_commands(folder, tmp_path, capsys):
    words = [str(folder), "--page", str(tmp_path / "p.html"), "--json", "--min-side", "10", "--max-aspect", "9"]
    assert main(["data", "check", *words]) == 1
    found = json.loads(capsys.readouterr().out)["remarkable"]
    assert "small picture" not in found
    assert "extreme picture" not in found
    assert (tmp_path / "p.html").stat().st_size > 10_000
    out = str(tmp_path / "out")
    assert main(["data", "clean", str(folder), "--out", out, "--drop", "small_picture,leak"]) == 0
    assert "1 leak, 1 small picture" in capsys.readouterr().out
    assert main(["data", "clean", str(folder), "--out", out]) == 1
    assert "nothing to do" in capsys.readouterr().err
    assert main(["data", "build", str(folder), "--out", str(tmp_path / "part"), "--fraction", "0.5"]) == 0
    (tmp_path / "ids.txt").write_text("fine\ntiny\n")
    words = ["data", "build", str(folder), "--out", str(tmp_path / "two"), "--ids", str(tmp_path / "ids.txt")]
    assert main(words) == 0
    assert len(open_shards(tmp_path / "two", "train")) == 2
