"""The ladder: where does a second stage begin to pay? The demo's systems at more and more steps, on its corpus.

    python benchmarks/second_stage.py --out /tmp/ladder --steps 420 840 1680

For every system and number of steps one comparison of its own in OUT/STEPS/SYSTEM (a run's rate falls to its end, so a
longer run is no continuation of a shorter one). What is trained is kept, what was stopped goes on, so the same call
climbs further. Each rung goes into the results as soon as it is measured: mean recall by the first stage and re-ranked,
the weight that was fitted, the gain with its 95 % interval (bootstrap over queries), the chance that a right
candidate's log-odds stand above a wrong one's of the same query (AUC), seconds. Lines over log2 of the steps are fitted
to all rungs: the distance from `clip` of the same steps and seed, and what re-ranking adds, each with where it is 0
(Fieller's interval, which may be open).
"""

import argparse
import json
import math
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import tuwen
from tuwen.benchmark.compare import CompareConfig, compare
from tuwen.benchmark.ladder import TrendLine
from tuwen.benchmark.statistics import gain_interval
from tuwen.benchmark.weighing import spread_queries
from tuwen.config import override, read_yaml
from tuwen.data.open import open_corpus
from tuwen.run import RANKS, SCORE, read_json
from tuwen.tasks import metrics
from tuwen.tasks.encoding import encode_captions, encode_pictures, pictures_of
from tuwen.tasks.retrieval import Side

CORPUS = "scenes:side=64,things=24,objects=3,whole=true"
RECIPE = Path(__file__).parents[1] / "recipes" / "demo.yaml"
RESULTS = Path(__file__).parent / "results" / "second_stage.json"
ASKED = 100  # queries the AUC is told from


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    recipe = read_yaml(RECIPE)
    how = override(CompareConfig(), recipe.pop("compare", {}))
    changes = {**recipe, "train.threads": options.threads, **dict(options.set)}
    for steps in options.steps:
        for name in options.systems:
            settings = {"size": "demo", "steps": steps, "seeds": options.seeds, "how": how, "validation": 0}
            out = options.out / str(steps) / name
            comparison = compare([name], options.corpus, out, **settings, changes=changes, quiet=options.quiet)
            for seed in comparison["systems"][name]["seeds"]:
                write(options.results, rung(out / seed["run"], options.corpus, steps, name, seed, how.measure.top_k))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[420, 840, 1680])
    parser.add_argument("--systems", nargs="+", default=["clip", "albef", "r2d2"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--corpus", default=CORPUS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", nargs="*", type=lambda text: text.split("=", 1), default=[])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--quiet", action="store_true")
    return parser.parse_args()


def rung(run: Path, corpus: str, steps: int, name: str, seed: dict, top_k: int) -> dict:
    """What one run is worth, by language."""
    ranks, score = load_file(run / RANKS), read_json(run / SCORE) if (run / SCORE).exists() else None
    languages = {}
    for language, recalls in seed["languages"].items():
        languages[language] = {"first": recalls["first"]["mean_recall"]}
        if "reranked" in recalls:
            languages[language] |= {
                "reranked": recalls["reranked"]["mean_recall"],
                "gain": recalls["gain"],
                "interval": gain_interval(ranks, language),
                "auc": area_among_candidates(run, corpus, language, top_k),
            }
    figures = {"system": name, "steps": steps, "seed": seed["seed"], "seconds": seed["seconds"], "languages": languages}
    if score:
        figures |= {"weight": score["weight"], "validation": score.get("mean_recall"), "why": score["why"]}
    return figures


def area_among_candidates(run: Path, location: str, language: str, top_k: int, split: str = "test") -> float:
    """Mean over queries of the AUC of log-odds among the query's candidates, where right and wrong ones are there."""
    predictor, corpus = tuwen.load(run).predictor, open_corpus(location, split, "skip")
    gallery = corpus.gallery(language, 300)
    areas = []
    with predictor.evaluating():
        texts = encode_captions(predictor, gallery.texts, 64)
        images, truth, _ = pictures_of(gallery, encode_pictures(predictor, corpus, list(gallery.rows), 64))
        chosen = spread_queries(truth, ASKED)
        side = Side(
            predictor, images, texts.select(torch.from_numpy(chosen)), "text_to_image", top_k, 64, metrics.BUDGET
        )
        near = metrics.top(side.first(0, len(chosen)), side.depth)
        for query, items, odds in zip(
            chosen.tolist(), near.numpy(), side.log_odds(near, 0).mean(-1).numpy(), strict=True
        ):
            right = np.isin(items, truth.images_of(query))
            if 0 < right.sum() < len(right):
                apart = odds[right][:, None] - odds[~right]
                areas.append(float(((apart > 0) + (apart == 0) / 2).mean()))
    return float(np.mean(areas))


def write(path: Path, figures: dict) -> None:
    """Puts a rung among the results, in place of an older one of the same run, with what it was measured on."""
    key = ("steps", "system", "seed")
    rungs = json.loads(path.read_text())["rungs"] if path.exists() else []
    figures |= {
        "command": " ".join(["python", *sys.argv]),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "load": round(os.getloadavg()[2], 1),
        "versions": {name: version(name) for name in ("torch", "tuwen")} | {"python": platform.python_version()},
    }
    rungs = [old for old in rungs if any(old[name] != figures[name] for name in key)] + [figures]
    rungs.sort(key=lambda old: [old[name] for name in key])
    path.write_text(json.dumps({"lines": lines(rungs), "rungs": rungs}, indent=1) + "\n")
    print(json.dumps(figures))


def lines(rungs: list[dict]) -> list[dict]:
    """Over log2 of the steps: each system's distance from `clip`, by both stages, and the gain of its second."""
    clip = {(old["steps"], old["seed"]): old["languages"] for old in rungs if old["system"] == "clip"}
    points: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for old in rungs:
        x, base = math.log2(old["steps"]), clip.get((old["steps"], old["seed"]))
        for language, own in old["languages"].items():
            if "gain" not in own:
                continue
            points.setdefault((old["system"], language, "gain of re-ranking"), []).append((x, own["gain"]))
            if base is not None:
                for stage in ("first", "reranked"):
                    key = (old["system"], language, f"{stage} - clip")
                    points.setdefault(key, []).append((x, own[stage] - base[language]["first"]))
    fitted = []
    for (system, language, measure), own in points.items():
        if len({x for x, _ in own}) > 1:
            line = TrendLine.fit(*zip(*own, strict=True))
            about = {"system": system, "language": language, "measure": measure, "points": len(own)}
            fitted.append(about | {"a_doubling": line.slope, "zero": line.zero()})
    return fitted


if __name__ == "__main__":
    main()
