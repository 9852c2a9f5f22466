"""Batches that could not teach a system what its losses compare: refused before step 0, or told when they come."""

from dataclasses import replace

from tuwen.data.batch import Batch
from tuwen.data.beside import NOISE
from tuwen.data.corpus import Corpus, all_texts
from tuwen.errors import UserError
from tuwen.systems.system import Needs, System
from tuwen.training import parallel
from tuwen.training.config import RunConfig, TrainConfig

FEW_STEPS = 50


def refuse_uneven_shares(train: TrainConfig, processes: int) -> None:
    """Raises:
    UserError: a process's rows do not divide into the micro-batches asked for.
    """
    share = train.batch_size // processes
    if share % train.accumulation:
        raise UserError(
            f"config field train.accumulation: a process's {share} rows do not divide into "
            f"{train.accumulation} micro-batches"
        )


def few_steps(train: TrainConfig, total: int) -> tuple[str, ...]:
    """A line to say where an epoch count makes hardly a step: a batch as large as the corpus teaches nothing."""
    if train.steps is not None or total >= FEW_STEPS:
        return ()
    return (f"only {total} steps in all; a smaller train.batch_size or more train.epochs gives more",)


def with_noise(config: RunConfig, system: System, needs: Needs) -> Needs:
    """What is asked of the data, with the noise of texts where the contrast softens by it.

    Raises:
        UserError: a system whose contrast does not, or a head in its place.
    """
    if config.data.noise != "soften":
        return needs
    if not system.softens or system.head is not None:
        raise UserError(
            f"config field data.noise: {config.system} has no contrast here whose targets could be softened; set it to "
            "weight or drop"
        )
    return replace(needs, columns=tuple(dict.fromkeys((*needs.columns, NOISE))))


def refuse_micro_batches(train: TrainConfig, name: str) -> None:
    """For a system that compares rows: a step in parts would compare within each part, which is another loss.

    Raises:
        UserError: if there is more than one micro-batch a step.
    """
    if train.accumulation > 1:
        raise UserError(
            f"config field train.accumulation: {name} compares the rows of a batch with each other, so "
            f"{train.accumulation} micro-batches of {train.batch_size // train.accumulation} would teach other than a "
            "batch whole; set train.accumulation=1, and save memory by train.precision=bfloat16, a smaller "
            "train.batch_size, or more processes"
        )


def refuse_alike(train: TrainConfig, name: str, corpus: Corpus) -> None:
    """For a system that compares pictures with texts: there must be wrong pairs to tell from right ones.

    Raises:
        UserError: for batches of one row, and for a corpus of one picture or one text.
    """
    if train.batch_size < 2:
        raise UserError(
            f"config field train.batch_size: {name} learns by telling right pairs of a batch from wrong ones, and a "
            "batch of 1 has no wrong one; give at least 2, better 64 or more"
        )
    pictures: set[int] = set()
    texts: set[str] = set()
    for row in range(len(corpus)):
        record = corpus.record(row)
        pictures.add(record.image_id)
        texts.update(all_texts(record))
        if len(pictures) > 1 and len(texts) > 1:
            return
    what = "picture" if len(pictures) < 2 else "text"
    raise UserError(
        f"{corpus.name}, {corpus.split}: all its rows have one and the same {what}, so {name} has no wrong pair to "
        "tell from a right one; give a corpus with more"
    )


def has_wrong_pair(batch: Batch) -> bool:
    """Whether any two rows of the global batch differ in both picture and text; yes where it is not of pairs."""
    if batch.images is None or batch.texts is None:
        return True
    return not parallel.all_true(batch.same().all())
