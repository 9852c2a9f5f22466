"""A run's metrics.jsonl that someone edited: the report's curves show what can be shown of it, or say the line."""

import json

import numpy as np
import pytest

from tuwen.benchmark.report import _curves, _losses, _series, _validation
from tuwen.errors import UserError
from tuwen.training.log import read_metrics

ODD = [None, 3, "many", [1], {}, {"first": None}, {"first": {"mean_recall": "high"}}, {"first": {"mean_recall": None}}]
ODD += [{"first": {"mean_recall": [1]}}, {"first": {"mean_recall": True}}, {"first": {"mean_recall": float("nan")}}]
ODD += [{"first": {"mean_recall": 1e999}}, {"first": {"mean_recall": 10**400}}, {"other": {"mean_recall": 1.0}}]


def written(folder, records) -> None:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_evaluations_that_are_none_are_left_out_of_the_curves(tmp_path):
    right = {"en": {"first": {"mean_recall": 40.0}, "chance": {"mean_recall": 2.0}}}
    records = [{"step": 1, "losses": {"contrast": 2.0}, "eval": right}]
    records += [{"step": 2 + k, "eval": {"en": odd, "\x1b<b>": odd}} for k, odd in enumerate(ODD)]
    records.append({"step": 99, "losses": {"contrast": None}, "eval": right})
    written(tmp_path / "run", records)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert _validation(records, "first") == {"en": {1: 40.0, 99: 40.0}}
    steps, values = _series([_losses(records)])["contrast"]
    assert steps.tolist() == [1, 99]
    assert values.dtype == np.float64
    assert values[0, 0] == 2.0
    assert np.isnan(values[0, 1])
    page = _curves({}, {"clip": [tmp_path / "run"]})
    assert page.count("<svg") == 2
    assert "\x1b" not in page


def test_a_curve_of_one_point_is_left_out(tmp_path):
    right = {"en": {"first": {"mean_recall": 40.0}}, "zh": {"first": {"mean_recall": 30.0}}}
    later = {"en": {"first": {"mean_recall": 50.0}}}
    records = [{"step": 1, "losses": {"contrast": 2.0, "match": 1.0}, "eval": right}]
    records.append({"step": 5, "losses": {"contrast": 1.5}, "eval": later})
    written(tmp_path / "run", records)
    page = _curves({}, {"clip": [tmp_path / "run"]})
    assert "en: mean recall" in page
    assert ">contrast<" in page
    assert "zh: mean recall" not in page
    assert ">match<" not in page
    written(tmp_path / "short", records[:1])
    assert _curves({}, {"clip": [tmp_path / "short"]}) == ""


@pytest.mark.parametrize("odd", [[], 3, "x", None])
def test_an_evaluation_that_is_no_table_is_no_record(tmp_path, odd):
    written(tmp_path / "run", [{"step": 1, "eval": {}}, {"step": 2, "eval": odd}])
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: no record"):
        _curves({}, {"clip": [tmp_path / "run"]})


def test_one_point_is_no_curve(tmp_path):
    right = {"en": {"first": {"mean_recall": 40.0}, "chance": {"mean_recall": 2.0}}}
    written(tmp_path / "run", [{"step": 1, "losses": {"contrast": 2.0}}, {"step": 2, "eval": right}])
    assert _curves({}, {"clip": [tmp_path / "run"]}) == ""
    written(
        tmp_path / "other", [{"step": k, "losses": {"contrast": 2.0}} for k in (1, 2)] + [{"step": 3, "eval": right}]
    )
    page = _curves({}, {"clip": [tmp_path / "other"]})
    assert page.count("<svg") == 1
    assert "losses" in page
    assert "mean recall" not in page
