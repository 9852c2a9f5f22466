"""A run that is there: whether it is the one that is asked for."""

import pytest

from tuwen.config import dump
from tuwen.errors import UserError
from tuwen.run import CONFIG
from tuwen.training.config import RunConfig
from tuwen.training.loop import settled
from tuwen.training.once import refuse_other_settings


def run_of(config: RunConfig, folder):
    folder.mkdir()
    (folder / CONFIG).write_text(dump(settled(config)), encoding="utf-8")
    return folder


def test_tables_and_teachers_by_relative_paths_are_the_same_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise").mkdir()
    (tmp_path / "teacher").mkdir()
    changes = {"data.beside": ("noise",), "data.teachers.teacher": "teacher"}
    config = RunConfig.of("dide", "tiny", "scenes", changes=changes)
    run = run_of(config, tmp_path / "run")
    refuse_other_settings(run, config)
    with pytest.raises(UserError, match=r"run: was trained with data.beside=\['/.*, now \[\] is asked for"):
        refuse_other_settings(run, RunConfig.of("dide", "tiny", "scenes", changes={"data.teachers.teacher": "teacher"}))


def test_long_settings_are_told_in_short_and_only_those_asked_for_are_compared(tmp_path):
    config = RunConfig.of(
        "albef", "tiny", "scenes", task="vqa", changes={"task.answers": [f"a{k}" for k in range(500)]}
    )
    run = run_of(config, tmp_path / "run")
    other = RunConfig.of("albef", "tiny", "scenes", task="vqa", changes={"task.answers": ["no"], "train.seed": 1})
    refuse_other_settings(run, other, {"init"})
    with pytest.raises(UserError, match=r"task.answers=\['a0', .*, now \['no'\]") as error:
        refuse_other_settings(run, other)
    assert len(str(error.value)) < 400
