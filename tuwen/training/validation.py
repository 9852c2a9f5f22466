"""A run watched while it goes on: by what, on which rows, and which step's weights it ends with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from tuwen import tasks
from tuwen.data.beside import laid_over
from tuwen.data.corpus import Corpus
from tuwen.data.items import split_off
from tuwen.data.open import open_corpus, splits_of
from tuwen.predictor import Predictor
from tuwen.run import METRICS, START, STATE, WEIGHTS
from tuwen.training import checkpoint, log, optim
from tuwen.training.config import RunConfig

NAMES = ("val", "validation")  # of a split to watch a run on


class Trained(NamedTuple):
    """What an evaluation during training is given."""

    predictor: Predictor
    config: RunConfig


Evaluate = Callable[[Trained, int], Mapping[str, Any]]  # what is trained, step -> (nested) numbers


@dataclass(frozen=True)
class TaskRows:
    """A task's rows: those trained on, those watched on (None: there are too few), and the run's config with what the
    first decided."""

    config: RunConfig
    train: Corpus
    validation: Corpus | None


def task_rows(config: RunConfig, corpus: Corpus | None = None, new: bool = True) -> TaskRows:
    """The rows of a run that learns a task: its corpus's split for validation, else a tenth of the training pictures.

    corpus: the training pairs themselves, in place of those `config.corpus` names. new: whether the task's config is
    to be prepared; an old run's was.

    Raises:
        UserError: no such corpus or split, or one that lacks what the task asks for.
    """
    location, on_bad = tasks.rows_at(config.task.name, config.corpus), config.data.on_bad
    splits = () if corpus is not None else splits_of(location)
    pairs = open_corpus(location, config.data.split, on_bad) if corpus is None else corpus
    pairs = laid_over(pairs, config.data.beside, config.data.noise)
    name = next((name for name in NAMES if name in splits and name != config.data.split), None)
    watched = None if name is None else open_corpus(location, name, on_bad)
    if watched is None and config.train.choose == "best":
        pairs, watched = split_off(pairs)
    if new:
        config = replace(config, task=tasks.of(config.task).prepare(pairs))
    task = tasks.of(config.task)
    rows = task.rows(pairs, pairs.split)
    return TaskRows(config, rows, None if watched is None else task.rows(watched, watched.split))


def by_task(rows: TaskRows) -> Evaluate | None:
    """The task's own metric on the rows of validation, for the loop to call; None where there are none."""
    corpus = rows.validation
    if corpus is None or not len(corpus):
        return None

    def evaluate(trained: Trained, step: int) -> Mapping[str, Any]:
        head = trained.predictor.system.head
        assert head is not None
        return tasks.of(trained.config.task).validate(trained.predictor, head, corpus)

    return evaluate


def end_with_average(run: Path, system: nn.Module, share: float) -> None:
    """The final weights of a run that averages: between those it started from and those it came to."""
    if share < 1:
        first = checkpoint.in_new_names(checkpoint.load_tensors(run / STATE / START), system)
        mixed = optim.averaged(first, checkpoint.parted(system)[0], share)
        system.load_state_dict(mixed, strict=False)  # teachers and queues stay as they are
        checkpoint.save_tensors(run / WEIGHTS, mixed)


# ---- the best weights, beside the checkpoints until the run has come to its end


def best_step(run: Path) -> tuple[int, float] | None:
    """(step, score) of the best validation so far, the earlier of equals; None where nothing was scored."""
    scored = [
        (record["step"], float(record["eval"]["score"]))
        for record in log.read_metrics(run / METRICS)
        if isinstance(record.get("eval", {}).get("score"), int | float)
    ]
    return max(scored, key=lambda pair: (pair[1], -pair[0])) if scored else None


def keep_if_best(run: Path, system: nn.Module, step: int) -> None:
    """Keeps the weights of a step that scored best. Those of earlier bests go once a checkpoint stands behind this one:
    a run that a crash throws back finds what it had."""
    best = best_step(run)
    if best is None or best[0] != step:
        return
    (run / STATE).mkdir(exist_ok=True)
    checkpoint.save_tensors(_best_file(run, step), checkpoint.parted(system)[0])
    safe = max(checkpoint.steps(run), default=-1)
    older = [other for other in _steps_best_file(run) if other < step]
    for other in older if step <= safe else [other for other in older[:-1] if older[-1] <= safe]:
        _best_file(run, other).unlink(missing_ok=True)


def end_with_best(run: Path) -> tuple[int, float] | None:
    """Makes the best step's weights the run's; gives step and score, None where there are none."""
    best = best_step(run)
    if best is None or not _best_file(run, best[0]).exists():
        return None
    checkpoint.save_tensors(run / WEIGHTS, checkpoint.load_tensors(_best_file(run, best[0])))
    return best


def tidy(run: Path) -> None:
    """Removes the weights kept on the way; for a run that has come to its end."""
    for step in _steps_best_file(run):
        _best_file(run, step).unlink(missing_ok=True)


def _best_file(run: Path, step: int) -> Path:
    return run / STATE / f"best-{step:08d}.safetensors"


def _steps_best_file(run: Path) -> list[int]:
    return sorted(int(path.stem[5:]) for path in (run / STATE).glob("best-*.safetensors"))
