"""Is the data as fast as the training? Writes benchmarks/results/data_speed.json.

    python benchmarks/data_speed.py            # about a minute
    python benchmarks/data_speed.py --quick    # a few seconds, noisier

Measures on one core: scenes drawn a second; rows written as shards and read back a second; pictures decoded and
resized a second from shards, against Pillow reading a folder, in the same process and in alternating rounds of which
the best counts: once the very same JPEG files, once the pictures as they were before the shards shrank them. The
demand is the pairs a second one training step of `clip` at the demo size takes on one core, or the figure given.
Seconds are of one core's time, so that what else the machine does counts little.

Then the same pictures as others keep them: a folder with a table, Parquet of a Hugging Face data set, tars of
WebDataset: opened, read in random order and built as shards, beside `datasets` with Pillow and tarfile with Pillow.
Last a corpus of up to a hundred million pairs, simulated: 20,000 shards that are one file under many names, and an
index of which only the rows that are read are filled in. Start-up, memory and the time of a batch, each in a process
of its own.
"""

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import product
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.built import Shards, open_shards
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpora.scenes.drawings import STYLES, sprite
from tuwen.data.corpora.scenes.scene import LARGE, SMALL
from tuwen.data.corpora.scenes.things import NAMES
from tuwen.data.corpus import Corpus
from tuwen.data.images import encode_jpeg, resize
from tuwen.data.open import open_corpus
from tuwen.data.order import Order
from tuwen.data.shards import INDEX, write_shards
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
    rates = dict.fromkeys(works, 0.0)
    for _ in range(rounds):
        for name, work in works.items():
            rates[name] = max(rates[name], rate(work, rows))
    return {name: round(value, 1) for name, value in rates.items()}


def fresh(work: Callable[[int], object], count: int) -> float:
    """The best rate of three runs over rows not seen before."""
    return round(max(rate(work, range(k * count, (k + 1) * count)) for k in (1, 2, 3)), 1)


def scenes(count: int) -> dict[str, float]:
    """Scenes a second: pictures at three sides, once the drawings are cached, and the texts with their claims."""
    figures = {}
    for side in (64, 128, 224):
        corpus = Scenes("train", side=side)
        start = time.process_time()
        for name, style, size in product(NAMES, STYLES, SMALL + LARGE):
            sprite(name, style, round(size * side))
        figures[f"drawings_seconds_{side}"] = round(time.process_time() - start, 2)  # once a process
        figures[f"pictures_{side}"] = fresh(corpus.image, count)
    figures["texts"] = fresh(Scenes("train").record, count)
    return figures


def shards(folder: Path, count: int, rounds: int) -> dict[str, dict[str, float] | float]:
    """Rows written a second, and pictures a second from shards and from folders of JPEGs."""
    figures: dict = {}
    for side in (128, ORIGINAL):
        corpus = Scenes("train", count=count, side=side)
        start = time.process_time()
        write_shards({"train": corpus}, folder / f"shards_{side}", side=STORED, progress=False)
        figures[f"rows_drawn_and_written_{side}"] = round(count / (time.process_time() - start), 1)
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
        figures[f"pictures_at_{side}"] = speeds
    figures["records_read"] = best({"records": lambda row: built.record(order[row])}, range(count), rounds)["records"]
    return figures


