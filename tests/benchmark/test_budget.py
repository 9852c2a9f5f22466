"""Budgets: what each unit buys, work counted by hand, rates chosen by validation, any task as the measure, tables."""

import csv
import io
import json

import pytest

from tuwen.benchmark import tuning
from tuwen.benchmark.arms import planned_arms
from tuwen.benchmark.budget import Budget, read_budget, steps_for
from tuwen.benchmark.compare import CompareConfig, compare
from tuwen.benchmark.measure import MeasureConfig, read_marks
from tuwen.benchmark.report import write_report
from tuwen.benchmark.table import stage_called
from tuwen.benchmark.trial import Trial, trial_of
from tuwen.benchmark.written import Tabled, comma_separated, latex, markdown, tables_of
from tuwen.data.open import open_corpus
from tuwen.errors import UserError
from tuwen.run import read_json

CORPUS = "scenes:count=24,side=32"
CHANGES = {"data.workers": 0, "data.augment": "none", "train.threads": 1, "train.batch_size": 8, "tokenizer.size": 300}
TRIAL = Trial(flops=2e6, seconds=0.5, peak=None, parameters=10, batch_size=8)


@pytest.mark.parametrize(
    ("text", "steps"), [("steps=7", 7), ("pairs=80", 10), ("seconds=3", 6), ("flops=1.6e8", 10), ("pairs=87", 10)]
)
def test_every_unit_buys_whole_steps(text, steps):
    assert steps_for(read_budget(text), 8, TRIAL) == steps


def test_budgets_that_are_none_are_refused():
    for text in ("hours=3", "steps", "steps=0", "steps=1.5", "pairs=-1", "flops=nan", "steps=x", "flops=1e31"):
        with pytest.raises(ValueError, match=r"is not steps=N|number above 0"):
            read_budget(text)
    with pytest.raises(UserError, match="does not buy one step"):
        steps_for(Budget("pairs", 7), 8)
    assert str(Budget("flops", 1e15).times(2)) == "flops=2e+15"


