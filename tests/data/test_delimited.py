"""CSV, TSV and Parquet tables; languages told by script."""

import csv
import pickle
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.pairs import fault, row, with_pictures, write
from tuwen.data.corpora.columns import several
from tuwen.data.corpora.scripts import language_by_script
from tuwen.data.corpora.table import open_table
from tuwen.data.open import open_corpus
from tuwen.data.shards import write_shards


@pytest.fixture
def folder(tmp_path):
    return with_pictures(tmp_path)


class TestDelimited:
    def table(self, folder, rows, name="t.csv", **options):
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, **options).writerows(rows)
        return folder / name

    def test_several_rows_a_picture(self, folder):
        rows = [("Image", "caption", "split", "price"), ("images/1.png", 'a "red", dog', "train", "3")]
        rows += [("images/1.png", "line\nend", "train", ""), ("images/2.png", "一只狗", "train", "5")]
        corpus = open_table(self.table(folder, rows), "train")
        assert [dict(corpus.record(n).texts) for n in range(3)] == [
            {"en": ['a "red", dog']},
            {"en": ["line\nend"]},
            {"zh": ["一只狗"]},
        ]
        assert [corpus.record(n).id for n in range(3)] == ["2", "3", "5"]  # their lines
        assert corpus.record(0).columns == {"price": 3}
        assert corpus.record(0).image_id == corpus.record(1).image_id
        assert corpus.name == "t"
        assert len(corpus.gallery().rows) == 2

    @pytest.mark.parametrize(
        ("name", "options"), [("t.tsv", {"delimiter": "\t"}), ("t.csv", {"delimiter": ";"}), ("t.csv", {})]
    )
    def test_a_column_a_language(self, folder, name, options):
        rows = [
            ("id", "filepath", "text_en", "text_zh"),
            ("a", "images/1.png", "dog", "狗"),
            ("b", "images/2.png", "", "猫"),
        ]
        corpus = open_table(self.table(folder, rows, name, **options), "all")
        assert [dict(corpus.record(n).texts) for n in range(2)] == [{"en": ["dog"], "zh": ["狗"]}, {"zh": ["猫"]}]

    def test_a_column_for_the_language(self, folder):
        rows = [("path", "title", "lang"), ("images/1.png", "Hund", "de"), ("images/2.png", "Katze", "")]
        corpus = open_table(self.table(folder, rows), "all")
        assert corpus.languages == ("de", "en")

    def test_mark_and_crlf(self, folder):
        (folder / "t.csv").write_bytes(b"\xef\xbb\xbfimage,text\r\nimages/1.png,dog\r\n\r\nimages/2.png,cat")
        corpus = open_table(folder / "t.csv", "all")
        assert [dict(corpus.record(n).texts) for n in range(2)] == [{"en": ["dog"]}, {"en": ["cat"]}]

    def test_faults_do_not_swallow_what_follows(self, folder):
        lines = [
            "image,text",
            "images/1.png,one",
            'images/2.png,"open',
            "images/2.png,two,three",
            "images/1.png,",
            ",x",
        ]
        lines += ['images/2.png,"a" b', "images/3.png,four"]
        (folder / "t.csv").write_text("\n".join(lines))
        assert "t.csv:3: " in fault(folder / "t.csv", split="all")
        corpus = open_table(folder / "t.csv", "all", "skip")
        assert [corpus.where(n)[1] for n in range(len(corpus))] == [2, 8]
        assert [(one.line, one.reason) for one in corpus.faults] == [
            (3, "broken row"),
            (4, "broken row"),
            (5, "empty text"),
            (6, "wrong type"),
            (7, "broken row"),
        ]

    @pytest.mark.parametrize(
        ("header", "what"),
        [
            (b"a,text", "no column for the picture"),
            (b"image,a", "no column for texts"),
            (b"image,text,text", "'text' stands twice"),
            (b"", "empty"),
            (b"image;text\rimages/1.png;a", "CR alone"),
        ],
    )
    def test_headers(self, folder, header, what):
        (folder / "t.csv").write_bytes(header + b"\nimages/1.png,a\n")
        message = fault(folder / "t.csv", on_bad="skip")
        assert "t.csv:1: " in message or "t.csv: empty" in message or header == b""
        if header:
            assert what in message


