"""Every public format against a small copy in its own layout: what becomes of it, row by row."""

import base64
import functools
import json
import shutil
import subprocess
import sys
import time

import pyarrow.csv
import pytest

from tests.data import published_asked
from tests.data.made import json_lines, picture, put
from tests.data.published import MAKERS, icm, icr, tar
from tuwen.cli import main
from tuwen.data import shards
from tuwen.data.built import open_shards
from tuwen.data.classes import classes_of
from tuwen.data.corpora.captions import joined
from tuwen.data.corpora.faults import RowError
from tuwen.data.corpora.published import find_format, formats
from tuwen.data.open import open_corpus, splits_of
from tuwen.data.shards import write_shards
from tuwen.errors import UserError

# split -> [(grey of the picture, texts by language)]
FLICKR = {"train": [(40, {"en": ["Picture 1.jpg.", "Seen."]}), (90, {"en": ["Picture 2.jpg.", "Seen."]})]}
FLICKR |= {"test": [(140, {"en": ["Picture 3.jpg.", "Seen."]})]}
MATCHING = {
    "train": [(40, {"zh": ["红色沙发上的白猫"]}), (80, {"zh": ["雪山日出"]})],
    "val": [(120, {"zh": ["海边"]})],
}
RETRIEVAL = {"train": [(40, {"zh": ["白猫", "猫在沙发上"]}), (80, {"zh": ["雪山"]})], "val": [(120, {"zh": ["海边"]})]}
CLIP = {
    "train": [(30, {"zh": ["高级感托特包斜挎"]}), (60, {"zh": ["高级感托特包斜挎"]}), (90, {"zh": ["白色连衣裙"]})],
    "val": [(150, {"zh": ["蓝帽"]})],
    "test": [(120, {})],
}
STAMP = {"zh": ["东西。"], "zh-tw": ["東西"], "en-gb": ["Thing"]}
REPORTS = [
    {"en": [f"The lungs of study {n} are clear. No dog is seen.", f"No acute process in {n}."]} for n in range(3)
]
OPEN = {n: {"en": [f"No dog in {n}. XXXX.", f"Clear {n}."]} for n in (1, 6)}
EXPECTED = {
    "aic-icc": {split: [(grey, {"zh": ["一个女人", "女人在走"]})] for split, grey in (("train", 70), ("val", 140))},
    "chinese-clip": CLIP,
    "muge": CLIP,
    "chinese-clip-lmdb": {"train": [(30, {"zh": ["高级感托特包"]}), (60, {"zh": ["高级感托特包"]})]},
    "coco-cn": {
        "train": [(20, {"zh": ["一只猫坐在沙发上"]})],
        "val": [(80, {"zh": ["两个人"]})],
        "test": [(140, {"zh": ["城市夜景", "夜晚的街道"]})],
    },
    "coco-karpathy": FLICKR,
    "flickr30k-karpathy": FLICKR,
    "flickr8k-karpathy": FLICKR,
    "flickr30k-cn": {
        "train": [(110, {"zh": ["两个男孩，在跑", "人"]})],
        "val": [(120, {"zh": ["一只狗", "人"]})],
        "test": [(130, {"zh": ["男孩是高兴的，在跑", "人"]})],
    },
    "flickr30k-cna": {
        "train": [(123, {"zh": ["两个男孩", "男孩在花园"]}), (7, {"zh": ["一只狗"]})],
        "val": [(8, {"zh": ["一匹马"]})],
        "test": [(9, {"zh": ["一只鸟"]})],
    },
    "flickr8k-cn": {
        "train": [(50, {"zh": ["一个小孩爬楼梯", "小孩"]})],
        "val": [(100, {"zh": ["一只狗"]})],
        "test": [(150, {"zh": ["一匹马"]})],
    },
    "huggingface": {
        "train": [(grey, {"en": [f"grey {grey}"], "zh": [f"灰 {grey}"]}) for grey in (30, 60, 90)],
        "test": [(120, {"en": ["grey 120"], "zh": ["灰 120"]})],
    },
    "icm": MATCHING,
    "iqm": MATCHING,
    "icr": RETRIEVAL,
    "iqr": RETRIEVAL,
    "imagenet": {
        "train": [(30, {"en": ["tench", "Tinca tinca"]}), (60, {"en": ["goldfish"]})],
        "val": [(90, {"en": ["goldfish"]})],
    },
    "chexpert": {
        split: [(grey, {}) for grey in greys]
        for split, greys in (("train", (40, 80)), ("val", (120, 160)), ("test", (200,)))
    },
    "m5product": {
        split: [(60 * n + 40, {"zh": [f"狗粮{n}"]})] for n, split in enumerate(("train", "query", "gallery"))
    },
    "mimic-cxr": {
        "train": [(20, REPORTS[0]), (40, REPORTS[0]), (70, REPORTS[1])],
        "val": [(120, REPORTS[2]), (140, REPORTS[2])],
        "test": [(170, {"en": ["No dog in 3."]}), (190, {"en": ["No dog in 3."]})],
    },
    "mimic-cxr-studies": {
        "train": [(40, REPORTS[0])],
        "val": [(120, REPORTS[2])],
        "test": [(170, {"en": ["No dog in 3."]})],
    },
    "open-i": {
        "train": [(30, OPEN[1]), (40, OPEN[1]), (90, {"en": ["Clear 3."]})],
        "test": [(180, OPEN[6]), (190, OPEN[6])],
    },
    "open-i-studies": {"train": [(30, OPEN[1])], "test": [(180, OPEN[6])]},
    "product1m": {
        "train": [(20, {"zh": ["韩国AHC黄金水乳套装"]})],
        "val": [(60, {"zh": ["AHC黄金套盒正品"]})],
        "test": [(100, {"zh": ["AHC黄金三件套装"]})],
        "gallery": [(140, {"zh": ["AHC面霜"]}), (180, {"zh": ["AHC水"]})],
    },
    "roco": {
        split: [(60 * n + 20, {"en": [f"A dog in {name}, 1."]}), (60 * n + 40, {"en": [f"Its lungs, {n}."]})]
        for n, (split, name) in enumerate((("train", "train"), ("val", "validation"), ("test", "test")))
    },
    "roco-v2": {
        split: [(60 * n + 40, {"en": [f"A dog, in {name}."]})]
        for n, (split, name) in enumerate((("train", "train"), ("val", "valid"), ("test", "test")))
    },
    "multi30k-task1": {
        "train": [(40 * n, {"en": [f"dog {n}.jpg"], "de": [f"Hund {n}.jpg"]}) for n in (1, 2)],
        "test_2016_flickr": [(120, {"en": ["dog 3.jpg"], "de": ["Hund 3.jpg"]})],
    },
    "multi30k-task2": {"train": [(40, {"en": ["dog 1", "dog 2"], "de": ["Hund 1", "Hund 2"]})]},
    "tuxpaint": {
        "train": [(grey, {"en": ["A frog."], **STAMP}) for grey in (64, 128)],
        "test": [(191, {"en": ["A cat."], **STAMP})],
    },
    "webdataset": {"train": [(40, {"en": ["a white cat", "title 0"]}), (90, {"zh": ["雪山"], "en": ["title 1"]})]},
    "wukong": {"train": [(40, {"zh": ["白猫, 沙发"]}), (90, {"zh": ["雪山"]})]},
    "zero": {"train": [(40, {"zh": ["白猫", "猫在家 里"]}), (80, {"zh": ["雪山日出", "雪山"]})]},
    "zero-query": {"train": [(40, {"zh": ["白猫"]}), (80, {"zh": ["雪山日出"]})]},
    "zero-title": {"train": [(40, {"zh": ["白猫"]}), (80, {"zh": ["雪山"]})]},
    "zero-content": {"train": [(40, {"zh": ["猫在家 里"]})]},
}


