"""An index or a folder of vectors made by another fit is refused, and embedded again in place, whatever stops it."""

import signal
import subprocess
import sys
import textwrap

import pyarrow.parquet as pq
import pytest
import torch

from tests.search.common import table, untrained
from tests.search.test_index import vectors
from tuwen.config import dump, override
from tuwen.errors import UserError
from tuwen.run import CONFIG
from tuwen.search import embed as bulk
from tuwen.search.build import build_index
from tuwen.search.embed import embed
from tuwen.search.index import Index
from tuwen.search.query import Query, Searcher
from tuwen.search.record import IndexRecord
from tuwen.search.refit import refit
from tuwen.training.config import RunConfig


def crop(run):
    """From now on the run cuts the middle out of its pictures."""
    (run / CONFIG).write_text(dump(override(RunConfig.read(run), {"model.image.shorter_side": 37})))


@pytest.fixture
def run(tmp_path):
    return untrained(tmp_path / "run", "r2d2")


def rows_of(index):
    columns = [name for name in index.snapshot.dataset.schema.names if name != "fit"]
    return index.snapshot.dataset.to_table(columns=columns).sort_by("id").to_pylist()


@pytest.mark.parametrize("budget", [None, 0])
def test_refused_with_the_command_that_mends_it_and_then_as_new(run, tmp_path, budget):
    pictures = table(tmp_path / "in", range(9), columns=lambda number: {"price": number, "tags": ["a", "b"]})
    index = build_index(run, pictures, tmp_path / "out", token_budget=budget)
    squashed = vectors(index)
    crop(run)
    command = rf"tuwen index --refit --out {tmp_path / 'out'}`"
    for ask in (
        lambda: Searcher(Index.open(tmp_path / "out")),
        lambda: build_index(run, pictures, tmp_path / "out"),
        lambda: Index.open(tmp_path / "out").add([]),
    ):
        with pytest.raises(UserError, match=r"squashed to 32 x 32.*shorter side of 37.*--refit --out"):
            ask()
    with pytest.raises(UserError, match=command):
        Searcher(Index.open(tmp_path / "out"))
    again = refit(tmp_path / "out")
    assert again.built.counts == {"refitted": 9}
    fresh = build_index(run, pictures, tmp_path / "fresh", token_budget=budget)
    assert rows_of(again) == rows_of(fresh)
    assert again.about["fit"] == fresh.about["fit"]
    assert any(not torch.equal(squashed[name], vector) for name, vector in vectors(again).items())
    assert "fit" not in again.snapshot.dataset.schema.names
    assert Searcher(Index.open(tmp_path / "out")).search([Query("red")])[0].results
    assert build_index(run, pictures, tmp_path / "out").built.counts == {"unchanged": 9}
    assert refit(tmp_path / "out").built.counts == {}  # nothing to do


KILLED = """
    import itertools, os, signal, sys, types
    from tuwen.search import ingest
    from tuwen.search.refit import refit
    ingest.SHORTEST = 0.0
    ingest.time = types.SimpleNamespace(monotonic=itertools.count().__next__)  # a commit a batch, however busy it is
    plain, commits = ingest.Ingest._commit, []
    def commit(self):
        done = plain(self)
        commits.append(done)
        if len(commits) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    ingest.Ingest._commit = commit
    refit(sys.argv[1], batch_size=4)
"""


def test_killed_in_the_middle_it_goes_on_where_it_was(run, tmp_path):
    pictures = table(tmp_path / "in", range(14))
    build_index(run, pictures, tmp_path / "out", batch_size=4)
    crop(run)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "out")])
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(UserError, match="--refit"):  # of two fits now: no answers
        Searcher(Index.open(tmp_path / "out"))
    again = refit(tmp_path / "out", batch_size=4)
    assert again.built.counts == {"refitted": 6}  # two batches of 4 were committed
    assert rows_of(again) == rows_of(build_index(run, pictures, tmp_path / "fresh", batch_size=4))


def test_what_cannot_be_read_again_is_named_and_waits_or_goes(run, tmp_path):
    pictures = table(tmp_path / "in", range(6))
    for place in ("out", "other"):
        build_index(run, pictures, tmp_path / place)
    crop(run)
    (pictures / "images").rename(tmp_path / "images")
    lines = []
    with pytest.raises(UserError, match=r"6 pictures could not be read again; say where they are, .*PICTURES --refit"):
        refit(tmp_path / "out", say=lines.append)
    assert any("p3" in line and "missing" in line for line in lines)
    with pytest.raises(UserError, match="--refit"):
        Searcher(Index.open(tmp_path / "out"))
    moved = table(tmp_path / "moved", range(5))  # the same pictures elsewhere, but one
    with pytest.raises(UserError, match="1 pictures could not be read again"):
        refit(tmp_path / "out", moved)
    index = refit(tmp_path / "out", prune=True)
    assert index.built.counts["removed"] == 1
    assert vectors(index).keys() == {f"p{n}" for n in range(5)}
    whole = table(tmp_path / "whole", range(6))
    assert vectors(refit(tmp_path / "other", whole)).keys() == {f"p{n}" for n in range(6)}


def test_an_index_that_says_no_fit_was_squashed(run, tmp_path):
    pictures = table(tmp_path / "in", range(3))
    build_index(run, pictures, tmp_path / "out")
    record = IndexRecord.open(tmp_path / "out")
    record.about = {name: value for name, value in record.about.items() if name != "fit"} | {"side": 32}
    record.tell({})
    Searcher(Index.open(tmp_path / "out"))  # as the run has its pictures: nothing is lost
    crop(run)
    with pytest.raises(UserError, match="squashed to 32 x 32"):
        Searcher(Index.open(tmp_path / "out"))
    assert refit(tmp_path / "out").built.counts == {"refitted": 3}


def test_a_folder_of_vectors_is_refused_and_made_anew_part_by_part(run, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "ROWS", 2)
    pictures = table(tmp_path / "in", range(7))
    assert embed(run, pictures, tmp_path / "out").made == 4
    old = {path.name: pq.read_table(path) for path in (tmp_path / "out").glob("*.parquet")}
    crop(run)
    with pytest.raises(UserError, match=r"squashed to 32 x 32.*shorter side of 37.*tuwen embed .* --refit --out"):
        embed(run, pictures, tmp_path / "out")
    plain, made = bulk.Worker.__call__, []

    def stopped(self, part):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(part.name)
        return plain(self, part)

    with monkeypatch.context() as patch:
        patch.setattr(bulk.Worker, "__call__", stopped)
        with pytest.raises(KeyboardInterrupt):
            embed(run, pictures, tmp_path / "out", refit=True)
    told = embed(run, pictures, tmp_path / "out")  # once begun, it need not be asked for
    assert (told.made, told.parts, told.pictures) == (2, 4, 7)
    embed(run, pictures, tmp_path / "fresh")
    for path in (tmp_path / "fresh").glob("*.parquet"):
        assert pq.read_table(path) == pq.read_table(tmp_path / "out" / path.name)
        assert pq.read_table(path)["vector"] != old[path.name]["vector"]
