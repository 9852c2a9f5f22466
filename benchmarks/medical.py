"""Medicine on what is there: `max_vl` and `arl` on small public sets, and the same tasks on scenes, where intervals are
small.

    python benchmarks/medical.py --data data --out /tmp/medical [--part covid vqa scenes dino]

covid: 329 chest pictures with notes to learn from, 71 of other patients to measure on: towers by `dino` and `mlm`, then
`max_vl`; retrieval, findings by prompts, oversight by kind of error with intervals by patient; beside them an untrained
run and, where reports were swapped or edited, the same words with other pictures ("blind").
vqa: VQA-RAD's open and closed questions by `arl` from scratch, after pre-training on the notes, and with grey pictures
(text alone), and by `max_vl`; beside them the commonest answer and the commonest by how a question begins.
scenes: the tasks of covid on 500 unseen scenes.
dino: `dino` alone on scenes, ten times the steps, crops in their own colours against changed ones, beside an untrained
one: pictures like a picture, and a linear probe of a scene's class.
Size tiny throughout, one seed; runs that are done are not repeated.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import tuwen
from tuwen.benchmark.measure import measure_task
from tuwen.data.open import open_corpus
from tuwen.run import finished
from tuwen.tasks.findings import evaluate_findings
from tuwen.tasks.oversight import evaluate_oversight
from tuwen.tasks.retrieval import retrieve
from tuwen.training import loop
from tuwen.training.config import RunConfig

RESULTS = Path(__file__).parent / "results" / "medical.json"
SETTINGS = {
    "train.batch_size": 32,
    "train.lr": 2e-3,
    "train.warmup": 0.1,
    "train.threads": 1,
    "data.workers": 0,
    "model.image.pool": "max",
}
MEDICAL = {"model.image.side": 48, "model.text.length": 48}
SCENES = "scenes:side=32,things=16,objects=2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="where covid_cxr and vqa_rad lie")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for part in options.part:
        content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        content |= {"settings": SETTINGS, "steps": options.steps, part: PARTS[part](options)}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def run(options, name: str, system: str, corpus: str, task: str | None = None, **changes: Any) -> Path:
    """The folder of a finished run."""
    folder = options.out / name
    if not finished(folder):
        config = RunConfig.of(system, "tiny", corpus, changes=SETTINGS | changes, task=task)
        loop.train(config, folder, quiet=True)
    return folder


def judged(folder: Path, corpus) -> dict[str, Any]:
    """Retrieval, findings and oversight of a run."""
    predictor = tuwen.load(folder).predictor
    found = retrieve(predictor, corpus, top_k=50).json["languages"]
    stages = ("first", "reranked", "chance")
    return {
        "retrieval": {
            name: {s: marks[s]["mean_recall"] for s in stages if s in marks} for name, marks in found.items()
        },
        "findings": evaluate_findings(predictor, corpus)["languages"],
        "oversight": evaluate_oversight(predictor, corpus)["languages"],
    }


def pretrained(options, name: str, corpus: str, steps: int, **changes: Any) -> Path:
    """`max_vl` whose towers come from `dino` and `mlm` on the same corpus."""
    one_side = {"train.steps": steps, **changes}
    dino = {
        "data.crop_scale": (0.4, 1.0),
        "model.local_views": 1,
        "model.local_side": 24,
        **{k: v for k, v in one_side.items() if k != "data.augment"},
    }
    towers = {
        "image": str(run(options, f"{name}-dino", "dino", corpus, **dino)),
        "text": str(run(options, f"{name}-mlm", "mlm", corpus, **one_side)),
    }
    return run(options, f"{name}-max_vl", "max_vl", corpus, init=towers, **{"train.steps": steps, **changes})


def covid(options) -> dict[str, Any]:
    corpus = str(options.data / "covid_cxr")
    test = open_corpus(corpus, "test", "skip")
    trained = pretrained(options, "covid", corpus, options.steps, **MEDICAL)
    untrained = run(options, "covid-untrained", "max_vl", corpus, **{"train.steps": 1, "train.lr": 1e-9}, **MEDICAL)
    return {"trained": judged(trained, test), "untrained": judged(untrained, test), "rows": len(test)}


def questions(options) -> dict[str, Any]:
    data, notes = str(options.data / "vqa_rad"), str(options.data / "covid_cxr")
    lexicon = {"tokenizer.lexicon": "findings", "train.steps": options.steps, **MEDICAL}
    base = run(options, "covid-arl", "arl", notes, **lexicon)
    short = {"train.steps": options.steps, **MEDICAL}
    arms = {
        "arl": ("arl", lexicon),
        "arl after notes": ("arl", {"init": str(base), **short}),
        "arl, text alone": ("arl", {"task.blind": "picture", **lexicon}),
        "max_vl": ("max_vl", {"task.way": "classes", **short}),
    }
    marks = {}
    for arm, (system, changes) in arms.items():
        folder = run(options, "vqa-" + arm.replace(", ", "-").replace(" ", "-"), system, data, "vqa", **changes)
        marks[arm] = measure_task(folder, data, "test", "vqa", {})
    return marks


def scenes(options) -> dict[str, Any]:
    steps = 2 * options.steps
    trained = pretrained(options, "scenes", f"{SCENES},count=4000", steps, **{"data.augment": "none"})
    return judged(trained, open_corpus(SCENES, "val"))


def dino(options) -> dict[str, Any]:
    corpus = f"{SCENES},whole=true,count=3000"
    settings = {"train.steps": 10 * options.steps, "train.lr": 1e-3, "data.crop_scale": (0.4, 1.0)}
    arms = {
        "untrained": settings | {"train.steps": 1, "train.lr": 1e-9},
        "crop": settings,
        "crop and colour": settings | {"data.augment": "crop+colour"},
    }
    marks = {}
    for arm, changes in arms.items():
        folder = run(options, "dino-" + arm.replace(" ", "-"), "dino", corpus, **changes)
        tasks = ("image_retrieval", "linear_probe")
        marks[arm] = {task: measure_task(folder, corpus, "val", task, {"limit": 500}) for task in tasks}
    return marks


PARTS = {"covid": covid, "vqa": questions, "scenes": scenes, "dino": dino}


if __name__ == "__main__":
    main()
