"""What an arm costs, counted and timed on a few steps before its runs: work, time, memory, parameters.

Work is counted by torch (`torch.utils.flop_counter`): products of matrices, convolutions and attention, forward and
backward; what is done element by element is not in it. Memory is the most that torch had allocated on a GPU; None on
a CPU, where what arms before have freed stays with the process and is taken again, unseen.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from tuwen.config import override
from tuwen.data.corpus import Corpus
from tuwen.run import WEIGHTS, provenance, read_json, write
from tuwen.training import checkpoint, loop
from tuwen.training.config import RunConfig

COUNTED, TIMED = 1, 3  # steps


@dataclass(frozen=True)
class Trial:
    """flops: of training on one pair. seconds: of a step of `batch_size` pairs. peak: MiB while training.
    parameters: of what use needs, without queue and teacher."""

    flops: float
    seconds: float
    peak: float | None
    parameters: int
    batch_size: int


def trial_of(config: RunConfig, pairs: Corpus | None, file: Path) -> Trial:
    """Takes a few steps of an arm in a folder that goes again, and writes what they cost into the file; read back
    where it is there. pairs: None: those that the config names.

    Raises:
        UserError: whatever training raises.
    """
    if file.exists():
        return Trial(**read_json(file))
    quick = {"train.compile": False, "train.choose": "last", "train.eval_every": None, "train.epochs": 1.0}
    short, batch = override(config, quick), config.train.batch_size
    with tempfile.TemporaryDirectory() as folder:
        counted, timed = (override(short, {"train.steps": steps}) for steps in (COUNTED, TIMED))
        with FlopCounterMode(display=False) as counter:
            loop.train(counted, Path(folder) / "counted", corpus=pairs, quiet=True)
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        run = loop.train(timed, Path(folder) / "timed", corpus=pairs, quiet=True)
        peak = torch.cuda.max_memory_allocated() / 2**20 if gpu else None
        seconds = provenance(run)["finished"]["seconds"] / TIMED
        parameters = sum(tensor.numel() for tensor in checkpoint.load_tensors(run / WEIGHTS).values())
    trial = Trial(counter.get_total_flops() / (COUNTED * batch), seconds, peak, parameters, batch)
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, json.dumps(asdict(trial)) + "\n")
    return trial
