"""A run's folder as a stranger might leave it: one file changed, and what loading and going on with it come to.

`python -m tests.training.fuzz [COUNT] [FILE...]` prints a table: a file a row, how many changes ended how.
"""

import contextlib
import json
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import yaml

import tuwen
from tests.fuzzing import changed_json, ended, in_children, mutate, report
from tests.training import toy
from tuwen.errors import UserError
from tuwen.training import loop, parallel, start
from tuwen.training.log import read_metrics
from tuwen.training.signals import Interrupted

STEP = "state/step-00000002"
FILES = ("config.yaml", "provenance.json", "tokenizer.json", "metrics.jsonl", "skipped.json", "weights.safetensors")
FILES += tuple(f"{STEP}/{name}.safetensors" for name in ("weights", "training", "optimizer", "memory"))
FILES += (f"{STEP}/state.json",)
MEMORY = 6 << 30  # bytes of addresses that a changed run may take
LAUGHS = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
LAUGHS += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 9)]


def made(place: Path) -> Path:
    """A run of two steps with more to do."""
    run = place / "whole"
    with toy.registered(), stopped_after(2):
        loop.train(toy.config(train__checkpoint_every=2), run, lambda *_: {"en": 1.0}, toy.Memory(), quiet=True)
    start.list_skipped(run, toy.Memory(), {3: "unreadable: no picture"})
    return run


@contextlib.contextmanager
def stopped_after(steps: int):
    """What trains meanwhile is stopped after so many steps, as by a signal."""
    signals = [False] * (steps - 1) + [True]
    with mock.patch.object(parallel, "any_true", side_effect=signals), contextlib.suppress(Interrupted):
        yield


def changed(name: str, data: bytes, dice: random.Random) -> bytes:
    """The file's content with values of another kind, size or place in it; or, a third of the time, other bytes."""
    if dice.random() < 0.33:
        return mutate(data, dice)
    if name.endswith(".safetensors"):
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        ties = json.loads(header["__metadata__"]["ties"])
        if dice.random() < 0.3:
            ties = changed_json(ties | {"image.bias": "words.weight", "more": "words.weight"}, dice)
            header["__metadata__"]["ties"] = json.dumps(ties)
        else:
            header = changed_json(header, dice)
        written = json.dumps(header).encode()
        return struct.pack("<Q", len(written)) + written + data[8 + size :]
    if name.endswith(".jsonl"):
        lines = [json.loads(line) for line in data.decode().splitlines()]
        return "".join(json.dumps(line) + "\n" for line in changed_json(lines, dice)).encode()
    if name.endswith(".yaml"):
        if dice.random() < 0.15:
            field = dice.choice(("train", "model", "nested", "data", "system", "corpus"))
            return data + "\n".join(["", *LAUGHS, f"{field}: *a{dice.randrange(9)}", ""]).encode()
        return yaml.safe_dump(changed_json(yaml.safe_load(data), dice)).encode()
    return json.dumps(changed_json(json.loads(data), dice)).encode()


def attempt(whole: str, name: str, number: int) -> str:
    """Loads the changed run, goes on with it for a step, and reads and writes its small files."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    dice = random.Random(f"{name}/{number}")
    run = Path(whole).with_name(f"copy{number}")
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole, run)
    (run / name).write_bytes(changed(name, (run / name).read_bytes(), dice))
    lines: list[str] = []
    uses = (
        lambda: tuwen.load(run).embed(texts=["red green"]),
        lambda: read_metrics(run / "metrics.jsonl"),
        lambda: start.list_skipped(run, toy.Memory(), {5: "unreadable: no picture"}),
        lambda: loop.resume(run, lambda *_: {"en": 1.0}, toy.Memory(), quiet=True),
    )
    try:
        for use in uses:
            try:
                with toy.registered(), stopped_after(1):
                    use()
            except UserError as error:
                lines.append(str(error))
    finally:
        shutil.rmtree(run)
    return ended(lines)


def outcomes(whole: Path, name: str, numbers: range) -> dict[int, tuple[str, str]]:
    """What became of each change of a file of the run, and its end, as `tests.fuzzing.in_children` gives it."""
    return in_children(numbers, attempt, whole, name)


def main(arguments: list[str]) -> None:
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        whole = made(Path(place))
        for name in arguments[1:] or FILES:
            began = time.monotonic()
            ends = outcomes(whole, name, range(int(arguments[0]) if arguments else 100))
            counts += report(name, ends, began)
    print(f"all: {counts.total()} changes, {dict(counts)}")


if __name__ == "__main__":
    main(sys.argv[1:])
