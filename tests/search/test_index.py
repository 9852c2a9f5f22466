"""An index: what is in it after adding, changing, deleting, stopping; what it keeps of pictures."""

import datetime
import decimal
import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import tuwen
from tests.search.common import TEXTS, encoded, picture, table
from tuwen.data.images import decode, encode_jpeg
from tuwen.errors import UserError
from tuwen.search.build import build_index
from tuwen.search.index import Index
from tuwen.search.pictures import Picture
from tuwen.search.query import Query, Searcher


def vectors(index):
    """id -> first-stage vector."""
    snapshot = index.snapshot
    ids = snapshot.dataset.to_table(columns=["id"])["id"].to_pylist()
    assert len(set(ids)) == len(ids)
    return dict(zip(ids, snapshot.vectors, strict=True))


def jpeg(number):
    return encode_jpeg(picture(number))


def test_vectors_are_the_model_s_and_texts_and_columns_stay(run, tmp_path):
    pictures = table(
        tmp_path / "in", range(9), columns=lambda n: {"price": n / 2, "kind": f"k{n % 2}", "scene": {"x": n}}
    )
    index = build_index(run, pictures, tmp_path / "out", batch_size=4)
    model = tuwen.load(run)
    files = [pictures / f"images/{n}.jpg" for n in range(9)]
    expected = dict(zip([f"p{n}" for n in range(9)], model.embed(images=files).images, strict=True))
    found = vectors(index)
    assert found.keys() == expected.keys()
    for name, vector in found.items():
        torch.testing.assert_close(vector, expected[name], atol=1e-6, rtol=0)
    told = index.describe(["p7", "p0"])
    assert told[0] == {
        "id": "p7",
        "image": str(pictures / "images/7.jpg"),
        "texts": {"en": [TEXTS[2]]},
        "columns": {"price": 3.5, "kind": "k1"},
    }
    assert told[1]["id"] == "p0"
    assert index.columns() == {"price": "number", "kind": "text"}
    assert index.values("price") == {"min": 0.0, "max": 4.0}
    assert index.values("kind") == ["k0", "k1"]
    assert (decode(index.thumbnail("p3")).float() - picture(3).float()).abs().mean() < 6
    for ask in (index.thumbnail, index.picture):
        with pytest.raises(KeyError):
            ask("nobody's")


def test_kept_parts_are_what_the_tower_gave(run, tmp_path):
    import numpy as np

    pictures = table(tmp_path / "in", range(5))
    predictor = tuwen.load(run).predictor
    exact = encoded(predictor, [pictures / f"images/{n}.jpg" for n in range(5)]).states["last"]
    for tokens, near in (("float16", 2e-3), ("int8", 2e-2)):
        index = build_index(run, pictures, tmp_path / tokens, tokens=tokens)
        kept = index.encoded(index.snapshot, np.array([3, 0, 3]))
        torch.testing.assert_close(kept.states["last"], exact[[3, 0, 3]], atol=near * float(exact.abs().max()), rtol=0)
        assert kept.states["last"].dtype == torch.float32
        assert torch.equal(kept.pooled, index.snapshot.vectors[[3, 0, 3]])
    assert Index.open(tmp_path / "int8").size() < Index.open(tmp_path / "float16").size()


def test_the_same_picture_twice_is_one_entry(run, tmp_path):
    pictures = table(tmp_path / "in", [1, 2])
    shutil.copy(pictures / "images/1.jpg", pictures / "images/copy.jpg")
    with open(pictures / "pairs.jsonl", "a") as file:
        file.write(json.dumps({"id": "again", "image": "images/copy.jpg", "texts": {"en": ["blue"]}}) + "\n")
    index = build_index(run, pictures, tmp_path / "out")
    assert vectors(index).keys() == {"p1", "p2"}
    assert index.built.counts == {"added": 2, "duplicate": 1}
    assert [one.state for one in index.add([Picture(jpeg(2)), Picture(jpeg(2), id="other")])] == ["duplicate"] * 2
    assert len(index) == 2


