"""Tables of pairs: what is read, what is refused and in which words, splits, identities, fingerprints."""

import json
import os
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.pairs import fault, row, with_pictures, write
from tuwen.data.corpora.files import splits_of
from tuwen.data.corpora.table import open_table, table_source
from tuwen.data.corpus import hashed_split
from tuwen.data.curate.check import check
from tuwen.data.open import open_corpus
from tuwen.data.open import splits_of as open_splits
from tuwen.errors import UserError

KEYS = st.sampled_from(["id", "image", "texts", "split", "en"]) | st.text()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
    max_leaves=8,
)


@pytest.fixture
def folder(tmp_path):
    return with_pictures(tmp_path)


class TestRead:
    def test_a_row_becomes_a_record(self, folder):
        write(folder, row(1, texts={"zh": ["一", "二"], "en": "one"}, category="x", boxes=[[0, 0, 1, 1]]), row(2))
        corpus = open_table(folder, "train")
        record = corpus.record(0)
        assert (record.id, dict(record.texts)) == ("1", {"zh": ["一", "二"], "en": ["one"]})
        assert record.columns == {"category": "x", "boxes": [[0, 0, 1, 1]]}
        assert corpus.languages == ("en", "zh")
        assert (len(corpus), corpus.name, corpus.split) == (2, "pairs", "train")
        assert corpus.image(1).shape == (3, 4, 6)
        assert corpus.image(1).unique().tolist() == [20]
        assert corpus.where(1) == (folder / "pairs.jsonl", 2)
        assert not corpus.skipped

    def test_texts_in_every_form(self, folder):
        write(
            folder, row(1, texts="A dog."), row(2, texts=["一只狗", "A dog.", "犬です", "42"]), row(3, texts={"en": []})
        )
        corpus = open_table(folder, "train")
        texts = [dict(corpus.record(n).texts) for n in range(3)]
        assert texts == [{"en": ["A dog."]}, {"zh": ["一只狗"], "en": ["A dog."], "und": ["犬です", "42"]}, {}]
        assert open_table(write(folder, row(1, texts={})), "train").languages == ()

    def test_aligned_sentences_are_texts_a_language_each(self, folder):
        one = {"id": 1, "image": "images/1.png", "split": "train", "en": "A dog.", "zh-Hans": "一只狗。", "source": "x"}
        lines = [one, {**one, "id": 2, "zh-Hans": "猫"}, {"id": 3, "image": "images/1.png", "split": "train"}]
        lines += [{**one, "id": 4, "de": 7}, {**one, "id": 5, "texts": {"fr": "Un chien."}}]
        path = folder / "mmt.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        corpus = open_table(path, "train", "skip")
        assert [dict(corpus.record(n).texts) for n in range(3)] == [
            {"en": ["A dog."], "zh-Hans": ["一只狗。"]},
            {"en": ["A dog."], "zh-Hans": ["猫"]},
            {"fr": ["Un chien."]},
        ]
        assert corpus.record(0).columns == {"source": "x"}
        assert corpus.name == folder.name
        assert dict(corpus.skipped) == {"missing key": 1, "wrong type": 1}
        assert "no sentence; give one a language" in str(corpus.faults[0])
        with pytest.raises(UserError, match=r"mmt\.jsonl:3"):
            open_table(path, "train")

    def test_mark_line_ends_and_blank_lines_do_not_matter(self, folder):
        plain = open_table(write(folder, row(1), row(2)), "train")
        records = [plain.record(n) for n in range(2)]
        lines = [json.dumps(row(n), indent=None, separators=(" ,", " : ")).encode() for n in (1, 2)]
        (folder / "pairs.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n  \r\n".join(lines))
        odd = open_table(folder, "train")
        assert [odd.record(n) for n in range(2)] == records
        assert odd.fingerprint == plain.fingerprint
        assert odd.where(1)[1] == 4

    def test_numbers_are_ids(self, folder):
        assert open_table(write(folder, row(id=17)), "train").record(0).id == "17"

    def test_it_travels_to_other_processes(self, folder):
        corpus = pickle.loads(pickle.dumps(open_table(write(folder, row(1), row(2)), "train")))
        assert corpus.record(1).id == "2"
        assert corpus.image(0).unique().tolist() == [10]

    def test_rows_out_of_range(self, folder):
        corpus = open_table(write(folder, row(1)), "train")
        for wrong in (1, -1):
            with pytest.raises(IndexError):
                corpus.record(wrong)

    def test_a_file_changed_meanwhile(self, folder):
        corpus = open_table(write(folder, row(1), row(2)), "train")
        write(folder, b"{}")
        with pytest.raises(UserError, match=r"pairs.jsonl: changed since"):
            corpus.record(1)


