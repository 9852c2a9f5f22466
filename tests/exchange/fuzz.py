"""Published towers as a stranger might leave them: one change each, and what reading them comes to.

`python -m tests.exchange.fuzz [COUNT] [KIND...]` prints a table: a kind a row, how many changes ended how.
"""

import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.exchange.checkpoints import saved
from tests.exchange.test_parity import DUAL
from tests.fuzzing import changed_json, ended, in_children, report
from tuwen.errors import UserError
from tuwen.exchange.importing import import_model

KINDS = ("config", "preprocessing", "tokenizer", "safetensors", "pickle")
FILES = {
    "config": "config.json",
    "preprocessing": "preprocessor_config.json",
    "tokenizer": "tokenizer.json",
    "safetensors": "model.safetensors",
    "pickle": "pytorch_model.bin",
}


def changed_bytes(data: bytes, random: random.Random) -> bytes:
    """A copy cut short, or with bytes changed, put in or taken out; half of the time near the start."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        place = random.randrange(min(len(out), 2_000) if random.random() < 0.5 else len(out))
        match random.randrange(6):
            case 0:
                del out[place:]
            case 1:
                out[place] ^= 1 << random.randrange(8)
            case 2:
                out[place : place + 4] = random.randbytes(4)
            case 3:
                out[place:place] = random.randbytes(random.randrange(1, 40))
            case 4:
                del out[place : place + random.randrange(1, 40)]
            case _:
                out[place : place + 8] = random.choice((b"\xff" * 8, bytes(8), b"9" * 8))
        if not out:
            return b""
    return bytes(out)


def attempt(kind: str, place: str, seed: str, number: int) -> str:
    """Imports the folder "right" of a place with one change."""
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    draw = random.Random(f"{kind} {seed} {number}")
    folder, run = Path(place) / "changed", Path(place) / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(Path(place) / "right", folder)
    before = (folder / FILES[kind]).read_bytes()
    as_json = kind in ("config", "preprocessing", "tokenizer") and draw.random() < 0.9
    after = json.dumps(changed_json(json.loads(before), draw)).encode() if as_json else None
    (folder / FILES[kind]).write_bytes(changed_bytes(before, draw) if after is None else after)
    try:
        import_model(str(folder), run)
    except UserError as error:
        return ended([str(error)])
    return "read"


def outcomes(kind: str, count: int, seed: int = 0) -> dict[int, tuple[str, str]]:
    """What became of each changed folder and its end, as `tests.fuzzing.in_children` gives it."""
    with tempfile.TemporaryDirectory() as place:
        right = saved(DUAL["clip"](), Path(place) / "right")
        if kind == "pickle":
            torch.save(load_file(right / "model.safetensors"), right / "pytorch_model.bin")
            (right / "model.safetensors").unlink()
        return in_children(range(count), attempt, kind, place, seed)


def main(arguments: list[str]) -> None:
    whole: Counter[str] = Counter()
    for kind in arguments[1:] or KINDS:
        began = time.monotonic()
        whole += report(kind, outcomes(kind, int(arguments[0]) if arguments else 100), began)
    print(f"all: {whole.total()} changes, {dict(whole)}")


if __name__ == "__main__":
    main(sys.argv[1:])
