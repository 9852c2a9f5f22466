"""Recipes of stages: read, planned, rehearsed, done once, killed anywhere, told where an input changed."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from tuwen.data.beside import TABLE, digest_of
from tuwen.data.open import open_corpus
from tuwen.errors import UserError
from tuwen.predictor import Predictor
from tuwen.run import WEIGHTS, provenance
from tuwen.training.config import RunConfig
from tuwen.training.stages import go
from tuwen.training.stages.alone import stage_alone
from tuwen.training.stages.doing import corpus_of
from tuwen.training.stages.go import run_recipe
from tuwen.training.stages.recipe import plan, read_recipe
from tuwen.training.stages.record import made_of, read_record
from tuwen.training.stages.rehearsal import rehearse

CORPUS = "scenes:count=48,side=32,languages=en,noise=0.4"
RECIPE = """
size: tiny
seed: 3
train: {threads: 1, checkpoint_every: 3, steps: 4}
data: {workers: 0, augment: none}
stages:
  - {name: warm, do: train, system: clip}
  - {name: noise, do: noise, run: warm, set: {batch: 16, gate: 0}}
  - {name: concepts, do: concepts, run: warm, set: {count: 2, least: 1}}
  - {name: speaker, do: train, system: clip, task: captioning, init: warm, set: {train.steps: 2, train.choose: last}}
  - {name: captions, do: caption, run: speaker, set: {how: {most: 4}}}
  - {name: final, do: train, system: clip, init: warm, beside: [noise, concepts, captions]}
"""
NAMES = ("warm", "noise", "concepts", "speaker", "captions", "final")


def written(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def outcome(out: Path) -> dict[str, str]:
    """The digest of what every stage gives."""
    files = [next(path for path in (out / name / TABLE, out / name / WEIGHTS) if path.exists()) for name in NAMES]
    return {path.parent.name: digest_of(path) for path in files}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(recipe, folder) of stages that came to their end undisturbed, rehearsed before."""
    folder = tmp_path_factory.mktemp("recipe")
    path = written(folder)
    run_recipe(read_recipe(path), CORPUS, folder / "out", quiet=True)
    return path, folder / "out"


def test_every_stage_is_a_folder_with_what_it_was_made_of(done):
    _, out = done
    noise = pq.read_table(out / "noise" / TABLE)
    assert noise.column_names == ["row", "text", "noise", "loss"]
    assert len(noise) > 48
    assert all(0 <= value <= 1 for value in noise["noise"].to_pylist())
    tags = pq.read_table(out / "concepts" / TABLE)["tags"].to_pylist()
    assert all(len(set(row["en"])) == 2 for row in tags)
    captions = pq.read_table(out / "captions" / TABLE)["written"].to_pylist()
    assert all(len(row["en"]) > 0 for row in captions)
    for name in NAMES:
        record = read_record(out / name)
        assert record["finished"]["bytes"] > 1000
        assert record["made_of"]["do"] in ("train", "noise", "concepts", "caption")
    made = read_record(out / "final")["made_of"]
    assert made["init"] == digest_of(out / "warm" / WEIGHTS)
    assert [made[f"beside.{k}"] for k in range(3)] == [digest_of(out / n / TABLE) for n in NAMES if n in
                                                       ("noise", "concepts", "captions")]  # fmt: skip
    assert not (out / "noise" / "parts").exists()


def test_stages_draw_seeds_of_their_own_and_share_one_tokenizer(done):
    _, out = done
    configs = {name: RunConfig.read(out / name) for name in ("warm", "speaker", "final")}
    assert len({config.train.seed for config in configs.values()}) == 3
    assert len({(out / name / "tokenizer.json").read_bytes() for name in configs}) == 1
    assert configs["speaker"].task_name == "captioning"
    assert configs["final"].model == configs["warm"].model
    fingerprints = {provenance(out / name)["corpus"]["fingerprint"] for name in ("warm", "final")}
    assert len(fingerprints) == 2  # of the corpus, and of it with tables beside it