class TestIdentity:
    def test_same_picture_same_identity_by_content(self, folder):
        shutil.copy(folder / "images/1.png", folder / "images/copy.png")
        rows = [row(1), row(2), row("a", image="images/copy.png"), row("b", image="images/../images/1.png")]
        ids = open_table(write(folder, *rows), "train").image_ids().tolist()
        assert ids[0] == ids[2] == ids[3] != ids[1]

    def test_a_given_identity_wins(self, folder):
        rows = [row(1, image_id="x"), row(2, image_id="x"), row(3, image_id=7)]
        ids = open_table(write(folder, *rows), "train").image_ids().tolist()
        assert ids[0] == ids[1] != ids[2]

    def test_gallery_joins_rows_of_a_picture(self, folder):
        rows = [row(1, texts={"en": ["a", "b"]}), row(2, texts={"en": ["b"]}), row("c", image="images/1.png")]
        gallery = open_table(write(folder, *rows), "train").gallery("en")
        assert gallery.rows == [0, 1]
        assert [text.text for text in gallery.texts] == ["a", "b", "picture c"]
        assert [gallery.relevance.images_of(t).tolist() for t in range(3)] == [[0], [0, 1], [0]]

    def test_fingerprint_changes_when_and_only_when_the_content_does(self, folder, tmp_path):
        first = open_table(write(folder, row(1), row(2)), "train").fingerprint
        moved = tmp_path / "elsewhere"
        shutil.copytree(folder, moved)
        (moved / "images/1.png").rename(moved / "images/renamed.png")
        assert open_table(write(moved, row(1, image="images/renamed.png"), row(2)), "train").fingerprint == first
        changes = [
            {"id": "x"},
            {"texts": {"en": ["other"]}},
            {"texts": {"zh": ["picture 1"]}},
            {"note": 1},
            {"image_id": 1},
        ]
        others = [open_table(write(folder, row(1, **change), row(2)), "train").fingerprint for change in changes]
        others.append(open_table(write(folder, row(2), row(1)), "train").fingerprint)
        Image.new("RGB", (6, 4), (11, 10, 10)).save(folder / "images/1.png")
        others.append(open_table(write(folder, row(1), row(2)), "train").fingerprint)
        assert len({first, *others}) == 1 + len(others)


class TestSplits:
    def test_named(self, folder):
        write(folder, row(1), row(2, split="val"), row(3, split="iconic", texts={"zh": ["三"]}))
        assert splits_of(table_source(folder)) == ("iconic", "train", "val")
        corpus = open_table(folder, "val")
        assert [corpus.record(0).id, len(corpus)] == ["2", 1]
        assert corpus.languages == ("en", "zh")  # of the whole table, so that indices agree between splits
        assert fault(folder, split="test").endswith("no split 'test'; there are: iconic, train, val")
        assert len(open_table(folder, "all")) == 3

    def test_some_unnamed(self, folder):
        write(folder, row(1), row(2, split=None))
        assert "pairs.jsonl:2: no split" in fault(folder)
        assert open_table(folder, "train", "skip").skipped == {"no split": 1}

    def test_by_hash_of_the_picture(self, folder):
        rows = []
        for n in range(60):
            Image.new("RGB", (2, 2), (n, 0, 0)).save(folder / "images" / f"n{n}.png")
            rows += [
                row(f"{n}a", image=f"images/n{n}.png", split=None),
                row(f"{n}b", image=f"images/n{n}.png", split=None),
            ]
        write(folder, *rows)
        train, test = open_table(folder, "train"), open_table(folder, "test")
        assert len(train) + len(test) == 120
        assert not set(train.image_ids()) & set(test.image_ids())
        assert all(hashed_split(str(number)) == "test" for number in test.image_ids().tolist())
        assert 1 < len(test) < 40
        assert "hash" in test.split_rule
        assert splits_of(table_source(folder)) == ("test", "train")
        assert "no row names its split" in fault(folder, split="val")

    def test_an_empty_share(self, folder):
        write(folder, row(1, split=None))
        there = open_table(folder, "all").image_ids().tolist()
        other = {"train": "test", "test": "train"}[hashed_split(str(there[0]))]
        assert "there are: " in fault(folder, split=other)


