"""Several sources in one run: pairs, pictures alone, texts alone; each step draws one for the whole global batch.

Which one is arithmetic of (seed, step), so every process and a resumed run agree; the k-th step of a source is the
k-th batch of its own order, so that its rows are gone through epoch by epoch as if it were trained on alone.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from tuwen.data import draws
from tuwen.data.batch import Batch
from tuwen.data.corpus import Corpus
from tuwen.data.fit import Fit
from tuwen.data.loader import DataConfig, Loader, Notes, Steps, order_rows
from tuwen.data.needs import DataNeeds, DataReads
from tuwen.data.order import order_of
from tuwen.data.text import Tokenizer
from tuwen.data.workers import default_workers, in_workers
from tuwen.errors import UserError

PAIRS = "pairs"
_BLOCK = 4096  # steps counted at a time


class Mixture:
    """Which source each step draws (FLAVA, section 4 of the paper: one source a global batch, by weights)."""

    def __init__(self, weights: Mapping[str, float], seed: int):
        """weights: share of the steps by source, of any sum; a source of weight 0 is never drawn.

        Raises:
            UserError: a negative weight, or none above 0.
        """
        if not weights or min(weights.values()) < 0 or sum(weights.values()) <= 0:
            listed = ", ".join(f"{name}: {weight}" for name, weight in weights.items()) or "none"
            raise UserError(f"weights of sources must be 0 or more, one above 0; they are {listed}")
        self.names = [name for name, weight in weights.items() if weight > 0]
        shares = np.array([weights[name] for name in self.names], dtype=np.float64)
        self.shares = dict(zip(self.names, (shares / shares.sum()).tolist(), strict=True))
        self._edges = np.cumsum(shares / shares.sum())[:-1].tolist()
        self._seed = seed
        self._before: list[list[int]] = [[0] * len(self.names)]  # steps of each source before every block
        self._last: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))  # the block drawn last, and its sources

    def at(self, step: int) -> tuple[str, int]:
        """(source of a step, how many earlier steps drew it)."""
        block, place = divmod(step, _BLOCK)
        while len(self._before) <= block:
            drawn = self._drawn(len(self._before) - 1)
            counts = np.bincount(drawn, minlength=len(self.names))
            self._before.append([old + int(new) for old, new in zip(self._before[-1], counts, strict=True)])
        drawn = self._drawn(block)
        source = int(drawn[place])
        return self.names[source], self._before[block][source] + int((drawn[:place] == source).sum())

    def _drawn(self, block: int) -> np.ndarray:
        """[_BLOCK] int64: source of each step of a block."""
        if self._last[0] != block:
            steps = torch.arange(block * _BLOCK, (block + 1) * _BLOCK)
            u = draws.uniform(steps, 1, self._seed, "source")[:, 0].tolist()
            self._last = block, np.array([bisect_right(self._edges, x) for x in u], dtype=np.int64)
        return self._last[1]


class MixedLoader:
    """Loaders of several sources as one, with the same methods but for a plan: every source has its own order.

    order: of the pairs, or of the only source where there are none.
    """

    def __init__(self, loaders: Mapping[str, Loader], mixture: Mixture):
        """loaders: by name, one for each of the mixture's sources."""
        self.loaders, self.mixture = dict(loaders), mixture
        self.main = self.loaders.get(PAIRS) or next(iter(self.loaders.values()))
        self.order, self.length, self.corpus = self.main.order, self.main.length, self.main.corpus

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which the main source is gone through once, with the others' steps between."""
        return max(1, round(self.order.steps_per_epoch / self.mixture.shares[self.main.source]))

    @property
    def skipped(self) -> dict[int, str]:
        """Of the main source, whose rows these are."""
        return self.main.skipped

    @property
    def remarks(self) -> tuple[str, ...]:
        return tuple(line for loader in self.loaders.values() for line in loader.remarks)

    @property
    def texts(self) -> int:
        return sum(loader.texts for loader in self.loaders.values())

    @property
    def truncated(self) -> int:
        return sum(loader.truncated for loader in self.loaders.values())

    def __getitem__(self, step: int) -> Batch:
        """The global batch of a step."""
        return self._noted(self.load(step))

    def run(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """The batches of steps start..stop-1, process `rank`'s share of each; errors as `Loader.run`."""
        config = self.main.config
        workers = default_workers() if config.workers is None else config.workers
        items = Steps(partial(self.load, rank=rank, world=world))
        for made in in_workers(items, range(start, stop), min(workers, max(stop - start, 0))):
            yield self._noted(made)

    def load(self, step: int, rank: int = 0, world: int = 1) -> tuple[Batch, Notes]:
        """A process's share of a step's batch, as `Loader.load`."""
        source, number = self.mixture.at(step)
        return self.loaders[source].load(number, rank, world)

    def _noted(self, made: tuple[Batch, Notes]) -> Batch:
        return self.loaders[made[0].source].noted(made)


def languages_of(corpora: Mapping[str, Corpus], known: Sequence[str] = ()) -> tuple[str, ...]:
    """The table that `Texts.language` indexes: what the weights know already, the pairs' languages, other sources'."""
    return tuple(dict.fromkeys([*known, *(name for corpus in corpora.values() for name in corpus.languages)]))


def make_loader(
    corpora: Mapping[str, Corpus],
    tokenizer: Tokenizer,
    config: DataConfig,
    reads: DataReads,
    needs: DataNeeds,
    batch_size: int,
    seed: int,
    side: int | Fit,
    length: int,
    table: tuple[str, ...] = (),
    pictures: int = 1,
) -> Loader | MixedLoader:
    """The batches a system needs: of pairs, or of the sources it mixes. pictures: separate ones a row of pairs.

    corpora: "pairs" first, and where there are corpora of one side alone "images" and "texts"; a source that is not
        there is read from the pairs, one side of them. table: the languages that `Texts.language` indexes; none: those
        of the corpora.

    Raises:
        UserError: as `Loader`; a batch that a source cannot fill; a source given that the system does not mix.
    """
    unused = [name for name in corpora if name != PAIRS and name not in needs.sources]
    if unused:
        raise UserError(f"config field data.sources: this system does not learn from {', '.join(unused)} alone")
    if not needs.sources:
        order = order_of(corpora[PAIRS], order_rows(corpora[PAIRS], config, needs), batch_size, seed)
        return Loader(
            corpora[PAIRS], tokenizer, order, config, reads, needs, seed, side, length, table=table, pictures=pictures
        )
    mixture, table = Mixture(needs.sources, seed), table or languages_of(corpora)
    loaders = {}
    for name in mixture.names:
        corpus = corpora.get(name, corpora[PAIRS])
        how = _config(config, name, corpus)
        try:
            order = order_of(
                corpus, order_rows(corpus, how, needs), batch_size, seed if name == PAIRS else draws.key(seed, name)
            )
        except UserError as error:
            raise UserError(f"source {name}, corpus {corpus.name}: {error}") from None
        loaders[name] = Loader(corpus, tokenizer, order, how, reads, needs, seed, side, length, name, table)
    return MixedLoader(loaders, mixture)


def _config(config: DataConfig, source: str, corpus: Corpus) -> DataConfig:
    """The config for a source: pictures alone have no texts to go through, texts alone those languages they have."""
    if source == "images":
        return replace(config, texts="one", languages=())
    if source == "texts" and config.languages:
        spoken = tuple(language for language in config.languages if language in corpus.languages)
        return replace(config, languages=spoken or config.languages)
    return config