def test_work_counted_is_that_of_the_matrices(tmp_path):
    """Twice the layers of both towers add exactly the work of a layer each: counted, not timed."""
    pairs = open_corpus(CORPUS, "train")
    flops = []
    for layers in (1, 2, 3):
        changes = CHANGES | {"model.image.layers": layers}
        (config,) = planned_arms(["clip"], CORPUS, tmp_path, "tiny", 2, 1, changes, {}).configs.values()
        trial = trial_of(config, pairs, tmp_path / f"{layers}.json")
        flops.append(trial.flops)
    assert flops[2] - flops[1] == flops[1] - flops[0]
    image = config.model.image
    tokens, width = (image.side // image.patch) ** 2 + (image.pool == "class"), image.width
    maps = 12 * tokens * width**2  # queries, keys, values and output, and two maps of four times the width
    attention = 2 * tokens**2 * width
    forward = 2 * (maps + attention)
    assert flops[1] - flops[0] == pytest.approx(3 * forward, rel=0.1)  # attention goes forward twice on the way back
    assert trial.parameters > 0
    assert trial_of(config, pairs, tmp_path / "3.json") == trial  # read back


def test_the_rate_is_chosen_by_validation_alone(tmp_path):
    pairs = open_corpus(CORPUS, "train")
    configs = planned_arms(["clip"], CORPUS, tmp_path, "tiny", 2, 2, CHANGES, {}).configs
    scores = iter([{"score": 10.0}, {"score": 10.0}, {"score": 30.0}, {"score": 40.0}, {"score": 20.0}, {"score": 5.0}])

    def evaluate(trained, step):
        return next(scores, {"score": 0.0})

    configs = {run: config_without_evaluations(config) for run, config in configs.items()}
    chosen, told = tuning.tune(configs, dict.fromkeys(configs, "clip"), (1.0, 3.0, 9.0), pairs, evaluate, quiet=True)
    lr = next(iter(configs.values())).train.lr
    assert told["clip"]["rates"] == {f"{lr:g}": 10.0, f"{3 * lr:g}": 40.0, f"{9 * lr:g}": 20.0}
    assert told["clip"]["chosen"] == f"{3 * lr:g}"
    assert [run.name for run in chosen] == [f"clip-lr{3 * lr:g}-seed{seed}" for seed in (0, 1)]
    assert all(config.train.lr == pytest.approx(3 * lr) and config.train.choose == "best" for config in chosen.values())
    assert (tmp_path / f"clip-lr{3 * lr:g}-seed0" / "provenance.json").exists()


def config_without_evaluations(config):
    from tuwen.config import override

    return override(config, {"train.eval_every": 2})  # at the start and the end


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A comparison by a task that is learnt on top, on equal pairs."""
    out = tmp_path_factory.mktemp("asked")
    how = CompareConfig(measure=MeasureConfig(task="vqa", limit=40), learn={"train.steps": 2, "train.batch_size": 8})
    options = {"size": "tiny", "seeds": 3, "changes": CHANGES, "validation": 0, "quiet": True, "effect": 5.0}
    return out, compare(["albef", "clip"], CORPUS, out, budget=Budget("pairs", 16), how=how, **options)


def test_any_task_is_the_measure_and_what_is_learnt_for_it_counts(asked):
    out, comparison = asked
    assert json.loads((out / "comparison.json").read_text()) == comparison
    assert (comparison["task"], comparison["metric"], comparison["budget"]) == ("vqa", "accuracy", "pairs=16")
    for name, system in comparison["systems"].items():
        for seed in system["seeds"]:
            assert seed["run"] == f"{name}-seed{seed['seed']}-vqa"
            assert seed["steps"] == 4  # two for the pairs, two to learn
            assert seed["figure"] == seed["accuracy"] == read_json(out / seed["run"] / "vqa.json")["accuracy"]
            assert read_marks(out / seed["run"], "vqa").figure() == pytest.approx(seed["figure"])
    (row,) = comparison["differences"]
    assert (row["of"], row["over"], row["covers"]) == ("clip", "albef", "seeds and pictures")
    assert row["interval"][0] <= row["figure"] <= row["interval"][1]
    assert row["seeds_needed"] is None or row["seeds_needed"] >= 2
    assert comparison["test_reads"] == 6


def test_a_task_is_tabled_in_every_form_and_on_the_page(asked):
    out, comparison = asked
    tables = tables_of(comparison)
    assert [len(row) for table in tables for row in table.rows] == [
        len(table.heads) for table in tables for _ in table.rows
    ]
    text = write_report(out).read_text(encoding="utf-8")
    figure = f"{comparison['systems']['albef']['figure']:.1f}"
    assert figure in text
    assert figure in markdown(tables)
    rows = list(csv.reader(io.StringIO(comma_separated(tables))))
    assert any(figure in cell for row in rows for cell in row)
    assert latex(tables).count(r"\begin{tabular}") == len(tables)


def test_cells_that_a_form_would_read_as_its_own_are_written_out():
    table = [Tabled("t", ("a|b", "c"), [("=1+1", "50% ±2"), ("a_b & <i>", "-1.5"), ("+cmd", "-")])]
    assert "| a\\|b | c |" in markdown(table)
    assert "<i>" not in markdown(table)
    rows = list(csv.reader(io.StringIO(comma_separated(table))))
    assert [row[1:] for row in rows[1:]] == [["'=1+1", "50% ±2"], ["a_b & <i>", "-1.5"], ["'+cmd", "-"]]
    assert r"50\% $\pm$2" in latex(table)
    assert r"a\_b \& \textless{}i\textgreater{}" in latex(table)


def test_what_was_not_re_ranked_is_not_called_so():
    def system(*weights):
        return {"seeds": [{"second_stage": {"weight": weight}} for weight in weights]}

    assert stage_called("reranked", system(0, 0)) == "first again, not re-ranked (w 0)"
    assert stage_called("reranked", system(0, 2)) == "re-ranked, w 0 2"
    assert stage_called("reranked", system("match")) == "re-ranked, w match"
    assert stage_called("reranked", {"seeds": [{}]}) == "re-ranked"
    assert stage_called("first", system(0)) == "first"
