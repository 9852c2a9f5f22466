"""Every public format against hostile copies of it: a clear line, never a traceback, never a file read outside."""

import json
import re

import pytest

from tests.data.published import MAKERS, picture, put
from tuwen.data.corpus import BrokenImage
from tuwen.data.images import EXTENSIONS
from tuwen.data.open import open_corpus, splits_of
from tuwen.errors import UserError

READERS = sorted(set(MAKERS) - {"muge", "iqm", "iqr", "flickr30k-karpathy", "flickr8k-karpathy", "zero-query"})
READERS = [name for name in READERS if name not in ("zero-title", "zero-content")]
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
    return b"\n".join([lines[0][:middle] + b"x" * 10_000_000 + lines[0][middle:], *lines[1:]])


def nul(data: bytes) -> bytes:
    return data[: len(data) // 2] + b"\0" + data[len(data) // 2 :]


CHANGES = {
    "truncated": truncated,
    "wrong column": wrong_column,
    "GBK": gbk,
    "10 MB line": long_line,
    "NUL": nul,
    "nothing": lambda data: b"",
    "garbage": lambda data: bytes(range(256)) * 4,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", READERS)
def test_spoilt_annotations(name, change, tmp_path):
    """All of them at once, then one by one; what is not spoilt goes on being read."""
    MAKERS[name](tmp_path / "whole")
    count = len(annotations(tmp_path / "whole"))
    for spoilt in [None, *range(min(count, 3) if change != "10 MB line" else 0)]:
        folder = tmp_path / f"copy{spoilt}"
        MAKERS[name](folder)
        for number, path in enumerate(annotations(folder)):
            binary = path.suffix in BINARY
            if spoilt not in (None, number) or (binary and change in ("GBK", "wrong column", "10 MB line")):
                continue
            path.write_bytes(CHANGES[change](path.read_bytes()))
        count, complaints = everything(f"{name}:{folder}")
        assert count or complaints
        for line in complaints:
            assert "\n" not in line
            assert line.isprintable()
            assert len(line) < 1200


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


@pytest.mark.parametrize("name", ["icr", "icm", "coco-karpathy", "aic-icc", "flickr30k-cna", "zero", "multi30k-task1"])
def test_paths_that_leave_the_folder(name, tmp_path):
    put(tmp_path, "secret.jpg", picture(SECRET))
    for wanted in ("../secret.jpg", str(tmp_path / "secret.jpg"), "x/../../secret.jpg", "a\0b.jpg"):
        folder = tmp_path / "in"
        MAKERS[name](folder)
        for path in annotations(folder):
            if path.suffix in (".json", ".txt"):
                stem = wanted.removesuffix(".jpg") if name == "flickr30k-cna" else wanted
                named = json.dumps(wanted).replace("\\", "\\\\")
                text = re.sub(r'"(imgs/000001|1|1a|k1)(\.jpg)?"', named, path.read_text())
                path.write_text(re.sub(r"(?m)^(123#0|1\.jpg)", stem.replace("\0", ""), text))
        everything(f"{name}:{folder}")


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
