"""`tuwen compare` killed in the middle, of a run or of a recipe's stage, and begun again repeats nothing and ends the
same."""

import json
import signal
import time

import pytest

from tests.children import Child
from tuwen.data.beside import digest_of

WORDS = ["compare", "clip", "albef", "r2d2", "--corpus", "scenes:count=24,side=32", "--size", "tiny", "--seeds", "3"]
WORDS += ["--budget", "steps=6", "--set", "data.workers=0", "train.threads=1", "train.batch_size=8"]
WORDS += ["tokenizer.size=300", "train.checkpoint_every=2", "compare.measure.limit=8", "train.precision=float32"]


def figures(out):
    """All that must be the same: figures of every arm and seed, differences."""
    comparison = json.loads((out / "comparison.json").read_text())
    seeds = {
        name: [(seed["run"], seed["steps"], seed["languages"]) for seed in system["seeds"]]
        for name, system in comparison["systems"].items()
    }
    return seeds, comparison["differences"], comparison["test_reads"]


def finished_runs(out):
    return [path.parent for path in out.glob("*-seed*/provenance.json") if "finished" in json.loads(path.read_text())]


@pytest.mark.slow  # one minute
def test_a_comparison_killed_twice_in_the_middle_repeats_nothing_and_ends_the_same(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert Child(tmp_path / "undisturbed", "tuwen", *WORDS, "--out", str(whole)).end(1500) == 0
    stamps: dict = {}
    for last, run, done in [(0, "albef-seed0", 1), (1, "r2d2-seed1", 5)]:
        child = Child(tmp_path / f"killed{last}", "tuwen", *WORDS, "--out", str(broken))
        middle, deadline = broken / run / "metrics.jsonl", time.monotonic() + 900
        while not middle.exists() and child.process.exitcode is None and time.monotonic() < deadline:
            time.sleep(0.02)
        child.kill(signal.SIGKILL)
        assert child.end() == -signal.SIGKILL
        runs = finished_runs(broken)
        assert len(runs) == done
        assert run not in {path.name for path in runs}
        stamps |= {path: path.stat().st_mtime_ns for own in runs for path in own.glob("*.safetensors")}
    assert Child(tmp_path / "again", "tuwen", *WORDS, "--out", str(broken)).end(1500) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps  # neither trained nor measured again
    errors = (tmp_path / "again" / "errors").read_text()
    assert errors.count("finished before") == 5
    assert "r2d2-seed1, goes on" in errors
    assert figures(broken) == figures(whole)


RECIPE = """
stages:
  - {name: chosen, do: clicks, set: {share: 0.8}}
  - {name: warm, do: train, system: clip, set: {train.steps: 1}}
  - {name: final, do: train, system: clip, init: warm, beside: [chosen], set: {train.steps: 2, data.noise: drop}}
"""


def digests(out):
    """Of the weights and tables that every stage gives."""
    paths = [*out.glob("staged.yaml-seed*/*/weights.safetensors"), *out.glob("staged.yaml-seed*/*/*.parquet")]
    return {str(path.relative_to(out)): digest_of(path) for path in paths}


@pytest.mark.slow  # half a minute
def test_a_recipe_killed_in_the_middle_of_a_stage_repeats_nothing_and_ends_the_same(tmp_path):
    recipe = tmp_path / "staged.yaml"
    recipe.write_text(RECIPE)
    words = ["compare", str(recipe), "clip", "--corpus", "scenes:count=24,side=32,languages=en,clicks=true,noise=0.5"]
    words += ["--size", "tiny", "--seeds", "2", "--budget", "steps=60", *WORDS[WORDS.index("--set") :]]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert Child(tmp_path / "undisturbed", "tuwen", *words, "--out", str(whole)).end(300) == 0
    child = Child(tmp_path / "killed", "tuwen", *words, "--out", str(broken))
    stage = broken / "staged.yaml-seed1" / "final"
    deadline = time.monotonic() + 240
    while not any(stage.glob("state/step-*")) and child.process.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.005)
    child.kill(signal.SIGKILL)
    assert child.end() == -signal.SIGKILL
    assert not (stage / "weights.safetensors").exists()  # it was killed in the middle, with steps behind it
    stamps = {path: path.stat().st_mtime_ns for path in map(broken.joinpath, digests(broken))}
    assert len(stamps) == 5  # three of the first seed, two of the second
    assert Child(tmp_path / "again", "tuwen", *words, "--out", str(broken)).end(300) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps  # what was done was not done again
    assert digests(broken) == digests(whole)
    assert figures(broken) == figures(whole)
