"""Index folders damaged at random, or on a disk that is full: an answer, or a line."""

import contextlib
import json
import random
import resource
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.search.service.conftest import pictures, serve  # noqa: F401 (a fixture)
from tuwen.errors import UserError
from tuwen.search.build import build_index
from tuwen.search.index import Index
from tuwen.search.query import Query, Searcher

LONGEST = 900  # characters of a message


@pytest.fixture(scope="module")
def built(run, tmp_path_factory) -> tuple[Path, object]:
    """An index, and its predictor, which is not loaded for each."""
    folder = tmp_path_factory.mktemp("damaged") / "index"
    index = build_index(run, pictures(12), folder)
    return folder, index.predictor


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


def outcomes(built, place: Path, count: int, seed: int = 0) -> tuple[Counter, list[str]]:
    right, predictor = built
    counts, faults = Counter(), []
    for number in range(count):
        folder = place / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(right, folder)
        changed(folder, random.Random(f"index {seed} {number}"))
        try:
            used(folder, predictor)
            counts["answered"] += 1
        except UserError as error:
            line = len(str(error)) <= LONGEST and "\n" not in str(error)
            counts["refused" if line else "not a line"] += 1
            faults += [] if line else [f"{number}: {str(error)[:200]!r}"]
        except KeyError as error:  # a picture that is no longer there by its name
            counts["answered" if str(error).startswith("'scene/") else "traceback"] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            counts["traceback"] += 1
            faults.append(f"{number}: {type(error).__name__}: {str(error)[:160]!r}")
    print(dict(counts), *faults, sep="\n")
    return counts, faults


def test_damaged_at_random(built, tmp_path):
    counts, faults = outcomes(built, tmp_path, 40)
    assert not faults, faults
    assert counts["refused"] > 5


@contextlib.contextmanager
def files_up_to(size: int):
    """While it lasts, writing beyond so many bytes of a file fails, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_is_a_line_and_the_same_call_goes_on(run, built, tmp_path, capsys):
    right, _ = built
    shutil.copytree(right, tmp_path / "index")
    with files_up_to(3_000), pytest.raises(UserError, match="cannot be written"):
        build_index(run, pictures(24), tmp_path / "index")
    kept = Index.open(tmp_path / "index")
    assert len(kept) == 12
    index = build_index(run, pictures(24), tmp_path / "index")
    assert index.built.counts == {"unchanged": 12, "added": 12}
    with files_up_to(1_000), pytest.raises(UserError, match="written"):
        build_index(run, pictures(4), tmp_path / "new")
    assert len(build_index(run, pictures(4), tmp_path / "new")) == 4


def test_the_service_says_500_and_not_who_was_wrong(run, built, tmp_path, serve):  # noqa: F811
    shutil.copytree(built[0], tmp_path / "index")
    client = serve(Searcher(Index.open(tmp_path / "index", run)))
    new = pictures(1, seed=3)[0]
    form = {"files": {"pictures": new.image}, "data": {"records": json.dumps([{"id": "new"}])}}
    with files_up_to(500):
        answer = client.post("/pictures", **form)
    assert (answer.status_code, answer.json()["detail"][:9]) == (500, "the index")
    assert str(tmp_path) not in answer.text
    assert client.post("/pictures", **form).status_code == 201
    for path in (tmp_path / "index" / "pictures.lance" / "data").iterdir():
        path.write_bytes(b"")
    answer = client.get("/pictures/thumbnail", params={"id": "new"})
    assert answer.status_code in (404, 500)
    assert client.get("/health").status_code == 200


@pytest.mark.slow  # 4 minutes
def test_damaged_at_random_long(built, tmp_path):
    counts, faults = outcomes(built, tmp_path, 1000, seed=1)
    assert not faults, faults
    assert counts["refused"] > 100
