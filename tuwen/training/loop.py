"""A run from start to end: corpus, tokenizer, system, steps, evaluations, checkpoints; and going on with one."""

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from tuwen import systems
from tuwen.config import dump
from tuwen.data.corpus import Corpus, all_texts
from tuwen.data.loader import Loader
from tuwen.data.open import open_corpus
from tuwen.data.order import Order
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.model import Model
from tuwen.nn.initial import initialise
from tuwen.systems.system import Progress, System
from tuwen.training import checkpoint, log, optim, parallel
from tuwen.training.checkpoint import State
from tuwen.training.config import RunConfig, TrainConfig
from tuwen.training.step import train_step

Evaluate = Callable[[Model, int], Mapping[str, Any]]  # model, step -> (nested) numbers


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal after a whole step, and saved; exit status 130."""


def train(
    config: RunConfig,
    out: str | Path,
    evaluate: Evaluate | None = None,
    corpus: Corpus | None = None,
    quiet: bool = False,
) -> Path:
    """Trains a new run in the folder `out`, and gives the folder.

    evaluate: called in evaluation mode with (model, step) at the start, the end, and every `train.eval_every` steps.
    corpus: the training pairs themselves, in place of those `config.corpus` names.

    Raises:
        UserError: if the folder holds a run, the corpus lacks what the system needs, or a loss is not finite.
        Interrupted: after SIGTERM or Ctrl-C; the run is saved.
    """
    run = Path(out)
    if (run / "config.yaml").exists():
        raise UserError(f"{run}: holds a run already; go on with `tuwen train --resume {run}`, or choose another --out")
    config = replace(config, train=replace(config.train, precision=precision(config.train)))
    if Path(config.corpus).exists():
        config = replace(config, corpus=str(Path(config.corpus).absolute()))
    return _run(run, config, evaluate, corpus, quiet, new=True)


def resume(
    run: str | Path,
    evaluate: Evaluate | None = None,
    corpus: Corpus | None = None,
    quiet: bool = False,
) -> Path:
    """Goes on with a run from its last checkpoint, exactly as if it had never stopped; a finished run stays as it is.

    Raises:
        UserError: if the folder holds no run, or the corpus is not the one the run began with.
        Interrupted: as `train`.
    """
    run = Path(run)
    if not (run / "config.yaml").exists():
        raise UserError(f"{run}: holds no run to go on with (no config.yaml); start one with `tuwen train SYSTEM --out {run}`")
    return _run(run, RunConfig.read(run / "config.yaml"), evaluate, corpus, quiet, new=False)


def finished(run: str | Path) -> bool:
    """Whether the folder holds a run that has come to its end."""
    path = Path(run) / "provenance.json"
    return path.exists() and "finished" in json.loads(path.read_text())


def precision(config: TrainConfig) -> str:
    """ "bfloat16" or "float32": what "auto" means on this machine."""
    if config.precision != "auto":
        return config.precision
    if parallel.device(config.device).type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast else "float32"


def _run(run: Path, config: RunConfig, evaluate: Evaluate | None, corpus: Corpus | None, quiet: bool, new: bool) -> Path:
    place = parallel.device(config.train.device)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    with parallel.group(place):
        pairs = open_corpus(config.corpus, split="train") if corpus is None else corpus
        trainer = _Trainer(run, config, evaluate, pairs, place, quiet, new)
        trainer.go()
    return run


class _Trainer:
    """One run: everything the steps use, and where it stands."""

    def __init__(self, run: Path, config: RunConfig, evaluate, corpus: Corpus, place: torch.device, quiet: bool, new: bool):
        self.run, self.config, self.evaluate, self.corpus, self.place = run, config, evaluate, corpus, place
        self.writes = parallel.rank() == 0
        needs = systems.find(config.system).needs(config.model)
        order = Order(len(corpus), config.train.batch_size, config.train.seed)
        self.rows = order.slice_of(parallel.rank(), parallel.world())
        share = config.train.batch_size // parallel.world()
        if share % config.train.accumulation:
            raise UserError(
                f"config field train.accumulation: {share} rows of a process do not divide into "
                f"{config.train.accumulation} micro-batches"
            )
        self._begin(new)
        self.tokenizer = Tokenizer.load(run / "tokenizer.json")
        self.system = build(config, self.tokenizer).to(place)
        self.optimizer = optim.build(self.system, config.train)
        self.state = checkpoint.load(run, self.system, self.optimizer)
        if self.state.step == 0:
            self._from_init()
        self.state.fingerprint = corpus.fingerprint
        self.steps_per_epoch = order.steps_per_epoch
        self.total = config.train.steps or max(1, round(config.train.epochs * order.steps_per_epoch))
        self.loader = Loader(
            corpus,
            self.tokenizer,
            order,
            config.data,
            needs,
            config.train.seed,
            config.model.image.side,
            config.model.text.length,
        )
        self.model = parallel.wrap(self.system)
        self.schedule = optim.schedule(config.train, self.total)
        self.rates = log.Rates(self.state.seconds)
        self.metrics = log.Metrics(run, self.state.step) if self.writes else None
        name = f"{config.system} {run.name}"
        self.line = log.Line(name, self.total, self.state.step, self.writes and not quiet)
        self.saved = time.monotonic()

    # ---- the steps

    def go(self) -> None:
        """From where the run stands to its end."""
        self.line.say(
            f"{self.config.system}: step {self.state.step} of {self.total}, batches of "
            f"{self.config.train.batch_size} of {len(self.corpus)} rows, {self.config.train.precision} on {self.place}"
        )
        try:
            with _Signals(self.line.say) as signals:
                self.signals = signals
                if not finished(self.run):
                    self._evaluate_if_due()
                while self.state.step < self.total:
                    self._segment()
                self._finish()
        except KeyboardInterrupt:
            if self.writes:
                self._save()
            self.line.say(f"stopped after step {self.state.step} and saved; go on with `tuwen train --resume {self.run}`")
            raise Interrupted from None
        finally:
            self.line.close()
            if self.metrics:
                self.metrics.close()

    def _segment(self) -> None:
        """The steps up to the next change of the order: to the end of the epoch where a system may change it."""
        stop = self.total
        if self.system.can("end_epoch"):
            stop = min(stop, (self.state.step // self.steps_per_epoch + 1) * self.steps_per_epoch)
        self.loader.plan = None if self.state.plan is None else self.state.plan.rows
        self.loader.columns = self.state.columns
        batches = self.loader.run(self.state.step, stop, parallel.rank(), parallel.world())
        with contextlib.closing(batches):
            while self.state.step < stop:
                self._step(batches)

    def _step(self, batches: Iterator) -> None:
        begun = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - begun
        micro_batches = batch.to(self.place).split(self.config.train.accumulation)
        result = train_step(
            self.model, self.system, micro_batches, self.optimizer, self.schedule, self.progress, self.config.train
        )
        self.rates.step(waited, time.perf_counter() - begun - waited, self.config.train.batch_size)
        self.state.step += 1
        self.state.seconds = self.rates.seconds
        if self.state.step % self.steps_per_epoch == 0:
            self.state.take(self.system.end_epoch(self.corpus, self.progress))
        self._log_if_due(result)
        if parallel.any_true(self.signals.received, self.place):
            raise KeyboardInterrupt
        if self.writes and self._checkpoint_due():
            self._save()
        self._evaluate_if_due()

    @property
    def progress(self) -> Progress:
        config = self.config.train
        return Progress(self.state.step, self.steps_per_epoch, self.total, config.batch_size, config.seed)

    # ---- what is written

    def _log_if_due(self, result) -> None:
        step, train = self.state.step, self.config.train
        if not (step % train.log_every == 0 or step == self.total or self._evaluation_due()):
            return
        losses = parallel.mean({"loss": result.loss} | {f"losses/{k}": v for k, v in result.losses.items()}, self.place)
        metrics = parallel.mean(result.metrics, self.place)
        if self.metrics:
            record = {"step": step, "epoch": round(step / self.steps_per_epoch, 4), "loss": losses.pop("loss")}
            record["losses"] = {name.removeprefix("losses/"): value for name, value in losses.items()}
            record |= {"metrics": metrics, "lr": result.lr, "grad_norm": result.grad_norm, **self.rates.read()}
            self.metrics.write(record)
            self.line.step(step, record)

    def _checkpoint_due(self) -> bool:
        train = self.config.train
        old = time.monotonic() - self.saved > 60 * train.checkpoint_minutes
        return old or self.state.step % train.checkpoint_every == 0 or self.state.step == self.total

    def _save(self) -> None:
        checkpoint.save(self.run, self.system, self.optimizer, self.state, self.config.train.keep)
        self.saved = time.monotonic()

    def _evaluation_due(self) -> bool:
        every = self.config.train.eval_every
        return self.state.step in (0, self.total) or bool(every and self.state.step % every == 0)

    def _evaluate_if_due(self) -> None:
        """Evaluates on the first process while the others wait, unless this step's line has its evaluation already.

        At the last step the run's final weights are made first, so that they are what is measured.
        """
        if self.state.step == self.total:
            self._average()
        if self.evaluate and self._evaluation_due():
            if self.metrics and not self.metrics.has_evaluation(self.state.step):
                self.system.eval()
                model = Model(self.system, self.tokenizer, self.config, self.corpus.languages)
                with self.signals.at_once(), torch.no_grad():
                    values = self.evaluate(model, self.state.step)
                self.system.train()
                self.metrics.evaluated(self.state.step, values)
            parallel.barrier()

    def _average(self) -> None:
        """The final weights of a run that averages: between those it started from and those it came to."""
        start = self.run / "state" / "start.safetensors"
        if self.config.train.average == 1 or not start.exists():
            return
        mixed = optim.averaged(
            checkpoint.load_tensors(start), self.system.state_dict(), self.config.train.average
        )
        self.system.load_state_dict(mixed)
        if self.writes:
            checkpoint.save_tensors(self.run / checkpoint.WEIGHTS, mixed)

    def _finish(self) -> None:
        if not self.writes or finished(self.run):
            return
        seconds = self.state.seconds
        done = {
            "step": self.total,
            "seconds": round(seconds, 3),
            "pairs_per_second": round(self.total * self.config.train.batch_size / max(seconds, 1e-9), 2),
        }
        path = self.run / "provenance.json"
        checkpoint.write(path, json.dumps(json.loads(path.read_text()) | {"finished": done}, indent=1) + "\n")
        self.line.say(f"done: {self.total} steps, {done['pairs_per_second']} pairs/s; {self.run}")

    # ---- the start

    def _begin(self, new: bool) -> None:
        """Makes the run's folder with all that must be known of it, or checks that it is this corpus's."""
        origin = log.provenance(self.corpus.fingerprint, self.config.train.precision, self.place)
        parallel.barrier()
        if self.writes and new:
            self.run.mkdir(parents=True, exist_ok=True)
            make_tokenizer(self.config, self.corpus).save(self.run / "tokenizer.json")
            checkpoint.write(self.run / "provenance.json", json.dumps(origin, indent=1) + "\n")
            checkpoint.write(self.run / "config.yaml", dump(self.config))
        parallel.barrier()
        if new:
            return
        path = self.run / "provenance.json"
        before = json.loads(path.read_text())
        if before["corpus_fingerprint"] != self.corpus.fingerprint:
            raise UserError(
                f"{self.run}: its corpus {self.config.corpus} has changed since the run began (fingerprint "
                f"{before['corpus_fingerprint']} then, {self.corpus.fingerprint} now), so it cannot go on exactly; "
                f"bring the old corpus back, or start a new run with --init {self.run}"
            )
        if self.writes and not finished(self.run):
            before.setdefault("resumed", []).append(origin)
            checkpoint.write(path, json.dumps(before, indent=1) + "\n")

    def _from_init(self) -> None:
        """First weights: from scratch they stand already; else those of the run `init` names."""
        if self.config.init:
            start_from(self.system, Path(self.config.init), self.line_say if False else print)
        if self.config.train.average < 1 and self.writes:
            (self.run / "state").mkdir(exist_ok=True)
            checkpoint.save_tensors(self.run / "state" / "start.safetensors", self.system.state_dict())
