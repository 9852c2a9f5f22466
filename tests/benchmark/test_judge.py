"""Two runs on the same queries: wins, losses and truth by hand, and the page."""

import json

import pytest
import torch

from tests.tasks.stub import DualStub, Pairs, Table, ready
from tuwen.benchmark.judge import Judged, judged, names_of
from tuwen.benchmark.report_judged import difference_rows, write_judged
from tuwen.cli import main
from tuwen.errors import UserError
from tuwen.tasks.retrieval import retrieve

CORPUS = Pairs([{"zh": [str(2 * k), str(2 * k + 1)]} for k in range(6)])


def right_but(*wrong):
    """Scores [6, 12] that rank the own texts and pictures first, but for texts that go to the next picture."""
    first = torch.zeros(6, 12)
    for text in range(12):
        first[(text // 2 + (text in wrong)) % 6, text] = 1 + text / 100
    return Table(first, torch.zeros(6, 12, 1))


def evaluated(table, corpus=CORPUS, languages=("zh",)):
    return retrieve(ready(DualStub(table), list(languages)), corpus, shown=5)


@pytest.fixture(scope="module")
def results():
    return {"old": evaluated(right_but(0, 4, 7)), "new": evaluated(right_but(4))}


def test_wins_losses_and_the_sign_tests_p_by_hand(results):
    found = judged(results, CORPUS)
    rows = {row["what"]: row for row in found["differences"]}
    texts = rows["text_to_image"]
    assert (texts["of"], texts["over"], texts["queries"]) == ("new", "old", 12)
    assert (texts["only_of"], texts["only_over"]) == (2, 0)  # texts 0 and 7
    assert texts["difference"] == pytest.approx(100 * 2 / 12)
    assert texts["p"] == 0.5  # two of two, of two pictures
    recalls = [results[name].json["languages"]["zh"]["first"]["mean_recall"] for name in ("new", "old")]
    assert rows["mean_recall"]["difference"] == pytest.approx(recalls[0] - recalls[1])
    for row in found["differences"]:
        assert row["interval"][0] <= row["difference"] <= row["interval"][1]
        assert row["p"] <= row["p_holm"] <= 1
    asked = [query for query in found["queries"] if query["direction"] == "text_to_image"]
    assert [(query["text"], query["row"], query["right"]) for query in asked] == [("0", 0, "new"), ("7", 3, "new")]
    assert [query["ranks"]["new"] for query in asked] == [1, 1]
    assert "queries alone" in found["notes"][0]
    assert json.loads(json.dumps(found)) == found


def test_the_other_way_round_every_sign_turns(results):
    ahead = judged(results, CORPUS)["differences"]
    behind = judged(dict(reversed(results.items())), CORPUS)["differences"]
    assert [row["difference"] for row in behind] == pytest.approx([-row["difference"] for row in ahead])
    assert [row["p"] for row in behind] == [row["p"] for row in ahead]


def test_a_language_that_one_does_not_know_is_said_and_none_in_common_is_refused():
    both = Pairs([{"zh": [str(2 * k)], "en": [str(2 * k + 1)]} for k in range(6)])
    results = {name: evaluated(right_but(), both, known) for name, known in {"a": ("zh",), "b": ("zh", "en")}.items()}
    found = judged(results, both)
    assert {row["language"] for row in found["differences"]} == {"zh"}
    assert "a does not know en: not compared" in found["notes"]
    results["b"] = evaluated(right_but(), both, ("en",))
    with pytest.raises(UserError, match="no language of pairs that both runs know"):
        judged(results, both)


def test_galleries_of_other_pictures_are_refused(results):
    broken = Pairs(CORPUS.texts, broken=[2])
    with pytest.raises(UserError, match="'old' could read 6 pictures and 'new' 5"):
        judged({"old": results["old"], "new": evaluated(right_but(), broken)}, CORPUS)


def test_the_page_shows_who_was_right_and_needs_no_other_file(results, tmp_path):
    whole = Judged(judged(results, CORPUS), results, CORPUS)
    text = write_judged(tmp_path, whole).read_text(encoding="utf-8")
    assert json.loads((tmp_path / "judged.json").read_text()) == whole.json
    assert "<script" not in text
    assert all(part.startswith("data:image/jpeg;base64,/9j/") for part in text.split('src="')[1:])
    of_texts = [query for query in whole.json["queries"] if query["direction"] == "text_to_image"]
    assert text.count('<figure class="answer') == len(of_texts) * 2 * 5
    assert all(cell in text for row in difference_rows(whole.json) for cell in row)
    same = Judged(judged({"a": results["old"], "b": results["old"]}, CORPUS), {"a": results["old"]} | results, CORPUS)
    assert same.json["queries"] == []


def test_two_runs_are_named_apart():
    assert names_of(["runs/clip", "runs/albef/"]) == ["clip", "albef"]
    assert names_of(["a/clip", "b/clip"]) == ["a/clip", "b/clip"]
    for wrong in (["a", "a"], ["a"]):
        with pytest.raises(UserError, match="--runs"):
            names_of(wrong)


@pytest.mark.parametrize(
    "words",
    [["clip", "--runs", "a", "b"], ["clip"], ["clip", "--out", "o", "--split", "val"], ["clip", "--limit", "3"]],
)
def test_words_that_do_not_go_together_are_told(words, capsys):
    with pytest.raises(SystemExit):
        main(["compare", *words, "--corpus", "scenes"])
    assert "--runs" in capsys.readouterr().err
