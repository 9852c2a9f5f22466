"""Batches of a corpus: which rows comes from `order`, everything drawn on them is arithmetic, workers only decode.

The batch of a step is a function of (corpus, config, seed, step) alone, whatever the number of processes and workers,
broken pictures included. To resume, ask for the steps that remain.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from tuwen.data import draws
from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.beside import trusted_text
from tuwen.data.corpus import BrokenImage, Corpus, Record, text_id
from tuwen.data.features import ImageFeatures, padded, regions_of
from tuwen.data.fit import WHOLE, Fit, fitted, part_of, side_of
from tuwen.data.needs import (
    DataNeeds,
    DataReads,
    check_needs,
    check_reads,
    every_text,
    further_texts,
    numbers,
    sentences,
    texts_of,
)
from tuwen.data.order import Order
from tuwen.data.rows import Row, images_of_rows, stacked
from tuwen.data.spans import find_spans
from tuwen.data.text import Tokenizer
from tuwen.data.views import Augment, PictureViews
from tuwen.data.workers import default_workers, in_workers
from tuwen.errors import UserError, quoted

_TRIES = 50  # substitutes drawn for one unusable row before giving up


@dataclass(frozen=True)
class DataConfig:
    """How rows become batches.

    split: that is trained on.
    texts: "one" draws a text a row, every epoch anew; "all" makes every text a row of its own.
    languages: those that texts are drawn from; none: all the corpus has.
    augment: what is done to training pictures beside resizing ("crop+colour": `tuwen.data.colour`). crop_scale: least
        and greatest share of the picture's area that a crop keeps. strength: of RandAugment, 0 to 10.
    flip: every other picture is mirrored, as papers do whose captions say left and right all the same.
    sources: corpora of pictures alone ("images") and of texts alone ("texts"), by location, for systems that mix them
        with pairs; what is not named is read from the pairs, one side of them.
    teachers: role -> folder of the frozen run that a system, or the head of its task, asks in it while it learns.
    beside: tables of the rows, files or folders of stages, in the order in which they are laid over the corpus.
    noise: what a table's noise does: "weight" passes a text over in as many epochs as it is likely wrong; "soften"
        spreads a share of its target in the contrast; "drop" leaves out texts that are likelier wrong than right.
    workers: processes that prepare batches, 0: the training process itself; None: by the number of cores.
    on_bad: a row whose picture cannot be read or that has no text: "skip" takes another row, "stop" ends the run.
    """

    split: str = "train"
    texts: Literal["one", "all"] = "one"
    languages: tuple[str, ...] = ()
    augment: Augment = "crop"
    crop_scale: tuple[float, float] = (0.5, 1.0)
    strength: float = 7.0
    flip: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)
    teachers: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    noise: Literal["weight", "soften", "drop"] | None = None
    workers: int | None = None
    on_bad: Literal["skip", "stop"] = "skip"

    def __post_init__(self):
        choices = {"texts": ("one", "all"), "augment": get_args(Augment), "on_bad": ("skip", "stop")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale must be two shares of the area, 0 < low <= high <= 1, got {low}, {high}")
        if not 0 <= self.strength <= 10:
            raise ValueError(f"strength must lie between 0 and 10, got {self.strength}")
        if self.flip and self.augment == "none":
            raise ValueError("flip mirrors pictures, and augment is none; set augment to crop")
        if set(self.sources) - {"images", "texts"}:
            raise ValueError(f"sources may name images and texts, got {', '.join(self.sources)}")
        if self.workers is not None and not 0 <= self.workers <= 1024:
            raise ValueError(f"workers must lie between 0 and 1024, got {quoted(self.workers, 40)}")


class Notes(NamedTuple):
    """What happened while a batch was made. skipped: corpus row -> why, for rows that were replaced."""

    skipped: dict[int, str]
    texts: int
    truncated: int


class _Unusable(Exception):
    """A row that cannot be trained on: the reason, and what exactly."""


class _PassedOver(Exception):
    """A row that is not taken this time."""


class Loader:
    """The batches of a corpus by step.

    source: "pairs", or one side of the rows alone: "images" or "texts".
    plan: entries of the epoch in order, in place of the permutation (see `Order.batch`); set between calls of `run`.
    remarks: what some rows of the corpus lack, in lines to say.
    features: what a locked tower gave for the pictures, which then stands in their place (set before `run`).
    skipped: corpus row -> why it was replaced; texts, truncated: texts tokenized, and cut to fit. They count
    what this process has been given so far, whichever worker made it.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        order: Order,
        config: DataConfig,
        reads: DataReads,
        needs: DataNeeds,
        seed: int,
        side: int | Fit,
        length: int,
        source: str = "pairs",
        table: tuple[str, ...] = (),
        pictures: int = 1,
    ):
        """order: over `entries(corpus, config, needs)` rows. side: pictures' side in pixels, or how they are
        brought to it. length: most tokens a text. table: the languages that `Texts.language` indexes; none: the
        corpus's. pictures: separate ones that a row has.

        Raises:
            UserError: the corpus lacks what the config or the system asks for.
        """
        if source != "texts":
            check_reads(corpus, reads, pictures)
        self.remarks = check_needs(corpus, needs, config.languages, source)
        self.pictures = PictureViews(side, needs.views, config.augment, config.crop_scale, config.strength, config.flip)
        self.pictures.check()
        self.source = source
        self.corpus, self.tokenizer, self.order, self.config = corpus, tokenizer, order, config
        self.reads, self.needs, self.seed, self.length = reads, needs, seed, length
        self.languages, self.table = config.languages or corpus.languages, table or corpus.languages
        self.every_text = every_text(corpus, self.languages, needs) if config.texts == "all" else None
        rows = len(corpus) if self.every_text is None else len(self.every_text)
        if order.rows != rows:
            raise ValueError(f"the order runs over {order.rows} rows, the corpus with these settings has {rows}")
        self.kinds = tuple(dict.fromkeys((*reads.spans, *needs.spans)))  # of spans to find
        self.plan: Any = None
        self.features: ImageFeatures | None = None
        self.skipped: dict[int, str] = {}
        self.texts = 0
        self.truncated = 0

    @property
    def steps_per_epoch(self) -> int:
        return self.order.steps_per_epoch

    def __getitem__(self, step: int) -> Batch:
        """The global batch of a step."""
        return self.noted(self.load(step))

    def run(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """The batches of steps start..stop-1, process `rank`'s share of each.

        Raises:
            UserError: a row cannot be used and on_bad is "stop", or hardly any row can be used.
        """
        workers = default_workers() if self.config.workers is None else self.config.workers
        items = Steps(partial(self.load, rank=rank, world=world))
        for made in in_workers(items, range(start, stop), min(workers, max(stop - start, 0))):
            yield self.noted(made)

    def load(self, step: int, rank: int = 0, world: int = 1) -> tuple[Batch, Notes]:
        """A process's share of a step's batch, and what happened on the way; changes nothing in this object."""
        entries = self.order.batch(step, self.plan)[self.order.slice_of(rank, world)]
        epoch = self.order.epoch(step)
        skipped: dict[int, str] = {}
        rows = [self._usable(int(entry), epoch, skipped) for entry in entries]
        seen, truncated = self.tokenizer.seen, self.tokenizer.truncated
        batch = self._batch(rows, torch.from_numpy(entries))
        return batch, Notes(skipped, self.tokenizer.seen - seen, self.tokenizer.truncated - truncated)

    def noted(self, made: tuple[Batch, Notes]) -> Batch:
        """The batch `load` made; what happened on the way is counted here."""
        batch, notes = made
        self.skipped.update(notes.skipped)
        self.texts += notes.texts
        self.truncated += notes.truncated
        return batch

    # ---- a row

    def _usable(self, entry: int, epoch: int, skipped: dict[int, str]) -> Row:
        """The row of an entry, or of a substitute drawn by (seed, epoch, entry)."""
        generator = draws.generator(self.seed, epoch, entry, "substitute")
        for _ in range(_TRIES):
            row, place = (entry, None) if self.every_text is None else self.every_text[entry].tolist()
            try:
                return self._draw(row, place, epoch, entry)
            except (BrokenImage, _Unusable, _PassedOver) as error:
                why = str(error)
                if not isinstance(error, _PassedOver):
                    skipped[row] = why
                if self.config.on_bad == "stop" and row in skipped:
                    raise UserError(
                        f"corpus {self.corpus.name}, split {self.corpus.split}, row {row} "
                        f"({self.corpus.record(row).called}): {error}; mend it, remove it, or set data.on_bad to skip"
                    ) from None
            entry = int(generator.integers(self.order.rows))
        raise UserError(
            f"corpus {self.corpus.name}, split {self.corpus.split}: none of {_TRIES} rows drawn can be used, "
            f"the last for this reason: {why}; see `tuwen data check`"
        )

    def _draw(self, row: int, place: int | None, epoch: int, entry: int) -> Row:
        """The row's texts and views; place: of its text among those `texts_of` lists, None: drawn."""
        record = self.corpus.record(row)
        texts: list[tuple[str, int]] = []
        further: dict[str, tuple[str, int]] = {}
        if self.source != "images":
            texts, further = self._draw_texts(record, place, draws.generator(self.seed, epoch, entry, "text"))
        if self.source == "texts":
            return Row(row, 0, {}, None, None, texts, {}, {})
        if self.source == "pairs":
            further = further_texts(record, self.needs, self.table, texts[0]) | further
            weighs, key = self.config.noise == "weight", (self.seed, epoch, entry)
            trusted = trusted_text(record, texts[0][0], self.table[texts[0][1]], key, weighs)
            if trusted is None:
                raise _PassedOver("its text is likely wrong (data.noise: weight)")
            texts[0] = trusted, texts[0][1]
        views, features = self._pictures(row, epoch, entry)
        regions = regions_of(record) if self.reads.features else None
        if self.source == "images":
            return Row(row, record.image_id, views, features, regions, [], {}, {})
        columns = {name: numbers(record, name, texts[0][0]) for name in self.needs.columns}
        return Row(row, record.image_id, views, features, regions, texts, further, columns)

    def _pictures(self, row: int, epoch: int, entry: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """The row's pictures [F, 3, side, side] by view, or the features that stand for them.

        Frames of a clip are cropped alike, separate pictures each by a draw of its own.
        """
        if self.features is not None and row in self.features:
            return {}, self.features.tokens(row)
        apart, key = self.corpus.pictures > 1, (self.seed, epoch, entry)
        which = [f" of picture {k}" if k and apart else "" for k in range(self.corpus.pictures * self.corpus.frames)]
        shown = [
            self.pictures.made(image, key, name) for image, name in zip(self.corpus.shown(row), which, strict=True)
        ]
        return {name: torch.stack([views[name] for views in shown]) for name in shown[0]}, None

    def _draw_texts(self, record: Record, place: int | None, generator: np.random.Generator):
        """([(text, language index)] as many as needed, a text in another language or None)."""
        spoken = texts_of(record, self.languages, self.needs)
        if not spoken:
            several = f"fewer than {self.needs.texts} of a language" if self.needs.texts > 1 else "none"
            where = f"{self.needs.languages} of " if self.needs.languages > 1 else ""
            raise _Unusable(f"no text: row {record.called} has {several} in {where}{', '.join(self.languages)}")
        if place is None:
            language = list(spoken)[int(generator.integers(len(spoken)))]
            first = int(generator.integers(len(spoken[language])))
        else:
            language, first = [(name, k) for name, texts in spoken.items() for k in range(len(texts))][place]
        own = spoken.pop(language)
        others = generator.permutation([k for k in range(len(own)) if k != first]).tolist()
        chosen = [first, *others][: self.needs.texts]
        number = self.table.index
        texts = [(own[k], number(language)) for k in chosen]
        if self.needs.languages < 2:
            return texts, {}
        other = list(spoken)[int(generator.integers(len(spoken)))]
        aligned = len(spoken[other]) == len(own)
        parallel = spoken[other][first if aligned else int(generator.integers(len(spoken[other])))]
        return texts, {"parallel": (parallel, number(other))}

    # ---- a batch

    def _batch(self, rows: list[Row], entries: Tensor) -> Batch:
        images = images_of_rows(rows) if self.source != "texts" else None
        texts = self._encoded([row.texts for row in rows], self.needs.texts == 1) if self.source != "images" else None
        index = torch.tensor([row.index for row in rows])
        columns, pieces = {}, None
        if self.source == "pairs":
            columns = self._columns(rows)
            pieces = self._sentences(rows) if self.needs.sentences else None
        image_ids = torch.tensor([row.image_id for row in rows])
        text_ids = torch.tensor([text_id(row.texts[0][0]) if row.texts else 0 for row in rows])
        return Batch(images, texts, image_ids, text_ids, index, columns, self.source, pieces, entries)

    def _columns(self, rows: list[Row]) -> dict[str, Tensor | Texts]:
        columns: dict[str, Tensor | Texts] = {name: stacked(rows, name) for name in self.needs.columns}
        for name in sorted({name for row in rows for name in row.further}):  # a row without has its own text there
            columns[name] = self._encoded([[row.further.get(name, row.texts[0])] for row in rows], single=True)
        return columns

    def _sentences(self, rows: list[Row]) -> Texts:
        return self._encoded([[(s, language) for text, language in row.texts for s in sentences(text)] for row in rows])

    def _encoded(self, texts: list[list[tuple[str, int]]], single: bool = False) -> Texts:
        """The (text, language) of every row as tokens; one: each row has exactly one."""
        strings = [text for row in texts for text, _ in row]
        ids, mask = self.tokenizer.encode(strings, self.length)
        language = torch.tensor([language for row in texts for _, language in row])
        owner = None if single else torch.tensor([k for k, row in enumerate(texts) for _ in row])
        spans = find_spans(strings, self.tokenizer, self.length, self.kinds)
        return Texts(ids, mask, language, owner, spans)


# ---- what a corpus must have


def order_rows(corpus: Corpus, config: DataConfig, needs: DataNeeds) -> int:
    """How many rows an `Order` of this corpus runs over: its rows, or its texts where every text is a row."""
    if config.texts == "one":
        return len(corpus)
    return len(every_text(corpus, config.languages or corpus.languages, needs))


# ---- pictures by themselves, for evaluation and search


def images_of(
    corpus: Corpus, rows: Sequence[int], side: int | Fit, regions: bool = False
) -> tuple[Images, list[int], Counter[str]]:
    """The rows' pictures brought to a side, the rows that could be read, and the others counted by reason.

    regions: those of the corpus go beside them.
    """
    pixels, readable, faults = [torch.empty(0, 3, side_of(side), side_of(side), dtype=torch.uint8)], [], Counter[str]()
    seen = []
    for row in rows:
        try:
            pictures = corpus.shown(row)
            pixels.append(torch.stack([fitted(picture, side) for picture in pictures]))
            seen += [part_of(side, picture) for picture in pictures]
            readable.append(row)
        except BrokenImage as error:
            faults[error.reason] += 1
    several = corpus.frames * corpus.pictures
    owner = torch.arange(len(readable)).repeat_interleave(several) if several > 1 else None
    images = padded([regions_of(corpus.record(row)) for row in readable]) if regions and readable else Images()
    parts = torch.tensor(seen).view(-1, 4) if any(part != WHOLE for part in seen) else None
    return replace(images, pixels=torch.cat(pixels), owner=owner, seen=parts), readable, faults


def image_batches(
    corpus: Corpus, rows: Sequence[int], side: int | Fit, batch_size: int, workers: int = 0, regions: bool = False
) -> Iterator[tuple[Images, list[int], dict[str, int]]]:
    """`images_of` of the rows in order, `batch_size` rows at a time."""
    starts = range(0, len(rows), batch_size)
    return in_workers(_Chunks(corpus, rows, side, batch_size, regions), starts, min(workers, len(starts)))


# ---- workers


@dataclass
class Steps:
    """Steps as items of a torch data set. A user's mistake is handed over as a value: torch would wrap its message."""

    load: Callable[[int], tuple[Batch, Notes]]

    def __getitem__(self, step: int) -> tuple[Batch, Notes] | UserError:
        try:
            return self.load(step)
        except UserError as error:
            return error


@dataclass
class _Chunks:
    """Runs of rows, by where they start, as items of a torch data set."""

    corpus: Corpus
    rows: Sequence[int]
    side: int | Fit
    batch_size: int
    regions: bool

    def __getitem__(self, start: int) -> tuple[Images, list[int], dict[str, int]]:
        rows = self.rows[start : start + self.batch_size]
        images, readable, faults = images_of(self.corpus, rows, self.side, self.regions)
        return images, readable, dict(faults)  # torch copies what it loads, and would count a Counter twice
