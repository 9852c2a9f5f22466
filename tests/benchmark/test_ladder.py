"""Ladders: lines as scipy fits them, crossings by hand, and one climbed."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from tuwen.benchmark.budget import Budget
from tuwen.benchmark.compare import CompareConfig
from tuwen.benchmark.ladder import TrendLine, crossing_line, fitted_ladder, ladder
from tuwen.benchmark.measure import MeasureConfig
from tuwen.benchmark.report_ladder import write_ladder
from tuwen.errors import UserError


def test_a_line_and_its_band_are_scipys():
    generator = np.random.default_rng(1)
    x = np.repeat([0.0, 1.0, 2.0, 3.0], 3)
    y = 20 + 5 * x + generator.normal(0, 1, 12)
    line, known = TrendLine.fit(x.tolist(), y.tolist()), stats.linregress(x, y)
    assert (line.base, line.slope) == pytest.approx((known.intercept, known.slope))
    height, band = line.at(0.0)
    assert height == pytest.approx(known.intercept)
    assert band == pytest.approx(stats.t.ppf(0.975, 10) * known.intercept_stderr)


def test_lines_that_cross_are_found_where_they_do_and_beyond_the_ladder_it_is_said():
    rungs = [1, 2, 4, 8]
    slow = [[10.0, 10.2], [20.1, 19.9], [30.0, 30.2], [40.1, 39.9]]  # 10 + 10 x
    fast = [[24.9, 25.1], [30.1, 29.9], [34.9, 35.1], [40.1, 39.9]]  # 25 + 5 x: equal at x = 3, the eighth rung
    (crossing,) = fitted_ladder(rungs, {"fast": fast, "slow": slow})["crossings"]
    assert crossing["at"] == pytest.approx(8, rel=0.05)
    low, high = crossing["interval"]
    assert low < crossing["at"] < high
    far = [[height + 10 for height in seeds] for seeds in fast]  # equal at x = 5
    (crossing,) = fitted_ladder(rungs, {"far": far, "slow": slow})["crossings"]
    assert crossing["at"] == pytest.approx(32, rel=0.1)
    assert not crossing["within"]
    assert "would cross, beyond the ladder" in crossing_line(crossing)
    level = fitted_ladder(rungs, {"a": slow, "b": [[y + 1 for y in seeds] for seeds in slow]})["crossings"][0]
    assert level["interval"] == [None, None] or not level["within"]


def test_fiellers_interval_holds_the_crossing_as_often_as_it_says():
    generator, x = np.random.default_rng(4), np.repeat([0.0, 1.0, 2.0, 3.0], 3)
    held = 0
    for _ in range(500):
        zero = TrendLine.fit(x.tolist(), (-3 + 2 * x + generator.normal(0, 0.7, 12)).tolist()).zero()
        low, high = (math.log2(end) for end in zero["interval"])
        held += low <= 1.5 <= high
    assert 0.92 <= held / 500 <= 0.98


def test_a_ladder_of_data_is_climbed_and_climbed_again_for_nothing(tmp_path, monkeypatch):
    changes = {"data.workers": 0, "train.threads": 1, "train.batch_size": 8, "tokenizer.size": 300}
    options = {"size": "tiny", "seeds": 2, "changes": changes, "validation": 0, "quiet": True}
    options["how"] = CompareConfig(measure=MeasureConfig(limit=12))
    climb = ["clip", "tokenflow"], "scenes:count=32,side=32", tmp_path, [1, 2]
    result = ladder(*climb, of="data", budget=Budget("steps", 2), **options)
    assert json.loads((tmp_path / "ladder.json").read_text()) == result
    half, whole = (json.loads((tmp_path / rung / "comparison.json").read_text()) for rung in ("x1", "x2"))
    assert half["fingerprints"]["train"] != whole["fingerprints"]["train"]
    assert result["figures"]["clip"] == [
        [seed["figure"] for seed in rung["systems"]["clip"]["seeds"]] for rung in (half, whole)
    ]
    assert "<svg" in write_ladder(tmp_path, result).read_text(encoding="utf-8")
    monkeypatch.setattr("tuwen.training.loop.train", lambda *args, **named: pytest.fail("trained again"))
    assert ladder(*climb, of="data", budget=Budget("steps", 2), **options) == result
    with pytest.raises(UserError, match="two rungs"):
        ladder(*climb[:3], [1], budget=Budget("steps", 2), **options)
