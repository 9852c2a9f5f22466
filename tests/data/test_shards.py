"""Shards: what goes in comes out, other readers can read it, and a killed build leaves nothing that looks finished."""

import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tuwen.data.built import open_shards
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpus import BrokenImage, Corpus, Record
from tuwen.data.curate.check import check
from tuwen.data.images import decode
from tuwen.data.open import splits_of
from tuwen.data.shards import write_shards
from tuwen.errors import UserError
from tuwen.search.pictures import plain


class Memory(Corpus):
    """Rows given as (texts, columns), with noise pictures of odd sizes; rows in `broken` have none."""

    name, languages, notice = "memory", ("zh", "en"), "ours"

    def __init__(self, rows, broken=(), stop_at=None, split="train"):
        self.rows, self.broken, self.stop_at, self.split = rows, dict(broken), stop_at, split
        self.fingerprint = str(rows)

    def __len__(self):
        return len(self.rows)

    def record(self, row):
        texts, columns = self.rows[row]
        return Record(f"id/{row}", texts, row // 2 - 5, columns)

    def image(self, row):
        if row == self.stop_at:
            raise KeyboardInterrupt
        if row in self.broken:
            raise BrokenImage(self.broken[row], f"row {row}")
        torch.manual_seed(row)
        return (
            torch.randint(0, 255, (3, 3, 3), dtype=torch.uint8).repeat_interleave(20 + row, 1).repeat_interleave(30, 2)
        )


def rows(count):
    return [({"zh": [f"第{k}行"], "en": [f"row {k}", "two"]}, {"number": k}) for k in range(count)]


def contents(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def test_round_trip_of_scenes(tmp_path):
    corpora = {s: Scenes(s, count=23, languages="all", noise=0.2, clicks=True) for s in ("train", "test")}
    report = write_shards(corpora, tmp_path / "c", shard_size=10, progress=False)
    assert report == {s: {"count": 23, "broken": {}} for s in corpora}
    assert splits_of(tmp_path / "c") == ("test", "train")
    for split, corpus in corpora.items():
        shards = open_shards(tmp_path / "c", split)
        assert (len(shards), shards.languages, shards.notice) == (23, corpus.languages, corpus.notice)
        assert shards.image_ids().tolist() == [corpus.record(row).image_id for row in range(23)]
        for row in (22, 0, 10, 9, 13):
            assert shards.record(row) == corpus.record(row)
            difference = (shards.image(row).float() - corpus.image(row).float()).abs()
            assert difference.mean() < 4
        ours, theirs = shards.gallery(), corpus.gallery()
        assert ours.texts == theirs.texts
        np.testing.assert_array_equal(ours.relevance.start, theirs.relevance.start)
        np.testing.assert_array_equal(ours.relevance.images, theirs.relevance.images)
    assert open_shards(tmp_path / "c", "train").fingerprint != open_shards(tmp_path / "c", "test").fingerprint


def test_plain_tar_in_webdataset_layout(tmp_path):
    corpus = Memory(rows(7))
    write_shards({"train": corpus}, tmp_path, side=None, shard_size=3, progress=False)
    seen = []
    for path in sorted(tmp_path.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            for picture, told in zip(members[::2], members[1::2], strict=True):  # one key, side by side
                key, dot, kind = picture.name.partition(".")
                assert (dot, kind, told.name) == (".", "jpg", f"{key}.json")
                row = json.loads(tar.extractfile(told).read())
                seen.append(row["id"])
                assert decode(tar.extractfile(picture).read()).equal(open_shards(tmp_path, "train").image(int(key)))
    assert seen == [f"id/{k}" for k in range(7)]
    listed = subprocess.run(["tar", "tf", tmp_path / "train-00002.tar"], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == ["000000006.jpg", "000000006.json"]


def test_pictures_shrink_to_the_side_and_never_grow(tmp_path):
    write_shards({"train": Memory(rows(3))}, tmp_path, side=61, progress=False)
    shapes = [tuple(open_shards(tmp_path, "train").image(k).shape[1:]) for k in range(3)]
    assert shapes == [(60, 90), (61, round(90 * 61 / 63)), (61, round(90 * 61 / 66))]


@pytest.mark.parametrize("stop_at", [0, 4, 5, 13])
def test_interrupted_build_resumes_to_the_same_bytes(tmp_path, stop_at):
    broken = {2: "truncated", 7: "missing"}
    both = {"train": Memory(rows(12), broken), "val": Memory(rows(4), split="val")}
    write_shards(both, tmp_path / "whole", shard_size=4, progress=False)
    stopped = dict(both)
    if stop_at < 12:
        stopped["train"] = Memory(rows(12), broken, stop_at)
    else:
        stopped["val"] = Memory(rows(4), {}, stop_at - 12, "val")
    with pytest.raises(KeyboardInterrupt):
        write_shards(stopped, tmp_path / "again", shard_size=4, progress=False)
    assert not (tmp_path / "again" / "corpus.json").exists()
    assert not list((tmp_path / "again").rglob("*.part"))
    with pytest.raises(UserError, match="unfinished build; run it again"):
        open_shards(tmp_path / "again", "train")
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "again").glob("*.tar")}
    assert len(kept) == stop_at // 4
    report = write_shards(both, tmp_path / "again", shard_size=4, progress=False)
    assert all(p.stat().st_mtime_ns == when for p, when in kept.items())  # finished shards are not written again
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
    assert report["train"] == {"count": 10, "broken": {"truncated": 1, "missing": 1}}
    told = [json.loads(line) for line in (tmp_path / "again" / "broken.jsonl").read_text().splitlines()]
    assert [(t["row"], t["reason"]) for t in told] == [(2, "truncated"), (7, "missing")]
    assert [open_shards(tmp_path / "again", "train").record(k).id for k in (1, 2, 6)] == ["id/1", "id/3", "id/8"]
    assert write_shards(both, tmp_path / "again", shard_size=4, progress=False) == report  # nothing left to do


def test_killed_build_resumes(tmp_path):
    code = (
        "import sys; from tuwen.data.corpora.scenes import Scenes; from tuwen.data.shards import write_shards;"
        "write_shards({'val': Scenes('val', count=200, side=64)}, sys.argv[1], shard_size=10, progress=False)"
    )
    victim = subprocess.Popen([sys.executable, "-c", code, tmp_path / "c"])
    deadline = time.time() + 60
    while len(list((tmp_path / "c").glob("*.tar"))) < 3 and time.time() < deadline:
        time.sleep(0.005)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    corpus = {"val": Scenes("val", count=200, side=64)}
    write_shards(corpus, tmp_path / "c", shard_size=10, progress=False)
    write_shards(corpus, tmp_path / "whole", shard_size=10, progress=False)
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


def test_survives_pickling_and_forking(tmp_path):
    write_shards({"train": Memory(rows(5))}, tmp_path, shard_size=2, progress=False)
    shards = open_shards(tmp_path, "train")
    first = shards.image(3)
    again = pickle.loads(pickle.dumps(shards))
    assert len(pickle.dumps(shards)) < 2000  # neither index nor open files
    assert again.image(3).equal(first)
    assert again.record(4) == shards.record(4)
    loaded = list(torch.utils.data.DataLoader(_Rows(shards), batch_size=None, num_workers=2))
    assert all(image.equal(shards.image(row)) for row, image in enumerate(loaded))


class _Rows(torch.utils.data.Dataset):
    def __init__(self, corpus):
        self.corpus = corpus

    def __len__(self):
        return len(self.corpus)

    def __getitem__(self, row):
        return self.corpus.image(row)


def test_many_shards_need_few_open_files(tmp_path):
    write_shards({"train": Memory(rows(230))}, tmp_path, shard_size=1, progress=False)
    shards = open_shards(tmp_path, "train")
    before = len(os.listdir("/proc/self/fd"))
    assert [shards.record(k).id for k in range(230)] == [f"id/{k}" for k in range(230)]
    assert len(os.listdir("/proc/self/fd")) - before <= 201
    del shards
    assert len(os.listdir("/proc/self/fd")) <= before


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)

all_texts = st.dictionaries(st.text(min_size=1), st.lists(st.text()), max_size=3)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.text(min_size=1), st.lists(st.text()), max_size=3),
            st.dictionaries(st.text(), json_values),
        ),
        max_size=5,
    ),
    st.integers(1, 4),
)
def test_any_text_and_column_comes_back(tmp_path_factory, content, shard_size):
    folder = tmp_path_factory.mktemp("shards")
    corpus = Memory(content)
    write_shards({"train": corpus}, folder, shard_size=shard_size, progress=False)
    shards = open_shards(folder, "train")
    assert [shards.record(k) for k in range(len(shards))] == [corpus.record(k) for k in range(len(content))]


