"""Index folders damaged at random, or on a disk that is full: an answer, or a line."""

import contextlib
import functools
import json
import os
import random
import resource
import shutil
import struct
from collections import Counter
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import tuwen
from tests.fuzzing import ended, faults, in_children
from tests.search.service.conftest import LOCAL, pictures
from tuwen.errors import UserError
from tuwen.search import seal
from tuwen.search.build import build_index
from tuwen.search.index import Index
from tuwen.search.query import Query, Searcher
from tuwen.search.service.app import create_app
from tuwen.search.service.settings import Settings


@pytest.fixture(scope="module")
def built(run, tmp_path_factory) -> Path:
    """The folder of an index."""
    folder = tmp_path_factory.mktemp("damaged") / "index"
    build_index(run, pictures(12), folder)
    return folder


def changed(folder: Path, draw: random.Random) -> None:
    """One file cut short, changed in some bytes, emptied or taken away."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    path = draw.choice(files)
    data = bytearray(path.read_bytes())
    how, place = draw.randrange(8), draw.randrange(len(data))
    if how == 0:
        path.unlink()
        return
    if how == 1:
        del data[place:]
    elif how == 2:
        data = bytearray()
    else:
        for _ in range(draw.choice((1, 4, 64))):
            place = draw.randrange(len(data))
            near_end = max(0, len(data) - 300) if draw.random() < 0.5 else 0  # where Lance keeps what stands where
            data[max(place, near_end)] = draw.randrange(256)
    path.write_bytes(data)


def used(folder: Path, predictor) -> None:
    """All that is read of an index."""
    index = Index.open(folder)
    index.__dict__["predictor"] = predictor
    searcher = Searcher(index)
    results = searcher.search([Query(text="a red bird")], top=5, filters=None)[0].results
    searcher.search([Query(text="a cat")], top=5, filters={"price": {"min": 3}, "tags": ["a", "b"]})
    for result in results:
        index.thumbnail(result.id)
        index.describe([result.id])
    for column in index.columns():
        index.values(column)
    index.remove(["scene/0-3.jpg"])


@functools.cache
def predictor_of(run: str):
    """A run's predictor, loaded once a process."""
    return tuwen.load(run).predictor


