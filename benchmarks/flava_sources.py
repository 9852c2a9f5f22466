"""What pictures and texts without partners add to FLAVA. Writes benchmarks/results/flava_sources.json.

    python benchmarks/flava_sources.py                  # about 5 minutes on one core
    python benchmarks/flava_sources.py --pair-steps 50  # only to see that it runs

Both arms of a seed start from the same weights and take as many steps on the same few pairs; "mixed" takes further
steps on pictures alone and on texts alone, of other scenes, as its sources' weights (0.7, 0.15, 0.15) draw them. So
it does more work: the question is what data without partners is worth, not what a second of training is. Codes of
pictures come from one `dvae`, trained first. Retrieval is measured on scenes of the split val.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tuwen
from tuwen.data.open import open_corpus
from tuwen.data.sources import Mixture
from tuwen.tasks.retrieval import retrieve
from tuwen.training import loop
from tuwen.training.config import RunConfig

RESULT = Path(__file__).parent / "results" / "flava_sources.json"
KIND = "scenes:side=32,things=16,objects=2,whole=true"
PAIRS, ALONE = f"{KIND},count=1000", f"{KIND},seed=1"
WEIGHTS = {"pairs": 0.7, "images": 0.15, "texts": 0.15}
ARMS: dict[str, dict[str, float]] = {"pairs": {"pairs": 1.0, "images": 0.0, "texts": 0.0}, "mixed": WEIGHTS}
COMMON = {"train.batch_size": 32, "train.lr": 2e-3, "train.threads": 1, "data.workers": 0, "data.augment": "none"}
STAGES, LIMIT = ("first", "reranked"), 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair-steps", type=int, default=300, help="steps on pairs of either arm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT, help="file to write")
    args = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        codes = trained("dvae", ALONE, Path(folder) / "codes", **{"train.steps": 150})
        results_of: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
        for seed in range(args.seeds):
            for arm, sources in ARMS.items():
                result = measured(arm, sources, args.pair_steps, seed, codes, Path(folder) / f"{arm}-{seed}")
                results_of[arm].append(result)
                print(arm, seed, json.dumps(result), file=sys.stderr, flush=True)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "pairs": PAIRS,
        "alone": ALONE,
        "pair_steps": args.pair_steps,
        "batch_size": COMMON["train.batch_size"],
        "runs": results_of,
        "mean_recall_gain": gains(results_of),
        "seconds": round(time.perf_counter() - began),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "torch": version("torch"), "tuwen": version("tuwen")},
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["mean_recall_gain"], indent=1))


def trained(system: str, corpus: str, folder: Path, **changes: Any) -> Path:
    config = RunConfig.of(system, "tiny", corpus, changes=COMMON | changes)
    return loop.train(config, folder, quiet=True)


def measured(arm: str, sources: dict[str, float], pair_steps: int, seed: int, codes: Path, folder: Path) -> dict:
    """Mean recall by language and stage, and the steps of each source."""
    mixture, drawn = Mixture(sources, seed), []
    while drawn.count("pairs") < pair_steps:
        drawn.append(mixture.at(len(drawn))[0])
    changes: dict[str, Any] = {"train.steps": len(drawn), "train.seed": seed, "model.tokenizer": str(codes)}
    changes |= {f"model.sources.{name}": weight for name, weight in sources.items()} | {"model.image.pool": "max"}
    if arm == "mixed":
        changes["data.sources"] = {"images": ALONE, "texts": ALONE}
    model = tuwen.load(trained("flava", PAIRS, folder, **changes))
    languages = retrieve(model.predictor, open_corpus(KIND, "val"), limit=LIMIT).json["languages"]
    recalls = {
        name: {stage: stages[stage]["mean_recall"] for stage in (*STAGES, "chance")}
        for name, stages in languages.items()
    }
    return {"steps": {name: drawn.count(name) for name in sources}, "mean_recall": recalls}


def gains(results_of: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Points of mean recall that "mixed" has over "pairs", seed by seed, with mean and sample standard deviation."""
    out = {}
    for language in results_of["pairs"][0]["mean_recall"]:
        for stage in STAGES:
            a, b = ([run["mean_recall"][language][stage] for run in results_of[arm]] for arm in ("pairs", "mixed"))
            points = [later - earlier for earlier, later in zip(a, b, strict=True)]
            spread = statistics.stdev(points) if len(points) > 1 else None
            out[f"{language}_{stage}"] = {"mean": statistics.fmean(points), "spread": spread, "seeds": points}
    return out


if __name__ == "__main__":
    main()
