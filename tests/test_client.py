"""`tuwen.client` against a service that runs: answers, and the service's refusals as exceptions."""

import pytest

from tests.search.common import make_run
from tests.search.service.conftest import key_file, pictures  # noqa: F401 (a fixture)
from tests.search.service.live import serving
from tuwen.client import Client, NotThere, Refused, TryAgain, WrongKey
from tuwen.search.build import build_index


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("client") / "index"
    build_index(make_run(path.parent / "clip", "clip"), pictures(9), path)
    return path


def test_a_service_by_python(index, key_file, tmp_path):  # noqa: F811
    with serving(index, "--keys", str(key_file[0])) as live:
        client = Client(live.url, key_file[2])
        assert client.about()["pictures"] == 9
        listed = client.pictures(top=4)
        assert [row["id"] for row in listed["results"]] == [picture.id for picture in pictures(9)][:4]
        assert {row["first"] for row in listed["results"]} == {None}
        found = client.search("一只红色的鸟", top=3)
        assert len(found["results"]) == 3
        right = pictures(9)[5]
        (tmp_path / "p.jpg").write_bytes(right.image)
        for picture in (right.image, tmp_path / "p.jpg"):
            assert client.search_picture(picture, top=1)["results"][0]["id"] == right.id
        narrow = client.similar(right.id, top=9, filters={"price": "2..4"})["results"]
        assert {row["columns"]["price"] for row in narrow} == {2, 3, 4}
        assert client.thumbnail(right.id)[:2] == b"\xff\xd8"
        added = client.add([right.image[:-2] + b"\xff\xd9"], [{"id": "again", "columns": {"price": 1}}])
        assert added["entries"][0]["state"] == "duplicate"
        assert client.delete(["no such"])["deleted"] == 0

        with pytest.raises(Refused, match="no column 'size'") as refusal:
            client.search("a", filters={"size": 1})
        assert refusal.value.status == 422
        with pytest.raises(NotThere, match="no such picture"):
            client.similar("nobody")
        with pytest.raises(WrongKey, match="there is no such key"):
            Client(live.url, "wrong").about()
        with pytest.raises(WrongKey, match="give a key"):
            Client(live.url).about()
    with pytest.raises(Refused, match="does not answer") as refusal:
        client.about()
    assert refusal.value.status == 0
    assert not isinstance(refusal.value, TryAgain)
