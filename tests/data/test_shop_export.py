"""A shop's export: GB18030, headers in Chinese, lists in cells, spreadsheets, names of its own for columns."""

import csv
import datetime
import io
import json
import random
import zipfile

import openpyxl
import pytest
from PIL import Image

from tests.fuzzing import mutate
from tuwen import cli
from tuwen.data.corpora import sheet
from tuwen.data.corpora.columns import CHINESE, column_names, parse_renames
from tuwen.data.corpora.lines import table_encoding
from tuwen.data.curate.check import check
from tuwen.data.open import open_corpus, splits_of
from tuwen.errors import UserError

HEADER = ("图片", "商品标题", "价格", "标签", "类目")
ROWS = [("a.png", "红色连衣裙", "199", "促销,包邮", "女装"), ("b.png", "“蓝色”牛仔裤, 男", "89.5", "新品", "男装")]


@pytest.fixture
def shop(tmp_path):
    for place, name in enumerate("ab"):
        Image.new("RGB", (9, 7), (90 * place, 10, 10)).save(tmp_path / f"{name}.png")
    return tmp_path


def exported(shop, header=HEADER, rows=ROWS, encoding="gb18030"):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows([header, *rows])
    (shop / "goods.csv").write_bytes(text.getvalue().encode(encoding))
    return shop / "goods.csv"


def workbook(shop, rows, name="goods.xlsx"):
    book = openpyxl.Workbook()
    second = book.create_sheet("第二页")
    for cells in rows:
        second.append(cells)
    book.save(shop / name)
    return shop / name


def opened(path) -> int | str:
    """How many rows are usable; 0 where one plain line says why none is, and the line where it is not plain."""
    try:
        return len(open_corpus(path, "all", "skip"))
    except UserError as error:
        return 0 if str(error).isprintable() and len(str(error)) < 1200 else str(error)


@pytest.mark.parametrize("encoding", ["gb18030", "gbk", "utf-8", "utf-8-sig"])
def test_an_export_in_chinese(shop, encoding):
    corpus = open_corpus(exported(shop, encoding=encoding), "all")
    records = [corpus.record(row) for row in range(2)]
    assert [dict(record.texts) for record in records] == [{"zh": ["红色连衣裙"]}, {"zh": ["“蓝色”牛仔裤, 男"]}]
    assert records[0].columns == {"价格": 199, "tags": ["促销", "包邮"], "类目": "女装"}
    assert records[1].columns == {"价格": 89.5, "tags": ["新品"], "类目": "男装"}


def test_the_encoding_is_that_of_most_lines(shop):
    path = exported(shop, encoding="utf-8")
    path.write_bytes(path.read_bytes() + "a.png,裙子,1,,\r\n".encode("gb18030"))
    assert table_encoding(path) == "UTF-8"
    corpus = open_corpus(path, "all", "skip")
    assert (len(corpus), corpus.skipped) == (2, {"not UTF-8": 1})
    path = exported(shop)
    path.write_bytes(path.read_bytes() + b"a.png,\xff\xff,1,,\r\n" + "b.png,裤子,2,,\r\n".encode("gb18030"))
    corpus = open_corpus(path, "all", "skip")
    assert (len(corpus), corpus.skipped) == (3, {"not GB18030": 1})
    assert corpus.record(2).texts == {"zh": ["裤子"]}


def test_names_of_columns():
    assert column_names([" 图片 ", "商品标题", "Price", "Caption"]) == ["image", "title", "Price", "caption"]
    assert column_names(["图片", "image"]) == ["图片", "image"]  # two of one name: the plain one is it
    assert column_names(["图片", "主图", "x"], {"x": "text"}) == ["image", "主图", "text"]
    assert all(name == name.lower() and column_names([name]) == [CHINESE[name]] for name in CHINESE)
    assert parse_renames(["主图=image", "品 名 = title"]) == {"主图": "image", "品 名": "title"}
    for word in ("主图", "=image", "a=b=c", "a,b=image"):
        with pytest.raises(UserError, match="write COLUMN=NAME"):
            parse_renames([word])


