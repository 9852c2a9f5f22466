"""Bulk vectors: the model's own, part by part, resumed, shared between processes, and the same on a Ray cluster.

python3 -m venv /tmp/ray && /tmp/ray/bin/pip install "ray[data]"      (beside tuwen's own packages)
TUWEN_RAY_PYTHON=/tmp/ray/bin/python python -m pytest -m slow tests/search/test_embed.py
"""

import os
import subprocess
import textwrap

import pyarrow.parquet as pq
import pytest
import torch

import tuwen
from tests.search.common import picture, table
from tuwen.data.fit import Fit
from tuwen.data.images import encode_jpeg
from tuwen.data.open import open_corpus
from tuwen.data.shards import write_shards
from tuwen.errors import UserError
from tuwen.search import embed as bulk
from tuwen.search.embed import embed

RAY = os.environ.get("TUWEN_RAY_PYTHON", "")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    pictures = table(folder / "in", range(23))
    write_shards({"train": open_corpus(pictures, "all")}, folder / "out", shard_size=5, progress=False)
    return folder / "out"


def held(folder):
    """file name -> its table."""
    return {path.name: pq.read_table(path) for path in sorted(folder.glob("*.parquet"))}


def test_vectors_of_shards(run, shards, tmp_path):
    told = embed(run, shards, tmp_path / "out", batch_size=4)
    assert (told.parts, told.pictures, told.broken, told.made) == (5, 23, {}, 5)
    found = held(tmp_path / "out")
    assert list(found) == [f"train-{n:05d}.parquet" for n in range(5)]
    corpus = open_corpus(shards, "train")
    expected = tuwen.load(run).embed(images=[corpus.image(row) for row in range(23)]).images
    ids = [name for part in found.values() for name in part["id"].to_pylist()]
    assert ids == [corpus.record(row).id for row in range(23)]
    vectors = torch.tensor([vector for part in found.values() for vector in part["vector"].to_pylist()])
    torch.testing.assert_close(vectors, expected, atol=1e-6, rtol=0)


def test_what_is_there_is_done(run, shards, tmp_path, monkeypatch):
    embed(run, shards, tmp_path / "out")
    whole = held(tmp_path / "out")
    (tmp_path / "out/train-00003.parquet").unlink()
    (tmp_path / "out/train-00003.part").write_bytes(b"half")  # of a process that was killed
    calls = []
    plain = bulk.Worker.__call__
    monkeypatch.setattr(bulk.Worker, "__call__", lambda self, part: (calls.append(part.name), plain(self, part))[1])
    assert embed(run, shards, tmp_path / "out").made == 1
    assert calls == ["train-00003"]
    assert held(tmp_path / "out") == whole
    assert embed(run, shards, tmp_path / "out").made == 0


def test_a_part_in_hand_elsewhere_is_left_to_them(run, shards, tmp_path):
    embed(run, shards, tmp_path / "out")
    for path in (tmp_path / "out").glob("*.parquet"):
        path.unlink()
    with bulk._claimed(tmp_path / "out/train-00002.parquet", Fit(32)) as ours:
        assert ours
        told = embed(run, shards, tmp_path / "out")
    assert (told.made, told.parts) == (4, 4)
    assert embed(run, shards, tmp_path / "out").made == 1


def test_broken_pictures_and_mistakes(run, clip_run, shards, tmp_path):
    pictures = table(tmp_path / "in", range(3))
    data = (pictures / "images/1.jpg").read_bytes()
    scrambled = data[:300] + bytes(len(data) - 302) + data[-2:]  # sound at both ends
    (pictures / "images/1.jpg").write_bytes(scrambled)
    told = embed(run, pictures, tmp_path / "out")
    assert told.pictures + sum(told.broken.values()) == 3
    (pictures / "images/2.jpg").write_bytes(b"")
    assert embed(run, pictures, tmp_path / "empty").broken["empty"] == 1
    (pictures / "images/2.jpg").write_bytes(encode_jpeg(picture(2)))
    (tmp_path / "empty/all-00000.parquet").write_bytes(b"x")
    (pictures / "images/2.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"all-00000\.parquet: damaged"):
        embed(run, pictures, tmp_path / "empty")
    (pictures / "images/2.jpg").write_bytes(encode_jpeg(picture(2)))
    with pytest.raises(UserError, match="another run"):
        embed(clip_run, pictures, tmp_path / "out")
    with pytest.raises(UserError, match="another run or other pictures"):
        embed(run, shards, tmp_path / "out")
    (pictures / "images/2.jpg").write_bytes((pictures / "images/0.jpg").read_bytes())  # as many as before
    with pytest.raises(UserError, match="another run or other pictures"):
        embed(run, pictures, tmp_path / "out")


@pytest.mark.slow  # about two minutes
@pytest.mark.skipif(not RAY, reason="TUWEN_RAY_PYTHON names no Python with Ray")
def test_two_nodes_of_a_ray_cluster_write_the_same_files(run, shards, tmp_path):
    """A local cluster of two nodes; about two minutes."""
    program = f"""
        import json, ray
        from ray.cluster_utils import Cluster
        from tuwen.search import embed as bulk
        cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1}})
        cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        given = {[str(run), str(shards), str(tmp_path / "ray")]!r}
        told = bulk.embed(*given, batch_size=4, cluster=cluster.address)
        print(json.dumps([told.parts, told.pictures, told.made]))
        again = bulk.embed(*given, batch_size=4, cluster=cluster.address)
        print(json.dumps(again.made))
        cluster.shutdown()
    """
    done = subprocess.run([RAY, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=500)
    assert done.stdout.splitlines()[-2:] == ["[5, 23, 5]", "0"], done.stderr[-2000:]
    embed(run, shards, tmp_path / "one", batch_size=4)
    assert held(tmp_path / "ray") == held(tmp_path / "one")