def test_only_what_is_new_or_changed_is_embedded_again(run, tmp_path, monkeypatch):
    pictures = table(tmp_path / "in", range(6))
    build_index(run, pictures, tmp_path / "out")
    (pictures / "images/4.jpg").write_bytes(jpeg(40))  # another picture under the same id
    lines = [json.loads(line) for line in (pictures / "pairs.jsonl").read_text().splitlines()]
    lines[2]["texts"] = {"en": ["told anew"]}
    lines.append({"id": "new", "image": "images/new.jpg", "texts": {}})
    (pictures / "images/new.jpg").write_bytes(jpeg(7))
    (pictures / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    embedded = []
    index = Index.open(tmp_path / "out")
    plain = type(index.predictor.system).encode_images
    monkeypatch.setattr(
        type(index.predictor.system),
        "encode_images",
        lambda s, images: (embedded.append(len(images)), plain(s, images))[1],
    )
    index = build_index(run, pictures, tmp_path / "out")
    assert index.built.counts == {"unchanged": 4, "updated": 1, "replaced": 1, "added": 1}
    assert embedded == [2]
    assert index.describe(["p2"])[0]["texts"] == {"en": ["told anew"]}
    expected = tuwen.load(run).embed(images=[jpeg(40), jpeg(7), jpeg(2)]).images
    found = vectors(index)
    torch.testing.assert_close(torch.stack([found["p4"], found["new"], found["p2"]]), expected, atol=1e-6, rtol=0)
    assert len(found) == 7


def test_removing_and_pruning(run, tmp_path):
    pictures = table(tmp_path / "in", range(5))
    index = build_index(run, pictures, tmp_path / "out")
    before = vectors(index)
    assert index.remove(["p1", "nobody's", "o'clock"]) == 1
    assert vectors(index).keys() == {"p0", "p2", "p3", "p4"}
    assert torch.equal(vectors(index)["p3"], before["p3"])
    index.add([Picture(jpeg(9), id="kept")])
    again = build_index(run, pictures, tmp_path / "out")
    assert again.built.counts == {"unchanged": 4, "added": 1}
    assert vectors(again).keys() == {"p0", "p1", "p2", "p3", "p4", "kept"}
    # p0 leaves its source, and a copy under another id was there all along
    shutil.copy(pictures / "images/0.jpg", pictures / "images/10.jpg")
    lines = (pictures / "pairs.jsonl").read_text().splitlines()[1:]
    lines.append(json.dumps({"id": "heir", "image": "images/10.jpg", "texts": {}}))
    (pictures / "pairs.jsonl").write_text("\n".join(lines))
    pruned = build_index(run, pictures, tmp_path / "out", prune=True)
    assert vectors(pruned).keys() == {"heir", "p1", "p2", "p3", "p4"}
    torch.testing.assert_close(vectors(pruned)["heir"], before["p0"], atol=1e-6, rtol=0)


def test_a_picture_that_becomes_a_copy_gives_up_its_entry(run, tmp_path):
    index = build_index(run, [Picture(jpeg(n), id=f"p{n}") for n in range(3)], tmp_path / "out")
    said = index.add([Picture(jpeg(0), id="p2")])
    assert [(one.id, one.state) for one in said] == [("p0", "duplicate")]
    assert vectors(index).keys() == {"p0", "p1"}
    said = index.add([Picture(jpeg(2), id="p2"), Picture(jpeg(5), id="p2")])  # twice in one call: the last holds
    assert vectors(index).keys() == {"p0", "p1", "p2"}
    expected = tuwen.load(run).embed(images=[jpeg(5)]).images[0]
    torch.testing.assert_close(vectors(index)["p2"], expected, atol=1e-6, rtol=0)
    assert Index.open(tmp_path / "out").add([Picture(jpeg(5), id="p2")])[0].state == "unchanged"


def test_broken_pictures_are_left_out_and_told(run, tmp_path):
    cut = jpeg(1)[: len(jpeg(1)) // 2]
    pictures = [
        Picture(jpeg(0), id="good"),
        Picture(b"", id="empty"),
        Picture(cut, id="cut"),
        Picture(b"<svg/>", id="svg"),
        Picture(tmp_path / "nowhere.jpg", id="gone"),
        Picture(jpeg(3), id="bad\nid"),
        Picture(jpeg(4), id="price", columns={"price": 3}),
        Picture(jpeg(5), id="odd", columns={"price": "much"}),
        Picture(jpeg(6), id="long", columns={"price": 2**60}),
        Picture(jpeg(7), id="half", texts={"en": ["\ud800"]}),
    ]
    index = build_index(run, pictures, tmp_path / "out")
    assert vectors(index).keys() == {"good", "price"}
    assert {one["id"]: one["reason"].split(":")[0] for one in index.built.broken} == {
        "empty": "empty",
        "cut": "truncated",
        "svg": "not a picture",
        "gone": "missing",
        "bad\nid": "bad row",
        "odd": "bad row",
        "long": "bad row",
        "half": "bad row",
    }
    assert [one.state for one in index.add([Picture(cut, id="good")])] == ["broken"]
    assert vectors(index).keys() == {"good", "price"}  # what was there stays


def test_a_folder_needs_no_texts(run, tmp_path):
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/a.jpg").write_bytes(jpeg(1))
    (tmp_path / "in/deep/b.jpg").write_bytes(jpeg(2))
    (tmp_path / "in/a.txt").write_text("blue\n")
    index = build_index(run, tmp_path / "in", tmp_path / "out")
    assert index.describe(["a"])[0]["texts"] == {"en": ["blue"]}
    assert index.describe(["deep/b"])[0]["texts"] == {}


def test_a_table_of_a_shop(run, tmp_path):
    """CSV knows strings alone, and a shop's table often has no texts."""
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    rows = [
        "id,image,price,code,size,date",
        "a,0.jpg,9.5,007,38,2024-05-31",
        "b,1.jpg,,008,M,2024-06-01",
        "c,2.jpg,100,009,,",
        "d,3.jpg,12,7,40,2024-06-02",
        "e,gone.jpg,1,1,1,1",
    ]
    (tmp_path / "goods.csv").write_text("\n".join(rows))
    index = build_index(run, tmp_path / "goods.csv", tmp_path / "out")
    assert index.columns() == {"price": "number", "code": "text", "size": "text", "date": "text"}
    assert index.describe(["a"])[0] == {
        "id": "a",
        "image": str(tmp_path / "0.jpg"),
        "texts": {},
        "columns": {"price": 9.5, "code": "007", "size": "38", "date": "2024-05-31"},
    }
    assert index.built.skipped == {"missing": 1}
    assert index.built.broken[0]["id"] == f"{tmp_path / 'goods.csv'}:6"
    assert "gone.jpg" in index.built.broken[0]["reason"]
    (tmp_path / "goods.csv").write_text("\n".join([rows[0], "d,3.jpg,12,7,40,2024-06-02"]))
    index = build_index(run, tmp_path / "goods.csv", tmp_path / "out")
    assert index.describe(["d"])[0]["columns"]["size"] == "40"  # a column of texts stays one


def test_dates_and_decimals_of_parquet(run, tmp_path):
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    day, price = datetime.date(2024, 5, 31), decimal.Decimal("9.50")
    row = {"id": "a", "image": "0.jpg", "text": "blue", "day": day, "price": price, "raw": b"x", "none": None}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "goods.parquet")
    said = []
    index = build_index(run, tmp_path / "goods.parquet", tmp_path / "out", say=said.append)
    assert index.describe(["a"])[0]["columns"] == {"day": "2024-05-31", "price": 9.5}
    assert any(line.startswith("not kept: raw:") for line in said)


def test_what_cannot_be_read_is_not_pruned(run, tmp_path, monkeypatch):
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/a.jpg").write_bytes(jpeg(1))
    (tmp_path / "in/deep/b.jpg").write_bytes(jpeg(2))
    build_index(run, tmp_path / "in", tmp_path / "out")
    look = os.scandir

    def scandir(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(os, "scandir", scandir)
    said = []
    index = build_index(run, tmp_path / "in", tmp_path / "out", prune=True, say=said.append)
    assert vectors(index).keys() == {"a", "deep/b"}
    assert any(line.startswith("nothing pruned: 1 ") for line in said)
    assert index.built.skipped == {"unreadable": 1}
    monkeypatch.undo()
    (tmp_path / "in/deep/b.jpg").unlink()
    assert vectors(build_index(run, tmp_path / "in", tmp_path / "out", prune=True)).keys() == {"a"}


def test_settings_are_settled_and_mistakes_told(run, clip_run, tmp_path):
    index = build_index(run, [Picture(jpeg(0), id="a")], tmp_path / "out")
    with pytest.raises(UserError, match="keeps tokens as float16"):
        build_index(run, [], tmp_path / "out", tokens="int8")
    with pytest.raises(UserError, match="keeps all tokens"):
        build_index(run, [], tmp_path / "out", token_budget=3)
    with pytest.raises(UserError, match="other weights"):
        build_index(clip_run, [], tmp_path / "out")
    with pytest.raises(UserError, match="no index there"):
        Index.open(tmp_path / "nothing")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(UserError, match="no index there"):
        Index.open(tmp_path / "mine")
    for place in ("mine", "mine/letter.txt"):
        with pytest.raises(UserError, match="something else"):
            build_index(run, [], tmp_path / place)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    with pytest.raises(UserError, match="no column 'x'"):
        index.values("x")
    with index._record.writing(), pytest.raises(UserError, match="written elsewhere"):
        index.remove(["a"])
    shutil.move(run, tmp_path / "moved")
    try:
        assert len(Index.open(tmp_path / "out", run=tmp_path / "moved").predictor.languages) == 2
        with pytest.raises(UserError, match="say where it is now with --run"):
            Index.open(tmp_path / "out").predictor  # noqa: B018
        build_index(tmp_path / "moved", [], tmp_path / "out")
        assert len(Index.open(tmp_path / "out").predictor.languages) == 2  # it says now where the run is
    finally:
        shutil.move(tmp_path / "moved", run)


def test_others_changes_are_seen_after_a_refresh(run, tmp_path):
    one = build_index(run, [Picture(jpeg(n), id=f"p{n}") for n in range(4)], tmp_path / "out")
    two = Index.open(tmp_path / "out")
    old = one.snapshot
    two.add([Picture(jpeg(9), id="p9")])
    two.remove(["p0"])
    assert len(one) == 4
    assert old.rows(old.positions(old.row_ids), ["id"])["id"] == ["p0", "p1", "p2", "p3"]
    one.refresh()
    assert vectors(one).keys() == {"p1", "p2", "p3", "p9"}
    for name, vector in vectors(one).items():
        assert torch.equal(vector, vectors(two)[name])


def test_a_reader_survives_that_another_process_joins_files(run, tmp_path):
    reader = build_index(run, [Picture(jpeg(n), id=f"p{n}") for n in range(5)], tmp_path / "out")
    searcher, old = Searcher(reader), reader.snapshot.version
    writer = Index.open(tmp_path / "out")
    for n in range(5, 20):
        writer.add([Picture(jpeg(n), id=f"p{n}")])
    build_index(run, [], tmp_path / "out")
    assert len(list((tmp_path / "out/pictures.lance/data").iterdir())) == 1
    assert decode(reader.thumbnail("p1")).shape == (3, 40, 40)
    assert reader.snapshot.version > old
    for n in range(20, 32):
        writer.add([Picture(jpeg(n), id=f"p{n}")])
    build_index(run, [], tmp_path / "out")
    assert len(searcher.search([Query("blue")], top=40)[0].results) == 32


def test_a_writer_survives_what_another_process_wrote_and_cleaned_up(run, tmp_path):
    build_index(run, [Picture(jpeg(n), id=f"p{n}") for n in range(4)], tmp_path / "out")
    mine = Index.open(tmp_path / "out")
    mine.add([Picture(jpeg(4), id="p4")])
    others = [Picture(jpeg(n), id=f"p{n}", columns={"price": n}) for n in range(2, 10)]
    build_index(run, others, tmp_path / "out", prune=True)  # deletes the versions and files that mine knows of
    assert mine.remove(["p2", "p0"]) == 1
    assert [one.state for one in mine.add([Picture(jpeg(1), id="p1", columns={"price": 1})])] == ["added"]
    assert vectors(mine).keys() == {"p1", *(f"p{n}" for n in range(3, 10))}
    assert mine.describe(["p1"])[0]["columns"] == {"price": 1.0}


def test_an_index_at_a_url(run, tmp_path):
    """Through Lance's object stores, of which a folder called by URL is one: nothing is looked up beside them."""
    url = f"file://{tmp_path}/x"
    assert build_index(run, table(tmp_path / "a", range(4)), url).built.counts == {"added": 4}
    assert build_index(run, tmp_path / "a", url).built.counts == {"unchanged": 4}
    index = Index.open(url)
    assert [hit.id for hit in Searcher(index).search([Query(image=picture(2))], top=1)[0].results] == ["p2"]
    assert index.remove(["p2"]) == 1
    assert len(Index.open(url)) == 3
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["about.lance", "pictures.lance"]
