"""Wrong captions told and heeded: NLIP's noise and contrast on scenes of which a share has another scene's captions.

    python benchmarks/nlip_noise.py --out /tmp/nlip --seeds 3 --minutes 9

Which texts are wrong is known: another scene's caption may still be true of this one, and then counts as right. For 20,
40 and 60 % a warm-up run of `nlip` (its contrast alone) is asked for the noise of every text (`do: noise`); the area
under ROC against the truth, all texts together. Then, at the same share, arms from the same first weights and of the
same steps: `clip`; `nlip` with its contrast alone and the noise of no text, of all texts alike (the mean of the
estimate), as estimated, and as it truly is (0 or 1), lambda 1/2, and the truth with lambda 1 too. Recalls of
held-out clean scenes by language. What is done is not repeated; --minutes: none begins after so many.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.metrics import roc_auc_score

import tuwen
from tuwen.data.beside import TABLE, write_table
from tuwen.data.chinese import has_han
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpora.scenes.truth import holds
from tuwen.data.corpus import all_texts, text_id
from tuwen.data.open import open_corpus
from tuwen.run import finished
from tuwen.tasks.retrieval import retrieve
from tuwen.training import loop
from tuwen.training.config import RunConfig
from tuwen.training.stages.alone import stage_alone

CLEAN = "scenes:side=32,things=16,objects=2,whole=true,count=2560"
RESULTS = Path(__file__).parent / "results" / "nlip_noise.json"
SHARES = (0.4, 0.2, 0.6)
WARM, STEPS = 240, 320
SETTINGS = {
    "train.batch_size": 64,
    "train.lr": 2e-3,
    "train.warmup": 0.1,
    "train.threads": 1,
    "train.log_every": 80,
    "data.workers": 0,
    "data.augment": "none",
    "model.image.pool": "max",
}
CONTRAST = {"model.mask_ratio": 0, "model.captions": 0, "model.pixels": 0, "model.concepts": False}
ARMS = {  # system, settings, table
    "clip": ("clip", {}, None),
    "estimated": ("nlip", {}, "noise"),
    "uniform": ("nlip", {}, "uniform"),
    "true": ("nlip", {}, "true"),
    "true, lambda 1": ("nlip", {"model.softening": 1.0}, "true"),
    "none": ("nlip", {"model.noise": False}, None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS), help="none: the noise alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_pictures()
    stop = time.monotonic() + 60 * options.minutes
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    jobs = [(seed, share, None) for seed in range(options.seeds) for share in options.shares]
    jobs += [(seed, share, arm) for share in options.shares for seed in range(options.seeds) for arm in options.arms]
    for seed, share, arm in jobs:
        if time.monotonic() > stop:
            break
        folder = options.out / f"{share:g}-{seed}"
        row = done.setdefault(f"{100 * share:g}%, seed {seed}", {})
        if arm is None and "noise" not in row:
            row["noise"] = told_noise(folder, share, seed)
        elif arm is not None and arm not in row:
            row[arm] = learnt(folder, share, seed, arm)
        content = {name: value for name, value in done.items() if name.endswith(tuple("0123456789"))}
        about = {"corpus": CLEAN, "warm_steps": WARM, "steps": STEPS, "settings": {**SETTINGS, **CONTRAST}}
        RESULTS.write_text(json.dumps({**about, **content, "means": means(content)}, indent=1) + "\n", encoding="utf-8")


def keep_pictures() -> None:
    """Scenes are drawn and worded once for all arms, and kept in memory."""
    image, record = Scenes.image, Scenes.record
    pictures, records = {}, {}

    def image_once(self, row):
        key = (self.seed, self.split, row)
        if key not in pictures:
            pictures[key] = image(self, row)
        return pictures[key]

    def record_once(self, row):
        key = (self.seed, self.split, self.noise, row)
        if key not in records:
            records[key] = record(self, row)
        return records[key]

    Scenes.image, Scenes.record = image_once, record_once


def told_noise(folder: Path, share: float, seed: int) -> dict:
    """The warm-up, its noise of every text, and how well it tells the wrong ones; writes the other arms' tables."""
    place = f"{CLEAN},noise={share}"
    warm = folder / "warm"
    if not finished(warm):
        changes = {**SETTINGS, **CONTRAST, "model.noise": False, "train.steps": WARM, "train.seed": seed}
        loop.train(RunConfig.of("nlip", "tiny", place, changes=changes), warm)
    began = time.monotonic()
    table = pq.read_table(stage_alone("noise", warm, place, "train", [], {"batch": 512}, 0, folder / "noise"))
    seconds = time.monotonic() - began
    wrong = truth(open_corpus(place, "train"))
    keys = list(zip(table["row"].to_pylist(), table["text"].to_pylist(), strict=True))
    right = np.array([wrong[key] for key in keys])
    noise, loss = table["noise"].to_numpy().astype(np.float64), table["loss"].to_numpy()
    for name, values in (("true", right.astype(np.float64)), ("uniform", np.full(len(keys), noise.mean()))):
        (folder / name).mkdir(exist_ok=True)
        columns = {"row": table["row"], "text": table["text"], "noise": pa.array(values, pa.float32())}
        write_table(folder / name / TABLE, pa.table(columns))
    languages = np.array(["zh" if has_han(text) else "en" for text in texts_of(place, keys)])
    return {
        "auc": round(float(roc_auc_score(right, noise)), 4),
        "auc_of_losses": round(float(roc_auc_score(right, loss)), 4),
        "auc_by_language": {
            name: round(float(roc_auc_score(right[languages == name], noise[languages == name])), 4)
            for name in ("en", "zh")
        },
        "wrong": round(float(right.mean()), 4),
        "mean_noise": round(float(noise.mean()), 4),
        "texts": len(keys),
        "seconds": round(seconds, 1),
    }


