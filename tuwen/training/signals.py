"""SIGTERM and Ctrl-C: the step at hand is finished and saved before the run stops."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal after a whole step, and saved; exit status 130."""


class Stop(BaseException):
    """Raised where the state is that of a whole step, so that it can be saved."""


class Signals:
    """While entered, the first SIGTERM or Ctrl-C sets `received`; the second leaves at once, without saving.

    Outside the main thread, where Python gives no signals, it does nothing.
    """

    def __init__(self, say: Callable[[str], None]):
        self.say, self.received, self._at_once = say, False, False
        self._before: dict[int, object] = {}
        self._process = os.getpid()

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def at_once(self, allowed: bool) -> Iterator[None]:
        """Within, where nothing of the run's state changes, a signal stops at once."""
        if allowed and self.received:
            raise Stop
        self._at_once = allowed
        try:
            yield
        finally:
            self._at_once = False

    def _take(self, number: int, frame) -> None:
        if os.getpid() != self._process:
            return  # a worker that inherited this: the process it works for decides
        if self.received:
            raise SystemExit(130)
        self.received = True
        if self._at_once:
            raise Stop
        self.say(f"{signal.Signals(number).name}: stopping after this step; once more to stop at once, without saving")
