"""A run from start to end: corpus, tokenizer, system, steps, evaluations, checkpoints; and going on with one."""

import errno
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tuwen import tasks
from tuwen.data.batch import Batch
from tuwen.data.beside import laid_over
from tuwen.data.corpus import Corpus
from tuwen.data.loader import Loader
from tuwen.data.open import open_corpus
from tuwen.data.sources import PAIRS, MixedLoader, make_loader
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError, reason_of
from tuwen.predictor import Predictor
from tuwen.progress import announce
from tuwen.run import (
    CONFIG,
    METRICS,
    SKIPPED,
    TOKENIZER,
    check_new,
    finished,
    holds_run,
    provenance,
    write_provenance,
)
from tuwen.systems.system import Needs, Progress, Reads
from tuwen.training import checkpoint, features, log, optim, parallel, refusals, roles, start, validation
from tuwen.training.config import RunConfig, fitting_batch
from tuwen.training.grouping import make_grouping
from tuwen.training.signals import Interrupted, Signals, Stop
from tuwen.training.step import train_step
from tuwen.training.validation import Evaluate, Trained


def train(
    config: RunConfig,
    out: str | Path,
    evaluate: Evaluate | None = None,
    corpus: Corpus | None = None,
    quiet: bool = False,
) -> Path:
    """Trains a new run in the folder `out`, and gives the folder.

    evaluate: called in evaluation mode at the start, the end, and every `train.eval_every` steps; None: a task's own
        validation, where one is learnt.
    corpus: the training pairs themselves, in place of those `config.corpus` names.

    Raises:
        UserError: if the folder holds a run, the corpus lacks what the system needs, or a loss is not finite.
        Interrupted: after SIGTERM or Ctrl-C; the run is saved.
    """
    run = Path(out)
    check_new(run, f"go on with `tuwen train --resume {run}`, or choose another --out")
    return _run(run, settled(config), evaluate, corpus, quiet, new=True)


def settled(config: RunConfig) -> RunConfig:
    """The config as a new run keeps it: its precision chosen, places on disk as absolute paths."""
    data, settings = config.data, replace(config.train, precision=parallel.precision(config.train))
    sources, teachers = ({name: _whole(place) for name, place in of.items()} for of in (data.sources, data.teachers))
    data = replace(data, sources=sources, teachers=teachers, beside=tuple(map(_whole, data.beside)))
    return replace(config, corpus=_whole(config.corpus), data=data, train=settings)


def resume(
    run: str | Path,
    evaluate: Evaluate | None = None,
    corpus: Corpus | None = None,
    quiet: bool = False,
    moved: str | None = None,
) -> Path:
    """Goes on with a run from its last checkpoint, exactly as if it had never stopped; a finished run stays as it is.

    moved: where the run's corpus lies now, if elsewhere than it did.

    Raises:
        UserError: if the folder holds no run, or the corpus is not the one the run began with.
        Interrupted: as `train`.
    """
    run = Path(run)
    if not holds_run(run):
        raise UserError(f"{run}: holds no run to go on with (no {CONFIG}); start one with `tuwen train`")
    config = RunConfig.read(run)
    if moved is not None:
        config = replace(config, corpus=_whole(moved))
    if finished(run):
        if not quiet:
            announce(f"{run}: has come to its end already; nothing to do")
        return run
    return _run(run, config, evaluate, corpus, quiet, new=False)


def _whole(place: str) -> str:
    """The absolute path of a corpus that is one on disk; a name stays."""
    return str(Path(place).absolute()) if Path(place).exists() else place


