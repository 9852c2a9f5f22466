"""Run as a program: a recipe's stages, killed at the first file that takes its place, then at a later one, and so on.

The processes that are killed are forks of this one, which has loaded all the libraries once.
"""

import json
import os
import pathlib
import signal
import sys
import traceback

import torch._dynamo  # noqa: F401 (slow to load, as the next)
from torch.utils import tensorboard  # noqa: F401

from tuwen.data.spans import entities
from tuwen.training.stages.go import run_recipe
from tuwen.training.stages.recipe import read_recipe
from tuwen.training.stages.record import RECORD


def attempt(recipe: str, corpus: str, out: str, last: int) -> int:
    """Goes on with the stages in a fork, which is killed at its `last`th replaced file; the fork's status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    plain, count = pathlib.Path.replace, [0]

    def replace(path, target):
        count[0] += 1
        if count[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(path, target)

    pathlib.Path.replace = replace
    status = 1
    try:
        run_recipe(read_recipe(recipe), corpus, out, quiet=True, rehearsal=False)
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def finished(out: str) -> dict:
    return {
        path.parent.name: json.loads(path.read_text()).get("finished") for path in pathlib.Path(out).glob(f"*/{RECORD}")
    }


def main(recipe: str, corpus: str, out: str, more: str) -> None:
    """Prints the number of kills, and what was done once and done again. more: files that each attempt lives longer."""
    entities("a cat")  # loads textblob
    kills, done, again = 0, {}, []
    while status := attempt(recipe, corpus, out, 1 + int(more) * kills):
        assert os.WIFSIGNALED(status), "ended by itself"
        kills += 1
        now = finished(out)
        again += [name for name, mark in done.items() if mark and now.get(name) != mark]
        done = now
    again += [name for name, mark in done.items() if mark and finished(out)[name] != mark]
    print(json.dumps({"kills": kills, "again": again}))


if __name__ == "__main__":
    main(*sys.argv[1:])
