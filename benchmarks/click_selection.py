"""Does selection by clicks find the true pairs, and does it help? Writes benchmarks/results/click_selection.json.

    python benchmarks/click_selection.py            # some 3 minutes on one core
    python benchmarks/click_selection.py --quick    # one seed, a few steps; shows that it runs

Experiment E1 of the card `zero-benchmark.md`, section 9, on scenes: half of the rows have captions of another scene,
and a simulated log gives each text 15 to 25 impressions and clicks with probability 0.6 if true and 0.1 if not. Two
arms of equally many pairs: those with the highest Wilson bound, and as many at random. Both train `clip` at the tiny
size for the same steps from the same first weights; retrieval is measured on clean scenes of the test split.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tuwen.data import draws
from tuwen.data.clicked import Rule
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpus import Corpus, all_texts
from tuwen.data.curate.clicks import by_clicks
from tuwen.data.shards import write_shards
from tuwen.data.subset import Subset

RESULT = Path(__file__).parent / "results" / "click_selection.json"
EASY = {"side": 32, "things": 12, "objects": 2, "whole": True}
SETTINGS = ("train.batch_size=64", "train.lr=0.003", "train.warmup=0.1", "data.augment=none", "data.workers=0")


def at_random(corpus: Corpus, count: int, seed: int) -> Subset:
    """So many of the corpus's texts, drawn by the seed; equal texts of a row stay or go together, as by clicks."""
    copies = Counter((row, text) for row in range(len(corpus)) for text in all_texts(corpus.record(row)))
    pairs, drawn = list(copies), set()
    for place in draws.generator("random pairs", seed).permutation(len(pairs)).tolist():
        if copies[pairs[place]] <= count:
            drawn.add(pairs[place])
            count -= copies[pairs[place]]
    rows = sorted({row for row, _ in drawn})
    dropped: dict[int, set[str]] = {row: set() for row in rows}
    for row, text in copies.keys() - drawn:
        dropped.get(row, set()).add(text)
    return Subset(corpus, rows, dropped)


def truth(corpus: Corpus, selected: Subset) -> tuple[int, int, int]:
    """Pairs selected, of them true ones, and true ones of the whole corpus."""
    noisy = [corpus.record(row).columns["noisy"] for row in range(len(corpus))]
    every = [len(list(all_texts(corpus.record(row)))) for row in range(len(corpus))]
    counts = [len(list(all_texts(selected.record(k)))) for k in range(len(selected))]
    true = sum(count for count, row in zip(counts, selected.rows.tolist(), strict=True) if not noisy[row])
    return sum(counts), true, sum(count for count, wrong in zip(every, noisy, strict=True) if not wrong)


def trained(corpus: Path, out: Path, seed: int, steps: int, limit: int) -> dict[str, float]:
    """Mean recall by language, in percent, after so many steps."""
    settings = (*SETTINGS, f"train.seed={seed}", "train.eval_every=1000000")
    run = ["train", "clip", "--corpus", str(corpus), "--out", str(out), "--size", "tiny", "--steps", str(steps)]
    call([*run, "--set", *settings])
    test = "scenes:" + ",".join(f"{name}={str(value).lower()}" for name, value in (EASY | {"seed": 99}).items())
    words = ["eval", str(out), "--corpus", test, "--task", "retrieval", "--limit", str(limit), "--json"]
    languages = json.loads(call(words))["languages"]
    return {language: recalls["first"]["mean_recall"] for language, recalls in languages.items()}


def call(words: list[str]) -> str:
    done = subprocess.run([sys.executable, "-m", "tuwen", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"tuwen {' '.join(words)}\n{done.stderr}")
    return done.stdout


def experiment(folder: Path, seed: int, rows: int, steps: int, limit: int) -> dict:
    corpus = Scenes("train", count=rows, seed=seed, noise=0.5, clicks=True, **EASY)
    noisy = np.mean([corpus.record(row).columns["noisy"] for row in range(rows)])
    clicked = by_clicks(corpus, Rule(share=float(1 - noisy)))
    count, _, every = truth(corpus, clicked)
    arms = {"clicks": clicked, "random": at_random(corpus, count, seed)}
    counted = {name: truth(corpus, arm) for name, arm in arms.items()}
    figures: dict = {"seed": seed, "true_pairs_in_all": every}
    figures["pairs"] = {name: pairs for name, (pairs, _, _) in counted.items()}
    figures["true_pairs_kept"] = {name: round(true / every, 4) for name, (_, true, _) in counted.items()}
    figures["share_true_of_kept"] = {name: round(true / pairs, 4) for name, (pairs, true, _) in counted.items()}
    for name, arm in arms.items():
        write_shards({"train": arm}, folder / f"{name}-{seed}", side=None, progress=False)
        figures[name] = trained(folder / f"{name}-{seed}", folder / f"run-{name}-{seed}", seed, steps, limit)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, a few steps")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    seeds, rows, steps = ([0], 300, 4) if options.quick else ([0, 1, 2], options.rows, options.steps)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        limit = 100 if options.quick else 200
        runs = list(pool.map(lambda seed: experiment(Path(folder), seed, rows, steps, limit), seeds))
    gains = [run["clicks"][language] - run["random"][language] for run in runs for language in run["clicks"]]
    result = {
        "command": " ".join(["python", *sys.argv]),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "rows": rows,
        "steps": steps,
        "runs": runs,
        "mean_gain_of_mean_recall": round(statistics.mean(gains), 2),
        "smallest_gain": round(min(gains), 2),
        "minutes": round((time.monotonic() - start) / 60, 1),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