def held(location: str, on_bad: str = "skip") -> dict:
    found = {}
    for split in splits_of(location):
        corpus = open_corpus(location, split, on_bad)
        found[split] = [
            (int(corpus.image(row).float().mean().round()), {k: list(v) for k, v in corpus.record(row).texts.items()})
            for row in range(len(corpus))
        ]
    return found


def test_every_format_has_a_fixture_and_tells_what_it_is():
    """Rows of questions, statements and phrases are in test_published_asked."""
    assert set(formats()) == set(MAKERS) == set(EXPECTED) | set(published_asked.MAKERS)
    for one in formats().values():
        assert all((one.title, one.needs, one.ask, one.licence, one.records))


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_rows(name, tmp_path):
    MAKERS[name](tmp_path)
    assert held(f"{name}:{tmp_path}") == EXPECTED[name]
    assert open_corpus(f"{name}:{tmp_path}", next(iter(EXPECTED[name])), "skip").notice.startswith(
        find_format(name).title
    )


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_no_folder_and_an_empty_one(name, tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError) as caught:
            splits_of(f"{name}:{folder}")
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_test_of_icr_is_no_copy_of_val(tmp_path):
    icr(tmp_path)
    with pytest.raises(UserError, match="no split 'test'; there are: train, val"):
        open_corpus(f"icr:{tmp_path}", "test")