def _run(
    run: Path, config: RunConfig, evaluate: Evaluate | None, corpus: Corpus | None, quiet: bool, new: bool
) -> Path:
    place = parallel.device(config.train.device)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    with parallel.group(place):
        try:
            data = config.data
            if config.task is not None:
                rows = validation.task_rows(config, corpus, new)
                config, pairs, evaluate = rows.config, rows.train, evaluate or validation.by_task(rows)
            else:
                pairs = open_corpus(config.corpus, data.split, data.on_bad) if corpus is None else corpus
                pairs = laid_over(pairs, data.beside, data.noise)
            others = {name: open_corpus(where, data.split, data.on_bad) for name, where in data.sources.items()}
        except UserError as error:
            if new:
                raise
            raise UserError(
                f"{error}; if the run's corpus was moved, go on with `tuwen train --resume {run} --corpus "
                f"ITS-NEW-PLACE` (further sources are named in {run / CONFIG})"
            ) from None
        if new:
            config = replace(config, train=fitting_batch(config.train, len(pairs)))
        _Trainer(run, config, evaluate, {PAIRS: pairs, **others}, place, quiet, new).go()
    return run


class _Trainer:
    """One run: everything the steps use, and where it stands."""

    def __init__(
        self,
        run: Path,
        config: RunConfig,
        evaluate,
        corpora: Mapping[str, Corpus],
        place: torch.device,
        quiet: bool,
        new: bool,
    ):
        self.run, self.config, self.evaluate, self.place = run, config, evaluate, place
        self.corpus = corpora[PAIRS]
        self.writes = parallel.rank() == 0
        train = config.train
        refusals.refuse_uneven_shares(train, parallel.world())
        self.tokenizer = start.make_tokenizer(config, corpora.values()) if new else Tokenizer.load(run / TOKENIZER)
        self.languages = start.language_table(run, config, corpora, new)
        self.system = start.build_system(config, self.tokenizer, place).to(place)
        self.roles = roles.load_roles(config, self.system, self.tokenizer, self.languages, place)
        reads, needs = roles.asked(self.system, self.roles)
        needs = refusals.with_noise(config, self.system, needs)
        self.compares = self.system.head is None and type(self.system).compares_rows(config.model)
        if self.compares and new:
            refusals.refuse_micro_batches(train, config.system)
        if self.compares and new and (not needs.sources or needs.sources.get(PAIRS)):
            refusals.refuse_alike(train, config.system, self.corpus)
        self.loader = self._loader(corpora, reads, needs)
        self.loader.order.slice_of(parallel.rank(), parallel.world())
        self.steps_per_epoch = self.loader.steps_per_epoch
        self.total = train.steps or max(1, round(train.epochs * self.steps_per_epoch))
        if train.choose == "best" and train.eval_every is None:
            self.config = config = replace(config, train=replace(train, eval_every=max(1, -(-self.total // 10))))

        self.line = log.Line(f"{config.system} {run.name}", self.total, self.writes and not quiet)
        self.state = checkpoint.State()
        self.grouping = make_grouping(train, self.loader, self.system, self.progress)
        first_words = self.tokenizer if new else None
        origins = {name: role.origin for name, role in self.roles.items()}
        start.prepare(run, config, corpora, first_words, place, self.languages, origins)  # checked: now it writes
        self.system.roles = {name: role.system for name, role in self.roles.items()}
        start.first_weights(run, config, self.system, self.line.say, self.tokenizer)
        self.optimizer = optim.build_optimizer(self.system, train)
        self.schedule = optim.schedule(train, self.total)
        self.state = checkpoint.load_checkpoint(run, self.system, self.optimizer)
        if self.grouping is not None:
            self.grouping.load(self.state.order)
        parallel.barrier()  # all have read before the first tidies
        if self.writes:
            checkpoint.settle(run, train.keep)
        if train.compile:
            start.compile_blocks(self.system, place)
        self._keep_features()
        self.model = parallel.wrap(self.system)
        self.rates = log.Rates(self.state.seconds)
        self.metrics = log.MetricsLog(run, self.state.step) if self.writes else None
        self.saved = time.monotonic()
        self.alike = 0  # batches since the start or a resume that held no wrong pair

    def _loader(self, corpora: Mapping[str, Corpus], reads: Reads, needs: Needs) -> Loader | MixedLoader:
        config, train = self.config, self.config.train
        pictures = 1 if config.task is None else tasks.of(config.task).pictures
        seen = (config.model.image.fit, config.model.text.length, self.languages, pictures)
        return make_loader(corpora, self.tokenizer, config.data, reads, needs, train.batch_size, train.seed, *seen)

    def _keep_features(self) -> None:
        """What locked towers give is computed once; the first process writes, the others read."""
        if not self.writes:
            parallel.barrier()
        features.text_features(self.system, self.tokenizer)
        if isinstance(self.loader, Loader):
            self.loader.features = features.image_features(
                self.system, self.config, self.corpus, self.loader.needs.views, self.line.say
            )
        if self.writes:
            parallel.barrier()

    # ---- the steps

    def go(self) -> None:
        """From where the run stands to its end."""
        name, train = self.config.system, self.config.train
        self.line.say(
            f"{name}: step {self.state.step} of {self.total}, batches of {train.batch_size} of "
            f"{self.loader.order.rows} rows, {train.precision} on {self.place}"
        )
        for remark in (*self.loader.remarks, *refusals.few_steps(train, self.total)):
            self.line.say(remark)
        self.line.begin(self.state.step)
        try:
            with Signals(self.line.say) as self.signals:
                self._evaluate_if_due()
                while self.state.step < self.total:
                    self._segment()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
                raise
            raise UserError(
                f"{self.run}: the disk does not take what is written ({reason_of(error)}); its checkpoints are whole: "
                f"make room, then go on with `tuwen train --resume {self.run}`"
            ) from None
        except Stop:
            if self.writes:
                self._save()
                self._tell_data()
            self.line.say(f"stopped after step {self.state.step}, saved; go on with `tuwen train --resume {self.run}`")
            raise Interrupted from None
        finally:
            self.line.close()
            if self.metrics:
                self.metrics.close()
        self._finish()

    def _segment(self) -> None:
        """The steps up to the next change of the order: to the end of the epoch where it is grouped."""
        stop = self.total
        if self.grouping is not None and isinstance(self.loader, Loader):
            stop = min(stop, (self.state.step // self.steps_per_epoch + 1) * self.steps_per_epoch)
            self.loader.plan = self.grouping.plan
        batches = self.loader.run(self.state.step, stop, parallel.rank(), parallel.world())
        while self.state.step < stop:
            self._step(batches)

    def _step(self, batches: Iterator) -> None:
        begun, crowded = time.perf_counter(), log.core_wait()
        batch = next(batches)
        waited = time.perf_counter() - begun
        batch = batch.to(self.place)
        self._tell_if_alike(batch)
        micro_batches = batch.split(self.config.train.accumulation)
        result = train_step(
            self.model, self.system, micro_batches, self.optimizer, self.schedule, self.progress, self.config.train
        )
        if self.grouping is not None and self.writes:
            self.grouping.add(result.collected, self.progress.epoch)
        crowded = log.core_wait() - crowded
        self.rates.step(waited, time.perf_counter() - begun - waited, crowded, self.config.train.batch_size)
        self.state.step += 1
        self.state.seconds = self.rates.seconds
        if self.state.step % self.steps_per_epoch == 0 and self.state.step < self.total:
            self._end_epoch()
        self._log_if_due(result)
        if parallel.any_true(self.signals.received, self.place):
            raise Stop
        if self.writes and self._checkpoint_due():
            self._save()
        self._evaluate_if_due()

    def _tell_if_alike(self, batch: Batch) -> None:
        """Says, at the first such batch, that it holds nothing to compare; `_tell_data` counts them."""
        if not self.compares or refusals.has_wrong_pair(batch):
            return
        if not self.alike:
            self.line.say(
                f"step {self.state.step}: all rows of this batch are of one picture or one text, so it holds no wrong "
                "pair to learn from; a larger train.batch_size makes such batches rare"
            )
        self.alike += 1

    def _end_epoch(self) -> None:
        """The next epoch's order, and the system's memory: the first process computes, all get the same."""
        if self.grouping is not None:
            plan = {"plan": self.grouping.finish(self.progress.epoch - 1)} if self.writes else {}
            self.grouping.plan = parallel.shared(plan, self.place)["plan"]
        if self.system.can("end_epoch"):
            if self.writes:
                self.system.end_epoch(self.progress)
            self.system.remember(parallel.shared(self.system.memory(), self.place))

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
            record: dict[str, Any] = {"step": step, "epoch": round(step / self.steps_per_epoch, 4)}
            record |= {"loss": losses.pop("loss"), "losses": {k.removeprefix("losses/"): v for k, v in losses.items()}}
            record |= {"metrics": metrics, "lr": result.lr, "grad_norm": result.grad_norm, **self.rates.read()}
            if note := log.queue_note(self.metrics.last, record):
                self.line.say(note)
            self.metrics.write(record)
            self.line.step(step, record)

    def _checkpoint_due(self) -> bool:
        train = self.config.train
        old = time.monotonic() - self.saved > 60 * train.checkpoint_minutes
        return old or self.state.step % train.checkpoint_every == 0 or self.state.step == self.total

    def _save(self) -> None:
        self.state.order = {} if self.grouping is None else self.grouping.state()
        checkpoint.save(self.run, self.system, self.optimizer, self.state, self.config.train.keep)
        self.saved = time.monotonic()

    def _evaluation_due(self) -> bool:
        every = self.config.train.eval_every
        return self.state.step in (0, self.total) or bool(every and self.state.step % every == 0)

    def _evaluate_if_due(self) -> None:
        """Evaluates on the first process while the others wait, unless this step's line has its evaluation already.

        At the last step the run's final weights are made first, so that they are what is measured.
        """
        if self.metrics and self.state.step == self.total:
            validation.end_with_average(self.run, self.system, self.config.train.average)
        if self.evaluate is None or not self._evaluation_due():
            return
        if self.metrics and not self.metrics.has_evaluation(self.state.step):
            self.system.eval()
            predictor = Predictor(self.system, self.tokenizer, self.languages, self.config.model)
            trained = Trained(predictor, self.config)
            with self.signals.at_once(parallel.world() == 1), torch.no_grad():
                values = self.evaluate(trained, self.state.step)
            self.system.train()
            self.metrics.evaluated(self.state.step, values)
            if self.config.train.choose == "best":
                validation.keep_if_best(self.run, self.system, self.state.step)
        parallel.barrier()

    def _finish(self) -> None:
        """Marks the run as finished, with what it took."""
        if not self.writes:
            return
        seconds = self.state.seconds
        done: dict[str, Any] = {
            "step": self.total,
            "seconds": round(seconds, 3),
            "pairs_per_second": round(self.total * self.config.train.batch_size / max(seconds, 1e-9), 2),
        }
        if self.config.train.choose == "best" and (best := validation.end_with_best(self.run)):
            done |= {"best_step": best[0], "best_score": best[1]}
            self.line.say(f"the weights are those of step {best[0]}, the best on validation ({best[1]:.4g})")
        write_provenance(self.run, provenance(self.run) | {"finished": done})
        validation.tidy(self.run)
        self.line.say(f"done: {self.total} steps, {done['pairs_per_second']} pairs/s; {self.run}")
        if log.learnt_nothing(log.read_metrics(self.run / METRICS)):
            self.line.say(log.NOTHING_LEARNT)
        self._tell_data()

    def _tell_data(self) -> None:
        """Says, and lists in skipped.json, which rows could not be used; says how many texts were cut."""
        skipped, texts, cut = self.loader.skipped, self.loader.texts, self.loader.truncated
        if left_out := self.corpus.skipped:
            counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
            self.line.say(f"left out when the corpus was read: {counts}")
        if self.alike:
            self.line.say(f"{self.alike} of the batches held no wrong pair to learn from")
        if cut:
            length = self.loader.length
            self.line.say(f"{100 * cut / texts:.1f}% of the texts were cut to {length} tokens (model.text.length)")
        if skipped:
            start.list_skipped(self.run, self.corpus, skipped)
            reasons = Counter(why.partition(":")[0] for why in skipped.values())
            counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
            self.line.say(f"{len(skipped)} rows could not be used ({counts}); listed in {self.run / SKIPPED}")
