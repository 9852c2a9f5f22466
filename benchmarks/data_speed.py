"""Is the data as fast as the training? Writes benchmarks/results/data_speed.json.

    python benchmarks/data_speed.py            # about a minute
    python benchmarks/data_speed.py --quick    # a few seconds, noisier

Measures on one core: scenes drawn a second; rows written as shards and read back a second; pictures decoded and
resized a second from shards, against Pillow reading a folder, in the same process and in alternating rounds of which
the best counts: once the very same JPEG files, once the pictures as they were before the shards shrank them. The
demand is the pairs a second one training step of `clip` at the demo size takes on one core, or the figure given.
Seconds are of one core's time, so that what else the machine does counts little.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpora.scenes.drawings import STYLES, sprite
from tuwen.data.corpora.scenes.scene import LARGE, SMALL
from tuwen.data.corpora.scenes.things import NAMES
from tuwen.data.images import encode_jpeg, resize
from tuwen.data.shards import open_shards, write
from tuwen.data.text import Vocabulary
from tuwen.systems.clip import CLIP
from tuwen.systems.system import Progress

RESULT = Path(__file__).parent / "results" / "data_speed.json"
ORIGINAL, STORED = 512, 288  # sides of the pictures before and after they are written


def rate(work: Callable[[int], object], rows: range) -> float:
    """Rows a second of processor time."""
    start = time.process_time()
    for row in rows:
        work(row)
    return len(rows) / (time.process_time() - start)


def best(works: dict[str, Callable[[int], object]], rows: range, rounds: int) -> dict[str, float]:
    """The best rate of each, measured in turns so that a busy moment of the machine hits all alike."""
    found = dict.fromkeys(works, 0.0)
    for _ in range(rounds):
        for name, work in works.items():
            found[name] = max(found[name], rate(work, rows))
    return {name: round(value, 1) for name, value in found.items()}


def fresh(work: Callable[[int], object], count: int) -> float:
    """The best rate of three runs over rows not seen before."""
    return round(max(rate(work, range(k * count, (k + 1) * count)) for k in (1, 2, 3)), 1)


def scenes(count: int) -> dict[str, float]:
    """Scenes a second: pictures at three sides, once the drawings are cached, and the texts with their claims."""
    found = {}
    for side in (64, 128, 224):
        corpus = Scenes("train", side=side)
        start = time.process_time()
        for name, style, size in product(NAMES, STYLES, SMALL + LARGE):
            sprite(name, style, round(size * side))
        found[f"drawings_seconds_{side}"] = round(time.process_time() - start, 2)  # once a process
        found[f"pictures_{side}"] = fresh(corpus.image, count)
    found["texts"] = fresh(Scenes("train").record, count)
    return found


def shards(folder: Path, count: int, rounds: int) -> dict[str, dict[str, float] | float]:
    """Rows written a second, and pictures a second from shards and from folders of JPEGs."""
    found: dict = {}
    for side in (128, ORIGINAL):
        corpus = Scenes("train", count=count, side=side)
        start = time.process_time()
        write({"train": corpus}, folder / f"shards_{side}", side=STORED, progress=False)
        found[f"rows_drawn_and_written_{side}"] = round(count / (time.process_time() - start), 1)
    built = open_shards(folder / f"shards_{ORIGINAL}", "train")
    for name in ("same", "original"):
        (folder / name).mkdir()
    for row in range(count):
        (folder / "same" / f"{row}.jpg").write_bytes(built.encoded(row))
        (folder / "original" / f"{row}.jpg").write_bytes(encode_jpeg(corpus.image(row), 92))
    order = np.random.default_rng(0).permutation(count).tolist()

    def ours(side: int) -> Callable[[int], object]:
        return lambda row: resize(built.image(order[row]), side)

    def pillow(kind: str, side: int) -> Callable[[int], object]:
        def work(row: int):
            with Image.open(folder / kind / f"{order[row]}.jpg") as image:
                pixels = np.array(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
            return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

        return work

    for side in (64, 224):
        works = {
            "shards": ours(side),
            "pillow_same_files": pillow("same", side),
            "pillow_originals": pillow("original", side),
        }
        speeds = best(works, range(count), rounds)
        speeds["ratio_same_files"] = round(speeds["shards"] / speeds["pillow_same_files"], 2)
        speeds["ratio_originals"] = round(speeds["shards"] / speeds["pillow_originals"], 2)
        found[f"pictures_at_{side}"] = speeds
    found["records_read"] = best({"records": lambda row: built.record(order[row])}, range(count), rounds)["records"]
    return found


def demand(steps: int, batch: int = 64) -> float:
    """Pairs a second that training takes: forward, backward and update of `clip`, demo size, one core."""
    config = CLIP.Config.sized("demo")
    torch.manual_seed(0)
    system = CLIP(config, Vocabulary(size=1000, pad=0, unknown=1, cls=2, sep=3, mask=4))
    optimizer = torch.optim.AdamW(system.parameters(), fused=True)
    pixels = torch.randn(batch, 3, config.image.side, config.image.side)
    ids = torch.randint(5, 1000, (batch, 20))
    rows = torch.arange(batch)
    texts = Texts(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros(batch, dtype=torch.int64))
    data = Batch(Images(pixels), texts, rows, rows, rows)

    def step(number: int) -> None:
        system(data, Progress(number, steps, steps, batch)).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    step(0)
    return round(max(rate(step, range(1)) for _ in range(steps)) * batch, 1)


def hardware() -> dict[str, str | int]:
    """Processor, cores and versions the figures hold for."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    packages = ("torch", "simplejpeg", "pillow", "numpy")
    found: dict[str, str | int] = {"processor": model, "cores": os.cpu_count() or 1}
    return found | {"python": platform.python_version()} | {name: version(name) for name in packages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds, noisier")
    parser.add_argument("--demand", type=float, help="pairs a second the training takes (default: measured)")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    count, rounds = (60, 1) if options.quick else (400, 3)
    result: dict = {"hardware": hardware(), "command": " ".join(["python", *sys.argv]), "threads": 1}
    result["scenes_per_second"] = scenes(2 * count)
    with tempfile.TemporaryDirectory() as folder:
        result["shards_per_second"] = shards(Path(folder), count, rounds)
    needed = options.demand or demand(3 if options.quick else 10)
    result["demand_per_second"] = {"pairs": needed, "from": "given" if options.demand else "clip, demo size, one core"}
    supply = result["shards_per_second"]["pictures_at_64"]["shards"]
    result["supply_over_demand"] = round(supply / needed, 2)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