def test_labels_of_matching(tmp_path):
    icm(tmp_path)
    corpus = open_corpus(f"icm:{tmp_path}", "train")
    assert [corpus.record(row).columns["label"] for row in range(2)] == [1, 0]


def test_retrieval_truth_by_identity(tmp_path):
    icr(tmp_path)
    gallery = open_corpus(f"icr:{tmp_path}", "train").gallery("zh")
    assert (len(gallery.rows), len(gallery.texts)) == (2, 3)
    assert [gallery.relevance.images_of(t).tolist() for t in range(3)] == [[0], [0], [1]]
    back = gallery.relevance.transpose().transpose()
    assert back.images.tolist() == gallery.relevance.images.tolist()


def test_several_pictures_of_a_query(tmp_path):
    MAKERS["muge"](tmp_path)
    gallery = open_corpus(f"muge:{tmp_path}", "train").gallery("zh")
    assert len(gallery.rows) == 3
    assert {t.text: gallery.relevance.images_of(k).tolist() for k, t in enumerate(gallery.texts)} == {
        "高级感托特包斜挎": [0, 1],
        "白色连衣裙": [2],
    }


class TestTraps:
    def test_two_pictures_of_one_base_name(self, tmp_path):
        """The official loader would show the same picture for both."""
        icr(tmp_path)
        rows = [{"text": "一", "image_path": "a/000001.jpg"}, {"text": "二", "image_path": "b/000001.jpg"}]
        put(tmp_path, "train/long_itr_train.json", json_lines(*rows))
        corpus = open_corpus(f"icr:{tmp_path}", "train", "skip")
        assert (len(corpus), corpus.skipped) == (1, {"ambiguous name": 1})
        put(tmp_path, "a/000001.jpg", picture(33))
        put(tmp_path, "b/000001.jpg", picture(44))
        assert [grey for grey, _ in held(f"icr:{tmp_path}")["train"]] == [33, 44]

    def test_other_endings(self, tmp_path):
        """image_path[:-4] of the official loader mistakes .jpeg."""
        icr(tmp_path)
        put(tmp_path, "IQR_IQM_ICR_ICM_images/x.jpeg", picture(21))
        put(tmp_path, "train/long_itr_train.json", json_lines({"text": "一", "image_path": "x.jpeg"}))
        assert held(f"icr:{tmp_path}")["train"] == [(21, {"zh": ["一"]})]

    def test_a_picture_on_the_lists_of_two_splits(self, tmp_path):
        MAKERS["coco-cn"](tmp_path)
        put(tmp_path, "coco-cn-version1805v1.1/coco-cn_test.txt", "COCO_train2014_000000000101\n")
        corpus = open_corpus(f"coco-cn:{tmp_path}", "train", "skip")
        assert corpus.skipped["leak"] == 1
        assert len(corpus) == 1

    def test_marks_of_parts_of_speech(self):
        assert joined("男孩:n 在:p 跑:v") == "男孩在跑"
        assert joined("男孩/n 在/p") == "男孩在"
        assert joined("一 台 iPad mini  在 桌 上") == "一台iPad mini，在桌上"
        assert joined("比分 3:1 很 好") == "比分3:1很好"
        assert joined("AC/DC 乐队") == "AC/DC乐队"
        with pytest.raises(RowError, match="'男孩:n' looks like a mark"):
            joined("男孩:n 在 跑")

    def test_hub_parquet_and_its_rows(self, tmp_path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [{"image": {"bytes": picture(n), "path": "x"}, "text_zh": f"灰 {n}", "n": n} for n in (30, 60, 90)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "validation-00000-of-00001.parquet", row_group_size=2)
        assert held(f"huggingface:{tmp_path}") == {"val": [(n, {"zh": [f"灰 {n}"]}) for n in (30, 60, 90)]}
        assert open_corpus(f"huggingface:{tmp_path}", "val").record(2).columns == {"n": 90}

    def test_columns_of_the_hub(self, tmp_path):
        """Written large; times, which a built copy holds as text; further pictures, which are left out."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        first, second = ([{"bytes": picture(n), "path": None}] for n in (30, 60))
        when = pa.array([0], pa.timestamp("ms"))
        table = pa.table({"Image": first, "Caption": ["a cat"], "other": second, "raw": [[b"x"]], "when": when})
        pq.write_table(table, tmp_path / "train-00000-of-00001.parquet")
        assert held(f"huggingface:{tmp_path}") == {"train": [(30, {"en": ["a cat"]})]}
        assert main(["data", "build", "huggingface", "--from", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
        assert open_shards(tmp_path / "out", "train").record(0).columns == {"when": "1970-01-01T00:00:00"}

    def test_numbered_captions(self, tmp_path):
        """As of jxie/flickr8k."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [{"bytes": picture(n), "path": None} for n in (30, 60)]
        table = pa.table({"image": rows, "caption_0": ["a cat", "a dog"], "caption_1": ["cats", None]})
        pq.write_table(table, tmp_path / "train-00000-of-00001.parquet")
        assert held(f"huggingface:{tmp_path}") == {"train": [(30, {"en": ["a cat", "cats"]}), (60, {"en": ["a dog"]})]}

    def test_far_rows_of_parquet_read_no_others(self, tmp_path, monkeypatch):
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [{"image": {"bytes": picture(n), "path": None}, "text": f"grey {n}"} for n in range(20, 40)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-00000-of-00001.parquet", row_group_size=3)
        corpus = open_corpus(f"huggingface:{tmp_path}", "train")
        corpus.image(0)  # opening read in threads: which group it left open is chance
        read = []
        whole = pq.ParquetFile.read_row_group
        monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, k: (read.append(k), whole(self, k))[1])
        assert int(corpus.image(16)[0, 0, 0]) == 36
        assert int(corpus.image(15)[0, 0, 0]) == 35
        assert read == [5]

    def test_json_of_img2dataset_is_no_annotation_of_zero(self, tmp_path):
        MAKERS["zero"](tmp_path)
        put(tmp_path, "00000/000000000.jpg", picture(77))
        put(tmp_path, "00000/000000000.json", json.dumps({"ImageKey": "k9", "ImageUrl": "http://i/9.jpg"}, indent=1))
        corpus = open_corpus(f"zero:{tmp_path}", "train", "skip")
        assert (len(corpus), corpus.skipped) == (2, {"missing": 1})

    def test_texts_of_tars_in_several_members(self, tmp_path):
        files = [("a/1.png", picture(30, "PNG")), ("a/1.zh.txt", "猫\n白猫".encode()), ("a/1.en.txt", b"cat")]
        tar(tmp_path, "val-000.tar", [*files, ("a/2.txt", b"no picture"), ("a/3.jpg", picture(60))])
        corpus = open_corpus(f"webdataset:{tmp_path}", "val", "skip")
        assert dict(corpus.record(0).texts) == {"zh": ["猫", "白猫"], "en": ["cat"]}
        assert corpus.skipped == {"no picture": 1, "no text": 1}

    def test_splits_in_the_names_of_tars(self, tmp_path):
        """cc3m-train-0000.tar and cc3m-validation-0000.tar, as pixparse publishes."""
        for n, name in ((30, "cc3m-train-0000"), (60, "cc3m-validation-0000"), (90, "test/0")):
            tar(tmp_path, f"{name}.tar", [("1.jpg", picture(n)), ("1.txt", b"a cat")])
        assert {split: rows[0][0] for split, rows in held(f"webdataset:{tmp_path}").items()} == {
            "train": 30,
            "val": 60,
            "test": 90,
        }

    def test_captions_of_several_lines(self, tmp_path):
        """img2dataset writes a caption whole into .txt and .json."""
        files = [
            ("1.jpg", picture(30)),
            ("1.txt", "白猫\n在睡".encode()),
            ("1.json", json.dumps({"caption": "白猫\n在睡"})),
        ]
        tar(tmp_path, "00000.tar", [(name, data if isinstance(data, bytes) else data.encode()) for name, data in files])
        assert held(f"webdataset:{tmp_path}") == {"train": [(30, {"zh": ["白猫\n在睡"]})]}

    def test_caption_fields_of_models(self, tmp_path):
        """Keys that are no languages are passed over."""
        said = {"captions": {"blip-large": "a cat", "zh": "猫"}}
        tar(tmp_path, "00000.tar", [("1.jpg", picture(30)), ("1.json", json.dumps(said).encode())])
        assert held(f"webdataset:{tmp_path}") == {"train": [(30, {"en": ["a cat"], "zh": ["猫"]})]}

    def test_wukong_test(self, tmp_path):
        MAKERS["wukong"](tmp_path)
        put(tmp_path, "wukong_test.csv", "dir,text,token,url,alt_id\n01.jpg,红鞋,红 鞋,http://i/t.jpg,3\n")
        put(tmp_path, "wukong_test/01.jpg", picture(150))
        assert held(f"wukong:{tmp_path}") == EXPECTED["wukong"] | {"test": [(150, {"zh": ["红鞋"]})]}

    def test_ids_of_pictures_as_strings(self, tmp_path):
        MAKERS["chinese-clip"](tmp_path)
        text = (tmp_path / "train_texts.jsonl").read_text()
        put(tmp_path, "train_texts.jsonl", text.replace("[1, 2]", '["1", "2"]'))
        assert held(f"chinese-clip:{tmp_path}") == CLIP

    def test_paths_of_another_machine(self, tmp_path):
        MAKERS["icr"](tmp_path)
        path = tmp_path / "train/long_itr_train.json"
        path.write_text(path.read_text().replace("imgs/", "/home/me/images/"))
        assert held(f"icr:{tmp_path}") == RETRIEVAL

    def test_splits_of_the_hub(self, tmp_path):
        """A column split in a set published as one split; folders where the hub converted a set itself."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        def put_rows(path, *rows):
            path.parent.mkdir(parents=True, exist_ok=True)
            told = [{"image": {"bytes": picture(n), "path": None}, "caption": f"grey {n}"} | more for n, more in rows]
            pq.write_table(pa.Table.from_pylist(told), path)

        rows = [(30, {"split": "train"}), (60, {"split": "val"}), (90, {"split": "restval"})]
        put_rows(tmp_path / "one/TEST-00000-of-00001.parquet", *rows)
        texts = {n: (n, {"en": [f"grey {n}"]}) for n in (30, 60, 90)}
        assert held(f"huggingface:{tmp_path / 'one'}") == {
            "train": [texts[30]],
            "val": [texts[60]],
            "test": [texts[90]],
        }
        put_rows(tmp_path / "two/default/train/0000.parquet", (30, {}))
        put_rows(tmp_path / "two/default/partial-test/0000.parquet", (60, {}))
        assert held(f"huggingface:{tmp_path / 'two'}") == {"train": [texts[30]], "test": [texts[60]]}

    def test_pictures_of_a_test_without_classes(self, tmp_path):
        MAKERS["imagenet"](tmp_path)
        put(tmp_path, "test/t_1.JPEG", picture(120))
        (tmp_path / "val").rename(tmp_path / "validation")
        assert held(f"imagenet:{tmp_path}", "stop") == EXPECTED["imagenet"] | {"test": [(120, {})]}

    def test_class_folders_without_splits_are_one_split_of_all_classes(self, tmp_path):
        names = [f"kind_{n}" for n in range(12)]
        for n, name in enumerate(names):
            put(tmp_path, f"all_of_it/{name}/{n}.jpg", picture(10 + 15 * n))
        location = f"imagenet:{tmp_path / 'all_of_it'}"
        assert splits_of(location) == ("all",)
        write_shards({"all": open_corpus(location, "all")}, tmp_path / "built", progress=False)
        for place in (location, str(tmp_path / "built")):
            known = classes_of(open_corpus(place, "all"))
            assert known.names == {"en": sorted(name.replace("_", " ") for name in names)}
            assert [known.names["en"][label] for label in known.labels] == sorted(n.replace("_", " ") for n in names)
        with pytest.raises(UserError, match="no split 'test'; there are: all"):
            open_corpus(location, "test")

    def test_a_split_that_shows_few_classes_is_told_from_all(self, tmp_path):
        MAKERS["imagenet"](tmp_path)
        known = classes_of(open_corpus(f"imagenet:{tmp_path}", "val"))
        assert known.names == {"en": ["tench", "goldfish"]}
        assert known.labels.tolist() == [1]

    def test_a_damaged_lmdb_ends_a_process_of_its_own(self, tmp_path):
        """Every page but the first two overwritten: numbers of pages that are not there, which LMDB follows."""
        MAKERS["chinese-clip-lmdb"](tmp_path)
        for part in ("imgs", "pairs"):
            for byte in (b"\xff", b"\x7f", b"\x03"):
                folder = tmp_path / f"{part}{byte[0]}"
                shutil.copytree(tmp_path / "lmdb", folder / "lmdb")
                path = folder / "lmdb/train" / part / "data.mdb"
                whole = path.read_bytes()
                path.write_bytes(
                    whole[:8192] + b"".join(whole[k : k + 20] + 4076 * byte for k in range(8192, len(whole), 4096))
                )
                with pytest.raises(UserError, match=r"data\.mdb|damaged|no usable row"):
                    open_corpus(f"chinese-clip-lmdb:{folder}", "train")

    def test_nothing_of_an_lmdb_is_unpickled(self, tmp_path):
        import lmdb

        MAKERS["chinese-clip-lmdb"](tmp_path)
        evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
        with (
            lmdb.open(str(tmp_path / "lmdb/train/pairs"), map_size=2**20) as environment,
            environment.begin(write=True) as transaction,
        ):
            transaction.put(b"2", evil)
        # the reader keeps one LMDB a path open, so a copy is read
        shutil.copytree(tmp_path / "lmdb", tmp_path / "copy/lmdb")
        corpus = open_corpus(f"chinese-clip-lmdb:{tmp_path / 'copy'}", "train", "skip")
        assert (len(corpus), corpus.skipped) == (2, {"broken row": 1})
        assert not (tmp_path / "ran").exists()


class TestCommands:
    def test_build_counts_and_lists_what_is_missing(self, tmp_path, capsys):
        MAKERS["wukong"](tmp_path / "from")
        words = ["data", "build", "wukong", "--from", str(tmp_path / "from"), "--out", str(tmp_path / "out")]
        assert main([*words, "--missing", str(tmp_path / "lost.csv")]) == 0
        assert "1 missing" in capsys.readouterr().out
        assert (tmp_path / "lost.csv").read_text().splitlines() == [
            "url,caption,key",
            "http://i/3.jpg,海,wukong_100m_0-4",
        ]
        built = open_shards(tmp_path / "out", "train")
        assert len(built) == 2
        assert "Wukong" in built.notice
        before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert main(words) == 0  # on a finished folder it does nothing
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before

    def test_the_list_before_anything_is_fetched(self, tmp_path, capsys):
        """A line each, as img2dataset's reader cuts its file into blocks at line ends."""
        put(
            tmp_path,
            "from/wukong_100m_0.csv",
            'url,caption\nhttp://i/1.jpg,"两\n行"\nhttp://i/2.jpg,"白猫, ""沙发"""\n',
        )
        words = ["data", "build", "wukong", "--from", str(tmp_path / "from"), "--out", str(tmp_path / "out")]
        assert main([*words, "--missing", str(tmp_path / "lost.csv")]) == 1
        assert "lost.csv: 2 pictures to fetch\n" in capsys.readouterr().err
        read = pyarrow.csv.read_csv(tmp_path / "lost.csv").to_pylist()
        assert [(row["url"], row["caption"]) for row in read] == [
            ("http://i/1.jpg", "两 行"),
            ("http://i/2.jpg", '白猫, "沙发"'),
        ]

    def test_a_line_that_is_no_row_is_counted_once(self, tmp_path, capsys):
        MAKERS["icr"](tmp_path / "from")
        path = tmp_path / "from/train/long_itr_train.json"
        path.write_text("{broken\n" + path.read_text())
        assert main(["data", "build", "icr", "--from", str(tmp_path / "from"), "--out", str(tmp_path / "out")]) == 0
        told = capsys.readouterr().out.splitlines()[2:]
        assert [line.split() for line in told] == [
            ["train", "2", "zh", "-"],
            ["val", "1", "zh", "-"],
            ["of", "no", "split", "1", "broken", "JSON"],
        ]

    def test_fetches_that_failed(self, tmp_path):
        MAKERS["webdataset"](tmp_path / "from")
        words = ["data", "build", "webdataset", "--from", str(tmp_path / "from"), "--out", str(tmp_path / "out")]
        assert main([*words, "--missing", str(tmp_path / "lost.csv")]) == 0
        assert (tmp_path / "lost.csv").read_text().splitlines()[1:] == ["http://i/3.jpg,lost,"]

    def test_nothing_to_build_says_why(self, tmp_path, capsys):
        put(tmp_path, "zero.json", json.dumps([{"ImageKey": "k1"}]))
        assert main(["data", "build", "zero", "--from", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
        told = capsys.readouterr().err
        assert "1 wrong type" in told
        assert "zero.json:1: a line is an object {...}, not a list" in told
        assert told.count("\n") == 1

    def test_list(self, capsys):
        assert main(["data", "list", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)["corpora"]
        assert [one["name"] for one in told] == list(formats())
        assert set(told[0]) == {"name", "title", "languages", "needs", "ask", "licence", "records"}
        assert main(["data", "build", "muge", "--out", "x"]) == 1
        assert "say where it was downloaded, muge:DIR" in capsys.readouterr().err
        assert main(["data", "list", "coco-cm"]) == 1
        assert "did you mean coco-cn" in capsys.readouterr().err

    def test_a_public_corpus_wherever_one_is_named(self, tmp_path, capsys):
        MAKERS["icr"](tmp_path)
        assert main(["data", "check", f"icr:{tmp_path}", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["splits"]["train"]["texts"] == 3


def test_a_killed_build_of_a_public_corpus_goes_on(tmp_path, monkeypatch):
    """Shards that were finished stay as they are, and the whole is what a build that was never stopped makes."""
    lines = "".join(f"{n}\t{base64.b64encode(picture(n)).decode()}\n" for n in range(200))
    put(tmp_path / "from", "train_imgs.tsv", lines)
    texts = [{"text_id": n, "text": f"第{n}张", "image_ids": [n]} for n in range(200)]
    put(tmp_path / "from", "train_texts.jsonl", json_lines(*texts))
    words = ["data", "build", "chinese-clip", "--from", str(tmp_path / "from"), "--out"]
    code = (
        "import sys, functools; from tuwen.data import shards; from tuwen.cli import main;"
        "shards.write_shards = functools.partial(shards.write_shards, shard_size=5); main(sys.argv[1:])"
    )
    again, whole = tmp_path / "again", tmp_path / "whole"
    victim = subprocess.Popen([sys.executable, "-c", code, *words, str(again)])
    while victim.poll() is None and len(list(again.glob("*.tar"))) < 3:
        time.sleep(0.002)
    victim.kill()
    victim.wait()
    finished = {path: path.stat().st_mtime_ns for path in again.glob("*.tar")}
    assert 3 <= len(finished) < 40
    with pytest.raises(UserError, match="unfinished build; run it again"):
        open_shards(again, "train")
    monkeypatch.setattr(shards, "write_shards", functools.partial(shards.write_shards, shard_size=5))
    assert main([*words, str(again)]) == main([*words, str(whole)]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    files = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert {path.name: path.read_bytes() for path in again.iterdir()} == files
    assert len([name for name in files if name.endswith(".tar")]) == 40


def test_it_travels_to_other_processes(tmp_path):
    import pickle

    for name in ("wukong", "webdataset", "huggingface", "zero", "muge", "imagenet"):
        folder = tmp_path / name
        MAKERS[name](folder)
        corpus = open_corpus(f"{name}:{folder}", "train", "skip")
        again = pickle.loads(pickle.dumps(corpus))
        assert dict(again.record(1).texts) == dict(corpus.record(1).texts)
        assert (again.image(1) == corpus.image(1)).all()


def test_fingerprints_follow_the_content_and_not_the_place(tmp_path):
    for name in ("icr", "muge", "webdataset", "zero"):
        folder, moved = tmp_path / name, tmp_path / f"{name}-moved"
        MAKERS[name](folder)
        shutil.copytree(folder, moved)
        first = open_corpus(f"{name}:{folder}", "train", "skip").fingerprint
        assert open_corpus(f"{name}:{moved}", "train", "skip").fingerprint == first
        for file in (path for path in moved.rglob("*") if path.suffix in (".json", ".jsonl")):
            file.write_text(file.read_text().replace("雪", "山").replace("裙", "衣"))
        if name != "webdataset":
            assert open_corpus(f"{name}:{moved}", "train", "skip").fingerprint != first
