"""An index: pictures with what both stages of a search read of them, kept as a record that is always whole."""

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tuwen import model as models
from tuwen.data.batch import Images
from tuwen.data.fit import Fit
from tuwen.data.images import load as load_image
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.predictor import Predictor
from tuwen.run import WEIGHTS
from tuwen.search import nearest
from tuwen.search.columns import field_of, metadata_columns
from tuwen.search.filters import is_date
from tuwen.search.ingest import Built, Ingest, Outcome, part_field
from tuwen.search.milvus import Milvus
from tuwen.search.parts import Layout
from tuwen.search.pictures import Picture
from tuwen.search.record import IndexRecord, Snapshot, Unusable, unharmed

T = TypeVar("T")
CHANGED = ("added", "replaced", "updated")
VALUES = 50  # most values of a column that are listed


class Index:
    """Pictures ready to be searched; open one by `Index.open`, make or extend one by `build_index`.

    built: what `build_index` did; None of an index that was opened. snapshot: the version that searches read. Whoever
    adds or removes through this object sees it renewed; what other processes did is seen after `refresh`. Safe to use
    from several threads.
    """

    def __init__(
        self, record: IndexRecord, run: str | os.PathLike | None = None, device: str = "cpu", token: str | None = None
    ):
        self._record, self._run, self._device, self._token = record, run, device, token
        self._lock = threading.Lock()
        self.built: Built | None = None
        self.layout = Layout.from_json(record.about["layout"])
        self.snapshot: Snapshot = record.snapshot(self.in_memory)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        run: str | os.PathLike | None = None,
        device: str = "cpu",
        token: str | None = None,
    ) -> "Index":
        """The index at a folder or object-store URL. The model is loaded when it is first needed.

        run: where the run is now, if it has moved since the index was built. token: of the Milvus server that holds
        its vectors, if one does (default: the environment's TUWEN_MILVUS_TOKEN).

        Raises:
            UserError: no index there, or a damaged one.
        """
        record = IndexRecord.open(path)
        if record is None:
            raise UserError(f"{path}: no index there; make one with `tuwen index RUN PICTURES --out {path}`")
        with unharmed(path, KeyError):  # `about` is read here
            if record.code is not None:
                record.code.check(record.about["width"])
            return cls(record, run, device, token)

    def read(self, work: Callable[[Snapshot], T]) -> T:
        """What `work` gives for the snapshot; done again with the newest version if files of an older one are gone.

        They are, when another process has joined small files since.
        """
        snapshot = self.snapshot
        try:
            return work(snapshot)
        except (OSError, ValueError, Unusable):
            self.refresh()
            with unharmed(self.path):
                if self.snapshot.version == snapshot.version:
                    raise
                return work(self.snapshot)

    # ---- what is in it

    @property
    def path(self) -> str:
        return self._record.location

    @property
    def about(self) -> Mapping[str, Any]:
        """How it was built: "run", "system", "languages", "fit", "layout", "width" of vectors, "loss", ..."""
        return self._record.about

    @property
    def fit(self) -> Fit:
        """How its pictures were brought to the tower's square; all were squashed before an index said so."""
        return Fit(**self.about.get("fit") or {"side": self.about["side"]})

    def __len__(self) -> int:
        return len(self.snapshot)

    def columns(self) -> dict[str, str]:
        """Metadata columns by name, with their kind: "text", "number", "flag", or "tags" (lists of strings)."""
        return metadata_columns(self.snapshot.dataset.schema)

    def values(self, column: str) -> list[Any] | dict[str, float]:
        """What to offer as filters: the most frequent values, or {"min", "max"} of numbers and of texts that are dates.

        Raises:
            UserError: no such column.
        """
        kind = self.columns().get(column)
        if kind is None:
            raise UserError(f"no column {column!r}; this index has {', '.join(self.columns()) or 'none'}")
        cells = self.read(lambda snapshot: snapshot.dataset.to_table(columns=[field_of(column)])[0])
        values = cells.drop_null().to_pylist()
        if kind == "number":
            return {"min": min(values), "max": max(values)} if values else {}
        if kind == "text" and values and all(map(is_date, values)):
            return {"min": min(values), "max": max(values)}
        counted = Counter(tag for tags in values for tag in tags) if kind == "tags" else Counter(values)
        return [value for value, _ in counted.most_common(VALUES)]

    def thumbnail(self, id: str) -> bytes:
        """A JPEG of the picture, shorter side at most 256 pixels.

        Raises:
            KeyError: no such picture.
        """
        return self._one(id, "thumbnail")

    def picture(self, id: str) -> Tensor:
        """[3, H, W] uint8, its thumbnail.

        Raises:
            KeyError: no such picture.
        """
        return load_image(self.thumbnail(id))

    def describe(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """{"id", "image", "texts", "columns"} of pictures, in the order given.

        Raises:
            KeyError: no such picture.
        """
        return self.read(lambda now: self.describe_at(now, np.array([now.find(id) for id in ids], dtype=np.int64)))

    def describe_at(self, snapshot: Snapshot, positions: np.ndarray) -> list[dict[str, Any]]:
        """`describe` by position."""
        fields = {name: field_of(name) for name in self.columns()}
        fields = {name: field for name, field in fields.items() if field in snapshot.dataset.schema.names}
        rows = snapshot.rows(positions, ["id", "image", "texts", *fields.values()])
        return [
            {
                "id": rows["id"][k],
                "image": rows["image"][k],
                "texts": json.loads(rows["texts"][k]),
                "columns": {name: rows[field][k] for name, field in fields.items() if rows[field][k] is not None},
            }
            for k in range(len(positions))
        ]

    def size(self) -> int | None:
        """Bytes on disk; None at a URL."""
        folder = self._record.local
        if folder is None:
            return None
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    @property
    def run(self) -> Path:
        """Where the run is."""
        return Path(self._run or self.about["run"])

    @property
    def predictor(self) -> Predictor:
        """What encodes queries as the pictures were.

        Raises:
            UserError: as `check_fit`, or damaged weights.
        """
        self.check_fit()
        return self.loaded

    def check_fit(self) -> None:
        """Refuses a run that is not the one whose pictures these are; loads nothing of its weights.

        Raises:
            UserError: as `run_fit`, or the run reads pictures in another way than the index was built with.
        """
        if self.run_fit == self.fit:
            return
        run = f"{self.run} " if self._run else ""
        raise UserError(
            f"{self.path}: its pictures are {self.fit}, but {self.run} reads them {self.run_fit}; embed them again in "
            f"place with `tuwen index {run}--refit --out {self.path}`"
        )

    @cached_property
    def run_fit(self) -> Fit:
        """How the run fits pictures now.

        Raises:
            UserError: the run is gone, or has other weights than those the index was built with.
        """
        run = self.run
        if self._run is None and not run.is_dir():
            raise UserError(f"{self.path}: its run {run} is not there any more; say where it is now with --run RUN")
        config = models.usable_config(run)
        if weights_mark(run) != self.about["weights"]:
            raise UserError(f"{self.path}: built with other weights than {run} has now; build an index anew with them")
        return config.model.image.fit

    @cached_property
    def loaded(self) -> Predictor:
        """The run's predictor, loaded when it is first needed: an update that brings nothing new needs none.

        Raises:
            UserError: as `run_fit`, or damaged weights.
        """
        fit = self.run_fit  # another run is refused before it is loaded
        predictor = models.load(self.run, self._device).predictor
        assert predictor.fit == fit
        return predictor

    @cached_property
    def milvus(self) -> Milvus | None:
        """The server that has the vectors, if one has.

        Raises:
            UserError: it does not answer, or does not let us in.
        """
        server = self.about.get("milvus")
        return None if server is None else Milvus(server["url"], server["collection"], self.about["width"], self._token)

    @property
    def in_memory(self) -> bool:
        """Whether the first stage is a search over all vectors, or their codes, in memory."""
        left_to_lance = "lance" in self.about and self._record.code is None
        return self.about["width"] > 0 and "milvus" not in self.about and not left_to_lance

    @property
    def depth(self) -> int:
        """How many candidates by code are looked at, at least, where there are codes; measured when it was built."""
        return self.about.get("codes", {}).get("depth", nearest.DEPTHS[0])

    @property
    def keeps_pixels(self) -> bool:
        """Whether pictures are kept in place of tokens, to be encoded again for each query that re-ranks them."""
        return self.layout.budget == 0

    def encoded(self, snapshot: Snapshot, positions: np.ndarray) -> Encoded:
        """What `System.match` and `System.scores` read of the given rows: `Encoded`, float32 on the CPU."""
        if self.keeps_pixels:
            jpegs = snapshot.rows(positions, ["pixels"])["pixels"]
            return self.predictor.pictures([Images(torch.stack([load_image(data) for data in jpegs]))])
        fields = {part.name: part_field(part.name) for part in self.layout.parts}
        rows = snapshot.rows(positions, list(fields.values()))
        pooled = self.vectors(snapshot, positions) if self.about["pooled"] else None
        return self.layout.read({name: rows[field] for name, field in fields.items()}, pooled)

    def vectors(self, snapshot: Snapshot, positions: np.ndarray) -> Tensor:
        """[K, D] first-stage vectors of the given rows."""
        if snapshot.vectors is not None:
            return snapshot.vectors[torch.from_numpy(positions)]
        return torch.from_numpy(np.array(snapshot.rows(positions, ["vector"])["vector"], dtype=np.float32))

    # ---- changes

    def add(self, pictures: Iterable[Picture], batch_size: int = 64) -> list[Outcome]:
        """Puts pictures in and says what became of each, in no certain order; all is committed on return.

        Raises:
            UserError: another process or thread is writing.
        """
        self.check_fit()
        with self._record.writing():
            ingest = Ingest(self._record, lambda: self.predictor, self.fit, self.layout, batch_size)
            outcomes = [outcome for part in ingest.run(pictures) for outcome in part]
            if self.milvus is not None:
                self.milvus.put(
                    self._record.snapshot(False), [outcome.id for outcome in outcomes if outcome.state in CHANGED]
                )
                self.milvus.remove(ingest.gone)
        self.refresh()
        return outcomes

    def remove(self, ids: Sequence[str]) -> int:
        """Takes pictures out by id and says how many were there.

        Raises:
            UserError: another process or thread is writing.
        """
        with self._record.writing():
            before = self._record.table.count_rows()
            self._record.delete(list(ids))
            gone = before - self._record.table.count_rows()
            if self.milvus is not None:
                self.milvus.remove(ids)
        self.refresh()
        return gone

    def refresh(self) -> None:
        """Makes searches see the newest version, whoever wrote it."""
        with self._lock:
            self.snapshot = self._record.snapshot(self.in_memory, self.snapshot)

    # ---- pieces

    def _one(self, id: str, column: str) -> bytes:
        return self.read(lambda now: now.rows(np.array([now.find(id)]), [column])[column][0])


def weights_mark(run: str | os.PathLike) -> str:
    """A mark that changes with a run's weights: hash of the file's size, header, and blocks spread over it."""
    path = Path(run) / WEIGHTS
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(path, "rb") as file:
        digest.update(file.read(1 << 20))
        for place in np.linspace(0, size, 64, endpoint=False).astype(int).tolist():
            file.seek(place)
            digest.update(file.read(1 << 16))
    return digest.hexdigest()
