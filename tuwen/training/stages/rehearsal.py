"""A recipe done in miniature before any work: what each stage will take in time and disk, and whether it can be done.

Every stage runs in a folder of its own on the first rows of its corpus, as many as the largest batch has: a run takes
three steps, the last of which is timed, a table is made of these rows. Inputs are those of the miniature.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tuwen.config import override
from tuwen.data.beside import TABLE, laid_over
from tuwen.data.corpus import Corpus
from tuwen.data.exercises import exercises_of
from tuwen.data.subset import Subset
from tuwen.run import METRICS, STATE
from tuwen.training import loop
from tuwen.training.config import RunConfig, fitting_batch
from tuwen.training.log import read_metrics
from tuwen.training.stages.doing import make_table
from tuwen.training.stages.kinds import KINDS
from tuwen.training.stages.recipe import Planned, of_stage
from tuwen.training.stages.record import is_training, size_of_folder

STEPS = 3
LEAST_ROWS = 32


@dataclass(frozen=True)
class Cost:
    """seconds and bytes that a stage will take, as far as a miniature can tell."""

    seconds: float
    bytes: int


def rehearse(recipe: Path, stages: Sequence[Planned], corpora: Mapping[str, Corpus]) -> dict[str, Cost]:
    """The costs of stages by name. corpora: of every stage by name, without tables.

    Raises:
        UserError: a stage that cannot be done, before any work.
    """
    folder = Path(tempfile.mkdtemp(prefix="tuwen-rehearsal-"))
    try:
        moved = {planned.folder: folder / planned.stage.name for planned in stages}
        costs = {}
        for planned in stages:
            name = planned.stage.name
            corpus = corpora[name]
            rows = FirstRows(corpus, np.arange(min(len(corpus), _rows(stages, corpora))))
            with of_stage(recipe, name):
                costs[name] = _cost(planned, corpus, rows, moved)
        return costs
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class FirstRows(Subset):
    """The first rows of a corpus, and as many of what it asks of its pictures."""

    def exercises(self, kind: str) -> Corpus:
        own = exercises_of(self.base, kind)
        return Subset(own, np.arange(min(len(own), len(self))))


def _rows(stages: Sequence[Planned], corpora: Mapping[str, Corpus]) -> int:
    batches = [_batch(planned, len(corpora[planned.stage.name])) for planned in stages if is_training(planned)]
    return max([LEAST_ROWS, *batches])


def _batch(planned: Planned, rows: int) -> int:
    return fitting_batch(planned.config.train, rows).batch_size


def _cost(planned: Planned, corpus: Corpus, rows: Corpus, moved: Mapping[Path, Path]) -> Cost:
    needs = {name: moved.get(path, path) for name, path in planned.needs.items()}
    folder = moved[planned.folder]
    if is_training(planned):
        return _cost_of_run(planned, corpus, rows, needs, folder)
    kind, began = KINDS[planned.stage.do], time.perf_counter()
    beside = laid_over(rows, [str(path) for name, path in needs.items() if name.startswith("beside.")])
    config = replace(planned.config, **kind.few)
    make_table(planned.stage.do, needs.get("run"), beside, config, planned.seed, folder, quiet=True)
    share = len(corpus) / len(rows)
    return Cost(share * (time.perf_counter() - began), round(share * (folder / TABLE).stat().st_size))


def _cost_of_run(planned: Planned, corpus: Corpus, rows: Corpus, needs: Mapping[str, Path], folder: Path) -> Cost:
    """Timed by its last step; its disk is that of its checkpoints."""
    config, batch = planned.config, _batch(planned, len(corpus))
    loop.train(_small(config, needs, batch), folder, lambda trained, step: {}, rows, quiet=True)
    speed = read_metrics(folder / METRICS)[-1]["pairs_per_second"]
    steps = config.train.steps or max(1, round(config.train.epochs * (len(corpus) // batch)))
    checkpoint = size_of_folder(folder / STATE)
    return Cost(steps * batch / max(speed, 1e-9), config.train.keep * checkpoint)


def _small(config: RunConfig, needs: Mapping[str, Path], batch: int) -> RunConfig:
    """Three steps of the same batch, from the miniature's own inputs."""
    changes: dict[str, Any] = {
        **{f"train.{name}": STEPS for name in ("steps", "checkpoint_every", "eval_every")},
        **{"train.batch_size": batch, "train.least_steps": 1, "train.log_every": 1, "train.choose": "last"},
        **{"train.keep": 1, "train.order": "shuffled", "train.compile": False, "data.workers": 0},
        "data.beside": tuple(str(path) for name, path in needs.items() if name.startswith("beside.")),
    }
    changes |= {f"data.{name}": str(path) for name, path in needs.items() if name.startswith("teachers.")}
    if "lexicon" in needs:
        changes["tokenizer.lexicon"] = str(needs["lexicon"])
    if "init" in needs:
        changes["init"] = str(needs["init"]) + (f":{STATE}" if str(config.init).endswith(f":{STATE}") else "")
    elif isinstance(config.init, Mapping):
        changes["init"] = {tower: str(needs[f"init.{tower}"]) for tower in config.init}
    return override(config, changes)


# ---- kept beside the stages, so that a recipe that goes on says at once what is left


def read_costs(path: Path) -> dict[str, Cost]:
    """What an earlier call was told; nothing where there is no such file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {name: Cost(float(cost["seconds"]), int(cost["bytes"])) for name, cost in values.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def costs_text(costs: Mapping[str, Cost]) -> str:
    return json.dumps({name: vars(cost) for name, cost in costs.items()}, indent=1) + "\n"
