"""Kill -9 during a build at random moments: nothing that was reported done is lost, and the next run completes it."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.search.common import table
from tests.search.test_index import vectors
from tuwen.search.build import build_index
from tuwen.search.index import Index


def assert_whole(index, reference, pictures):
    """Every picture present once, with the bits of a run without kills."""
    found = vectors(index)
    assert found.keys() == {f"p{n}" for n in range(pictures)}
    for name, vector in vectors(reference).items():
        assert torch.equal(found[name], vector), name
    kept = ["id", "part_states_last", "thumbnail"]
    one, two = (i.snapshot.dataset.to_table(columns=kept).sort_by("id").to_pylist() for i in (index, reference))
    assert one == two


def test_killed_thrice(run, tmp_path):
    pictures = table(tmp_path / "in", range(36))
    command = [sys.executable, "-m", "tests.search.killed", run, pictures, tmp_path / "out", "4", "3"]
    told = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    attempts = [json.loads(line) for line in told.splitlines()]
    assert len(attempts) == 4
    assert attempts[-1][-1] == "finished"
    done = [name for attempt in attempts for commit in attempt if commit != "finished" for name in commit]
    assert len(set(done)) == len(done)  # what was reported once was there ever after
    again = build_index(run, pictures, tmp_path / "out")
    assert again.built.counts == {"unchanged": 36}
    assert_whole(again, build_index(run, pictures, tmp_path / "never killed", batch_size=4), 36)


@pytest.mark.slow  # about three minutes
def test_the_command_killed_twenty_times(run, tmp_path):
    """The whole command, its start included, killed at twenty random moments; about three minutes."""
    pictures = table(tmp_path / "in", range(400))
    command = [sys.executable, "-m", "tuwen", "index", str(run), str(pictures), "--out", str(tmp_path / "out")]
    command += ["--batch-size", "8", "--json"]
    draw = random.Random(7)
    clock = time.monotonic()
    subprocess.run([*command[:-4], str(tmp_path / "reference"), *command[-3:]], check=True, capture_output=True)
    whole = time.monotonic() - clock
    for _ in range(20):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            child.wait(draw.uniform(0.3, 1.1) * whole)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
    last = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert last["pictures"] == 400
    assert_whole(Index.open(tmp_path / "out"), Index.open(tmp_path / "reference"), 400)
    shutil.rmtree(tmp_path / "out")
