"""Suites: what is there is measured, what is not is listed, and no mean is taken over a hole."""

import json

import pytest
import yaml

from tests.data.published import MAKERS
from tuwen import tasks
from tuwen.benchmark import measure as measuring
from tuwen.benchmark import suites
from tuwen.cli import main
from tuwen.data.corpora.published import formats
from tuwen.errors import UserError

OURS = {"scenes", "wukong", "zero"}


def entry(name="a", **changes) -> dict:
    fixed = {"corpus": "scenes", "task": "matching", "split": "test", "metric": "languages.zh.auc", "group": "g"}
    return {"name": name, **fixed, **changes}


def written(folder, *entries, **changes):
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({"what": "a line", "entries": list(entries), **changes}))
    return str(path)


def measured(value):
    """A task that gives one figure, or refuses."""

    def measure(location, split, task, options):
        if isinstance(value, Exception):
            raise value
        return {"task": task, "location": location, "options": options, "languages": {"zh": {"auc": value}}}

    return measure


def test_ours_can_be_read_and_name_what_there_is():
    assert set(suites.suite_names()) == OURS
    for name in OURS:
        suite = suites.read_suite(name)
        for own in suite.entries:
            assert own.task in tasks.task_names()
            assert own.split in ("test", "val")
    zero = {own.name: own for own in suites.read_suite("zero").entries}
    assert set(zero) == {"ICM", "IQM", "ICR", "IQR", "Flickr30k-CNA", "Flickr30k-CN", "COCO-CN", "MUGE"}
    assert all(own.corpus in formats() for own in zero.values())
    assert {zero[name].split for name in ("ICM", "IQM", "ICR", "IQR", "MUGE")} == {"val"}  # no public test
    assert zero["MUGE"].set["directions"] == ["text_to_image"]  # image to text is no official task
    assert {own.corpus for own in suites.read_suite("scenes").entries} == {"scenes"}


def test_what_is_missing_is_listed_with_where_to_ask_and_leaves_a_hole(tmp_path):
    MAKERS["icm"](tmp_path / "zero")
    asked = []

    def measure(location, split, task, options):
        asked.append((location, split, task, options))
        return {"languages": {"zh": {"auc": 0.75}}}

    result = suites.run_suite(suites.read_suite("zero"), tmp_path, measure)
    by_name = {own["name"]: own for own in result["entries"]}
    assert asked[0] == (f"icm:{tmp_path / 'zero'}", "val", "matching", {})
    assert (by_name["ICM"]["status"], by_name["ICM"]["value"]) == ("measured", 0.75)
    assert by_name["COCO-CN"]["status"] == "missing"
    assert "github.com/li-xirong/coco-cn" in by_name["COCO-CN"]["reason"]
    assert str(tmp_path / "coco-cn") in by_name["COCO-CN"]["reason"]
    assert by_name["ICR"]["status"] == "left out"  # the folder is there; what came back has no such figure
    assert "has no figure languages.zh" in by_name["ICR"]["reason"]
    assert result["groups"]["matching"] == {"mean": 0.75, "measured": 2, "of": 2}
    assert result["groups"]["further retrieval"] == {"mean": None, "measured": 0, "of": 3}
    lines = suites.unmeasured(result)
    assert len(lines) == 6
    assert all("\n" not in line for line in lines)


def test_a_mean_is_of_a_whole_group():
    def group(*values):
        return suites.group_means([{"group": "g", "value": value} for value in values])["g"]

    assert group(1.0, 2.0, 6.0) == {"mean": 3.0, "measured": 3, "of": 3}
    assert group(1.0, None) == {"mean": None, "measured": 1, "of": 2}
    assert group(0.0) == {"mean": 0.0, "measured": 1, "of": 1}