def attempt(right: str, run: str, seed: str, number: int) -> str:
    """Uses a copy of an index with one file damaged."""
    folder = Path(right).with_name(f"changed{number}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(right, folder)
    changed(folder, random.Random(f"index {seed} {number}"))
    if seed == "0":  # sealed as it is: not tried in a process of its own first, which takes two seconds
        seal.seal(folder)
    try:
        used(folder, predictor_of(run))
    except UserError as error:
        return ended([str(error)])
    except KeyError as error:  # a picture that is no longer there by its name
        if not str(error).startswith("'scene/"):
            raise
    finally:
        shutil.rmtree(folder)
    return "read"


def test_damaged_at_random(built, run):
    """In a process of its own: Lance may take one down with a mapped file."""
    ends = in_children(range(25), attempt, built, run, 0)
    assert faults(ends) == {}
    assert Counter(what for what, _ in ends.values())["line"] > 5


def varint(number: int) -> bytes:
    """As protocol buffers write numbers: seven bits a byte, the low ones first."""
    return bytes([number & 127 | (128 if number > 127 else 0)]) + (varint(number >> 7) if number > 127 else b"")


def with_rows(manifest: bytes, rows: int, claimed: int) -> bytes:
    """A manifest of Lance whose only fragment, of fewer than 128 rows, claims another number of rows.

    The file ends in where its message begins (int64), two versions and "LANC"; a message begins with its length.
    Field 2 is the fragment, whose last field, 4, is the number of rows.
    """
    begin = struct.unpack("<q", manifest[-16:-8])[0]
    length = struct.unpack("<I", manifest[begin : begin + 4])[0]
    message = manifest[begin + 4 : begin + 4 + length]
    end = message.index(bytes([4 << 3, rows])) + 2
    start = next(k for k in range(end) if message[k] == 2 << 3 | 2 and message[k + 1] == end - k - 2)
    fragment = message[start + 2 : end - 1] + varint(claimed)
    message = message[:start] + bytes([2 << 3 | 2]) + varint(len(fragment)) + fragment + message[end:]
    return manifest[:begin] + struct.pack("<I", len(message)) + message + manifest[begin + 4 + length :]


def test_a_manifest_that_claims_more_rows_than_memory_holds_is_one_line(run, built, tmp_path, monkeypatch):
    """Lance would ask for 34 GB and take the process down: opened in another process first, whose end is a line."""
    index = tmp_path / "index"
    shutil.copytree(built, index)
    manifest = min((index / "pictures.lance" / "_versions").glob("*.manifest"))
    manifest.write_bytes(with_rows(manifest.read_bytes(), 12, 2**32 - 1))
    monkeypatch.setattr(seal, "BYTES", 1 << 30)
    monkeypatch.setattr(seal, "SECONDS", 40)
    with pytest.raises(UserError, match="damaged; build the index again"):
        Index.open(index)


def test_an_index_as_it_was_sealed_is_opened_at_once(run, built, tmp_path, monkeypatch):
    """Not tried in another process again: as built, moved with its times of change, added to, tried before."""
    monkeypatch.setattr(seal.subprocess, "run", lambda *_, **__: pytest.fail("tried again"))
    assert len(Index.open(built)) == 12
    index = tmp_path / "index"
    shutil.copytree(built, index)
    assert build_index(run, pictures(14), index).built.counts == {"unchanged": 12, "added": 2}
    assert len(Index.open(index)) == 14
    monkeypatch.undo()
    touched = min((index / "pictures.lance" / "data").iterdir())
    os.utime(touched)
    before = seal.digest(index)
    assert (index / seal.SEAL).read_text() != before
    assert len(Index.open(index)) == 14
    assert (index / seal.SEAL).read_text() == before


@contextlib.contextmanager
def files_up_to(size: int):
    """While it lasts, writing beyond so many bytes of a file fails, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def disk_full_while_built(right: str, run: str, place: str, number: int) -> str:
    index = Path(place) / "index"
    shutil.copytree(right, index)
    with files_up_to(3_000), pytest.raises(UserError, match="cannot be written"):
        build_index(run, pictures(24), index)
    assert len(Index.open(index)) == 12
    assert build_index(run, pictures(24), index).built.counts == {"unchanged": 12, "added": 12}
    with files_up_to(1_000), pytest.raises(UserError, match="written"):
        build_index(run, pictures(4), Path(place) / "new")
    assert len(build_index(run, pictures(4), Path(place) / "new")) == 4
    return "read"


def disk_full_while_served(right: str, run: str, place: str, number: int) -> str:
    index = Path(place) / "index"
    shutil.copytree(right, index)
    new = pictures(1, seed=3)[0]
    form = {"files": {"pictures": new.image}, "data": {"records": json.dumps([{"id": "new"}])}}
    app = create_app(Searcher(Index.open(index, run)), Settings(), None)
    with TestClient(app, base_url=LOCAL) as client:
        with files_up_to(500):
            answer = client.post("/pictures", **form)
        assert (answer.status_code, answer.json()["detail"][:9]) == (500, "the index")
        assert place not in answer.text
        assert client.post("/pictures", **form).status_code == 201
        for path in (index / "pictures.lance" / "data").iterdir():
            path.write_bytes(b"")
        answer = client.get("/pictures/thumbnail", params={"id": "new"})
        assert answer.status_code in (404, 500)
        assert client.get("/health").status_code == 200
    return "read"


@pytest.mark.parametrize("attempt", [disk_full_while_built, disk_full_while_served])
def test_a_disk_that_is_full_is_a_line_or_500_and_the_same_call_goes_on(run, built, tmp_path, attempt):
    assert faults(in_children([0], attempt, built, run, tmp_path)) == {}


@pytest.mark.slow  # 10 minutes: each is tried in a process of its own
def test_damaged_at_random_long(built, run):
    ends = in_children(range(150), attempt, built, run, 1, waits=600)
    assert faults(ends) == {}
    assert Counter(what for what, _ in ends.values())["line"] > 15
