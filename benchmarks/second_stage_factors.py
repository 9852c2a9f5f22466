"""What makes a cross encoder learn from scratch? One factor at a time, three seeds, on validation.

    python benchmarks/second_stage_factors.py --out /tmp/factors

`r2d2` and `albef` of size tiny, narrowed to widths of 64 with two layers of fusion, 240 steps of 32 English pairs of
20,000 small scenes, about a minute of a core a run. Of each run, on 400 queries of split "val": mean recall by the
first stage, what the best weight adds to it, and the chance that a right candidate's log-odds stand above a wrong one's
(AUC among 16). Differences from "as_it_is" are paired by seed. Finished runs are read back.

The results hold two arms more, tried by this script on a branch whose changes are not in the product: "text_start"
(the cross encoder starts from the text tower's upper layers, both taken from a `clip`) and "residual" (matching learns
on top of the detached first logit).
"""

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from second_stage import area_among_candidates

import tuwen
from tuwen.benchmark.paired import seeds_interval
from tuwen.benchmark.weighing import weigh
from tuwen.config import override
from tuwen.data.open import open_corpus
from tuwen.run import METRICS, WEIGHTS
from tuwen.training import loop
from tuwen.training.config import RunConfig
from tuwen.training.log import read_metrics

CORPUS = "scenes:side=32,things=16,objects=2,whole=true,count=20000"
RESULTS = Path(__file__).parent / "results" / "second_stage_factors.json"
TOP_K = 16
STEPS, TOWER_STEPS = 240, 200
CROSS = "(text_queries|image_queries|image_to_fusion|text_match_head|image_match_head|word_head|fusion|match_head)"
ARMS: dict[str, dict[str, Any]] = {
    "as_it_is": {},
    "mask_30": {"model.mask_share": 0.3},
    "cross_rate_3": {"train.rates": [[CROSS, 3.0]]},
    "cross_rate_0.3": {"train.rates": [[CROSS, 0.3]]},
    "towers_first": {"init": True},
}
SHAPE: dict[str, Any] = {
    "model.image.width": 64,
    "model.image.heads": 4,
    "model.image.pool": "max",
    "model.text.width": 64,
    "model.text.heads": 4,
    "model.embed": 32,
}
FUSION = {"model.fusion.width": 64, "model.fusion.heads": 4, "model.fusion.layers": 2}
TRAIN: dict[str, Any] = {
    "train.batch_size": 32,
    "train.lr": 0.003,
    "train.warmup": 0.1,
    "train.threads": 1,
    "train.checkpoint_every": 100000,
    "data.augment": "none",
    "data.workers": 0,
    "data.languages": ["en"],
}


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    for seed in range(options.seeds):
        for name in options.systems:
            for arm in options.arms:
                settings = settings_of(arm, seed, options.out)
                run = trained(options.out / f"{name}-{arm}-{seed}", name, settings)
                write(options.results, {"system": name, "arm": arm, "seed": seed, **worth(run)})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--systems", nargs="+", default=["r2d2", "albef"])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def settings_of(arm: str, seed: int, out: Path) -> dict[str, Any]:
    """An arm's settings, towers trained first where it asks for them."""
    settings = {**SHAPE, **FUSION, **TRAIN, "train.steps": STEPS, "train.seed": seed, **ARMS[arm]}
    if settings.pop("init", False):
        towers = {**SHAPE, **TRAIN, "train.steps": TOWER_STEPS, "train.seed": seed}
        settings["init"] = str(trained(out / f"clip-{seed}", "clip", towers))
    return settings


def trained(run: Path, system: str, settings: dict[str, Any]) -> Path:
    """A run; what is finished is left as it is."""
    if not (run / WEIGHTS).exists():
        loop.train(override(RunConfig.of(system, "tiny", CORPUS), settings), run, quiet=True)
    return run


def worth(run: Path) -> dict[str, Any]:
    """What a run comes to on validation."""
    weighed = weigh(tuwen.load(run).predictor, open_corpus(CORPUS, "val", "skip"), top_k=TOP_K, languages=["en"])
    last = read_metrics(run / METRICS)[-1]
    assert weighed.recalls is not None
    first = weighed.recalls[0.0]
    sums = [recall for weight, recall in weighed.recalls.items() if math.isfinite(weight)]
    return {
        "first": first,
        "best_gain": max(sums) - first,
        "match_alone": weighed.recalls[math.inf] - first,
        "weight": weighed.weight,
        "auc": area_among_candidates(run, CORPUS, "en", TOP_K, "val"),
        "matching_gain": last["metrics"]["matching_gain"],
        "seconds": last["seconds"],
    }


def write(path: Path, row: dict[str, Any]) -> None:
    """Puts a row among the results in place of an older one, and the differences from the arm as it is."""
    key = ("system", "arm", "seed")
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [old for old in rows if any(old[name] != row[name] for name in key)] + [row]
    rows.sort(key=lambda old: [str(old[name]) for name in key])
    about = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "load": round(os.getloadavg()[2], 1),
        "versions": {name: version(name) for name in ("torch", "tuwen")} | {"python": platform.python_version()},
    }
    path.write_text(json.dumps(about | {"differences": differences(rows), "rows": rows}, indent=1) + "\n")
    print(json.dumps(row), flush=True)


def differences(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every arm from the arm as it is: mean over the seeds both have, with its 95 % interval."""
    by_key = {(row["system"], row["arm"], row["seed"]): row for row in rows}
    table = []
    for system, arm in dict.fromkeys((row["system"], row["arm"]) for row in rows if row["arm"] != "as_it_is"):
        pairs = [
            (row, by_key[system, "as_it_is", seed])
            for (name, its, seed), row in by_key.items()
            if (name, its) == (system, arm) and (system, "as_it_is", seed) in by_key
        ]
        line: dict[str, Any] = {"system": system, "arm": arm, "seeds": len(pairs)}
        for measure in ("first", "best_gain", "auc"):
            gains = [own[measure] - base[measure] for own, base in pairs]
            line[measure] = {"mean": float(np.mean(gains)) if gains else None}
            line[measure] |= seeds_interval(gains)
        table.append(line)
    return table


if __name__ == "__main__":
    main()
