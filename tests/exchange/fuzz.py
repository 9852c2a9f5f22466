"""Published towers as a stranger might leave them: one change each, and what reading them comes to.

python -m tests.exchange.fuzz KIND COUNT    prints how many came to what
"""

import copy
import json
import random
import resource
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.exchange.checkpoints import saved
from tests.exchange.test_parity import DUAL
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
DEEP = json.loads("[" * 200 + "]" * 200)
VALUES = (0, -1, 1, 3, 10**12, -(10**12), 1.5, 1e308, float("nan"), "", "many", "\x1b[2J\n", None, True, [], {}, [1, 2])
VALUES += ([[]], {"a": {"b": 1}}, DEEP, "x" * 100_000, 2**31, 2**63, [10**9] * 3, "(a+)+$", "../../etc/passwd")
LONGEST = 1_500  # characters of a message


def changed_json(value, random: random.Random):
    """A copy with one place changed, taken away, or doubled."""
    out = copy.deepcopy(value)
    places = list(_places(out))
    holder, key = random.choice(places)
    how = random.random()
    if how < 0.15:
        del holder[key]
    elif how < 0.25 and isinstance(holder, dict):
        holder[random.choice(VALUES[9:12])] = holder[key]
    else:
        holder[key] = copy.deepcopy(random.choice(VALUES))
    return out


def _places(value):
    for key in range(len(value)) if isinstance(value, list) else value:
        yield value, key
        if isinstance(value[key], dict | list) and len(value[key]) < 2_000:
            yield from _places(value[key])


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


def outcomes(kind: str, count: int, seed: int = 0) -> tuple[Counter, list[str]]:
    """How many of `count` changed folders were taken, refused in a line, or neither; what the last came to."""
    counts, faults = Counter(), []
    with tempfile.TemporaryDirectory() as place:
        right = saved(DUAL["clip"](), Path(place) / "right")
        if kind == "pickle":
            torch.save(load_file(right / "model.safetensors"), right / "pytorch_model.bin")
            (right / "model.safetensors").unlink()
        before = (right / FILES[kind]).read_bytes()
        for number in range(count):
            draw = random.Random(f"{kind} {seed} {number}")
            folder, run = Path(place) / "changed", Path(place) / "run"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(right, folder)
            as_json = kind in ("config", "preprocessing", "tokenizer") and draw.random() < 0.9
            after = json.dumps(changed_json(json.loads(before), draw)).encode() if as_json else None
            (folder / FILES[kind]).write_bytes(changed_bytes(before, draw) if after is None else after)
            try:
                import_model(str(folder), run)
                counts["taken"] += 1
            except UserError as error:
                text = str(error)
                line = len(text) <= LONGEST and "\n" not in text
                counts["refused" if line else "not a line"] += 1
                faults += [] if line else [f"{number}: {text[:200]!r}"]
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                counts["traceback"] += 1
                faults.append(f"{number}: {type(error).__name__}: {str(error)[:160]!r}")
    return counts, faults


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    counts, faults = outcomes(sys.argv[1], int(sys.argv[2]))
    print(sys.argv[1], dict(counts))
    print("\n".join(faults))
