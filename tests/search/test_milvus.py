"""The first stage in a real Milvus server: the one that the PyPI package `milvus` 2.3.5 carries, on loopback.

python3 -m venv /tmp/milvus && /tmp/milvus/bin/pip install "setuptools<80" "milvus==2.3.5"
TUWEN_MILVUS_PYTHON=/tmp/milvus/bin/python python -m pytest -m slow tests/search/test_milvus.py
"""

import os
import subprocess

import pytest
import torch

from tests.search.common import TEXTS, picture
from tuwen.data.images import encode_jpeg
from tuwen.errors import UserError
from tuwen.search.build import build_index
from tuwen.search.index import Index
from tuwen.search.milvus import _exactly
from tuwen.search.pictures import Picture
from tuwen.search.query import Query, Searcher

PYTHON = os.environ.get("TUWEN_MILVUS_PYTHON", "")
SERVER = """
import sys, time
from milvus import MilvusServer
server = MilvusServer()
server.set_base_dir(sys.argv[1])
server.start()
print(server.listen_port, flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("milvus")
    server = subprocess.Popen(
        [PYTHON, "-c", SERVER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    port = server.stdout.readline().strip()
    yield f"http://127.0.0.1:{port}"
    server.stdin.close()
    server.wait(60)


def pictures(numbers):
    return [
        Picture(
            encode_jpeg(picture(n)),
            f"p{n}",
            {"en": [TEXTS[n % 5]]},
            {
                "n": n,
                "tags": ["a", "b"][: 1 + n % 2],
                "k.图": f"it's {n % 3}",
                "day": f"2024-{1 + n % 12:02}-{1 + n % 28:02}",
            },
        )
        for n in numbers
    ]


@pytest.mark.slow  # about a minute, most of it the server's start and stop
@pytest.mark.skipif(not PYTHON, reason="TUWEN_MILVUS_PYTHON names no Python with the milvus package")
def test_an_index_whose_vectors_are_in_milvus(run, url, tmp_path):
    """About a minute, most of it the server's start and stop."""
    index = build_index(run, pictures(range(300)), tmp_path / "milvus", milvus=url)
    exact = Searcher(build_index(run, pictures(range(300)), tmp_path / "exact"))
    assert index.snapshot.vectors is None
    found = Searcher(Index.open(tmp_path / "milvus"))
    filters = [None, {"n": {"max": 99}}, {"tags": "b"}, {"k.图": ["it's 1", "it's 2"], "n": {"min": 50}}, {"n": []}]
    filters += [
        {"day": {"min": "2024-03", "max": "2024-05-20"}},
        {"day": {"max": "2024-02-09"}, "k.图": {"min": "it's 1"}},
    ]
    for asked in filters:
        for query in (Query("blue"), Query(image=encode_jpeg(picture(7)))):
            for candidates in (0, 10):
                one, two = (s.search([query], top=10, candidates=candidates, filters=asked)[0] for s in (found, exact))
                assert [(r.id, r.first, r.score) for r in one.results] == [
                    (r.id, r.first, r.score) for r in two.results
                ]
    assert [r.id for r in found.similar("p5", 4).results] == [r.id for r in exact.similar("p5", 4).results]

    index.add([*pictures([300]), Picture(encode_jpeg(picture(999)), "p7")])
    index.remove(["p5"])
    assert found.index.milvus.sync(index._record) == {"put": 0, "removed": 0}
    found.index.refresh()
    assert [r.id for r in found.search([Query(image=encode_jpeg(picture(300)))], 1)[0].results] == ["p300"]
    assert [r.id for r in found.search([Query(image=encode_jpeg(picture(999)))], 1)[0].results] == ["p7"]
    assert "p5" not in {r.id for r in found.search([Query(image=encode_jpeg(picture(5)))], 20)[0].results}

    index.milvus.remove(["p10", "p11"])  # as if a process had been killed between record and server
    index.milvus.client.upsert(
        index.milvus.collection, [{"id": "ghost", "mark": "", "columns": {}, "vector": [0.1] * 16}]
    )
    again = build_index(run, pictures(range(300)), tmp_path / "milvus", milvus=url)
    assert again.milvus.sync(again._record) == {"put": 0, "removed": 0}
    searcher = Searcher(again)
    assert [r.id for r in searcher.search([Query(image=encode_jpeg(picture(10)))], 1)[0].results] == ["p10"]
    with pytest.raises(UserError, match="elsewhere"):
        build_index(run, [], tmp_path / "exact", milvus=url)


def test_a_server_that_is_not_there_is_told_of(run, tmp_path):
    pytest.importorskip("pymilvus")
    with pytest.raises(UserError, match="no Milvus server"):
        build_index(run, pictures(range(2)), tmp_path / "out", milvus="http://127.0.0.1:9")


def test_scores_of_what_milvus_finds_are_read_from_the_record(run, tmp_path):
    index = build_index(run, pictures(range(9)), tmp_path / "out")
    index.remove(["p4"])
    index._record.index_ids()
    index._record.index_ids()  # once is enough
    index.add(pictures([9]))  # after the index of ids was made
    snapshot = index._record.snapshot(vectors=True)
    queries = snapshot.vectors[[2, 7]]
    named = [["p1", "p4", "p9", "p2"], [], ["p9", "p7"]]
    found = _exactly(snapshot, torch.stack([queries[0], queries[0], queries[1]]), named)
    assert not len(found[1][0])
    assert not len(found[1][1])
    for query, (near, scores), right in (
        (queries[0], found[0], {"p1", "p9", "p2"}),
        (queries[1], found[2], {"p9", "p7"}),
    ):
        assert set(snapshot.rows(near.numpy(), ["id"])["id"]) == right
        torch.testing.assert_close(scores, snapshot.vectors[near] @ query)
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert [len(near) for near, _ in _exactly(snapshot, queries, [["p4"], []])] == [0, 0]
