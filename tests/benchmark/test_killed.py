"""`tuwen compare ... --seeds 3` killed in the middle and begun again repeats nothing and ends the same."""

import json
import signal
import time

import pytest

from tests.children import Child

WORDS = ["compare", "clip", "albef", "--corpus", "scenes:count=24,side=32", "--size", "tiny", "--seeds", "3"]
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


@pytest.mark.slow  # half a minute
def test_a_comparison_killed_in_the_middle_repeats_nothing_and_ends_the_same(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert Child(tmp_path / "undisturbed", "tuwen", *WORDS, "--out", str(whole)).end(300) == 0
    child = Child(tmp_path / "killed", "tuwen", *WORDS, "--out", str(broken))
    middle = broken / "albef-seed1" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not middle.exists() and child.process.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.02)
    child.kill(signal.SIGKILL)
    assert child.end() == -signal.SIGKILL
    done = [path for path in broken.glob("*-seed*/provenance.json") if "finished" in json.loads(path.read_text())]
    assert {path.parent.name for path in done} == {"clip-seed0", "albef-seed0", "clip-seed1"}
    stamps = {path: path.stat().st_mtime_ns for run in done for path in run.parent.glob("*.safetensors")}
    assert Child(tmp_path / "again", "tuwen", *WORDS, "--out", str(broken)).end(300) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps  # neither trained nor measured again
    said = (tmp_path / "again" / "errors").read_text()
    assert said.count("finished before") == 3
    assert figures(broken) == figures(whole)
