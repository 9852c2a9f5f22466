"""An index brought up to date by a table with odd cells."""

import pytest

from tests.search.common import picture
from tuwen import model
from tuwen.cli import main
from tuwen.data.images import encode_jpeg
from tuwen.errors import UserError
from tuwen.search.build import build_index
from tuwen.search.index import Index
from tuwen.search.pictures import Picture


def test_one_odd_cell_leaves_out_one_row_of_an_update(run, tmp_path, capsys):
    """As the index has the column: numbers written as text fit, what is no number does not, and nothing else breaks."""
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(encode_jpeg(picture(number)))

    def written(*prices):
        rows = [f"{n},{n}.jpg,{price}" for n, price in enumerate(prices)]
        (tmp_path / "pairs.csv").write_text("\n".join(["id,image,price", *rows]), encoding="utf-8")
        words = ["index", str(run), str(tmp_path / "pairs.csv"), "--out", str(tmp_path / "x.index"), "--prune"]
        return main(words)

    assert written(1, 2, 3, 4, 5, 6) == 0
    capsys.readouterr()
    assert written(1, 2, 3.5, "待定", 5, 6) == 1  # the column is text in this table, of numbers in the index
    out = capsys.readouterr().out
    assert "1 broken" in out
    assert "left out: 3: bad row: column 'price' is number in this index, not '待定'" in out
    index = Index.open(tmp_path / "x.index", run)
    prices = {one["id"]: one["columns"].get("price") for one in index.describe([str(n) for n in range(6)])}
    assert prices == {"0": 1.0, "1": 2.0, "2": 3.5, "3": 4.0, "4": 5.0, "5": 6.0}  # the odd one as it was
    (tmp_path / "0.jpg").unlink()
    assert written("a", "b", "c", "d", "e", 6) == 1
    assert "nothing pruned: 4 of 5 rows are broken" in capsys.readouterr().out
    assert len(Index.open(tmp_path / "x.index", run)) == 6


def test_an_update_without_new_pictures_loads_no_model(run, tmp_path, monkeypatch):
    """Texts that changed and pictures that go need none either; one new picture loads it, once."""
    shown = [Picture(encode_jpeg(picture(n)), id=str(n), texts={"en": ["red"]}) for n in range(5)]
    build_index(run, shown, tmp_path / "x")
    loads = []
    load = model.load
    monkeypatch.setattr(model, "load", lambda *words: loads.append(words) or load(*words))
    assert build_index(run, shown, tmp_path / "x").built.counts == {"unchanged": 5}
    told = [Picture(shown[0].image, id="0", texts={"en": ["blue"]}), *shown[1:4]]
    assert build_index(run, told, tmp_path / "x", prune=True).built.counts == {
        "updated": 1,
        "unchanged": 3,
        "removed": 1,
    }
    assert loads == []
    assert build_index(run, shown, tmp_path / "x").built.counts == {"updated": 1, "unchanged": 3, "added": 1}
    assert len(loads) == 1
    monkeypatch.setattr("tuwen.search.index.weights_mark", lambda folder: "another")
    with pytest.raises(UserError, match="built with other weights"):
        build_index(run, shown, tmp_path / "x")  # nothing is new, but the run is another
    assert len(loads) == 1
