"""Programs in processes of their own, forked from one that has loaded torch and tuwen: to begin takes no seconds."""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.training.toy"])


class Child:
    """`python -m MODULE WORDS...`, in the repository. out, errors: files of what it writes."""

    def __init__(self, folder: Path, module: str, *words: str, **environment: str):
        """folder: a new one, for the files. environment: changes to this process's own."""
        folder.mkdir(parents=True)
        self.out, self.errors = folder / "out", folder / "errors"
        paths = str(self.out), str(self.errors)
        self.process = SERVER.Process(target=_run, args=(module, words, os.environ | environment, *paths))
        self.process.start()

    def kill(self, signal: int) -> None:
        os.kill(self.process.pid, signal)

    def end(self, seconds: float = 120) -> int:
        """Its exit status, once it has come to an end."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds} s"
        return self.process.exitcode


def _run(module: str, words: tuple[str, ...], environment: dict[str, str], *paths: str) -> None:
    for number, path in enumerate(paths, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