def test_what_is_done_is_left(done, monkeypatch):
    path, out = done
    before = outcome(out), [(out / name / "stage.json").read_bytes() for name in NAMES]
    monkeypatch.setattr(go, "do_stage", lambda *_: pytest.fail("done again"))
    monkeypatch.setattr(go, "rehearse", lambda *_: pytest.fail("rehearsed again"))
    run_recipe(read_recipe(path), CORPUS, out, quiet=True)
    assert (outcome(out), [(out / name / "stage.json").read_bytes() for name in NAMES]) == before


def test_it_is_said_before_what_each_stage_takes_and_after_where_the_whole_stands(done, capsys):
    path, out = done
    costs = json.loads((out / "costs.json").read_text())
    assert list(costs) == list(NAMES)
    assert all(cost["seconds"] > 0 and cost["bytes"] > 0 for cost in costs.values())
    checkpoint = sum(tensor.numel() * 4 for tensor in load_file(out / "warm" / WEIGHTS).values())
    assert (
        2 * 3 * checkpoint <= costs["warm"]["bytes"] < 2 * 3 * checkpoint + 200_000
    )  # weights and both moments, twice
    run_recipe(read_recipe(path), CORPUS, out)
    assert capsys.readouterr().err.count("done before, in") == len(NAMES)


def test_what_is_said_of_stages_is_chinese_but_for_names(done, capsys, monkeypatch):
    path, out = done
    monkeypatch.setenv("TUWEN_LANG", "zh")
    teller = go._Teller(plan(read_recipe(path), CORPUS, out, {}), go.read_costs(out / "costs.json"), quiet=False)
    places = [teller.begins(place) for place in range(len(NAMES))]
    teller.done(0)
    text = capsys.readouterr().err + " ".join(places)
    names = {*NAMES, "train", "clip", "noise", "concepts", "caption", "captioning", "MB"}
    assert set(re.findall("[A-Za-z]+", text)) == names
    assert "第 1 阶段，共 6 个: warm (train clip)：约 " in text
    assert "speaker (train clip，任务 captioning)" in text
    assert "，以前已做完" in text
    assert re.search("总共约 .*（不计评测），.* MB", text)
    assert re.fullmatch(r"第 3 阶段，共 6 个，整体已完成 \d+%，还剩约 [\d.]+ (秒|分钟|小时)", places[2])


def test_killed_anywhere_it_repeats_nothing_and_ends_the_same(done, tmp_path):
    path, out = done
    command = [
        sys.executable,
        "-m",
        "tests.training.stages.killed",
        str(path),
        CORPUS,
        str(tmp_path / "out"),
        "2",
    ]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr[-2000:]
    told = json.loads(child.stdout)
    assert told["kills"] > 5
    assert told["again"] == []
    assert outcome(tmp_path / "out") == outcome(out)


@pytest.mark.parametrize(
    ("changes", "corpus", "what"),
    [
        ({"noise.gate": 0.5}, CORPUS, r"noise: was made of something else .*gate 0.0 then, 0.5 now.*: final;"),
        (
            {"warm.train.lr": 0.01},
            CORPUS,
            "warm: .*train.lr 0.001 then, 0.01 now.*: noise, concepts, speaker, captions, ",
        ),
        ({}, CORPUS + ",seed=9", "warm: .*the corpus has changed"),
        ({"final.train.steps": 5}, CORPUS, r"final: .*train.steps 4 then, 5 now.*to make it again; or"),
    ],
)
def test_a_stage_of_other_inputs_is_told_and_not_kept(changes, corpus, what, done, monkeypatch):
    path, out = done
    monkeypatch.setattr(go, "do_stage", lambda *_: pytest.fail("worked before it was told"))
    with pytest.raises(UserError, match=what):
        run_recipe(read_recipe(path, changes), corpus, out, quiet=True)


