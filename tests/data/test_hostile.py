"""Every public format against hostile copies of it: a clear line, never a traceback, never a file read outside."""

import functools
import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.made import picture, put
from tests.data.published import MAKERS
from tests.fuzzing import faults, in_children
from tuwen.data.corpus import BrokenImage
from tuwen.data.images import EXTENSIONS
from tuwen.data.open import open_corpus, splits_of
from tuwen.errors import UserError

READERS = sorted(set(MAKERS) - {"muge", "iqm", "iqr", "flickr30k-karpathy", "flickr8k-karpathy", "zero-query"})
READERS = [name for name in READERS if name not in ("zero-title", "zero-content", "refcocog")]
BINARY = {".tar", ".parquet", ".arrow", ".mdb", ".gz"}
SECRET, SECRET_TEXT = 201, "secret text of another folder"


def annotations(folder) -> list:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix.lower() not in EXTENSIONS]
    return [path for path in files if path.name not in ("lock.mdb", "dataset_info.json")]


def everything(location: str) -> tuple[int, list[str]]:
    """Rows read in full, and every line of complaint, of all splits and both manners."""
    complaints, count = [], 0
    try:
        splits = splits_of(location)
    except UserError as error:
        return 0, [str(error)]
    for split in splits or ("train",):
        for on_bad in ("skip", "stop"):
            try:
                corpus = open_corpus(location, split, on_bad)
            except UserError as error:
                complaints.append(str(error))
                continue
            complaints += [str(fault) for fault in corpus.faults]
            for row in range(len(corpus)):
                record = corpus.record(row)
                assert SECRET_TEXT not in str(record)
                try:
                    assert int(corpus.image(row)[0, 0, 0]) != SECRET
                except BrokenImage as error:
                    complaints.append(str(error))
                count += 1
    return count, complaints


