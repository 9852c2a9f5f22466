"""The pages of two runs, of a ladder and of a suite in Chinese: nothing is left in English but names."""

import re
from argparse import Namespace

import pytest
import yaml

from tests.benchmark.chinese import NAMES, Visible, english_of
from tests.benchmark.test_judge import CORPUS, evaluated, right_but
from tests.benchmark.test_suites import entry, measured
from tuwen import speech
from tuwen.benchmark import judge_task, suites
from tuwen.benchmark.judge import Judged, judged
from tuwen.benchmark.judge_task import write_judged_task
from tuwen.benchmark.ladder import fitted_ladder
from tuwen.benchmark.report_judged import write_judged
from tuwen.benchmark.report_ladder import write_ladder
from tuwen.cli.compare import climb
from tuwen.data.corpora.published import find_format
from tuwen.errors import UserError

RUNS = {"old", "new", "pairs", "html", "json", "judged", "stub", "Stub"}


@pytest.fixture(autouse=True)
def chinese(monkeypatch):
    monkeypatch.setenv("TUWEN_LANG", "zh")


def left_in_english(path, *names):
    """The words of a page that are no names, once its language is seen to be Chinese."""
    page = path.read_text(encoding="utf-8")
    assert '<html lang="zh">' in page
    seen = Visible(page).text
    assert [
        text for text in seen if text not in names and speech.spoken(text) != text
    ] == []  # no message of the catalogue
    return english_of(" ".join(seen), NAMES | set(names))


def test_two_runs(tmp_path):
    results = {"old": evaluated(right_but(0, 4, 7)), "new": evaluated(right_but(4))}
    whole = Judged(judged(results, CORPUS), results, CORPUS)
    assert left_in_english(write_judged(tmp_path, whole), *RUNS) == set()


def test_two_runs_that_answer_alike(tmp_path):
    results = {"old": evaluated(right_but(4)), "new": evaluated(right_but(4))}
    path = write_judged(tmp_path, Judged(judged(results, CORPUS), results, CORPUS))
    assert "双方答对的查询相同" in path.read_text(encoding="utf-8")
    assert left_in_english(path, *RUNS) == set()


def test_two_runs_on_a_task(tmp_path):
    numbers = {"rows": 9, "difference": 1.5, "interval": [-1.0, 4.0], "p": 0.2, "p_holm": 0.2, "detectable": 3.0}
    row = {"what": "all", "of": "new", "over": "old", "only_of": 2, "only_over": 1} | numbers
    about = {"task": "vqa", "metric": "accuracy", "corpus": "pairs", "split": "val"}
    note = judge_task.ONE_RUN
    runs = {name: {"figure": 50.0, "measured": {}} for name in ("old", "new")}
    path = write_judged_task(tmp_path, about | {"runs": runs, "differences": [row], "notes": [note]})
    assert left_in_english(path, *RUNS, "vqa", "accuracy") == set()


@pytest.mark.parametrize("of", ["budget", "data"])
def test_a_ladder(tmp_path, of):
    figures = {"clip": [[10.0, 12.0, 11.0], [20.0, 21.0, 22.0]], "albef": [[8.0, 7.0, 9.0], [26.0, 27.0, 25.0]]}
    figures["level"] = [[value + 1.0 for value in seeds] for seeds in figures["clip"]]
    about = {"task": "retrieval", "metric": "mean_recall", "corpus": "pairs", "split": "test", "size": "tiny"}
    result = {"of": of, "budget": "steps=100", "rungs": [1, 2], **about, **fitted_ladder([1, 2], figures)}
    path = write_ladder(tmp_path, result)
    assert left_in_english(path, "retrieval", "mean", "recall", "level", "x", "log") == set()


def test_a_ladder_in_the_terminal(tmp_path, monkeypatch, capsys):
    figures = {"clip": [[10.0, 12.0, 11.0], [20.0, 21.0, 22.0]], "albef": [[8.0, 7.0, 9.0], [19.0, 18.0, 20.0]]}
    about = {"task": "retrieval", "metric": "mean_recall", "corpus": "pairs", "split": "test", "size": "tiny"}
    result = {"of": "budget", "budget": "steps=100", "rungs": [1, 2], **about, **fitted_ladder([1, 2], figures)}
    monkeypatch.setattr("tuwen.benchmark.ladder.ladder", lambda *words, **options: result)
    asked = Namespace(systems=["clip", "albef"], corpus="pairs", out=tmp_path, ladder=[1, 2], ladder_of="budget")
    climb(asked, {"budget": "steps=100"})
    told = capsys.readouterr().out.replace(str(tmp_path), "")
    assert english_of(told, NAMES | {"retrieval", "mean", "recall", "x", "report", "html"}) == set()
    assert "阶梯" in told


def test_a_suite(tmp_path):
    """One entry measured, one missing, one left out."""

    def measure(location, split, task, options):
        if options:
            raise UserError("no task called 'x'; there are vqa")
        return measured(0.5)(location, split, task, options)

    own = [entry("一"), entry("二", corpus="coco-cn"), entry("三", set={"classes": "x"}), entry("四", group="h")]
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"what": "几个任务", "entries": own}), encoding="utf-8")
    result = suites.run_suite(suites.read_suite(str(path)), tmp_path, measure) | {"run": "runs/x"}
    page = suites.write_suite_page(result, tmp_path / "page.html")
    assert suites.unmeasured(result)[0].startswith("二，缺文件：请把 coco-cn_{train,val,test}.txt、imageid")
    coco = find_format("coco-cn")
    names = {"runs", "x", "own", "g", "h", "scenes", "matching", "auc", "vqa"}
    names |= set(re.findall("[A-Za-z]+", f"{tmp_path} {coco.needs} {coco.ask}")) - {"and", "the", "pictures", "at"}
    assert left_in_english(page, *names) == set()