def test_columns_of_other_names(shop, capsys):
    path = exported(shop, ("大图", "叫法", "价格", "标签", "类目"))
    assert cli.main(["data", "check", str(path)]) == 1
    assert "--columns YOURS=image" in capsys.readouterr().err
    words = ["data", "build", str(path), "--out", str(shop / "out"), "--columns", "大图=image", "叫法=text_zh"]
    assert cli.main([*words, "价格=price"]) == 0
    splits = splits_of(shop / "out")
    records = [c.record(row) for split in splits for c in [open_corpus(shop / "out", split)] for row in range(len(c))]
    assert sorted(record.texts["zh"][0] for record in records) == ["“蓝色”牛仔裤, 男", "红色连衣裙"]
    assert {record.columns["price"] for record in records} == {199, 89.5}
    assert "price" in open_corpus(f"columns:大图=image,叫法=text,价格=price:{path}", "all").record(0).columns


def test_a_spreadsheet(shop):
    rows = [HEADER, ("a.png", 2024, 199.0, "促销，包邮", None), (), ("b.png", "裤子", 89.5, None, "男装")]
    rows[0] = (*HEADER, "上架", "编号")
    rows[1] = (*rows[1], datetime.datetime(2024, 5, 31), 1001.0)
    rows[3] = (*rows[3], datetime.datetime(2024, 5, 31, 8, 30), 1002)
    path = workbook(shop, rows)
    corpus = open_corpus(path, "all")
    assert [corpus.where(row)[1] for row in range(2)] == [2, 4]
    assert [corpus.record(row).id for row in range(2)] == ["1001", "1002"]
    assert [dict(corpus.record(row).texts) for row in range(2)] == [{"und": ["2024"]}, {"zh": ["裤子"]}]
    assert corpus.record(0).columns == {"价格": 199, "tags": ["促销", "包邮"], "上架": "2024-05-31"}
    assert corpus.record(1).columns == {"价格": 89.5, "类目": "男装", "上架": "2024-05-31T08:30:00"}
    path.rename(shop / "pairs.xlsx")
    assert len(open_corpus(shop, "all")) == 2


def test_spreadsheets_that_are_none(shop, monkeypatch):
    path = workbook(shop, [HEADER, ROWS[0]])
    sound = path.read_bytes()
    dice = random.Random(0)
    for data in [b"", b"PK\x03\x04", sound[:500], *(mutate(sound, dice) for _ in range(60))]:
        path.write_bytes(data)
        assert opened(path) in (0, 1)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("xl/workbook.xml", "w") as file:
        file.write(bytes(2**20 + 1))
    monkeypatch.setattr(sheet, "LARGEST", 2**20)
    with pytest.raises(UserError, match="unpacked; save it as"):
        open_corpus(path, "all")
    path.with_suffix(".xls").write_bytes(b"\xd0\xcf\x11\xe0")
    with pytest.raises(UserError, match=r"save it as \.xlsx"):
        open_corpus(path.with_suffix(".xls"), "all")
    with pytest.raises(UserError, match="empty"):
        open_corpus(workbook(shop, [(None, " ")]), "all")


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_metadata_beside_pictures(shop, name):
    if name.endswith("csv"):
        (shop / name).write_text("file_name,text,n\na.png,a dog,1\nb.png,a cat,2\n")
    else:
        lines = [{"file_name": "a.png", "text": "a dog", "n": 1}, {"n": 2, "file_name": "b.png", "text": "a cat"}]
        (shop / name).write_text("\n".join(map(json.dumps, lines)) + '\n{"file_name": "a.png"}\n3\n')
    corpus = open_corpus(shop, "all", "skip")
    assert [dict(corpus.record(row).texts) for row in range(2)] == [{"en": ["a dog"]}, {"en": ["a cat"]}]
    assert [corpus.record(row).columns["n"] for row in range(2)] == [1, 2]
    assert corpus.skipped == ({} if name.endswith("csv") else {"missing key": 1, "wrong type": 1})


def test_a_picture_in_no_row_is_a_fault(shop):
    path = exported(shop, rows=ROWS[:1])
    findings = check(path, quiet=True)
    assert [fault.reason for fault in findings.faults] == ["no text"]
    assert findings.faults[0].message.startswith(f"{shop / 'b.png'}: in no row of goods.csv")
    (shop / "vqa.jsonl").write_text('{"id": "1", "image": "b.png", "question": "What?", "answers": ["x"]}\n')
    assert not check(path, quiet=True)
    exported(shop, rows=[("../../../usr/share/pixmaps/x.png", *ROWS[0][1:]), *ROWS])
    assert "pixmaps" not in str([f.message for f in check(path, quiet=True).faults if f.reason == "no text"])
