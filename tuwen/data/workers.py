"""Work done ahead of time by other processes."""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from tuwen.errors import UserError, reason_of


def default_workers() -> int:
    """Worker processes a training process takes: half of its cores but one, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(8, max(0, (share - 1) // 2))


def in_workers(items: Any, keys: Sequence[int], workers: int) -> Iterator[Any]:
    """items[key] for every key, in order, made by worker processes ahead of time.

    Raises:
        UserError: one that an item is, or if a worker was killed, as a machine without memory left does.
    """
    loader: DataLoader = DataLoader(
        items,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals,
        generator=torch.Generator(),  # of its own: the global one must not be drawn from
    )
    with _tokenizer_threads_off() if workers else contextlib.nullcontext():
        made = iter(loader)
    try:
        for item in made:
            if isinstance(item, UserError):
                raise item
            yield item
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that loads pictures has ended ({reason_of(error)}); where memory ran out, lower data.workers; "
            "a run goes on with `tuwen train --resume`"
        ) from None


@contextlib.contextmanager
def _tokenizer_threads_off() -> Iterator[None]:
    """While workers start: the tokenizers library's threads do not survive a fork."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _leave_signals(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the training process alone decides what happens then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
