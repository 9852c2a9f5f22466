"""A run of random weights and pictures to search, in a second or two."""

import json
from pathlib import Path

import numpy as np
import torch

from tests.training import toy
from tuwen.config import dump, override
from tuwen.data.batch import Images
from tuwen.data.images import encode_jpeg
from tuwen.nn.encoded import Encoded
from tuwen.nn.initial import initialise
from tuwen.predictor import Predictor
from tuwen.run import CONFIG, TOKENIZER, WEIGHTS, write_provenance
from tuwen.training import checkpoint, loop, start
from tuwen.training.config import RunConfig

TEXTS = ["red green", "blue", "颜色 pink gold teal rust grey red", "grey grey grey", "teal teal gold"]


def make_run(folder: Path, system: str = "r2d2", **changes) -> Path:
    """A run of one step of a tiny system on toy pictures."""
    base = {
        "train.steps": 1,
        "train.batch_size": 8,
        "train.precision": "float32",
        "train.threads": 1,
        "data.workers": 0,
        "data.augment": "none",
        "tokenizer.size": 64,
    }
    config = RunConfig.of(system, "tiny", "memory")
    if hasattr(config.model, "score"):
        base["model.score"] = "published"  # so that the match of random weights counts
    config = override(config, base | changes)
    return Path(loop.train(config, folder, corpus=toy.Memory(), quiet=True))


def untrained(folder: Path, system: str, **changes) -> Path:
    """A run of a tiny system as it starts, without a step."""
    config = override(RunConfig.of(system, "tiny", "memory"), {"tokenizer.size": 64, **changes})
    corpus = toy.Memory()
    tokenizer = start.make_tokenizer(config, [corpus])
    folder.mkdir(parents=True)
    tokenizer.save(folder / TOKENIZER)
    about = {"name": corpus.name, "fingerprint": corpus.fingerprint, "languages": list(corpus.languages)}
    write_provenance(folder, {"corpus": about})
    (folder / CONFIG).write_text(dump(config))
    made = start.build_system(config, tokenizer)
    initialise(made, 0)
    checkpoint.save_tensors(folder / WEIGHTS, made.state_dict())
    return folder


def picture(number: int, side: int = 40) -> torch.Tensor:
    """[3, side, side] uint8 of rough colours that only this number has."""
    colours = np.random.default_rng(number).integers(0, 256, (3, 4, 4), dtype=np.uint8)
    return torch.from_numpy(colours).repeat_interleave(side // 4, 1).repeat_interleave(side // 4, 2)


def encoded(predictor: Predictor, pictures: list) -> Encoded:
    """What a predictor makes of pictures, all at once."""
    return predictor.pictures([Images(torch.stack([predictor.pixels(picture) for picture in pictures]))])


def table(folder: Path, numbers, texts=True, columns=lambda number: {}) -> Path:
    """A pair table of numbered pictures: ids "p3", files images/3.jpg."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in numbers:
        (folder / f"images/{number}.jpg").write_bytes(encode_jpeg(picture(number)))
        told = {"en": [TEXTS[number % 5]]} if texts else {}
        rows.append({"id": f"p{number}", "image": f"images/{number}.jpg", "texts": told, **columns(number)})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "pairs.jsonl").write_text(lines, encoding="utf-8")
    return folder