def test_arrays_become_lists_and_the_rest_is_refused(tmp_path):
    columns = {"boxes": torch.tensor([[0.5, 1.0]]), "ids": np.arange(2), "one": np.float32(0.5), "flag": np.bool_(True)}
    write_shards({"train": Memory([({"en": ["x"]}, columns)])}, tmp_path / "a", progress=False)
    found = open_shards(tmp_path / "a", "train").record(0).columns
    assert found == {"boxes": [[0.5, 1.0]], "ids": [0, 1], "one": 0.5, "flag": True}
    with pytest.raises(UserError, match=r"row 0 \('id/0'\) cannot be written as JSON: a bytes"):
        write_shards({"train": Memory([({"en": ["x"]}, {"raw": b"1"})])}, tmp_path / "b", progress=False)


def test_mistakes(tmp_path):
    corpus = {"train": Memory(rows(6))}
    write_shards(corpus, tmp_path / "c", shard_size=3, progress=False)
    with pytest.raises(UserError, match="no split 'dev'; it has train"):
        open_shards(tmp_path / "c", "dev")
    with pytest.raises(UserError, match="built otherwise"):
        write_shards(corpus, tmp_path / "c", shard_size=3, quality=50, progress=False)
    with pytest.raises(UserError, match=r"no corpus\.json"):
        open_shards(tmp_path, "train")
    with pytest.raises(UserError, match="is not empty"):
        write_shards(corpus, tmp_path, progress=False)
    with pytest.raises(UserError, match="no split to write"):
        write_shards({}, tmp_path / "d")
    with pytest.raises(UserError, match="cannot name a file"):
        write_shards({"../x": corpus["train"]}, tmp_path / "d")
    with pytest.raises(UserError, match="quality=0"):
        write_shards(corpus, tmp_path / "d", quality=0)
    with pytest.raises(IndexError):
        open_shards(tmp_path / "c", "train").image(6)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write to"):
        write_shards(corpus, tmp_path / "file", progress=False)