class TestParquet:
    def test_read(self, folder):
        table = {
            "image": ["images/1.png", "images/2.png", "images/3.png"],
            "caption": [["a", "b"], ["猫"], None],
            "n": [1, 2, 3],
        }
        pq.write_table(pa.table(table), folder / "t.parquet", row_group_size=2)
        assert "t.parquet:3: no text" in fault(folder / "t.parquet", split="all")
        corpus = pickle.loads(pickle.dumps(open_table(folder / "t.parquet", "all", "skip")))
        assert [dict(corpus.record(n).texts) for n in range(2)] == [{"en": ["a", "b"]}, {"zh": ["猫"]}]
        assert corpus.record(1).columns == {"n": 2}
        assert corpus.record(1).id == "2"
        assert corpus.image(1).unique().tolist() == [20]

    def test_as_the_jsonl(self, folder):
        rows = [row(1), row(2, split="val", texts={"en": ["x"]})]
        pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
        one, two = open_table(folder / "t.parquet", "val"), open_table(write(folder, *rows), "val")
        assert one.record(0) == two.record(0)
        assert one.fingerprint == two.fingerprint


SCRIPTS = {
    "en": ("A dog", "Ünïcödé", "ＡＢＣ", "Hund und Katze"),
    "zh": ("一只狗", "iPhone 手机壳", "㐀"),
    "und": ("いぬ", "漢字とかな", "개", "собака", "12 34", ""),
}


@pytest.mark.parametrize(("language", "text"), [(one, text) for one, texts in SCRIPTS.items() for text in texts])
def test_language_by_script(language, text):
    assert language_by_script(text) == language


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("['a bird', 'a red bird']", ["a bird", "a red bird"]),
        ('["it\'s one", \'two "2"\',]', ["it's one", 'two "2"']),
        ("['a bird'\n 'a red bird']", ["a bird", "a red bird"]),
        (r"['a\'b', '\u72d7']", ["a'b", "狗"]),
        ("[a dog] 'runs'", "[a dog] 'runs'"),
        ("['open", "['open"),
        (r"['\N{no such}']", r"['\N{no such}']"),
        ("['a', 1]", "['a', 1]"),
        ("[]", None),
        ("", ""),
        (None, None),
    ],
)
def test_cells_that_are_lists(cell, texts):
    assert several(cell) == texts


def test_a_cell_of_brackets_costs_no_time():
    for cell in ("[" * 90_000, "['" + "a', 'a" * 10_000, "[" + "'a' " * 20_000 + "x]", "['" + "\\'" * 40_000):
        began = time.monotonic()
        several(cell)
        assert time.monotonic() - began < 2


def test_numbers_of_a_table_are_numbers_in_its_shards(tmp_path):
    folder = with_pictures(tmp_path)
    lines = [
        "image,text,price,code,mixed",
        "images/1.png,dog,12,007,1",
        "images/2.png,cat,,08,待定",
        "images/3.png,cow,2.5,9,3",
    ]
    (folder / "pairs.csv").write_text("\n".join(lines))
    corpus = open_corpus(folder, "all")
    write_shards({"all": corpus}, tmp_path / "built", progress=False)
    for read in (corpus, open_corpus(tmp_path / "built", "all")):
        columns = [dict(read.record(row).columns) for row in range(3)]
        assert [row["price"] for row in columns] == [12, None, 2.5]
        assert [row["code"] for row in columns] == ["007", "08", "9"]
        assert [row["mixed"] for row in columns] == ["1", "待定", "3"]
