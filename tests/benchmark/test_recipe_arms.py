"""A recipe of stages as an arm: its budget, seeds and tokenizer, what it costs, stopped and begun again, refused."""

from dataclasses import replace

import pytest

from tuwen.benchmark.arms import arm_folder
from tuwen.benchmark.budget import Budget
from tuwen.benchmark.compare import CompareConfig, compare
from tuwen.benchmark.measure import MeasureConfig
from tuwen.benchmark.recipe_arms import recipe_arm, shared_out
from tuwen.benchmark.report import write_report
from tuwen.config import override
from tuwen.data import draws
from tuwen.errors import UserError
from tuwen.run import provenance
from tuwen.training import loop
from tuwen.training.config import RunConfig
from tuwen.training.stages.record import read_record

CORPUS = "scenes:count=24,side=32,languages=en,clicks=true,noise=0.5"
RECIPE = """
stages:
  - {name: chosen, do: clicks, set: {share: 0.8}}
  - {name: warm, do: train, system: clip, set: {train.steps: 1}}
  - {name: final, do: train, system: clip, init: warm, beside: [chosen], set: {train.steps: 2, data.noise: drop}}
"""
CHANGES = {"train": {"batch_size": 8, "threads": 1}, "data.workers": 0, "tokenizer.size": 300, "train.seed": 4}
HOW = CompareConfig(measure=MeasureConfig(limit=8, samples=1))
OPTIONS = {"size": "tiny", "steps": 6, "changes": CHANGES, "how": HOW, "validation": 0, "quiet": True}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "staged.yaml"
    path.write_text(RECIPE)
    return str(path)


class Stopped(Exception):
    pass


def test_a_recipe_is_trained_under_the_budget_stopped_and_gone_on_with(recipe, tmp_path, monkeypatch):
    arms, folder, train = [recipe, "clip"], tmp_path / "staged.yaml-seed4", loop.train

    def stop(config, run, *args, **options):
        if run == folder.absolute() / "final":
            raise Stopped
        return train(config, run, *args, **options)

    monkeypatch.setattr(loop, "train", stop)
    with pytest.raises(Stopped):
        compare(arms, CORPUS, tmp_path, **OPTIONS)
    warm = (folder / "warm" / "weights.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(loop, "train", train)
    compared = compare(arms, CORPUS, tmp_path, **OPTIONS)
    assert (folder / "warm" / "weights.safetensors").stat().st_mtime_ns == warm

    configs = {name: RunConfig.read(folder / name) for name in ("warm", "final")}
    assert [config.train.steps for config in configs.values()] == [2, 4]  # one to two, as in the recipe
    assert [config.train.batch_size for config in configs.values()] == [8, 8]
    assert configs["final"].train.seed == 4  # the order of other arms
    assert configs["warm"].train.seed == draws.key(4, "warm") & (2**31 - 1)
    shared = (tmp_path / "tokenizer.json").read_bytes()
    assert all((folder / name / "tokenizer.json").read_bytes() == shared for name in configs)

    (seed,) = compared["systems"][recipe]["seeds"]
    done = [provenance(folder / name)["finished"] for name in configs]
    assert (seed["run"], seed["steps"], seed["seed"]) == ("staged.yaml-seed4/final", 6, 4)
    tables = read_record(folder / "chosen")["finished"]["seconds"]
    assert seed["seconds"] == pytest.approx(sum(part["seconds"] for part in done) + tables)
    assert compared["systems"]["clip"]["seeds"][0]["steps"] == 6
    assert seed["flops_a_pair"] == pytest.approx(compared["systems"]["clip"]["flops_a_pair"], rel=0.3)
    assert recipe in write_report(tmp_path).read_text()

    def refuse(*args, **options):
        raise AssertionError("a finished stage was trained or measured again")

    for place in ("tuwen.training.loop.train", "tuwen.training.loop.resume", "tuwen.benchmark.measure.retrieve"):
        monkeypatch.setattr(place, refuse)
    assert compare(arms, CORPUS, tmp_path, **OPTIONS) == compared


def test_settings_of_an_arm_reach_one_stage_and_those_of_all_go_under_a_stage_s_own(recipe, tmp_path):
    settings = {"final.train.lr": "0.5", "warm.model.embed": "16"}
    arm = recipe_arm(recipe, settings, CORPUS, tmp_path, "tiny", 4, CHANGES | {"train.steps": 9, "train.lr": 0.1}, {})
    warm, final = (planned.config for planned in arm.trained)
    assert (warm.train.lr, final.train.lr) == (0.1, 0.5)
    assert (warm.model.embed, final.model.embed) == (16, 16)  # it starts from the other
    assert (warm.train.steps, final.train.steps, arm.steps) == (1, 2, 3)
    assert [planned.config.train.steps for planned in arm.of_steps(31).trained] == [10, 21]
    assert shared_out(10, [1, 1, 1]) == [3, 3, 4]


def test_only_the_run_that_is_measured_is_watched(recipe, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("tuwen.benchmark.recipe_arms.run_recipe", lambda *args, **options: calls.append(args))
    arm = recipe_arm(recipe, {}, CORPUS, tmp_path, "tiny", 4, CHANGES, {})
    arm.do(print, tmp_path / "tokenizer.json", True)
    watch = calls[0][4]
    configs = [override(planned.config, {"tokenizer.file": "shared.json"}) for planned in arm.trained]
    assert [watch(config) for config in configs] == [None, print]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["none.yaml"], {}, "no recipe 'none.yaml'"),
        (["RECIPE"], {"steps": 1}, "1 steps are too few for the 2 stages"),
        (["RECIPE", "clip"], {"steps": None}, "give all the same budget"),
        (["RECIPE"], {"steps": None, "budget": Budget("seconds", 5)}, "cannot have a budget in seconds or flops"),
        (["RECIPE"], {"how": replace(HOW, tune=(1.0,))}, "cannot have --tune"),
        (["RECIPE"], {"how": replace(HOW, towers=1)}, "cannot have compare.towers"),
        (["RECIPE"], {"share": 0.5}, "a ladder of data"),
        (["RECIPE:final.train.batch_size=4"], {}, "differ in train.batch_size"),
        (["RECIPE:last.train.lr=1"], {}, "no config field 'last"),
        (["RECIPE"], {"changes": {"train.seed": "x"}}, "seed"),
    ],
)
def test_what_a_recipe_cannot_have_is_told_before_any_work(names, options, message, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *args, **options: pytest.fail("something was trained"))
    named = [name.replace("RECIPE", recipe) for name in names]
    with pytest.raises(UserError, match=message):
        compare(named, CORPUS, tmp_path / "out", **OPTIONS | options)


def test_an_arm_s_folder_is_called_by_file_and_settings():
    assert arm_folder("recipes/nlip.yaml") == "nlip.yaml"
    assert arm_folder("recipes/nlip.yaml:final.init=runs/a") == "nlip.yaml-final.init=runs-a"
