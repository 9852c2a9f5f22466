"""A build with nothing to do is known by the times of files, without torch; whatever changes is seen."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from tests.search.common import picture, table
from tuwen.cli import main
from tuwen.data.images import encode_jpeg
from tuwen.search import build, stamp
from tuwen.search.index import Index


@pytest.fixture
def built(run, tmp_path, monkeypatch, capsys):
    """(what `tuwen index --json` answers, whether torch's part was asked) of a folder of pictures, built once."""
    monkeypatch.setattr(stamp, "RECENT", -60.0)  # the files of a test are young
    table(tmp_path / "shop", range(6), columns=lambda number: {"price": number})
    own = tmp_path / "run"
    shutil.copytree(run, own)
    asked = []
    whole = build.build_index
    monkeypatch.setattr(build, "build_index", lambda *a, **k: (asked.append(1), whole(*a, **k))[1])

    def answer(*options, pictures=tmp_path / "shop"):
        asked.clear()
        status = main(["index", str(own), str(pictures), "--out", str(tmp_path / "x"), "--json", *options])
        assert not status
        return json.loads(capsys.readouterr().out), bool(asked)

    assert answer()[0]["counts"] == {"added": 6}
    return answer


def test_the_answer_is_that_of_a_build(built, tmp_path):
    quick, asked = built()
    assert not asked
    (tmp_path / "x/stamp").unlink()
    whole, asked = built()
    assert asked
    assert {**quick, "seconds": 0, "bytes": 0} == {**whole, "seconds": 0, "bytes": 0}
    assert quick["counts"] == {"unchanged": 6}
    assert built() == ({**whole, "seconds": pytest.approx(0, abs=5), "bytes": whole["bytes"]}, False)


def _append(path, text):
    with open(path, "a") as file:
        file.write(text)


def _same_size_and_time(path):
    """Another picture's bytes, of the same length and with the old time of change."""
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = {
    "a picture": lambda place: (place / "shop/images/3.jpg").write_bytes(encode_jpeg(picture(33))),
    "a picture of the same size and time": lambda place: _same_size_and_time(place / "shop/images/3.jpg"),
    "a picture more": lambda place: (place / "shop/images/7.jpg").write_bytes(encode_jpeg(picture(7))),
    "a picture less": lambda place: (place / "shop/images/5.jpg").unlink(),
    "the table": lambda place: _append(place / "shop/pairs.jsonl", "\n"),
    "the run": lambda place: _append(place / "run/config.yaml", "\n"),
    "the index": lambda place: Index.open(place / "x").remove(["p1"]),
    "the stamp": lambda place: (place / "x/stamp").write_text("{}"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_changes_is_built(built, tmp_path, what):
    assert not built()[1]
    time.sleep(0.02)  # longer than the clock of a file system ticks
    CHANGES[what](tmp_path)
    assert built()[1]


def test_other_options_are_another_request(built):
    assert built("--prune")[1]
    assert not built("--prune")[1]
    assert built("--exact", "5")[1]
    assert not built("--exact", "5")[1]
    assert built()[1]


@pytest.mark.parametrize("words", ["", "columns:cost=price:"])
def test_pictures_beside_a_table_are_watched(built, tmp_path, words):
    location = f"{words}{tmp_path / 'shop/pairs.jsonl'}"
    assert built(pictures=location)[1]
    assert not built(pictures=location)[1]
    (tmp_path / "shop/images/2.jpg").write_bytes(encode_jpeg(picture(22)))
    assert built(pictures=location)[0]["counts"]["replaced"] == 1


def test_what_left_something_out_or_was_just_changed_is_done_again(built, tmp_path, monkeypatch):
    (tmp_path / "shop/images/3.jpg").write_bytes(b"no picture")
    assert built()[0]["skipped"]
    assert built()[1]
    (tmp_path / "shop/images/3.jpg").write_bytes(encode_jpeg(picture(3)))
    assert built()[1]
    assert not built()[1]
    monkeypatch.setattr(stamp, "RECENT", 60.0)
    _append(tmp_path / "shop/pairs.jsonl", "\n")
    assert built()[1]
    assert built()[1]


def test_a_link_to_a_folder_is_not_trusted(built, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "shop/more")
    assert built()[1]
    assert built()[1]


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"index": 1}', "\xff"])
def test_a_damaged_stamp_is_none(built, tmp_path, text):
    (tmp_path / "x/stamp").write_text(text, encoding="latin-1")
    assert built()[0]["counts"] == {"unchanged": 6}
    assert not built()[1]


def test_copies_stay_copies(built, tmp_path):
    shutil.copy(tmp_path / "shop/images/1.jpg", tmp_path / "shop/images/copy.jpg")
    _append(tmp_path / "shop/pairs.jsonl", '{"id": "copy", "image": "images/copy.jpg", "texts": {}}\n')
    assert built()[0]["counts"] == {"unchanged": 6, "duplicate": 1}
    quick, asked = built()
    assert not asked
    assert quick["counts"] == {"unchanged": 6, "duplicate": 1}


def test_an_index_among_its_pictures(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stamp, "RECENT", -60.0)
    table(tmp_path, range(3))
    words = ["index", str(run), str(tmp_path), "--out", str(tmp_path / "x"), "--json"]
    for expected in ("added", "unchanged", "unchanged"):
        main(words)
        assert json.loads(capsys.readouterr().out)["counts"] == {expected: 3}
    assert (tmp_path / "x/stamp").is_file()


def test_torch_is_not_imported(built, tmp_path):
    words = ["index", str(tmp_path / "run"), str(tmp_path / "shop"), "--out", str(tmp_path / "x"), "--json"]
    code = f"import sys; from tuwen.cli import main; main({words!r}); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"] == {"unchanged": 6}
