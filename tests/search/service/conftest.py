"""A served index of made-up scenes, by an untrained system."""

import contextlib

import pytest
from starlette.testclient import TestClient

from tuwen.data.corpora.scenes import Scenes
from tuwen.data.images import encode_jpeg
from tuwen.search.build import build_index
from tuwen.search.index import Index
from tuwen.search.pictures import Picture
from tuwen.search.query import Searcher
from tuwen.search.service.app import create_app
from tuwen.search.service.keys import ApiKeys, create
from tuwen.search.service.settings import Settings

COUNT = 24
LOCAL = "http://127.0.0.1"


def pictures(count: int = COUNT, seed: int = 0, start: int = 0) -> list[Picture]:
    """Scenes with a name, texts, and columns of every kind."""
    corpus = Scenes("test", count=start + count, seed=seed, side=64)
    found = []
    for row in range(start, start + count):
        record = corpus.record(row)
        columns = {"shelf": "abc"[row % 3], "price": float(row), "new": row % 2 == 0, "tags": ["a", f"t{row % 2}"]}
        texts = {language: record.texts[language][:1] for language in ("en", "zh")}
        found.append(Picture(encode_jpeg(corpus.image(row)), f"scene/{seed}-{row}.jpg", texts, columns))
    return found


@pytest.fixture(scope="session")
def index_folder(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("service") / "index"
    build_index(run, pictures(), folder)
    return folder


@pytest.fixture(scope="session")
def searcher(index_folder):
    return Searcher(Index.open(index_folder))


@pytest.fixture(scope="session")
def key_file(tmp_path_factory):
    """(file, key that may read, key that may write)."""
    path = tmp_path_factory.mktemp("service") / "keys.txt"
    return path, create(path, "shop", "read"), create(path, "importer", "write")


@pytest.fixture
def client(searcher):
    """The service without keys."""
    with TestClient(create_app(searcher, Settings(), None), base_url=LOCAL) as client:
        yield client


@pytest.fixture
def locked(searcher, key_file):
    """The service with keys; the client presents none."""
    with TestClient(
        create_app(searcher, Settings(), ApiKeys.read(key_file[0])), base_url="http://shop.example"
    ) as client:
        yield client


@pytest.fixture
def serve():
    """Serves a searcher without keys, by the settings given."""
    with contextlib.ExitStack() as stack:
        yield lambda searcher, **settings: stack.enter_context(
            TestClient(create_app(searcher, Settings(**settings), None), base_url=LOCAL)
        )