def kept_by_others(folder: Path, built: Shards) -> dict[str, str]:
    """Locations of the pictures of a built corpus as a table, as Parquet and as tars."""
    lines, parquet = [], []
    for name in ("table", "parquet", "tars"):
        (folder / name).mkdir()
    with tarfile.open(folder / "tars" / "train-00000.tar", "w") as tar:
        for row in range(len(built)):
            data, texts = built.encoded(row), {k: list(v) for k, v in built.record(row).texts.items()}
            (folder / "table" / f"{row}.jpg").write_bytes(data)
            lines.append(json.dumps({"id": row, "image": f"{row}.jpg", "texts": texts, "split": "train"}))
            parquet.append({"image": {"bytes": data, "path": None}, "caption": texts["en"]})
            for name, content in ((f"{row:09d}.jpg", data), (f"{row:09d}.txt", texts["en"][0].encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    (folder / "table" / "pairs.jsonl").write_text("\n".join(lines))
    features = datasets.Features({"image": datasets.Image(decode=False), "caption": [datasets.Value("string")]})
    datasets.Dataset.from_list(parquet, features).to_parquet(folder / "parquet" / "train-00000-of-00001.parquet")
    ours = {"table": folder / "table", "parquet": f"huggingface:{folder}/parquet", "tars": f"webdataset:{folder}/tars"}
    return {name: str(where) for name, where in ours.items()}


def others(folder: Path, built: Shards, rounds: int) -> dict[str, dict[str, float]]:
    """Opening, random reading and building of what others wrote, and what their own libraries read."""
    locations, count = kept_by_others(folder, built), len(built)
    order = np.random.default_rng(1).permutation(count).tolist()
    opened: dict[str, Corpus] = {}
    figures: dict[str, dict[str, float]] = {"opened_rows_per_second": {}, "built_rows_per_second": {}}
    for name, where in locations.items():
        start = time.process_time()
        opened[name] = open_corpus(where, "train")
        figures["opened_rows_per_second"][name] = round(count / (time.process_time() - start), 1)
        start = time.process_time()
        write_shards({"train": opened[name]}, folder / f"built_{name}", side=STORED, progress=False)
        figures["built_rows_per_second"][name] = round(count / (time.process_time() - start), 1)
    parquet = f"{folder}/parquet/train-00000-of-00001.parquet"
    peer = datasets.Dataset.from_parquet(parquet, cache_dir=folder / "cache").cast_column("image", datasets.Image())
    with tarfile.open(folder / "tars" / "train-00000.tar") as tar:
        places = [member for member in tar if member.name.endswith(".jpg")]
        works = {name: reader(corpus, order) for name, corpus in {**opened, "shards": built}.items()}
        works["datasets_and_pillow"] = lambda row: squared(peer[order[row]]["image"])
        works["tarfile_and_pillow"] = lambda row: squared(Image.open(tar.extractfile(places[order[row]])))
        speeds = best(works, range(count), rounds)
    speeds["ratio_parquet"] = round(speeds["parquet"] / speeds["datasets_and_pillow"], 2)
    speeds["ratio_tars"] = round(speeds["tars"] / speeds["tarfile_and_pillow"], 2)
    return figures | {"read_pictures_per_second": speeds}


def reader(corpus: Corpus, order: list[int]) -> Callable[[int], object]:
    return lambda row: resize(corpus.image(order[row]), 224)


def squared(image: Image.Image) -> torch.Tensor:
    pixels = np.array(image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def simulate(folder: Path, built: Shards, rows: int, seen: int) -> Path:
    """A folder of shards with so many rows, of which those of the first steps are real."""
    out = folder / f"simulated_{rows}"
    out.mkdir()
    tar, per_shard = built.folder / "train-00000.tar", 5000
    shards = -(-rows // per_shard)
    for shard in range(shards):
        os.link(tar, out / f"train-{shard:05d}.tar")
    meta = json.loads((built.folder / "corpus.json").read_text())
    meta["splits"] = {"train": meta["splits"]["train"] | {"count": rows, "shards": [tar.stat().st_size] * shards}}
    (out / "corpus.json").write_text(json.dumps(meta))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": INDEX.descr, "fortran_order": False, "shape": (rows,)})
    (out / "train.index.npy").write_bytes(header.getvalue())
    os.truncate(out / "train.index.npy", len(header.getvalue()) + rows * INDEX.itemsize)  # sparse: no byte is written
    index = np.load(out / "train.index.npy", mmap_mode="r+")
    real = np.load(built.folder / "train.index.npy")
    order = Order(rows, 64, 0)
    for row in np.concatenate([order.batch(step) for step in range(seen)]).tolist():
        index[row] = real[row % len(real)]
        index[row]["shard"] = row // per_shard
    index.flush()
    return out


def scale(folder: Path, built: Shards, sizes: list[int], seen: int = 4) -> dict[str, dict[str, float]]:
    """Start-up, memory and the time of a batch of 64 by the number of rows, each in a fresh process."""
    figures = {}
    for rows in sizes:
        out = simulate(folder, built, rows, seen)
        words = [sys.executable, __file__, "--probe", str(out), str(seen)]
        figures[f"{rows}"] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    small, large = figures[f"{sizes[0]}"], figures[f"{sizes[-1]}"]
    figures["ratio_of_largest_to_smallest"] = {name: round(large[name] / small[name], 2) for name in small}
    return figures


def probe(location: str, steps: int) -> None:
    """Opens a corpus and reads the pictures and records of its first batches; prints seconds and megabytes."""
    torch.set_num_threads(1)
    before = peak_megabytes()
    start = time.process_time()
    corpus = open_corpus(location, "train")
    order = Order(len(corpus), 64, 0)
    opened = time.process_time() - start
    start = time.process_time()
    for step in range(steps):
        for row in order.batch(step).tolist():
            corpus.image(row), corpus.record(row)
    batch = (time.process_time() - start) / steps
    seconds = {"open_seconds": round(opened, 3), "batch_seconds": round(batch, 3)}
    print(json.dumps(seconds | {"megabytes_before": before, "peak_megabytes": peak_megabytes()}))


def peak_megabytes() -> float:
    """Of this process since it was started; `getrusage` would count what its parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024, 1)


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
    packages = ("torch", "simplejpeg", "pillow", "numpy", "pyarrow", "datasets")
    about: dict[str, str | int] = {"processor": model, "cores": os.cpu_count() or 1}
    return about | {"python": platform.python_version()} | {name: version(name) for name in packages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds, noisier")
    parser.add_argument("--demand", type=float, help="pairs a second the training takes (default: measured)")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        return probe(options.probe[0], int(options.probe[1]))
    torch.set_num_threads(1)
    count, rounds = (60, 1) if options.quick else (400, 3)
    result: dict = {"hardware": hardware(), "command": " ".join(["python", *sys.argv]), "threads": 1}
    result["scenes_per_second"] = scenes(2 * count)
    with tempfile.TemporaryDirectory() as folder:
        result["shards_per_second"] = shards(Path(folder), count, rounds)
        built = open_shards(Path(folder) / f"shards_{ORIGINAL}", "train")
        result["others"] = others(Path(folder), built, rounds)
        sizes = [10_000, 1_000_000] if options.quick else [10_000, 1_000_000, 100_000_000]
        result["by_rows"] = scale(Path(folder), built, sizes)
    needed = options.demand or demand(3 if options.quick else 10)
    result["demand_per_second"] = {"pairs": needed, "from": "given" if options.demand else "clip, demo size, one core"}
    supply = result["shards_per_second"]["pictures_at_64"]["shards"]
    result["supply_over_demand"] = round(supply / needed, 2)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
