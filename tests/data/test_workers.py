"""Processes that load data: one that is killed ends in a line."""

import os
import signal

import pytest

from tuwen.data.workers import in_workers
from tuwen.errors import UserError


class Deadly:
    """Items of which the third kills whoever makes it, as the kernel does when memory runs out."""

    def __getitem__(self, key: int) -> int:
        if key == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return key


def test_a_worker_that_is_killed_is_told_in_a_line():
    items = in_workers(Deadly(), range(8), 1)
    assert next(items) == 0
    with pytest.raises(UserError, match=r"loads pictures has ended \(DataLoader worker .*\); .* lower data\.workers"):
        list(items)