def truth(corpus) -> dict[tuple[str, int], bool]:
    """(row id, text id) -> whether the text is false of the picture."""
    wrong = {}
    for row in range(len(corpus)):
        record = corpus.record(row)
        for text, claim in zip(all_texts(record), record.columns["claims"], strict=True):
            wrong[record.id, text_id(text)] = not holds(claim, corpus.scene(row))
    return wrong


def texts_of(place: str, keys: list[tuple[str, int]]) -> list[str]:
    corpus = open_corpus(place, "train")
    known = {}
    for row in range(len(corpus)):
        record = corpus.record(row)
        known.update({(record.id, text_id(text)): text for text in all_texts(record)})
    return [known[key] for key in keys]


def learnt(folder: Path, share: float, seed: int, arm: str) -> dict:
    """Recalls of one arm on clean held-out scenes, trained if it is not there."""
    system, own, table = ARMS[arm]
    changes = {**SETTINGS, "train.steps": STEPS, "train.seed": seed, **own}
    changes |= CONTRAST if system == "nlip" else {}
    changes |= {"data.beside": str(folder / table)} if table else {}
    run = folder / arm.replace(", ", "-").replace(" ", "-")
    if not finished(run):
        place = f"{CLEAN},noise={share}"
        loop.train(RunConfig.of(system, "tiny", place, changes=changes), run)
    gallery = open_corpus(CLEAN, "val")
    languages = retrieve(tuwen.load(run).predictor, gallery, limit=300, rerank=False).json["languages"]
    return {
        language: {
            "mean_recall": round(of["first"]["mean_recall"], 2),
            "t2i_r1": round(of["first"]["text_to_image"]["r1"], 2),
            "chance": round(of["chance"]["mean_recall"], 2),
        }
        for language, of in languages.items()
    }


def means(content: dict) -> dict:
    """By share of wrong captions: the mean AUC, and of every arm the mean recall over languages and seeds."""
    table: dict = {}
    for name, row in content.items():
        of = table.setdefault(name.partition(",")[0], {})
        if "noise" in row:
            of.setdefault("auc", []).append(row["noise"]["auc"])
        for arm in ARMS.keys() & row.keys():
            recalls = [language["mean_recall"] for language in row[arm].values()]
            of.setdefault(arm, []).append(sum(recalls) / len(recalls))
    return {
        share: {
            name: {"mean": round(statistics.mean(values), 4), "seeds": [round(value, 4) for value in values]}
            for name, values in sorted(of.items())
        }
        for share, of in table.items()
    }


if __name__ == "__main__":
    main()