LINES = {
    "broken JSON": (b'{"id": "9", "image": ', "broken JSON at column 21: Expecting value"),
    "two objects": (b"{} {}", "broken JSON"),
    "CR": (b"{}\r{}\r", "lines end in CR alone"),
    "a list": (b"[1]", "not a list"),
    "a number": (b"17", "not a number"),
    "NaN": (b'{"id": NaN}', "NaN"),
    "twice a key": (b'{"id": "9", "id": "8"}', "key 'id' stands twice"),
    "deep": (b"[" * 100000, "nested too deeply"),
    "NUL": (b'{"id": "\0"}', "NUL"),
    "GB18030": ('{"id": "照片"}'.encode("gb18030"), "GB18030"),
    "Latin-1": ('{"id": "caf\xe9 olé"}'.encode("latin-1"), "Latin-1"),
    "half a pair": (b'{"id": "\\ud83d", "image": "images/1.png", "texts": {}}', "half a character"),
    "long number": (b'{"id": ' + b"9" * 5000 + b"}", "broken JSON"),
    "no id": ({"image": "images/1.png", "texts": {}}, "no key 'id'"),
    "near id": ({"ID": "9", "image": "images/1.png", "texts": {}}, "no key 'id' but 'ID'"),
    "near image": ({"id": "9", "filepath": "images/1.png", "texts": {}}, "no key 'image' but 'filepath'"),
    "near texts": ({"id": "9", "image": "images/1.png", "captions": {}}, "no key 'texts' but 'captions'"),
    "near split": ({"id": "9", "image": "images/1.png", "texts": {}, "spilt": "train"}, "no key 'split' but 'spilt'"),
    "id true": (row(id=True), "id is true or false"),
    "empty id": (row(id=" "), "id is empty"),
    "image null": (row(image=None), "image is null"),
    "texts a number": (row(texts=3), "a text is a string, not a number"),
    "texts null": (row(texts=None), "not null"),
    "nested texts": (row(texts={"en": [["a"]]}), "not a list"),
    "language": (row(texts={"in English": ["a"]}), "no language code"),
    "empty text": (row(texts={"en": ["a", ""]}), "an empty text"),
    "blank text": (row(texts={"en": ["\u200b\u3000\n"]}), "an empty text"),
    "split a number": (row(split=3), "split is a number"),
    "missing": (row(image="images/none.png"), "missing"),
    "backslash": (row(image="images\\1.png"), "write / between folders"),
    "a folder": (row(image="images"), "not a file"),
    "dots": (row(image="../secret.png"), "leaves the folder"),
    "hidden dots": (row(image="images/../../pairs/../secret.png"), "leaves the folder"),
    "absolute": (row(image="/etc/passwd"), "not a path from the folder"),
    "URL": (row(image="http://localhost/1.png"), "not a path from the folder"),
    "file URL": (row(image="file:///etc/passwd"), "not a path from the folder"),
    "NUL path": (row(image="images/1.png\0.jpg"), "not a path from the folder"),
    "long path": (row(image="a" * 5000), "unreadable"),
    "link out": (row(image="out.png"), "leaves the folder"),
    "linked folder": (row(image="away/secret.png"), "leaves the folder"),
    "link loop": (row(image="loop.png"), "unreadable"),
    "pipe": (row(image="pipe.png"), "not a file"),
    "truncated": (row(image="cut.jpg"), "truncated"),
    "no picture": (row(image="text.png"), "not a picture"),
    "empty picture": (row(image="empty.png"), "empty"),
}


