"""Torch's threads do not spin while they wait, unless the user says so: as the library itself tells when loaded."""

import os
import re
import subprocess
import sys

import pytest

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
