"""A small system with a teacher, a queue and dropout, and a corpus in memory; run as a program, it trains them."""

import contextlib
import itertools
import os
import signal
import sys
import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from tuwen import systems, tasks
from tuwen.config import override
from tuwen.data.batch import Images
from tuwen.data.corpus import Corpus, Record
from tuwen.data.gather import first_row, gather
from tuwen.nn.encoded import Encoded
from tuwen.nn.sizes import ImageTowerConfig, TextTowerConfig
from tuwen.nn.towers import unit
from tuwen.nn.transformer import Stack
from tuwen.systems.system import Head, Losses, Needs, System
from tuwen.tasks.task import Task, TaskConfig
from tuwen.teachers.momentum import Momentum
from tuwen.teachers.pace import Pace
from tuwen.teachers.queue import FeatureQueue
from tuwen.training import parallel
from tuwen.training.config import RunConfig
from tuwen.training.loop import resume, train

WIDTH = 8


@dataclass(frozen=True)
class ToyConfig:
    """contrast: whether there are terms between rows. poison: corpus row whose encoding is NaN. pooled: has vectors."""

    image: ImageTowerConfig = field(default_factory=lambda: ImageTowerConfig(side=8, patch=4, width=WIDTH, heads=2))
    text: TextTowerConfig = field(default_factory=lambda: TextTowerConfig(length=8, width=WIDTH, heads=2))
    contrast: bool = True
    dropout: float = 0.2
    poison: int | None = None
    pooled: bool = True

    @classmethod
    def sized(cls, size: str) -> "ToyConfig":
        return cls()


