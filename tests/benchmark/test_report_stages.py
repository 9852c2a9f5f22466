"""The report's words on the second stage, and what all had at equal seconds: by hand."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tuwen.benchmark.report_stages import at_equal_seconds, effects_in_words, equal_seconds, section
from tuwen.run import METRICS, RANKS, SCORE

WAYS = ("image_to_text", "text_to_image")
TRIED = {"0.0": 60.0, "0.25": 60.5, "0.5": 60.4, "1.0": 59.0, "2.0": 55.0, "4.0": 50.0, "match": 46.0}


def seed(gain, run="albef-seed0", **rule):
    second = {"score": "fitted", "ms_a_query": 3.04, **rule}
    return {"seed": 0, "run": run, "languages": {"en": {"gain": gain}}, "second_stage": second}


def ranked(folder, gained):
    """Of 400 queries a direction so many go from rank 3 to the first."""
    folder.mkdir(exist_ok=True)
    first = torch.full((400,), 3)
    better = torch.where(torch.arange(400) < gained, 0, first)
    names = {"first": first, "reranked": better}
    save_file({f"en.{stage}.{way}": ranks.clone() for stage, ranks in names.items() for way in WAYS}, folder / RANKS)
    return folder


def test_a_weight_of_0_is_said_with_what_was_tried(tmp_path):
    (tmp_path / SCORE).write_text(json.dumps({"weight": 0.0, "queries": 800, "mean_recall": TRIED}))
    ((english, chinese),) = effects_in_words("albef", [seed(0.0, tmp_path.name, weight=0.0)], [tmp_path])
    assert english == (
        "albef keeps the order of its first stage: on 800 validation queries no weight of the match beat it by more "
        "than chance (at best +0.5 points, by first stage + 0.25 × match; the match alone -14.0). The cross encoder is "
        "not run."
    )
    assert "800 条验证查询" in chinese
    assert "+0.5 点，第一阶段 + 0.25 × 匹配；只用匹配 -14.0 点" in chinese
    (tmp_path / SCORE).write_text(json.dumps({"weight": 0.0, "why": "the corpus has no val split"}))
    ((english, _),) = effects_in_words("albef", [seed(0.0, tmp_path.name, weight=0.0)], [tmp_path])
    assert english == "albef keeps the order of its first stage: the corpus has no val split."


def test_a_gain_is_one_only_where_its_interval_says_so(tmp_path):
    """100 of 400 queries gain a third of a hit: 8.3 points; one gains a thirtieth of that."""
    for gained, verdict in ((100, "a gain"), (1, "no more than chance"), (0, "no more than chance")):
        run = ranked(tmp_path / f"run-{gained}", gained)
        ((english, chinese),) = effects_in_words("albef", [seed(100 * gained / 1200, run.name, weight=0.5)], [run])
        assert english.startswith("albef is ranked by first stage + 0.5 × match, as validation has it. ")
        assert f"{gained / 12:+.1f} points in en (95 % between " in english
        assert f": {verdict}); it costs 3.0 ms a query." in english
        assert ("有收益" in chinese) == (verdict == "a gain")


def test_the_other_rules_and_systems_without_a_second_stage(tmp_path):
    run = ranked(tmp_path / "run", 0)
    ((english, _),) = effects_in_words("albef", [seed(0.0, "run", weight="match")], [run])
    assert english.startswith("albef is re-ranked by the match alone")
    ((english, _),) = effects_in_words("albef", [seed(0.0, "run", score="published")], [run])
    assert english.startswith("albef is re-ranked by its paper's own rule")
    alone = {"seed": 0, "run": "clip-seed0", "languages": {"en": {}}}
    assert effects_in_words("clip", [alone], [])[0][0] == "clip has one stage: its vectors alone rank."
    assert section({"clip": {"seeds": [alone]}}, {"clip": []}) == ""
    several = [seed(0.0, "run", weight=1.0), seed(0.0, "gone", weight=1.0) | {"seed": 1}]
    page = section({"<clip>": {"seeds": [alone]}, "albef": {"seeds": several}}, {"<clip>": [], "albef": [run]})
    assert page.count("<li>") == 2  # of the run that is gone nothing is said
    assert "albef, seed 0" in page
    assert "<clip>" not in page


def evaluated(folder, *points):
    """points: (step, seconds, recall)."""
    folder.mkdir()
    lines = [{"step": step, "seconds": seconds, "eval": evaluation(recall)} for step, seconds, recall in points]
    lines[0].pop("seconds")
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def evaluation(recall):
    return {"en": {"first": {"mean_recall": recall}}}


def test_equal_seconds_are_those_of_the_fastest(tmp_path):
    quick = evaluated(tmp_path / "quick", (0, 0, 3), (100, 50, 40), (200, 101, 60))
    slow = evaluated(tmp_path / "slow", (0, 0, 3), (50, 99, 30), (100, 202, 45), (200, 400, 66))
    reached = at_equal_seconds({"clip": [quick], "r2d2": [slow]})
    assert reached["clip"] == {"seconds": 101, "step": 200, "recalls": {"en": (60, 60)}}
    assert reached["r2d2"] == {"seconds": 400, "step": 50, "recalls": {"en": (30, 66)}}
    page = equal_seconds({"clip": [quick], "r2d2": [slow]})
    assert "At equal seconds" in page
    assert ">30.0<" in page
    again = evaluated(tmp_path / "again", (0, 0, 3), (100, 101, 50), (200, 300, 70))
    pairs = at_equal_seconds({"clip": [quick, quick], "r2d2": [slow, again]})
    assert pairs["r2d2"]["recalls"]["en"] == (pytest.approx(40), pytest.approx(68))
    assert equal_seconds({"clip": [quick]}) == ""
    assert equal_seconds({"clip": [quick], "r2d2": [tmp_path / "none"]}) == ""
