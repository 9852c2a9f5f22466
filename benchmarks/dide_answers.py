"""What two vectors keep of a cross encoder: answers a second, cached and cold, and accuracy beside the teacher's.

    python benchmarks/dide_answers.py speed
    python benchmarks/dide_answers.py scenes --out /tmp/dide     # trains; runs that are done are not repeated
    python benchmarks/dide_answers.py vqa_rad --out /tmp/dide --packs data

Speed: `vilt` and `dide` of one shape with random weights and the heads of their papers, one question a picture, seconds
of the process on one thread, median of rounds in turn. "cached": the picture was encoded before; of the teacher that
is its patch embeddings, which is all that does not hang on the question.

Accuracy, size tiny: `vilt` is pre-trained, then learns each task; `dide` is pre-trained from the first, then learns
each task from the teacher that has learnt it ("student"), with no labels; "labels" is the same student, from the same
pre-training, on the labels alone (`task.way=classes`). On `vqa_rad`, whose pictures have no captions, all start from
nothing.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import tuwen
from tuwen import systems, tasks
from tuwen.benchmark.measure import measure_task
from tuwen.data.batch import Images, Texts
from tuwen.data.open import open_corpus
from tuwen.data.text import Vocabulary
from tuwen.nn.initial import initialise
from tuwen.run import METRICS, finished
from tuwen.tasks.entailment import Entailment
from tuwen.tasks.heads import head_of
from tuwen.tasks.two_pictures import TwoPictures
from tuwen.tasks.vqa import VQA
from tuwen.training import loop
from tuwen.training.config import RunConfig
from tuwen.training.log import read_metrics

RESULTS = Path(__file__).parent / "results" / "dide_answers.json"
SCENES = "scenes:side=32,things=12,objects=2,whole=true,count=2000"
SIZES, ROWS, LENGTH, ROUNDS = ("tiny", "demo", "small"), 8, 16, 5
SETTINGS: dict[str, Any] = {
    "train.batch_size": 32,
    "train.lr": 2e-3,
    "train.warmup": 0.1,
    "train.threads": 1,
    "data.workers": 0,
    "data.augment": "none",
    "tokenizer.size": 400,
    "model.image.pool": "max",
}
LIMIT = 1000  # rows that are measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "scenes", "vqa_rad"))
    parser.add_argument("--out", type=Path, default=Path("/tmp/dide"))
    parser.add_argument("--packs", type=Path, default=Path("data"))
    parser.add_argument("--steps", type=int, default=300, help="of every training")
    parser.add_argument("--tasks", nargs="+", default=["vqa", "two_pictures", "entailment"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "speed":
        for name in SIZES:
            keep(f"speed, {name}", speed(name))
        return
    if options.what == "scenes":
        teacher = trained(options.out / "vilt", "vilt", SCENES, options.steps)
        student = trained(options.out / "dide", "dide", SCENES, options.steps, **taught_by(teacher))
        for task in options.tasks:
            keep(f"scenes, {task}", learnt(options.out, SCENES, task, options.steps, teacher, student))
        return
    keep("vqa_rad", learnt(options.out / "rad", str(options.packs / "vqa_rad"), "vqa", options.steps))


def keep(name: str, content: Any) -> None:
    """Adds to the file of results."""
    print(name, json.dumps(content))
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    about = {"threads": 1, "cores": os.cpu_count(), "torch": torch.__version__}
    results |= {name: content, "settings": SETTINGS, "corpus": SCENES, **about}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


# ---- accuracy


def taught_by(run: Path) -> dict[str, Any]:
    return {"data.teachers": {"teacher": str(run)}, "tokenizer.file": str(run / "tokenizer.json")}


def trained(folder: Path, system: str, corpus: str, steps: int, task: str | None = None, **changes: Any) -> Path:
    """A finished run."""
    if not finished(folder):
        changes = {**SETTINGS, "train.steps": steps, **changes}
        if "init" in changes or "tokenizer.file" in changes:
            changes.pop("tokenizer.size")
        loop.train(RunConfig.of(system, "tiny", corpus, changes=changes, task=task), folder)
    return folder


def learnt(
    out: Path, corpus: str, task: str, steps: int, teacher: Path | None = None, student: Path | None = None
) -> dict[str, Any]:
    """Accuracy on `test` of teacher, student, and the student on labels; seconds of training."""
    first = {} if teacher is None else {"init": str(teacher)}
    runs = {"teacher": trained(out / f"{task}-teacher", "vilt", corpus, steps, task, **first)}
    own = taught_by(runs["teacher"]) if student is None else {"init": str(student)}
    role = {"data.teachers": {"teacher": str(runs["teacher"])}}
    runs["student"] = trained(out / f"{task}-student", "dide", corpus, steps, task, **{**own, **role})
    labels = {name: value for name, value in own.items() if name != "data.teachers"} | {"task.way": "classes"}
    runs["labels"] = trained(out / f"{task}-labels", "dide", corpus, steps, task, **labels)
    marks = {}
    for name, run in runs.items():
        measured = measure_task(run, corpus, "test", task, {"limit": LIMIT})
        spoken = {language: round(of["accuracy"], 1) for language, of in measured["languages"].items()}
        seconds = [row["seconds"] for row in read_metrics(run / METRICS) if "losses" in row][-1]
        marks[name] = {
            "accuracy": round(measured["accuracy"], 1),
            "interval": round(measured["interval"], 1),
            "languages": spoken,
            "training_seconds": round(seconds),
        }
        if name == "student":
            marks["baselines"] = {key: round(of["accuracy"], 1) for key, of in measured["baselines"].items()}
            marks["rows"], marks["steps"] = measured["rows"], steps
    return marks | {"agreement": agreement(runs, corpus, task)}


def agreement(runs: dict[str, Path], corpus: str, task: str) -> float:
    """Share of rows, in percent, that student and teacher answer alike."""
    answers = []
    for name in ("teacher", "student"):
        model = tuwen.load(runs[name])
        chosen = tasks.of(model.config.task)
        rows = chosen.rows(open_corpus(tasks.rows_at(task, corpus), "test"), "test")
        values = chosen.predictions(model.predictor, model.system.head, rows)
        answers.append(
            [next(entry[key] for key in ("answer", "prediction", "label") if key in entry) for entry in values]
        )
    return round(100 * statistics.mean(a == b for a, b in zip(*answers, strict=True)), 1)


# ---- speed


def speed(size: str) -> dict[str, Any]:
    """Answers a second by task, arm and whether the picture is cached."""
    side = systems.find("vilt").Config.sized(size).image.side
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (ROWS, 3, side, side), dtype=torch.uint8, generator=generator)
    ids = torch.randint(5, 1000, (ROWS, LENGTH), generator=generator)
    texts = Texts(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros(ROWS, dtype=torch.int64))
    out: dict[str, Any] = {}
    kinds = (
        VQA(VQA.Config("vqa", answers=tuple(map(str, range(100))))),
        TwoPictures(TwoPictures.Config("two_pictures", labels=("true", "false"), pictures=2)),
        Entailment(Entailment.Config("entailment", labels=("a", "b", "c"))),
    )
    for task in kinds:
        arms = {name: headed(name, size, task) for name in ("vilt", "dide")}
        seconds: dict[str, list[float]] = {}
        for round_ in range(ROUNDS):
            for name in arms if round_ % 2 else reversed(arms):
                cold, cached = asked(arms[name], Images(pixels), texts, task.pictures)
                seconds.setdefault(f"{name}, cold", []).append(cold)
                seconds.setdefault(f"{name}, cached", []).append(cached)
        rates = {name: round(ROWS / statistics.median(values), 2) for name, values in seconds.items()}
        ratios = {name: round(rate / rates["vilt, cold"], 2) for name, rate in rates.items()}
        out[task.name()] = {"answers_per_second": rates, "over_the_teacher": ratios}
    kept = (arms["vilt"], arms["dide"])
    with torch.no_grad():
        out["bytes_a_picture"] = {
            type(system).__name__: sum(4 * x[0].numel() for x in system.encode_images(Images(pixels)).states.values())
            for system in kept
        }
    return out


def headed(name: str, size: str, task: Any) -> Any:
    kind: Any = systems.find(name)
    system = kind(kind.Config.sized(size), Vocabulary(1000, 0, 1, 2, 3, 4))
    names = getattr(task.config, "answers", None) or task.config.labels
    system.attach(head_of(system, task, len(names), "x"))
    initialise(system, 0)
    return system.eval()


@torch.no_grad()
def asked(system: Any, images: Images, texts: Texts, pictures: int) -> tuple[float, float]:
    """Seconds of the process for a batch: from pixels, and from pictures that are encoded."""
    began = time.process_time()
    encoded = [system.encode_images(images) for _ in range(pictures)]
    seen = time.process_time()
    system.head.logits(system, encoded, system.encode_texts(texts))
    end = time.process_time()
    return end - began, end - seen


if __name__ == "__main__":
    main()