class TestFaults:
    @pytest.fixture
    def hostile(self, folder):
        Image.new("RGB", (6, 4)).save(folder.parent / "secret.png")
        (folder / "out.png").symlink_to(folder.parent / "secret.png")
        (folder / "away").symlink_to(folder.parent)
        (folder / "loop.png").symlink_to(folder / "loop.png")
        os.mkfifo(folder / "pipe.png")
        Image.effect_noise((60, 40), 90).save(folder / "cut.jpg")
        (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-90])
        (folder / "text.png").write_text("no picture")
        (folder / "empty.png").touch()
        return folder

    @pytest.mark.parametrize("kind", LINES)
    def test_stop_names_the_line_and_skip_counts_it(self, hostile, kind):
        line, what = LINES[kind]
        write(hostile, row(2), line, row(3))
        message = fault(hostile)
        assert message.startswith(f"{hostile}/pairs.jsonl:2: ")
        assert what in message
        corpus = open_table(hostile, "train", on_bad="skip")
        assert [corpus.record(n).id for n in range(len(corpus))] == ["2", "3"]
        assert corpus.skipped.total() == 1
        assert str(corpus.faults[0]) == message

    def test_links_within_the_folder_are_fine(self, folder):
        (folder / "link.png").symlink_to("images/1.png")
        (folder.parent / "door").symlink_to(folder)
        write(folder, row(1, image="link.png"))
        assert open_table(folder.parent / "door", "train").image(0).unique().tolist() == [10]

    def test_duplicate_id(self, folder):
        write(folder, row(1), row(2), row(1, split="val"))
        assert "pairs.jsonl:3: id '1' stands in line 1 too" in fault(folder)
        assert open_table(folder, "train", "skip").skipped == {"duplicate id": 1}

    def test_a_very_long_line(self, folder):
        write(folder, row(1), b'{"id": "' + b"x" * (17 * 2**20), row(2))
        assert "pairs.jsonl:2: over 16 MiB" in fault(folder)
        corpus = open_table(folder, "train", "skip")
        assert len(corpus) == 2
        assert corpus.where(1)[1] == 3

    def test_long_texts_in_messages_are_cut(self, folder):
        assert len(fault(write(folder, row(1), row(image="b/" * 900)))) < 700

    def test_utf16(self, folder):
        (folder / "pairs.jsonl").write_text(json.dumps(row(1)), encoding="utf-16")
        assert "UTF-16" in fault(folder, on_bad="skip")

    @pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
    def test_empty(self, folder, content):
        (folder / "pairs.jsonl").write_bytes(content)
        assert "no rows" in fault(folder)

    def test_nothing_usable(self, folder):
        message = fault(write(folder, b"{", row(image="none.png")), on_bad="skip")
        assert "no usable row" in message
        assert "1 broken JSON" in message
        assert "1 missing" in message

    def test_wrong_arguments(self, folder):
        assert "on_bad is 'maybe'" in fault(write(folder, row(1)), on_bad="maybe")
        assert "no table" in fault(folder / "images")
        assert "no such file" in fault(folder / "none")
        assert "not a table by its name" in fault(folder / "images" / "1.png")

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.binary(max_size=60), max_size=6), st.sampled_from(["jsonl", "csv", "tsv", "parquet"]))
    def test_random_bytes_are_a_users_mistake(self, tmp_path_factory, lines, kind):
        path = tmp_path_factory.mktemp("random") / f"t.{kind}"
        path.write_bytes((b"image,text\n" if kind == "csv" else b"") + b"\n".join(lines))
        for on_bad in ("stop", "skip"):
            with pytest.raises(UserError):
                open_table(path, "train", on_bad)

    @settings(max_examples=150, deadline=None)
    @given(VALUES)
    def test_random_values_are_a_users_mistake(self, tmp_path_factory, value):
        path = tmp_path_factory.mktemp("random") / "t.jsonl"
        path.write_text(json.dumps({"id": "1", "image": "1.png", "texts": value}) + "\n" + json.dumps(value))
        with pytest.raises(UserError):
            open_table(path, "train")


def test_a_million_rows_cost_little_memory(folder):
    """Rows are kept as numbers: what a corpus holds grows by 24 bytes a row."""
    write(folder, *(row(n, image="images/1.png") for n in range(3000)))
    small = len(pickle.dumps(open_table(folder, "train")))
    write(folder, *(row(n, image="images/1.png") for n in range(6000)))
    assert (len(pickle.dumps(open_table(folder, "train"))) - small) / 3000 <= 25
    assert np.unique(open_table(folder, "train").image_ids()).size == 1


def test_a_parquet_table_that_holds_its_pictures(folder):
    names = ["images/1.png", "images/2.png"]
    inside = [{"bytes": (folder / name).read_bytes(), "path": None} for name in names]
    more = {"id": ["a", "b"], "text": ["a dog", "a cat"], "price": [1.5, 2.0], "split": ["day", "night"]}
    for pictures in (inside, [cell["bytes"] for cell in inside]):
        pq.write_table(pa.table({"image": pictures, **more}), folder / "mine.parquet")
        assert open_splits(folder / "mine.parquet") == ("day", "night")
        corpus = pickle.loads(pickle.dumps(open_corpus(folder / "mine.parquet", "night")))
        record = corpus.record(0)
        assert (record.id, dict(record.texts), record.columns) == ("b", {"en": ["a cat"]}, {"price": 2.0})
        assert corpus.image(0).unique().tolist() == [20]
        assert "rare ending" not in check(folder / "mine.parquet", quiet=True).remarkable  # a place in a file
    pq.write_table(pa.table({"image": names, **more}), folder / "mine.parquet")  # paths, as ever
    assert open_corpus(folder / "mine.parquet", "day").image(0).unique().tolist() == [10]
    pq.write_table(pa.table({"image": [{"bytes": b"", "path": "../x.png"}], "text": ["x"]}), folder / "mine.parquet")
    with pytest.raises(UserError, match="outside: the path leaves the folder"):
        open_corpus(folder / "mine.parquet", "all")