def test_an_input_that_was_made_anew_otherwise_is_told(done, tmp_path):
    path, out = done
    weights = out / "warm" / WEIGHTS
    kept = weights.read_bytes()
    try:
        weights.unlink()
        weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        with pytest.raises(UserError, match=r"out/noise: .*warm has changed since.* final"):
            run_recipe(read_recipe(path), CORPUS, out, quiet=True)
    finally:
        weights.write_bytes(kept)


def test_teachers_that_go_on_are_another_input(done):
    path, _ = done
    recipe = read_recipe(path)
    stages = [replace(stage, init="warm:state") if stage.name == "final" else stage for stage in recipe.stages]
    corpus = open_corpus(CORPUS, "train")
    parts = [made_of(plan(recipe, CORPUS, Path("out"), {})[-1], corpus)]
    parts.append(made_of(plan(replace(recipe, stages=tuple(stages)), CORPUS, Path("out"), {})[-1], corpus))
    assert {name for name in parts[1] if parts[0].get(name) != parts[1][name]} == {"init:state"}


def test_a_stage_that_made_nothing_begins_anew(done, tmp_path):
    _, out = done
    arguments = {"kind": "noise", "run": out / "warm", "corpus": CORPUS, "split": "train", "seed": 0, "quiet": True}
    arguments |= {"changes": {"batch": 16}, "out": tmp_path / "noise"}
    with pytest.raises(UserError, match=r"nowhere: no table there; give a Parquet file"):
        stage_alone(beside=["nowhere"], **arguments)
    assert stage_alone(beside=[], **arguments).is_file()
    with pytest.raises(UserError, match="batch 16 then, 8 now"):
        stage_alone(beside=[], **arguments | {"changes": {"batch": 8}})


