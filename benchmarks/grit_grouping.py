"""Grouped batches against random ones: the same system, steps and seed; what its negatives are like, what it learns.

    python benchmarks/grit_grouping.py --out /tmp/grit --steps 480

Scenes of few kinds of things make clusters: pictures of the same two things in other places. Each arm trains
`grit_vlp` at size tiny, with the published hardest negatives (`hardness` 1) or paced ones, and with these in a third of
the steps too. Of every epoch the results hold the mean cosine of a row with its wrong partners, the matching's training
accuracy and gain; of every run the mean recall of 100 held-out scenes by language. Runs that are done are not repeated.
"""

import argparse
import json
from pathlib import Path

import torch

import tuwen
from tuwen.benchmark.score import settle_score
from tuwen.data.open import open_corpus
from tuwen.run import METRICS, SCORE, finished
from tuwen.tasks.retrieval import retrieve
from tuwen.training import loop
from tuwen.training.config import RunConfig
from tuwen.training.log import read_metrics

CORPUS = "scenes:side=32,things=16,objects=2,whole=true,count=2560"
RESULTS = Path(__file__).parent / "results" / "grit_grouping.json"
SETTINGS = {
    "train.batch_size": 32,
    "train.lr": 2e-3,
    "train.warmup": 0.1,
    "train.threads": 1,
    "train.log_every": 4,
    "train.group_search": 256,
    "train.group_queue": 1280,
    "data.workers": 0,
    "data.augment": "none",
    "model.image.pool": "max",
}
ARMS = {  # order, hardness, by how much the steps are divided
    "shuffled, paced": ("shuffled", None, 1),
    "grouped, paced": ("grouped", None, 1),
    "shuffled, hardest": ("shuffled", 1.0, 1),
    "grouped, hardest": ("grouped", 1.0, 1),
    "shuffled, paced, a third": ("shuffled", None, 3),
    "grouped, paced, a third": ("grouped", None, 3),
}
FOLLOWED = ("negative_cosine", "matching_accuracy", "matching_gain", "hardness")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=480)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = {}
    for seed in range(options.seeds):
        for arm, (order, hardness, share) in ARMS.items():
            changes = {"train.order": order, "model.hardness": hardness, "train.seed": seed}
            changes["train.steps"] = options.steps // share
            folder = f"{arm}-{seed}".replace(", ", "-").replace(" ", "-")
            runs[f"{arm}, seed {seed}"] = measured(options.out / folder, changes)
            content = {"corpus": CORPUS, "settings": SETTINGS, "steps": options.steps, "runs": runs}
            RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def measured(folder: Path, changes: dict) -> dict:
    """Figures by epoch and recalls of one run, trained if it is not there."""
    if not finished(folder):
        loop.train(RunConfig.of("grit_vlp", "tiny", CORPUS, changes={**SETTINGS, **changes}), folder)
        settle_score(folder, quiet=True)
    steps = [row for row in read_metrics(folder / METRICS) if "losses" in row]
    epochs: dict[int, list[dict]] = {}
    for row in steps:
        epochs.setdefault((row["step"] - 1) // (2560 // SETTINGS["train.batch_size"]), []).append(row)
    followed = [
        {name: round(sum(row["metrics"][name] for row in rows) / len(rows), 4) for name in FOLLOWED}
        for rows in epochs.values()
    ]
    languages = retrieve(tuwen.load(folder).predictor, open_corpus(CORPUS, "val"), limit=100, top_k=16).json[
        "languages"
    ]
    stages = ("first", "reranked", "chance")
    recalls = {name: {stage: round(of[stage]["mean_recall"], 2) for stage in stages} for name, of in languages.items()}
    score = json.loads((folder / SCORE).read_text())
    seconds = steps[-1]["seconds"]
    return {"epochs": followed, "mean_recall": recalls, "weight": score["weight"], "seconds": seconds}


if __name__ == "__main__":
    main()
