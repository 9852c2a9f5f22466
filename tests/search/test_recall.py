"""Recall of two stages against a full re-ranking: by hand, and the commands end to end."""

import json

import pytest
import torch

from tests.search.common import picture, table
from tuwen import cli
from tuwen.data.images import encode_jpeg
from tuwen.search.build import build_index
from tuwen.search.pictures import Picture
from tuwen.search.query import Query, Searcher
from tuwen.search.recall import own_texts, two_stage_recall


class Told:
    """First and final scores known beforehand."""

    def scores(self, text):
        first = torch.tensor([9.0, 8, 7, 6, 5, 4])
        final = {"a": [1.0, 2, 3, 4, 5, 6], "b": [6.0, 1, 5, 2, 4, 3]}[text]
        return first, torch.tensor(final)


def test_by_hand():
    found = two_stage_recall(Told(), ["a", "b"], [[5], [2]], candidates=(1, 3, 6))
    # a: the full order is 5 4 3 2 1 0; b: 0 2 4 5 3 1
    assert found["full"] == {"r1": 50.0, "r5": 100.0, "r10": 100.0}
    assert found["two_stage"]["6"] == {"r1": 50.0, "r5": 100.0, "r10": 100.0, "kept1": 100, "kept5": 100, "kept10": 100}
    three = found["two_stage"]["3"]  # a: 2 1 0; b: 0 2 1
    assert (three["r1"], three["r5"]) == (0.0, 50.0)
    assert three["kept1"] == 50.0
    assert three["kept5"] == pytest.approx(100 * (2 / 5 + 2 / 5) / 2)
    assert found["two_stage"]["1"]["kept10"] == pytest.approx(100 * (1 / 6 + 1 / 6) / 2)


class Whole:
    """The same pictures' final scores where nothing was pooled."""

    def scores(self, text):
        return None, torch.tensor([1.0, 2, 3, 4, 6, 5])


def test_by_hand_against_another_index():
    found = two_stage_recall(Told(), ["a"], [[5]], candidates=(1, 6), exact=Whole())
    assert found["full"] == {"r1": 0.0, "r5": 100.0, "r10": 100.0}  # 4 5 3 2 1 0
    assert found["two_stage"]["6"] == {"r1": 100, "r5": 100, "r10": 100, "kept1": 0, "kept5": 100, "kept10": 100}
    assert found["two_stage"]["1"]["kept5"] == 0.0


def test_full_scores_are_those_of_a_search(run, tmp_path):
    pictures = [Picture(encode_jpeg(picture(n)), f"p{n}", {"en": ["blue" if n % 2 else "red"]}) for n in range(20)]
    searcher = Searcher(build_index(run, pictures, tmp_path / "out"))
    first, final = searcher.scores("blue")
    assert not final.requires_grad
    found = searcher.search([Query("blue")], top=20, candidates=20)[0]
    assert {r.id: (r.first, r.score) for r in found.results} == {
        f"p{n}": (float(first[n]), float(final[n])) for n in range(20)
    }
    texts, right = own_texts(searcher, 5)
    assert dict(zip(texts, right, strict=True)) == {"red": list(range(0, 20, 2)), "blue": list(range(1, 20, 2))}


def test_commands(run, tmp_path, capsys):
    pictures = table(tmp_path / "in", range(12), columns=lambda n: {"price": n, "new": n > 5})
    out = str(tmp_path / "out")

    def ask(*words):
        assert cli.main([*map(str, words)]) == 0
        return json.loads(capsys.readouterr().out)

    built = ask("index", run, pictures, "--out", out, "--json")
    assert built["counts"] == {"added": 12}
    assert built["pictures"] == 12
    found = ask("search", out, "blue", "--top", 3, "--json", "--where", "price=2..6", "new=true")
    assert found["query"] == "blue"
    assert {result["id"] for result in found["results"]} == {"p6"}
    assert set(found["results"][0]) == {"id", "image", "texts", "first", "score", "columns"}
    assert found["ms"] > 0
    assert ask("search", out, "--similar", "p3", "--top", 2, "--json")["results"][0]["id"] != "p3"
    assert ask("search", out, "--image", pictures / "images/4.jpg", "--json")["results"][0]["id"] == "p4"
    assert ask("recall", out, "--queries", 3, "--json")["queries"] == 3
    assert ask("embed", run, pictures, "--out", tmp_path / "vectors", "--json")["pictures"] == 12
    assert ask("index", "--remove", "p3", "p99", "--out", out, "--json") == {"removed": 1}
    for words in (
        ["search", out, "--similar", "p3"],
        ["search", out, "x", "--where", "price=a"],
        ["search", out, "x", "--where", "y"],
        ["search", out, "x", "--where", "price=.."],
    ):
        assert cli.main(words) == 1
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "--where" not in words or "10..20" in told
    for words in (["search", out], ["search", out, "x", "--similar", "p4"], ["index", "--out", out]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(words)
        assert stopped.value.code == 2