def truncated(data: bytes) -> bytes:
    return data[: len(data) * 6 // 10]


def wrong_column(data: bytes) -> bytes:
    renamed = re.sub(rb'"(\w+)":', rb'"other_\1":', data)
    first, end, rest = renamed.replace(b"\t", b";").replace(b"#", b"_").partition(b"\n")
    return first.replace(b"url", b"link") + end + rest


def gbk(data: bytes) -> bytes:
    return data.decode().encode("gb18030") + "\n中文，编码".encode("gb18030")


def long_line(data: bytes) -> bytes:
    lines = data.split(b"\n")
    middle = len(lines[0]) // 2
    return b"\n".join([lines[0][:middle] + b"x" * 2_000_000 + lines[0][middle:], *lines[1:]])


def nul(data: bytes) -> bytes:
    return data[: len(data) // 2] + b"\0" + data[len(data) // 2 :]


CHANGES = {
    "truncated": truncated,
    "wrong column": wrong_column,
    "GBK": gbk,
    "2 MB line": long_line,
    "NUL": nul,
    "nothing": lambda data: b"",
    "garbage": lambda data: bytes(range(256)) * 4,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", READERS)
def test_spoilt_annotations(name, change, tmp_path):
    """All of them at once, then one by one; what is not spoilt goes on being read. In a process of its own: what reads
    binary forms is no Python."""
    assert faults(in_children([0], spoilt_annotations, name, change, tmp_path)) == {}


def spoilt_annotations(name: str, change: str, place: str, number: int) -> str:
    MAKERS[name](Path(place) / "whole")
    count = len(annotations(Path(place) / "whole"))
    for spoilt in [None, *range(min(count, 3) if change != "2 MB line" else 0)]:
        folder = Path(place) / f"copy{spoilt}"
        MAKERS[name](folder)
        for number, path in enumerate(annotations(folder)):
            binary = path.suffix in BINARY
            if spoilt not in (None, number) or (binary and change in ("GBK", "wrong column", "2 MB line")):
                continue
            path.write_bytes(CHANGES[change](path.read_bytes()))
        count, complaints = everything(f"{name}:{folder}")
        assert count or complaints
        for line in complaints:
            assert "\n" not in line
            assert line.isprintable()
            assert len(line) < 1200
    return "read"


@pytest.mark.parametrize("name", [name for name in READERS if name not in ("chinese-clip-lmdb", "huggingface")])
def test_marks_and_line_ends_change_nothing(name, tmp_path):
    MAKERS[name](tmp_path / "plain")
    MAKERS[name](tmp_path / "odd")
    for path in annotations(tmp_path / "odd"):
        if path.suffix not in BINARY:
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    plain, odd = f"{name}:{tmp_path / 'plain'}", f"{name}:{tmp_path / 'odd'}"
    assert splits_of(plain) == splits_of(odd)
    for split in splits_of(plain):
        first, second = open_corpus(plain, split, "skip"), open_corpus(odd, split, "skip")
        assert len(first) == len(second)
        for row in range(len(first)):
            assert first.record(row).texts == second.record(row).texts
            assert (first.image(row) == second.image(row)).all()


@pytest.mark.parametrize("name", READERS)
def test_links_that_lead_out_or_round(name, tmp_path):
    outside = tmp_path / "outside"
    put(outside, "secret.jpg", picture(SECRET))
    MAKERS[name](outside / "copy")
    for path in annotations(outside / "copy"):
        if path.suffix not in BINARY:
            path.write_text(path.read_text().replace("一", SECRET_TEXT).replace("dog", SECRET_TEXT))
    folder = tmp_path / "in"
    MAKERS[name](folder)
    (folder / "loop").symlink_to(folder)
    for path in folder.rglob("*"):  # every picture is a link out, or to itself
        if path.suffix.lower() in EXTENSIONS and not path.is_symlink():
            path.unlink()
            path.symlink_to(outside / "secret.jpg" if len(path.name) % 2 else path)
    everything(f"{name}:{folder}")
    for path in annotations(folder):  # and every annotation
        if "loop" not in path.parts and not path.is_symlink():
            path.unlink()
            path.symlink_to(outside / "copy" / path.relative_to(folder))
    count, complaints = everything(f"{name}:{folder}")
    assert (count, len(complaints) > 0) == (0, True)
    assert any("out of the folder" in line or "no file" in line or "no " in line for line in complaints)


NAMED = {  # what an annotation calls its first picture
    "aic-icc": "1a.jpg",
    "chexpert": "CheXpert-v1.0-small/train/patient00000/study1/view1_frontal.jpg",
    "coco-captions": "COCO_train2014_000000000100.jpg",
    "coco-cn": "COCO_train2014_000000000101",
    "coco-karpathy": "1.jpg",
    "flickr30k-cn": "11",
    "gqa": "n00101",
    "flickr30k-cna": "123",
    "flickr8k-cn": "1_a.jpg",
    "icm": "imgs/000001.jpg",
    "icr": "imgs/000001.jpg",
    "multi30k-task1": "1.jpg",
    "multi30k-task2": "1.jpg",
    "refcoco": "COCO_train2014_000000000000.jpg",
    "refcoco-plus": "COCO_train2014_000000000000.jpg",
    "snli-ve": "470.jpg",
    "m5product": "600000",
    "mimic-cxr": "02aa804e-bde0afdd-112c0b34-7bc16630-4e3840100",
    "mimic-cxr-studies": "02aa804e-bde0afdd-112c0b34-7bc16630-4e3840101",
    "open-i": "CXR1_1_IM-0001-4001",
    "open-i-studies": "CXR1_1_IM-0001-4001",
    "product1m": "559702826062",
    "roco": "X-0.jpg",
    "roco-v2": "ROCOv2_2023_train_000000",
    "slake": "xmlab0/source.jpg",
    "vqa-med-2019": "synpic40",
    "vqa-rad": "synpic1.jpg",
    "xgqa": "n20101",
    "xvnli": "471.jpg",
    "zero": "k1",
}


def rename(name, folder, wanted):
    """The first picture called by another name, wherever the annotations name it."""
    for path in annotations(folder):
        if path.suffix in (".json", ".jsonl", ".txt", ".csv", ".xml"):
            told = json.dumps(wanted)[1:-1] if path.suffix.startswith(".json") else wanted.replace("\0", "")
            path.write_text(path.read_text().replace(NAMED[name], told))


def rows_of_paths(folder, wanted):
    """Parquet of the hub that names pictures by path and holds none."""
    shutil.rmtree(folder)
    folder.mkdir()
    row = {"image": {"bytes": None, "path": wanted}, "caption": "a dog"}
    pq.write_table(pa.Table.from_pylist([row]), folder / "train-00000-of-00001.parquet")


def fetched_elsewhere(folder, wanted):
    """img2dataset's list with keys that are paths, and addresses that are places in files."""
    shutil.rmtree(folder / "fetched")
    (folder / "fetched/00000").mkdir(parents=True)
    (folder / "http:/i").mkdir(parents=True)
    told = {"url": "http://i/1.jpg", "key": wanted.removesuffix(".jpg"), "caption": "猫", "status": "success"}
    pq.write_table(pa.Table.from_pylist([told]), folder / "fetched/00000.parquet")
    put(folder, "wukong_100m_0.csv", f"url,caption\nhttp://i/1.jpg,猫\nhttp://i/../../{wanted},狗\n")


def members_of_elsewhere(folder, wanted):
    """A tar whose members are called by the path, and whose pictures are links to it."""
    (folder / "00000.parquet").unlink()
    with tarfile.open(folder / "00000.tar", "w") as file:
        for stem, kind in (("1", tarfile.SYMTYPE), ("2", tarfile.LNKTYPE), (wanted[:-4].replace("\0", ""), None)):
            info = tarfile.TarInfo(f"{stem}.jpg")
            info.type, info.linkname = kind or tarfile.REGTYPE, wanted.replace("\0", "") if kind else ""
            info.size = 0 if kind else len(picture(40))
            file.addfile(info, io.BytesIO(b"" if kind else picture(40)))
            text = tarfile.TarInfo(f"{stem}.txt")
            text.size = 5
            file.addfile(text, io.BytesIO(b"a dog"))


HOSTILE = {name: functools.partial(rename, name) for name in NAMED}
HOSTILE |= {"huggingface": rows_of_paths, "webdataset": members_of_elsewhere, "wukong": fetched_elsewhere}
# pictures in the file, listed by us, or named by numbers alone
NAMELESS = {"chinese-clip", "chinese-clip-lmdb", "imagenet", "tuxpaint"}
NAMELESS |= {"daquar", "flickr30k-entities", "nlvr", "nlvr2", "vqa-v2"}


def test_every_format_is_among_those_below():
    assert set(HOSTILE) | NAMELESS == set(READERS)


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_paths_that_leave_the_folder(name, tmp_path):
    """Relative, absolute, by a link, as a part of a file; with and without the ending."""
    put(tmp_path, "secret.jpg", picture(SECRET))
    size = len(picture(SECRET))
    absolute = str(tmp_path / "secret.jpg")
    before = sorted(tmp_path.iterdir())
    paths = [
        "../secret.jpg",
        "../../secret.jpg",
        "x/../../secret.jpg",
        absolute,
        f"file://{absolute}",
        "out/secret.jpg",
    ]
    paths += [f"../secret.jpg:0:{size}", f"{absolute}:0:{size}", f"out/secret.jpg:0:{size}", "a\0b.jpg", "y" * 300]
    MAKERS[name](tmp_path / "whole")
    whole, _ = everything(f"{name}:{tmp_path / 'whole'}")
    shutil.rmtree(tmp_path / "whole")
    for number, path in enumerate(paths):
        for stem in {path, path.removesuffix(".jpg")}:
            folder = tmp_path / f"in{number}"
            shutil.rmtree(folder, ignore_errors=True)
            MAKERS[name](folder)
            HOSTILE[name](folder, stem)
            (folder / "out").symlink_to(tmp_path)
            count, complaints = everything(f"{name}:{folder}")
            assert count < whole
            assert complaints
            assert all("\n" not in line and len(line) < 1200 for line in complaints)
        shutil.rmtree(folder)
    assert sorted(tmp_path.iterdir()) == before


def test_no_line_is_lost_beside_a_spoilt_one(tmp_path):
    for name, spoil in (("icr", "{broken\n"), ("wukong", '"half a quote\n'), ("flickr30k-cna", "no tab here\n")):
        folder = tmp_path / name
        MAKERS[name](folder)
        before, _ = everything(f"{name}:{folder}")
        path = next(path for path in annotations(folder) if "train" in path.name or path.suffix == ".csv")
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join([lines[0], spoil, *lines[1:]]))
        corpus = open_corpus(f"{name}:{folder}", "train", "skip")
        assert sum(corpus.skipped.values()) >= 1
        assert len(corpus) == 2
        assert before