def test_a_prompt_may_hold_other_braces(done, tmp_path):
    _, out = done
    changes = {"count": 1, "least": 1, "prompts": {"en": "a {photo} of {}"}}
    seen = []
    asked = Predictor.texts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "texts", lambda self, texts, *rest, **how: seen.extend(texts) or asked(self, texts, *rest, **how))  # fmt: skip # noqa: E501
        stage_alone("concepts", out / "warm", CORPUS, "train", [], changes, 0, tmp_path / "concepts", quiet=True)
    assert seen
    assert all(text.startswith("a {photo} of ") and "{}" not in text for text in seen)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="holds something else than stages"):
        run_recipe(read_recipe(written(tmp_path)), CORPUS, tmp_path / "out", quiet=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_rehearsal_finds_what_cannot_be_done_before_any_work(tmp_path):
    text = RECIPE.replace("do: caption, run: speaker", "do: caption, run: warm")
    with pytest.raises(UserError, match=r"recipe.yaml, stage captions: system clip cannot caption: it has no decoder"):
        run_recipe(read_recipe(written(tmp_path, text)), CORPUS, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out" / "warm").exists()


@pytest.mark.parametrize("task", ["entailment", "two_pictures"])
def test_a_task_is_rehearsed_on_what_the_corpus_asks_of_its_pictures(task, tmp_path):
    text = "{size: tiny, train: {batch_size: 8, threads: 1, steps: 90}, tokenizer: {size: 200}, stages: [{name: judge, "
    stages = plan(
        read_recipe(written(tmp_path, text + f"do: train, system: clip, task: {task}}}]}}")),
        CORPUS,
        tmp_path / "out",
        {},
    )
    costs = rehearse(tmp_path / "recipe.yaml", stages, {"judge": corpus_of(stages[0])})
    assert costs["judge"].seconds > 0
    assert costs["judge"].bytes > 0


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("train: {steps: 3}", "no recipe of stages"),
        ("stages: []", "no recipe of stages"),
        ("stages: [{do: train}]", "stage 1 has no name"),
        ("stages: [{name: a, do: dance}]", "stage a: .*do must be one of train, noise, concepts, caption"),
        ("stages: [{name: a, do: train}]", "names its system"),
        ("stages: [{name: ../a, do: train, system: clip}]", "must be small letters"),
        ("stages: [{name: train, do: train, system: clip}]", "is that of a setting"),
        ("stages: [{name: a, do: train, system: clip, stes: {}}]", "stage a: no config field .*nearest: .*set"),
        ("stages: [{name: a, do: train, system: clip}, {name: a, do: train, system: clip}]", "two stages are called a"),
        ("stages: [{name: a, do: train, system: clip, set: {train.stps: 3}}]", "stage a: no config field.*train.steps"),
        (
            "stages: [{name: a, do: train, system: clip, init: b}, {name: b, do: train, system: clip}]",
            "neither an earlier",
        ),
        ("stages: [{name: a, do: noise}]", "names the run that it asks"),
        ("stages: [{name: a, do: noise, run: nowhere}]", "'nowhere' is neither an earlier stage that makes a run"),
        (
            "stages: [{name: a, do: train, system: clip}, {name: b, do: noise, run: a, system: clip}]",
            "is of stages that",
        ),
        (
            "stages: [{name: a, do: train, system: clip}, {name: b, do: train, system: clip, beside: [a]}]",
            "is no table",
        ),
        ("stages: [{name: a, do: train, system: clip, corpus: CLEAN}]", "say --also CLEAN=CORPUS"),
        ("stages: [{name: a, do: train, system: clip, task: vaq}]", "vqa"),
        ("stages: [{name: a, do: train, system: clip}]\nseed: -1", "seed must lie"),
        ("stages: [{name: a, do: train, system: clip}]\nsize: [tiny]", "stage a: no size called .*tiny"),
        ("stages: [{name: a, do: train, system: clip}]\nmodel: 3", "stage a: config field model: expected the fields"),
        ("stages: [{name: a, do: train, system: clip, set: {train: 3}}]", "stage a: config field train: expected the"),
        ("stages: [{name: a, do: train, system: clip, set: {train.seed: 7}}]", "train.seed is no setting .*`seed:`"),
        ("stages: [{name: a, do: train, system: clip, set: {init: b}}]", "init is no setting here: .*`init:`"),
        ("stages: [{name: a, do: train, system: clip}]\ndata: {beside: [b]}", "data.beside is no setting .*`beside:`"),
        ("stages: [{name: a, do: train, system: clip}]\ncorpus: scenes", "corpus is no setting here: .*`corpus:`"),
    ],
)
def test_mistakes_in_a_recipe_are_told_in_a_line(text, what, tmp_path):
    with pytest.raises(UserError, match=what) as told:
        plan(read_recipe(written(tmp_path, text)), CORPUS, tmp_path / "out", {})
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 600


def test_a_corpus_that_nobody_asked_for_is_told(tmp_path):
    with pytest.raises(UserError, match="no stage has the corpus CLEAN"):
        plan(read_recipe(written(tmp_path)), CORPUS, tmp_path / "out", {"CLEAN": "scenes"})


def test_settings_reach_all_runs_or_one_stage(tmp_path):
    recipe = read_recipe(
        written(tmp_path), {"train.lr": "0.02", "final.train.lr": "0.03", "concepts.count": "1"}, "demo", 5
    )
    planned = {one.stage.name: one for one in plan(recipe, CORPUS, tmp_path / "out", {})}
    assert [planned[name].config.train.lr for name in ("warm", "speaker", "final")] == [0.02, 0.02, 0.03]
    assert planned["concepts"].config.count == 1
    assert planned["warm"].config.size == "demo"
    assert planned["warm"].seed != {one.stage.name: one for one in plan(read_recipe(written(tmp_path)), CORPUS,
                                                                        tmp_path / "out", {})}["warm"].seed  # fmt: skip


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="tuwen run is one process"):
        run_recipe(read_recipe(written(tmp_path)), CORPUS, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