class Toy(System):
    """Mean colours by quarter, and a bag of words through one block, into one space."""

    Config = ToyConfig
    training_only = ("teacher", "queue", "pace")

    @classmethod
    def compares_rows(cls, config):
        return config.contrast

    def __init__(self, config, vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.image = nn.Linear(12, WIDTH)
        self.words = nn.Embedding(vocabulary.size, WIDTH)
        self.stack = Stack(WIDTH, 1, 2)
        self.dropout = nn.Dropout(config.dropout)
        self.temperature = nn.Parameter(torch.tensor(0.1))
        self.teacher = Momentum(self, ("image",), 0.9)
        self.queue = FeatureQueue(12, WIDTH)
        self.pace = Pace()
        self.pace.average.fill_(0.3)  # so that it moves within a few steps
        self.keeps: list[torch.Tensor] = []
        self.remembered = {"means": torch.zeros(1)}

    def before_step(self, progress):
        self.teacher.update(self, progress.step)

    def after_step(self, keep, progress):
        self.keeps.append(keep["index"])
        self.queue.enqueue(keep["images"], keep["texts"], keep["index"], keep["index"])
        self.pace.update(keep["gain"])

    def memory(self):
        return self.remembered

    def remember(self, memory):
        self.remembered = dict(memory)

    def end_epoch(self, progress):
        """Remembers the mean weight at the end of every epoch, one more each time."""
        self.remembered = {"means": torch.cat([self.remembered["means"], self.image.weight.detach().mean()[None]])}

    @staticmethod
    def quarters(images):
        return F.adaptive_avg_pool2d(images.pixels.float() / 255, 2).flatten(1)

    def encode_images(self, images):
        return Encoded(unit(self.image(self.dropout(self.quarters(images)))))

    def encode_texts(self, texts):
        mask = texts.mask[..., None]
        states = self.stack(self.words(texts.ids), texts.mask) * mask
        return Encoded(unit(self.dropout(states.sum(1) / mask.sum(1))), states={"last": states}, state_mask=texts.mask)

    def encode(self, batch, progress):
        encoded = super().encode(batch, progress)
        poisoned = torch.where(batch.index == self.config.poison, torch.nan, 1.0) if self.config.poison else 1.0
        pooled = encoded["images"].pooled * (poisoned[:, None] if self.config.poison else 1.0)
        encoded |= {"images": replace(encoded["images"], pooled=pooled)}
        return encoded if self.config.pooled else encoded | {"texts": replace(encoded["texts"], pooled=None)}

    @staticmethod
    def gains(rows):
        """What matching is said to have gained on each row: 0 to 2, so that no two halves of a batch gain alike."""
        return (rows % 5).float() / 2

    def losses(self, encoded, batch, progress):
        images, texts = encoded["images"].pooled, encoded["texts"].pooled
        with torch.no_grad():
            taught = unit(self.teacher.image(self.quarters(batch.images)))
        terms = {"pull": (1 - (images * texts).sum(1)).mean(), "teacher": (images - taught).pow(2).sum(1).mean()}
        if self.config.contrast:
            held = self.queue.read()
            scores = torch.cat([images @ gather(texts).T, images @ held.texts.T], 1) / self.temperature
            real = torch.cat([torch.ones(scores.shape[1] - len(held.real), dtype=torch.bool), held.real])
            target = torch.arange(len(images)) + first_row(len(images))
            terms["contrast"] = F.cross_entropy(scores.masked_fill(~real, -1e4), target)
        keep = {"images": taught, "texts": texts.detach(), "index": batch.index, "gain": self.gains(batch.index)}
        return Losses(terms, keep, {"temperature": self.temperature, **self.pace.metrics()})

    def match(self, images, texts):
        return 5 * (images.pooled * texts.pooled.roll(1, 1)).sum(1, keepdim=True)


class Memory(Corpus):
    """Pictures of plain colours by quarter, with texts that name them."""

    name, split, languages = "memory", "train", ("en", "zh")
    WORDS = ("red", "green", "blue", "grey", "pink", "teal", "gold", "rust")

    def __init__(self, rows: int = 40, fingerprint: str = "memory-1"):
        self.rows, self.fingerprint = rows, fingerprint
        self.colours = np.random.default_rng(5).integers(0, 256, (rows, 3, 2, 2), dtype=np.uint8)

    def __len__(self):
        return self.rows

    def record(self, row):
        words = [self.WORDS[int(c) % 8] for c in self.colours[row].ravel()[: 2 + row % 4]]
        return Record(str(row), {"en": [" ".join(words)], "zh": ["颜色 " + " ".join(words)]}, row)

    def image(self, row):
        return torch.from_numpy(self.colours[row]).repeat_interleave(8, 1).repeat_interleave(8, 2)


class Redder(Corpus):
    """Rows of a memory, labelled by whether the first quarter's red is at least a threshold."""

    def __init__(self, inner: Memory, threshold: int):
        self.inner, self.threshold = inner, threshold
        self.name, self.split, self.languages = inner.name, inner.split, inner.languages
        self.fingerprint = f"{inner.fingerprint}-red-{threshold}"

    def __len__(self):
        return len(self.inner)

    def record(self, row):
        return replace(
            self.inner.record(row), columns={"label": int(self.inner.colours[row, 0, 0, 0] >= self.threshold)}
        )

    def image(self, row):
        return self.inner.image(row)


@dataclass(frozen=True)
class RedConfig(TaskConfig):
    """threshold: the training split's median, which `prepare` fixes. elder, painter: whether there are such roles."""

    threshold: int = 0
    elder: bool = False
    painter: bool = False


class Red(Task):
    """Is the first quarter red, given picture and text?"""

    what, why, metric = "is a quarter red", "both towers are read", "accuracy"
    needs = ("fuse", "encode_images encode_texts")
    Config = RedConfig

    @classmethod
    def name(cls):
        return "red"

    def prepare(self, corpus):
        return replace(self.config, threshold=int(np.median(corpus.colours[:, 0, 0, 0])))

    def rows(self, corpus, split):
        return Redder(corpus, self.config.threshold)

    def head(self, system, tokenizer):
        return RedHead(self.config)

    def measure(self, predictor, head, corpus, **options):
        rows = range(len(corpus))
        images = torch.stack([predictor.pixels(corpus.image(row)) for row in rows])
        encoded = (
            predictor.pictures([Images(images)]),
            predictor.texts([corpus.record(row).texts["en"][0] for row in rows]),
        )
        labels = torch.tensor([corpus.record(row).columns["label"] for row in rows])
        right = (head.logits(*encoded) > 0) == labels.bool()
        return {"system": predictor.name, "task": "red", "accuracy": float(right.float().mean())}


class RedHead(Head):
    """A logit from both vectors; drawn to momentum copies', an elder's match and a painter's picture vectors."""

    momentum = ("image", "head.logit")

    def __init__(self, config: RedConfig):
        super().__init__()
        self.logit = nn.Linear(2 * WIDTH, 1)
        self.scale = nn.Parameter(torch.zeros(()))
        self.teachers = {"elder": "match"} if config.elder else {}
        self.teachers |= {"painter": "encode_images"} if config.painter else {}

    def needs(self):
        return Needs(columns=("label",))

    def begin(self, system):
        with torch.no_grad():
            self.scale.copy_(system.temperature)
            self.logit.bias.copy_(system.temperature[None])

    def before_step(self, system, progress):
        self.teacher.update(system, progress.step)

    def after_step(self, system, keep, progress):
        system.keeps.append(keep["index"])

    def logits(self, images, texts):
        return self.scaled(self.logit, images, texts)

    def scaled(self, logit, images, texts):
        return logit(torch.cat([images.pooled, texts.pooled], 1))[:, 0] * (1 + self.scale)

    def losses(self, system, batch, progress):
        images, texts = system.encode_images(batch.images), system.encode_texts(batch.texts)
        logits, labels = self.logits(images, texts), batch.columns["label"].float()
        with torch.no_grad():
            taught = unit(self.teacher.image(system.quarters(batch.images)))
            own = self.scaled(self.teacher.head.logit, images, texts)
        terms = {
            "label": F.binary_cross_entropy_with_logits(logits, labels),
            "copy": (images.pooled - taught).pow(2).sum(1).mean() + (logits - own).pow(2).mean(),
        }
        for role, teacher in system.roles.items():
            with torch.no_grad():
                if role == "elder":
                    pair = teacher.encode_images(batch.images), teacher.encode_texts(batch.texts)
                    target = teacher.match(*pair)[:, 0]
                else:
                    target = teacher.encode_images(batch.images.view(role)).pooled.sum(1)
            terms[role] = (logits - target).pow(2).mean()
        return Losses(terms, {"index": batch.index})


@contextlib.contextmanager
def registered():
    """`systems.find` and `tasks.find_task` know the toys while this lasts."""
    before = systems.find, tasks.find_task
    systems.find = lambda name: Toy if name == "toy" else before[0](name)
    tasks.find_task = lambda name: Red if name == "red" else before[1](name)
    try:
        yield
    finally:
        systems.find, tasks.find_task = before


def config(task: str | None = None, **changes) -> RunConfig:
    """A run of 13 steps of 8 of 40 rows, 5 an epoch; names as in train__lr=1e-3."""
    base = {
        "train.steps": 13,
        "train.batch_size": 8,
        "train.lr": 1e-2,
        "train.precision": "float32",
        "train.threads": 1,
        "train.log_every": 1,
        "train.checkpoint_every": 4,
        "train.choose": "last",
        "train.least_steps": 1,
        "train.rates": (),
        "train.warmup": 0.05,
        "data.workers": 0,
        "data.augment": "none",
        "tokenizer.size": 64,
    }
    with registered():
        made = RunConfig.of("toy", "tiny", "memory", task=task)
        return override(made, base | {name.replace("__", "."): value for name, value in changes.items()})


def share(run: str) -> None:
    """Every process writes to RUN-RANK.safetensors what it has after `parallel.shared`, twice."""
    place = parallel.device("cpu")
    with parallel.group(place):
        rank = parallel.rank()
        own = {
            "counts": torch.arange(5 + 90 * rank)[rank:] + 2**40,
            "vectors": torch.full((3, 2), rank + 0.5, dtype=torch.bfloat16).T,
            "mask": torch.tensor([rank == 0, rank == 1]),
            "none": torch.zeros(rank, 4),
            f"of {rank}": torch.tensor(rank),
        }
        given = parallel.shared(own, place)
        assert parallel.shared({"late": torch.ones(1)} if rank else {}, place) == {}
        save_file({name: tensor.contiguous() for name, tensor in given.items()}, f"{run}-{rank}.safetensors")


def main(action: str, run: str, *settings: str) -> None:
    """train RUN NAME=VALUE..., or resume RUN; "pause" seconds a picture, killed at the "kill"th; or share RUN."""
    if action == "share":
        share(run)
        return
    changes = dict(setting.split("=") for setting in settings)
    pause, last = float(changes.pop("pause", "0")), int(changes.pop("kill", "0"))
    corpus, reads = Memory(), itertools.count(1)
    plain = corpus.image

    def image(row):
        time.sleep(pause)
        if next(reads) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(row)

    corpus.image = image  # type: ignore[method-assign]
    print("ready", flush=True)
    with registered():
        if action == "train":
            train(override(config(changes.pop("task", None)), changes), run, corpus=corpus, quiet=True)
        else:
            resume(run, corpus=corpus, quiet=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
