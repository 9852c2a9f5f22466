"""What the functions of a stage are given, and how long work is kept part by part."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tuwen.data.batch import Images
from tuwen.data.beside import ROW, TEXT
from tuwen.data.corpus import Corpus
from tuwen.errors import UserError, reason_of
from tuwen.predictor import FIRST, Predictor
from tuwen.progress import batches, track

PARTS = "parts"  # in a stage's folder, until its table is there
BATCH = 64  # pictures encoded at a time


@dataclass(frozen=True)
class StageWork:
    """One stage that is not training, ready to be done.

    predictor: of the run that it asks; None for a stage that asks none. corpus: with the tables beside it. config: the
    stage's settings. seed: its own. folder: where it may keep more than its table. say: tells a line.
    """

    predictor: Predictor | None
    corpus: Corpus
    config: Any
    seed: int
    folder: Path
    say: Callable[[str], None]

    @property
    def asked(self) -> Predictor:
        """The predictor, of a stage that has one."""
        assert self.predictor is not None, "a stage without a run"
        return self.predictor

    def in_parts(self, what: str, count: int, size: int, make: Callable[[range], pa.Table]) -> pa.Table:
        """What `make` gives for 0..count-1, `size` at a time, as one table. Parts that are there are not made again.

        what: the name of the parts, and of the bar.

        Raises:
            UserError: a part that is there cannot be read.
        """
        folder = self.folder / PARTS
        parts = []
        for start in track(range(0, count, size), what, batches(count, size)):
            path = folder / f"{what.replace(' ', '-')}-{start:012d}.parquet"
            if not path.exists():
                table = make(range(start, min(start + size, count)))
                folder.mkdir(parents=True, exist_ok=True)
                fresh = path.with_name(f".{path.name}.tmp")
                pq.write_table(table, fresh)
                fresh.replace(path)
            try:
                parts.append(pq.read_table(path))
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{path}: cannot be read ({reason_of(error)}); remove it, then start again") from None
        return pa.concat_tables(parts)


def forget_parts(folder: Path) -> None:
    """Removes the parts of a stage whose table is there."""
    shutil.rmtree(folder / PARTS, ignore_errors=True)


def keyed(rows: list[str], texts: list[int] | None, **columns: Any) -> pa.Table:
    """A table by (row id, text id or null)."""
    ids = pa.nulls(len(rows), pa.int64()) if texts is None else pa.array(texts, pa.int64())
    keys = {ROW: pa.array(rows, pa.string()), TEXT: ids}
    return pa.table({**keys, **columns})


def picture_vectors(work: StageWork, size: int = 4096) -> np.ndarray:
    """[rows, D] float32: the corpus's pictures as unit vectors, NaN where one cannot be read.

    Raises:
        UserError: a system that does not score by one vector a picture.
    """
    predictor, corpus = work.asked, work.corpus

    def make(places: range) -> pa.Table:
        readable: list[int] = []

        def read() -> Iterator[Images]:
            for images, rows, _ in predictor.read(corpus, places, BATCH):
                readable.extend(rows)
                if rows:
                    yield images

        encoded = predictor.pictures(read(), FIRST)
        if encoded.pooled is None or predictor.system.can("scores"):
            why = "it does not score by one vector a picture and a text"
            raise predictor.system.lacks("be asked by this stage", why)
        every = np.full((len(places), encoded.pooled.shape[1]), np.nan, dtype=np.float32)
        every[np.asarray(readable, dtype=np.int64) - places.start] = encoded.pooled.numpy()
        return pa.table({"vector": pa.FixedSizeListArray.from_arrays(every.ravel(), every.shape[1])})

    with predictor.evaluating():
        column = work.in_parts("pictures", len(corpus), size, make)["vector"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(corpus), -1)
