"""What is said before a comparison begins: by hand, against the t-test's power, and read back from an earlier one."""

import json

import numpy as np
import pytest
from scipy import stats

from tuwen.benchmark import foretold as module
from tuwen.benchmark.crossed import Crossed
from tuwen.benchmark.foretold import assumed, foretold, line_of, of_pictures
from tuwen.benchmark.measure import MeasureConfig, save_marks
from tuwen.tasks.marks import Marks

CORPUS = "scenes:count=40,side=32"


def test_pictures_alone_by_hand():
    """200 pictures whose gains vary by 5000 at most: an error of sqrt(5000 / 200) = 5, shown at (1.96 + 0.84) 5."""
    assert of_pictures(assumed(1, 200)) == pytest.approx((1.959964 + 0.841621) * 5, abs=1e-4)
    assert of_pictures(assumed(2, 800)) == pytest.approx((1.959964 + 0.841621) * 2.5, abs=1e-4)


def test_seeds_alone_as_the_t_test_has_it(monkeypatch):
    """A gain that deviates by 2 points between seeds, not between pictures: the noncentral t's power with 10 seeds."""
    monkeypatch.setattr(module, "BOUND", 0.0)
    effect = assumed(10, 500).detectable()
    power = stats.nct.sf(stats.t.ppf(0.975, 9), 9, effect / (2 / 10**0.5))
    assert power == pytest.approx(0.8, abs=2e-3)
    assert assumed(10, 500).seeds_for(2.0) == 10  # one deviation, as every table of the t-test has it
    assert assumed(10, 500).seeds_for(1.0) == 34


def test_what_seeds_and_pictures_show_together_is_more_than_either_and_less_than_both():
    both = assumed(5, 500)
    seeds = Crossed(0.0, both.of_seeds, 0.0, 0.0, 5, 500).detectable()
    pictures = of_pictures(both)
    assert max(seeds, pictures) < both.detectable() < seeds + pictures


def test_lines_say_points_and_the_seeds_that_a_wanted_effect_needs():
    few = line_of(assumed(1, 200), None)
    assert few == "200 pictures show 14.0 points in 4 cases of 5 on these very seeds (1): too few"
    detectable, needed = assumed(3, 5000).detectable(), assumed(3, 5000).seeds_for(4.0)
    line = f"3 seeds on 5000 pictures show {detectable:.1f} points in 4 cases of 5; 4 points need {needed} seeds"
    assert line_of(assumed(3, 5000), 4.0) == line
    assert line_of(assumed(3, 100), 4.0).endswith("; 4 points need more pictures")


def test_before_the_first_comparison_it_is_assumed_and_said_so(tmp_path):
    (line,) = foretold(CORPUS, tmp_path, MeasureConfig(limit=30), 3)
    assert line.startswith(f"3 seeds on 30 pictures show {assumed(3, 30).detectable():.1f} points")
    assert line.endswith("; assumed: a gain deviates by 2 points between seeds, by 71 at most between pictures")
    (line,) = foretold(CORPUS, tmp_path, MeasureConfig(task="oversight"), 3)
    assert "not known before the first comparison" in line


def test_an_earlier_comparison_says_how_much_gains_vary(tmp_path):
    """Its mean squares, for another number of seeds and of pictures."""
    generator, systems, tables = np.random.default_rng(3), {}, {}
    for name in ("a", "b"):
        tables[name] = generator.normal(50, 20, (3, 25))
        systems[name] = {"seeds": [{"run": f"{name}-seed{k}"} for k in range(3)]}
        for k in range(3):
            marks = Marks()
            marks.add("all", tables[name][k], np.arange(25))
            (tmp_path / f"{name}-seed{k}").mkdir()
            save_marks(tmp_path / f"{name}-seed{k}", "retrieval", marks)
    (tmp_path / "comparison.json").write_text(json.dumps({"task": "retrieval", "systems": systems}))
    head, line = foretold(CORPUS, tmp_path, MeasureConfig(), 7, 3.0)
    planned = Crossed.of(tables["b"] - tables["a"]).planned(7, 40)
    assert head.startswith("by the comparison that lies in")
    assert line.startswith(f"b over a: 7 seeds on 40 pictures show {planned.detectable():.1f} points")
    needed = planned.seeds_for(3.0)
    assert line.endswith("3 points need more pictures" if needed is None else f"3 points need {needed} seeds")
