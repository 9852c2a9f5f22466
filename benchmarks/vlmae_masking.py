"""VLMAE with half of the patches hidden against none: work of the picture tower and of a step, and its time.

    python benchmarks/vlmae_masking.py

Arms, all of one shape and batch: the whole picture with the features told ("whole"); half of the patches hidden with
the same heads ("half"); and the pixels of the hidden ones told beside ("half, pixels"), which is the method; and the
same as a pass beside the whole one ("two passes"). Work is counted (multiplications and additions, forward and
backward); time is that of the process on one thread, of arms that take turns, the median of the steps.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.text import Vocabulary
from tuwen.nn.initial import initialise
from tuwen.nn.sizes import CrossEncoderConfig, ImageTowerConfig, TextTowerConfig
from tuwen.systems.system import Progress
from tuwen.systems.vlmae import VLMAE, IFRConfig, RMIMConfig, VLMAEConfig

RESULTS = Path(__file__).parent / "results" / "vlmae_masking.json"
PROGRESS = Progress(5, 10, 100, 8)
VOCABULARY = Vocabulary(2000, 0, 1, 2, 3, 4)
LENGTH = 25
# side, patch, width, layers of the picture tower; half as many for text and fusion; decoders of half the width
SHAPES = {"64 patches, 128 wide": (64, 8, 128, 6), "196, 192": (224, 16, 192, 12)}
ARMS = {
    "whole": {"mask_ratio": 0.0},
    "half": {"pixels": 0.0},
    "half, pixels": {},
    "two passes": {"single_pass": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shapes = {}
    for name, shape in SHAPES.items():
        shapes[name] = measured(shape, options.batch, options.repeats)
        print(name, json.dumps(shapes[name]))
        about = {"batch": options.batch, "repeats": options.repeats, "threads": 1, "precision": "float32"}
        options.results.write_text(json.dumps({**about, "shapes": shapes}, indent=1) + "\n", encoding="utf-8")


def measured(shape: tuple[int, int, int, int], rows: int, repeats: int) -> dict[str, dict[str, float]]:
    """By arm: FLOPs of the tower's forward and of a step, and seconds a step, as shares of "whole" too."""
    batch = made(rows, shape[0])
    systems = {arm: built(shape, **changes) for arm, changes in ARMS.items()}
    figures = {arm: work(system, batch) for arm, system in systems.items()}
    seconds: dict[str, list[float]] = {arm: [] for arm in systems}
    for repeat in range(repeats + 1):
        for arm, system in systems.items():
            began = time.process_time()
            step(system, batch)
            if repeat:  # the first is for warming up
                seconds[arm].append(time.process_time() - began)
    for arm, values in seconds.items():
        figures[arm]["seconds"] = statistics.median(values)
    whole = dict(figures["whole"])
    return {
        arm: {name: round(value / (1e9 if "flops" in name else 1), 4) for name, value in of.items()}
        | {f"{name}_share": round(value / whole[name], 3) for name, value in of.items()}
        for arm, of in figures.items()
    }


def built(shape: tuple[int, int, int, int], pixels: float = 1.0, **changes) -> VLMAE:
    side, patch, width, layers = shape
    decoder = CrossEncoderConfig(width // 2, 2, width // 64)
    parts = {
        "image": ImageTowerConfig(side=side, patch=patch, width=width, layers=layers, heads=width // 64),
        "text": TextTowerConfig(length=LENGTH, width=width, layers=layers // 2, heads=width // 64),
        "fusion": CrossEncoderConfig(width, layers // 2, width // 64),
    }
    config = VLMAEConfig(**parts, rmim=RMIMConfig(weight=pixels, decoder=decoder), ifr=IFRConfig(decoder=decoder))
    system = VLMAE(replace(config, distil=False, hardness=1.0, **changes), VOCABULARY)
    initialise(system, 0)
    return system.train()


def made(rows: int, side: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (rows, 3, side, side), dtype=torch.uint8, generator=generator)
    ids = torch.randint(5, VOCABULARY.size, (rows, LENGTH), generator=generator)
    ids[:, 0], ids[:, -1] = VOCABULARY.cls, VOCABULARY.sep
    own = torch.arange(rows)
    return Batch(Images(pixels), Texts(ids, ids > 0, torch.zeros_like(own)), own, own, own)


def step(system: VLMAE, batch: Batch) -> None:
    system.zero_grad(set_to_none=True)
    system(batch, PROGRESS).total.backward()


def work(system: VLMAE, batch: Batch) -> dict[str, float]:
    """FLOPs of what `encode` asks of the picture tower, forward, and of a step, backward too."""
    counters = FlopCounterMode(display=False), FlopCounterMode(display=False)
    kept, _ = system.masks(batch, PROGRESS)
    with counters[0], torch.no_grad():
        system.encoders.encode_images(batch.images, kept=kept)
    with counters[1]:
        step(system, batch)
    return {"tower_flops": counters[0].get_total_flops(), "step_flops": counters[1].get_total_flops()}


if __name__ == "__main__":
    main()