def test_damage_is_found(tmp_path):
    write_shards({"train": Memory(rows(6))}, tmp_path, shard_size=3, progress=False)
    shard = tmp_path / "train-00001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    with pytest.raises(UserError, match=r"train-00001\.tar is missing or not of"):
        open_shards(tmp_path, "train")
    shard.write_bytes(bytes(len(whole)))
    shards = open_shards(tmp_path, "train")
    with pytest.raises(UserError, match="row 4 of"):
        shards.record(4)
    with pytest.raises(BrokenImage, match="not those that were built"):
        shards.image(4)
    (tmp_path / "train.index.npy").write_bytes(b"\x80\x04broken")
    with pytest.raises(UserError, match=r"train\.index\.npy: changed since it was built"):
        open_shards(tmp_path, "train")
    (tmp_path / "corpus.json").write_text('{"version": 99}')
    with pytest.raises(UserError, match="another version"):
        open_shards(tmp_path, "train")
    (tmp_path / "corpus.json").write_text("{")
    with pytest.raises(UserError, match=r"corpus\.json: damaged"):
        splits_of(tmp_path)


def test_texts_changed_in_place_and_an_index_turned_round(tmp_path):
    """As the docs promise: a copy that is not what was built is refused, at the latest where it is read."""
    write_shards({"train": Memory(rows(6))}, tmp_path, shard_size=3, progress=False)
    assert check(tmp_path, quiet=True).reasons.get("changed") is None
    shard, index = tmp_path / "train-00001.tar", tmp_path / "train.index.npy"
    whole, order = shard.read_bytes(), index.read_bytes()
    shard.write_bytes(whole.replace(b"row 4", b"row 9"))
    shards = open_shards(tmp_path, "train")
    assert shards.record(3).texts["en"] == ["row 3", "two"]
    with pytest.raises(UserError, match=r"row 4 of .*train-00001\.tar is damaged: its text is not what was built"):
        shards.record(4)
    assert [line.split(":")[0] for line in shards.changed()] == [str(shard)]
    assert check(tmp_path, quiet=True).reasons["changed"] == 1
    shard.write_bytes(whole)
    np.save(index, np.load(index)[::-1])
    with pytest.raises(UserError, match=r"train\.index\.npy: changed since it was built"):
        open_shards(tmp_path, "train")
    index.write_bytes(order)
    assert list(open_shards(tmp_path, "train").changed()) == []


