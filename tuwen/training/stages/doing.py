"""One stage, done: a run trained, or a table made."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tuwen import tasks
from tuwen.data.beside import TABLE, laid_over, write_table
from tuwen.data.corpus import Corpus
from tuwen.data.open import open_corpus
from tuwen.data.private import own_only
from tuwen.progress import announce, bars
from tuwen.training.config import RunConfig
from tuwen.training.loaded import predictor_of
from tuwen.training.once import train_once
from tuwen.training.parallel import device
from tuwen.training.stages.kinds import KINDS
from tuwen.training.stages.recipe import Planned
from tuwen.training.stages.record import is_training
from tuwen.training.stages.work import StageWork, forget_parts
from tuwen.training.validation import Evaluate

EvaluateOf = Callable[[RunConfig], Evaluate | None]  # what watches a run


def corpus_of(planned: Planned) -> Corpus:
    """The rows of a stage, without tables beside them."""
    if not is_training(planned):
        return open_corpus(planned.place, planned.split, "skip")
    config = planned.config
    place = config.corpus if config.task is None else tasks.rows_at(config.task.name, config.corpus)
    return open_corpus(place, planned.split, config.data.on_bad)


def do_stage(planned: Planned, corpus: Corpus, evaluate_of: EvaluateOf | None, quiet: bool, place: str) -> None:
    """Does a stage, or goes on with it. place: it has in the recipe."""
    if is_training(planned):
        watch = None if evaluate_of is None else evaluate_of(planned.config)
        train_once(planned.folder, planned.config, None, watch, quiet, place)
        return
    rows = laid_over(corpus, [str(path) for name, path in planned.needs.items() if name.startswith("beside.")])
    run = planned.needs.get("run")
    make_table(planned.stage.do, run, rows, planned.config, planned.seed, planned.folder, quiet)


def make_table(
    kind: str, run: Path | None, corpus: Corpus, config: Any, seed: int, folder: Path, quiet: bool = False
) -> Path:
    """The table of a stage that is not training, as a file in its folder; one that is there stays.

    run: that is asked, by kinds that ask one; with as many threads as it was trained with. corpus: with its tables.

    Raises:
        UserError: what the kind itself finds wrong.
    """
    path = folder / TABLE
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    if corpus.private:  # its rows' ids are the keys
        own_only(folder)
    predictor = None
    if run is not None:
        asked = RunConfig.read(run)
        predictor = predictor_of(run, asked, str(device("auto")))
        if asked.train.threads:
            torch.set_num_threads(asked.train.threads)
    tell: Callable[[str], None] = (lambda line: None) if quiet else announce
    with bars() if not quiet else contextlib.nullcontext():
        table = KINDS[kind].make(StageWork(predictor, corpus, config, seed, folder, tell))
    write_table(path, table, KINDS[kind].optional, corpus.private)
    forget_parts(folder)
    return path
