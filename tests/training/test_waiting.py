"""Torch's threads do not spin while they wait, unless the user says so: as the library itself tells when loaded."""

import os
import re
import subprocess
import sys
import time

import pytest

from tuwen.training.log import Rates, core_wait, limit_of

COMMAND = "from tuwen.cli import main; main(['systems'])"


@pytest.mark.parametrize(
    ("code", "environment", "spins"),
    [
        (COMMAND, {}, "0"),
        ("import tuwen; tuwen.load", {}, "0"),
        ("import tuwen; tuwen.load", {"GOMP_SPINCOUNT": "77"}, "77"),
        ("import tuwen; tuwen.load", {"OMP_WAIT_POLICY": "active"}, r"INFINITY|[1-9]\d{6,}"),
    ],
)
def test_waiting_threads_spin_as_the_user_says_and_else_not_at_all(code, environment, spins):
    unset = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    words = [sys.executable, "-c", f"{code}\nimport sys; assert 'torch' in sys.modules"]
    done = subprocess.run(
        words, env=unset | environment | {"OMP_DISPLAY_ENV": "verbose"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    if "GOMP_" not in done.stderr:
        pytest.skip("another OpenMP library than GNU's")
    assert re.search(rf"GOMP_SPINCOUNT = '({spins})'", done.stderr), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how long a thread waited for a core")
def test_a_core_that_another_program_has_is_waited_for():
    cores, one = os.sched_getaffinity(0), min(os.sched_getaffinity(0))
    pinned = f"import os; os.sched_setaffinity(0, {{{one}}})\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", pinned], stdout=subprocess.PIPE) as neighbour:
        try:
            neighbour.stdout.readline()
            os.sched_setaffinity(0, {one})
            before, begun = core_wait(), time.monotonic()
            while time.monotonic() - begun < 0.5:
                pass
            waited = core_wait() - before
        finally:
            os.sched_setaffinity(0, cores)
            neighbour.kill()
    assert 0.1 < waited <= time.monotonic() - begun


@pytest.mark.parametrize(
    ("waited", "crowded", "limit"),
    [(0.0, 0.0, "computing"), (0.24, 0.2, "computing"), (0.5, 0.3, "data"), (0.1, 0.6, "other programs")],
)
def test_the_line_says_what_limits(waited, crowded, limit):
    rates = Rates(0.0)
    for _ in range(2):
        rates.step(waited, 1 - waited, crowded, 10)
    record = rates.read()
    assert (record["data_wait"], record["core_wait"], record["pairs_per_second"]) == (waited, crowded, 10)
    assert limit_of(record) == limit
    rates.step(0.0, 1.0, 0.0, 10)
    assert rates.read()["core_wait"] == 0, "each reading is of its own time"
    assert limit_of({"data_wait": 0.1}) == "computing", "records of older runs"
