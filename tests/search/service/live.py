"""`tuwen serve` as a process of its own."""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Live:
    """A service that runs. log: the lines it wrote to standard error so far."""

    process: subprocess.Popen
    url: str = ""
    log: list[str] = field(default_factory=list)


@contextlib.contextmanager
def serving(index, *options: str) -> Iterator[Live]:
    """Starts the service on a free port and waits until it answers."""
    command = [sys.executable, "-m", "tuwen", "serve", str(index), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        live = Live(process)
        reader = threading.Thread(target=lambda: live.log.extend(process.stderr), daemon=True)
        reader.start()
        try:
            line = process.stdout.readline()
            live.url = line.split()[0] if line else ""
            assert live.url, "".join(live.log)
            yield live
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            reader.join(10)