def test_the_first_of_the_figures_that_there_is():
    content = {"languages": {"zh": {"first": {"mean_recall": 50}, "reranked": {"mean_recall": 60.5}}}, "flag": True}
    path = "languages.zh.reranked.mean_recall|languages.zh.first.mean_recall"
    assert suites.figure_of(content, path) == 60.5
    del content["languages"]["zh"]["reranked"]
    assert suites.figure_of(content, path) == 50.0
    for wrong in ("languages.zh", "flag", "languages.zh.first.mean_recall.more", ""):
        with pytest.raises(UserError, match="has no figure"):
            suites.figure_of(content, wrong)


def test_where_a_corpus_lies(tmp_path):
    def located(**changes):
        return suites.suite_location(suites.SuiteEntry(**entry(**changes)), tmp_path)

    assert located(corpus="scenes:count=5") == "scenes:count=5"
    assert located(corpus="coco-cn") is None
    (tmp_path / "coco-cn").mkdir()
    assert located(corpus="coco-cn") == f"coco-cn:{tmp_path / 'coco-cn'}"
    (tmp_path / "coco-cn/corpus.json").touch()
    assert located(corpus="coco-cn") == str(tmp_path / "coco-cn")  # a built copy
    (tmp_path / "shop").mkdir()
    assert located(corpus="dtd", folder="shop") == str(tmp_path / "shop")


WRONG = [
    ({"entries": []}, "a suite has `what`, a line, and `entries`, a list"),
    ({"entries": [entry()], "more": 1}, "a suite has"),
    ({"entries": [{"name": "a"}]}, "entry 1: has name, corpus, task"),
    ({"entries": [entry(more=1)]}, "entry 1: has name"),
    ({"entries": [entry(), entry(split=3)]}, "entry 2: all but set are short texts"),
    ({"entries": [entry(name="x" * 600)]}, "entry 1: all but set are short texts"),
    ({"entries": [entry(set=[1])]}, "entry 1: set is [1]"),
    ({"entries": [entry(), entry()]}, "two entries are called 'a'"),
    ({"entries": [entry(task="dreaming")]}, "no task called 'dreaming'"),
]


@pytest.mark.parametrize(("content", "what"), WRONG)
def test_a_list_of_one_s_own_is_checked_before_any_work(content, what, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as caught:
        suites.read_suite(str(path))
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no suite 'nothing'; there are scenes, wukong, zero"):
        suites.read_suite("nothing")


def test_one_table_one_json_one_page(tmp_path, monkeypatch, capsys):
    """The command, with a task that gives a figure in place of a run."""
    own = written(tmp_path, entry("one"), entry("two", corpus="coco-cn"), entry("<b>three</b>", group="h"))
    fake = measured(0.5)
    monkeypatch.setattr(measuring, "measure_task", lambda run, *rest: fake(*rest))
    words = ["eval", "runs/x", "--suite", own, "--data", str(tmp_path), "--limit", "7"]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["run"] == "runs/x"
    assert [own["status"] for own in result["entries"]] == ["measured", "missing", "measured"]
    assert result["entries"][0]["measured"]["options"] == {"limit": 7}
    assert result["groups"]["g"]["mean"] is None
    assert "at most 7 pictures" in result["note"]
    page = tmp_path / "page.html"
    assert main([*words, "--page", str(page)]) == 0
    told = capsys.readouterr().out
    assert "1 of 2" in told
    assert "two, missing: put coco-cn_{train,val,test}.txt" in told
    text = page.read_text()
    assert "&lt;b&gt;three&lt;/b&gt;" in text
    assert "<b>three" not in text
    assert "Not measured" in text
    page.write_text("somebody's own")
    assert main([*words, "--page", str(page)]) == 1
    assert page.read_text() == "somebody's own"


def test_what_a_run_cannot_do_is_said_and_the_others_go_on(tmp_path):
    own = suites.read_suite(written(tmp_path, entry("one"), entry("two")))
    result = suites.run_suite(own, tmp_path, measured(UserError("has not learnt vqa")))
    assert [(e["status"], e["reason"]) for e in result["entries"]] == [("left out", "has not learnt vqa")] * 2
    assert [row[-1] for row in suites.table_of(result)] == ["left out", "left out", "-"]