def as_before(folder):
    """A built folder as it was when there were neither sums nor hashes."""
    meta = json.loads((folder / "corpus.json").read_text())
    for split, own in meta["splits"].items():
        del own["hashes"], own["index"]
        index = np.load(folder / f"{split}.index.npy")
        fields = [name for name in index.dtype.names if not name.endswith("_sum")]
        old = np.zeros(len(index), dtype=[(name, index.dtype[name]) for name in fields])
        for name in fields:
            old[name] = index[name]
        np.save(folder / f"{split}.index.npy", old)
    del meta["class_names"]
    (folder / "corpus.json").write_text(json.dumps(meta))
    return folder


def test_copies_built_before_there_were_hashes_open(tmp_path):
    write_shards({"train": Memory(rows(5))}, tmp_path / "c", shard_size=2, progress=False)
    want = [open_shards(tmp_path / "c", "train").record(row) for row in range(5)]
    shards = open_shards(as_before(tmp_path / "c"), "train")
    assert [shards.record(row) for row in range(5)] == want
    assert shards.image(4).shape == (3, 72, 90)
    assert list(shards.changed()) == []


@pytest.mark.parametrize("field", ["shard", "image_offset", "image_size", "json_offset", "json_size"])
@pytest.mark.parametrize("value", [-1, 2**31 - 1])
def test_an_old_index_that_leads_out_of_its_shard(field, value, tmp_path):
    write_shards({"train": Memory(rows(3))}, tmp_path, progress=False)
    as_before(tmp_path)
    index = np.load(tmp_path / "train.index.npy")
    index[field][1] = value
    np.save(tmp_path / "train.index.npy", index)
    with pytest.raises(UserError, match="row 1 lies outside its shard"):
        open_shards(tmp_path, "train")


def test_a_full_disk_is_a_line_and_the_build_goes_on_later(tmp_path, monkeypatch):
    corpus = {"train": Memory(rows(4))}

    def full(*_):
        raise OSError(28, "No space left on device")

    for where in ("os.fsync", "tuwen.data.shards._join", "tuwen.data.shards._add_file"):
        with monkeypatch.context() as patch:
            patch.setattr(where, full)
            with pytest.raises(UserError, match=r"No space left on device.*run it again"):
                write_shards(corpus, tmp_path / where, progress=False)
        assert not (tmp_path / where / "corpus.json").exists()
        assert write_shards(corpus, tmp_path / where, progress=False)["train"]["count"] == 4


def test_numbers_and_dates_stay_what_an_index_makes_of_them(tmp_path):
    columns = {"price": Decimal("12.50"), "day": date(2024, 5, 31), "at": datetime(2024, 5, 31, 10)}
    write_shards({"train": Memory([({"en": ["x"]}, columns)])}, tmp_path, progress=False)
    built = open_shards(tmp_path, "train").record(0).columns
    assert built == {name: plain(value) for name, value in columns.items()}
    assert built["price"] == 12.5
