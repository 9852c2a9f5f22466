"""Folders of pictures with texts beside them, and the one door to every corpus."""

import os
import pickle

import pytest
import torch
from PIL import Image

from tuwen.data.corpora.files import FileCorpus
from tuwen.data.corpora.folder import FolderSource
from tuwen.data.open import open_corpus, splits_of
from tuwen.errors import UserError


def paint(path, grey=0, **texts):
    """A picture, and text files beside it: `txt`, `zh_txt`, ... ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (grey, grey, grey)).save(path)
    for name, text in texts.items():
        path.with_suffix("." + name.replace("_", ".")).write_bytes(text if isinstance(text, bytes) else text.encode())


def open_folder(location, split, on_bad="stop") -> FileCorpus:
    return FileCorpus(FolderSource(location), split, on_bad)


def fault(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    message = str(caught.value)
    assert message.isprintable()
    return message


def test_texts_by_script_and_by_suffix(tmp_path):
    paint(tmp_path / "a.png", 1, txt="A dog\r\n\n 一只狗 \n")
    paint(tmp_path / "b" / "c.jpg", 2, de_txt="Hund", zh_txt="\ufeff狗\n犬", txt="dog")
    corpus = open_folder(tmp_path, "all")
    records = [corpus.record(n) for n in range(len(corpus))]
    assert [record.id for record in records] == ["a", "b/c"]
    assert dict(records[0].texts) == {"en": ["A dog"], "zh": ["一只狗"]}
    assert {k: list(v) for k, v in records[1].texts.items()} == {"en": ["dog"], "de": ["Hund"], "zh": ["狗", "犬"]}
    assert corpus.languages == ("de", "en", "zh")
    assert corpus.image(0).unique().tolist() == [1]
    assert corpus.where(1) == (tmp_path / "b" / "c.jpg", 0)
    assert pickle.loads(pickle.dumps(corpus)).record(1) == records[1]


def test_names_with_dots_and_stems_that_meet(tmp_path):
    paint(tmp_path / "v1.0.png", 1, txt="one")
    paint(tmp_path / "x.png", 2, txt="two")
    paint(tmp_path / "x.jpg", 3)
    paint(tmp_path / "x.en.png", 4, txt="four")
    corpus = open_folder(tmp_path, "all")
    assert {corpus.record(n).id: corpus.record(n).texts["en"] for n in range(4)} == {
        "v1.0": ["one"],
        "x.en": ["four"],
        "x.jpg": ["two"],
        "x.png": ["two"],
    }


def test_split_folders(tmp_path):
    for n, split in enumerate(("train", "train", "test")):
        paint(tmp_path / split / f"{n}.png", n, txt="a dog")
    assert splits_of(tmp_path) == ("test", "train")
    assert len(open_corpus(tmp_path, "train")) == 2
    paint(tmp_path / "loose.png", 9, txt="a cat")
    assert "hash" in open_folder(tmp_path, splits_of(tmp_path)[0]).split_rule


def test_pictures_alone(tmp_path):
    for n in range(3):
        paint(tmp_path / f"{n}.png", n)
    corpus = open_folder(tmp_path, "all")
    assert [dict(corpus.record(n).texts) for n in range(3)] == [{}, {}, {}]
    assert corpus.languages == ()


def test_faults(tmp_path):
    paint(tmp_path / "a.png", 1, txt="a dog")
    paint(tmp_path / "b.png", 2)
    assert fault(open_folder, tmp_path, "all").endswith(
        "b.png: no text beside it; write b.txt or move the picture away"
    )
    paint(tmp_path / "b.png", 2, txt=" \n\u200b")
    assert "no text in b.txt" in fault(open_folder, tmp_path, "all")
    paint(tmp_path / "b.png", 2, txt="fine\n照片".encode("gb18030"))
    assert "b.txt:2: not UTF-8" in fault(open_folder, tmp_path, "all")
    paint(tmp_path / "b.png", 2, txt="照片".encode("utf-16"))
    assert "b.txt:1: UTF-16" in fault(open_folder, tmp_path, "all")
    assert dict(open_folder(tmp_path, "all", "skip").skipped) == {"UTF-16": 1, "empty text": 1}
    (tmp_path / "b.txt").write_text("a cat")
    (tmp_path / "b.png").write_bytes(b"text")
    assert "b.png: picture 'b.png': not a picture" in fault(open_folder, tmp_path, "all")
    corpus = open_folder(tmp_path, "all", "skip")
    assert [corpus.record(0).id, len(corpus), dict(corpus.skipped)] == ["a", 1, {"not a picture": 1}]


def test_links_pipes_and_hidden_files(tmp_path):
    secret = tmp_path / "secret"
    paint(secret / "s.png", 7, txt="secret")
    root = tmp_path / "root"
    paint(root / "a.png", 1, txt="a dog")
    paint(root / ".hidden.png", 2)
    (root / "round").symlink_to(root)
    (root / "away").symlink_to(secret)
    os.mkfifo(root / "a.zh.txt")
    (root / "a.de.txt").symlink_to(secret / "s.txt")
    corpus = open_folder(root, "all")
    assert [corpus.record(n).id for n in range(len(corpus))] == ["a"]
    assert dict(corpus.record(0).texts) == {"en": ["a dog"]}
    (root / "out.png").symlink_to(secret / "s.png")
    (root / "out.txt").write_text("out")
    assert "out.png: picture 'out.png': outside" in fault(open_folder, root, "all")


def test_names_that_are_no_text(tmp_path):
    paint(tmp_path / "a.png", 1, txt="a dog")
    for name in (b"\xff\xfe.png", b"line\nend.png"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write((tmp_path / "a.png").read_bytes())
    assert "rename the file" in fault(open_folder, tmp_path, "all")
    assert open_folder(tmp_path, "all", "skip").skipped == {"bad name": 2}


def test_what_was_looked_for(tmp_path):
    assert "no corpus in this folder: neither corpus.json, pairs.jsonl" in fault(open_corpus, tmp_path, "train")
    assert "no such file or folder" in fault(open_corpus, tmp_path / "none", "train")
    assert "no such folder" in fault(FolderSource, tmp_path / "none")
    (tmp_path / "corpus.json").write_text("[]")
    assert "corpus.json" in fault(splits_of, tmp_path)


def test_the_door_to_scenes():
    corpus = open_corpus("scenes:count=3,seed=5,noise=0.5,clicks=true", "val")
    assert (len(corpus), corpus.split, corpus.seed, corpus.noise, corpus.clicks) == (3, "val", 5, 0.5, True)
    assert splits_of("scenes") == ("train", "val", "test")
    for wrong, what in {
        "scenes:cuont=3": "no option 'cuont'",
        "scenes:split=val": "no option 'split'",
        "scenes:count=many": "count='many' is no number",
        "scenes:clicks=1": "neither true nor false",
        "scenes:count": "count='' is no number",
    }.items():
        assert what in fault(open_corpus, wrong, "train")
        assert what in fault(splits_of, wrong)


def test_tables_by_folder_and_by_name(tmp_path):
    paint(tmp_path / "a.png", 1)
    (tmp_path / "pairs.csv").write_text("image,text\na.png,a dog")
    for location in (tmp_path, str(tmp_path / "pairs.csv")):
        assert dict(open_corpus(location, "all").record(0).texts) == {"en": ["a dog"]}


def test_a_folder_that_cannot_be_looked_into_is_told(tmp_path, monkeypatch):
    paint(tmp_path / "a.png", 1)
    (tmp_path / "closed").mkdir()
    paint(tmp_path / "closed/b.png", 2)
    look = os.scandir

    def scandir(path):  # the tests may run as root, whom no permission stops
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(os, "scandir", scandir)
    corpus = open_corpus(tmp_path, "all", on_bad="skip")
    assert len(corpus) == 1
    assert corpus.skipped == {"unreadable": 1}
    assert str(corpus.faults[0]).startswith(f"{tmp_path / 'closed'}: the folder cannot be looked into")
    assert "Permission denied" in fault(open_corpus, tmp_path, "all")


def test_pictures_that_are_not_read_are_named(tmp_path):
    paint(tmp_path / "a.png", 1, txt="dog")
    (tmp_path / "phone.jxl").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "drawing.xyz").write_bytes(b"x")
    (tmp_path / "drawing.txt").write_text("a drawing")
    (tmp_path / "a.json").write_text("{}")  # beside a picture that is read
    corpus = open_folder(tmp_path, "all", "skip")
    assert len(corpus) == 1
    assert {fault.file.name for fault in corpus.faults} == {"phone.jxl", "drawing.xyz"}
    assert corpus.skipped == {"unread format": 2}


@pytest.mark.parametrize("name", ["goods.csv", "goods.xlsx", "a/metadata.csv"])
def test_a_table_that_is_not_read_is_told(tmp_path, name):
    (tmp_path / "a").mkdir()
    paint(tmp_path / "a.png", 1)
    (tmp_path / name).write_text("file_name,text\na.png,a dog\n")
    assert f"{name}: a table that is not read" in fault(open_folder, tmp_path, "all")
    assert len(FileCorpus(FolderSource(tmp_path, wordless=True), "all", "skip")) == 1  # as for an index
    (tmp_path / "a.txt").write_text("a dog")
    corpus = open_folder(tmp_path, "all", "skip")
    assert (len(corpus), corpus.skipped) == (1, {"unread table": 1})


def test_texts_without_a_picture_are_told(tmp_path):
    paint(tmp_path / "a.png", 1, txt="dog")
    (tmp_path / "b.txt").write_text("a cat")
    (tmp_path / "c.zh.txt").write_text("一只猫")
    (tmp_path / "a.zh.txt").write_text("一只狗")
    (tmp_path / "README.txt").write_text("about it")
    corpus = open_folder(tmp_path, "all", "skip")
    assert [fault.file.name for fault in corpus.faults] == ["b.txt", "c.zh.txt"]
    assert corpus.skipped == {"no picture": 2}
    assert "b.txt: no picture beside this text" in fault(open_folder, tmp_path, "all")


def test_pictures_without_an_ending_and_of_rarer_ones(tmp_path):
    for name, kind in (("plain", "PNG"), ("odd.jpe", "JPEG"), ("web", "WEBP"), ("new.avif", "AVIF")):
        Image.new("RGB", (9, 7), (len(name), 9, 9)).save(tmp_path / name, kind)
    (tmp_path / "Makefile").write_text("all:")
    corpus = open_folder(tmp_path, "all")
    assert [corpus.record(row).id for row in range(4)] == ["new", "odd", "plain", "web"]
    assert all(corpus.image(row).shape == (3, 7, 9) for row in range(4))


def test_pictures_of_phones(tmp_path):
    pytest.importorskip("pillow_heif")
    Image.new("RGB", (90, 70), (200, 10, 10)).save(tmp_path / "a.HEIC", "HEIF")
    pixels = open_folder(tmp_path, "all").image(0)
    assert pixels.shape == (3, 70, 90)
    assert (pixels.float().mean((1, 2)) - torch.tensor([200.0, 10, 10])).abs().max() < 6
