"""First-stage vectors of very many pictures, part by part: on one machine, or on a Ray cluster.

A part is a shard of a built corpus (or a run of rows of any other) and becomes one Parquet file, written under another
name, flushed and renamed: a file that is there is done. So a run that was stopped goes on where it was, several
processes may share the parts of one folder, and one machine and a cluster write the same files.
"""

import contextlib
import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tuwen import model as models
from tuwen.data.batch import Images
from tuwen.data.built import Shards
from tuwen.data.corpus import BrokenImage, Corpus
from tuwen.data.fit import Fit
from tuwen.data.private import own_only
from tuwen.errors import UserError, quoted
from tuwen.predictor import FIRST, Predictor, vectors
from tuwen.search.columns import vector_column
from tuwen.search.index import weights_mark
from tuwen.search.pictures import Picture, Unreadable, open_pictures
from tuwen.speech import spoken

ROWS = 4096  # of a part, where the corpus has no shards


@dataclass(frozen=True)
class EmbedPart:
    """Rows start to stop (not included) of the pictures at a location; `name` of the file they become."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class EmbedReport:
    """What is in the folder: parts, pictures with vectors, those left out by reason, and parts made by this run."""

    parts: int
    pictures: int
    broken: dict[str, int]
    made: int


def embed(
    run: str | os.PathLike,
    shards: str | os.PathLike,
    out: str | os.PathLike,
    *,
    split: str | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    cluster: str | None = None,
    refit: bool = False,
    progress: bool = False,
) -> EmbedReport:
    """Vectors of all pictures at `shards` as Parquet files in `out`: id, hash of the content, vector (float32).

    cluster: address of a Ray cluster ("auto", or "ray://host:10001") whose nodes see run, shards and out under the same
    paths; None: this process. refit: make vectors anew that `out` has of pictures fitted otherwise than the run does
    now; once begun, it is completed without being asked for again.

    Raises:
        UserError: no such run or pictures; a system without vectors; `out` holds vectors of something else.
    """
    folder = Path(out)
    predictor = models.load(run, device if cluster is None else "cpu").predictor
    pictures, fit = open_pictures(shards, split), predictor.fit
    parts = plan_parts(pictures.corpora)
    prints = [corpus.fingerprint for corpus in pictures.corpora]
    plan = {"weights": weights_mark(run), "pictures": prints, "parts": [len(parts), len(pictures)]}
    again = f"tuwen embed {run} {shards} --refit --out {out}"
    _settle(folder, plan, fit, again if not refit else None)
    if pictures.private:
        own_only(folder)
    todo = [part for part in parts if not _done(_file(folder, part), fit)]
    job = EmbedJob(str(Path(run).resolve()), str(shards), str(folder.resolve()), split, batch_size, device)
    if cluster is None:
        worker = Worker(job, predictor) if todo else None
        made = sum(worker(part) for part in _tracked(todo, progress)) if worker else 0
    else:
        made = _on_cluster(job, todo, cluster, progress)
    return _report(folder, parts, made, pictures.skipped, fit)


@dataclass(frozen=True)
class EmbedJob:
    """All that a worker on any machine must know."""

    run: str
    shards: str
    out: str
    split: str | None
    batch_size: int
    device: str


class Worker:
    """Makes parts; predictor: the run's, where it is loaded already."""

    def __init__(self, job: EmbedJob, predictor: Predictor | None = None):
        self.job = job
        self.pictures = open_pictures(job.shards, job.split)
        self.predictor = predictor or models.load(job.run, job.device).predictor
        self.width = self._vectors([]).shape[1]

    def __call__(self, part: EmbedPart) -> bool:
        """Writes the part's file; False where another process has it in hand."""
        target = _file(Path(self.job.out), part)
        with _claimed(target, self.predictor.fit) as ours:
            if not ours:
                return False
            ids, hashes, matrices, broken = [], [], [torch.empty(0, self.width)], Counter[str]()
            for start in range(part.start, part.stop, self.job.batch_size):
                rows = range(start, min(start + self.job.batch_size, part.stop))
                pixels = []
                for picture in (self.pictures[row] for row in rows):
                    try:
                        name, content, image = self._read(picture)
                    except BrokenImage as error:
                        broken[error.reason] += 1
                        continue
                    ids.append(name)
                    hashes.append(content)
                    pixels.append(image)
                if pixels:
                    matrices.append(self._vectors([Images(torch.stack(pixels))]))
            table = pa.table({"id": pa.array(ids, pa.string()), "hash": pa.array(hashes, pa.string())})
            table = table.append_column("vector", vector_column(torch.cat(matrices)))
            about = {"broken": json.dumps(broken), "fit": json.dumps(asdict(self.predictor.fit))}
            _write(target, table.replace_schema_metadata(about))
            return True

    def _read(self, picture: Picture | Unreadable) -> tuple[str, str, torch.Tensor]:
        if isinstance(picture, Unreadable):
            raise picture.error
        content = picture.content()
        return picture.id or content.hash, content.hash, self.predictor.pixels(content.data)

    def _vectors(self, read: Sequence[Images]) -> torch.Tensor:
        matrix = vectors(self.predictor.pictures(read, FIRST))
        if matrix is None:
            raise self.predictor.system.lacks("embed", "it has no first-stage vectors")
        return matrix


def plan_parts(corpora: Sequence[Corpus]) -> list[EmbedPart]:
    """The shards of built corpora, or runs of rows of others, as rows of all corpora one after the other."""
    parts, begin = [], 0
    for corpus in corpora:
        bounds = corpus.shard_starts() if isinstance(corpus, Shards) else list(range(0, len(corpus), ROWS))
        for number, (start, stop) in enumerate(zip(bounds, [*bounds[1:], len(corpus)], strict=True)):
            parts.append(EmbedPart(f"{corpus.split}-{number:05d}", begin + start, begin + stop))
        begin += len(corpus)
    return parts


# ---- on a cluster


class _RayWorker:
    """`Worker` as Ray Data calls it: a batch of one part each."""

    def __init__(self, job: EmbedJob):
        torch.set_num_threads(1)
        self.worker = Worker(job)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        rows = zip(batch["name"].tolist(), batch["start"].tolist(), batch["stop"].tolist(), strict=True)
        return {
            "made": [self.worker(EmbedPart(*row)) for row in rows],
            "node": [os.uname().nodename] * len(batch["name"]),
        }


def _on_cluster(job: EmbedJob, todo: Sequence[EmbedPart], address: str, progress: bool) -> int:
    try:
        import ray
    except ImportError:
        raise UserError("--cluster needs Ray: pip install 'tuwen[cluster]'") from None
    if not todo:
        return 0
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"--cluster {address}: no Ray cluster there ({str(error).splitlines()[0]})") from None
    try:
        gpu = 1 if job.device.startswith("cuda") else 0
        room = int(ray.cluster_resources().get("GPU" if gpu else "CPU", 1))
        rows = [{"name": part.name, "start": part.start, "stop": part.stop} for part in todo]
        made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _RayWorker,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(room, len(rows)))),
            num_gpus=gpu,
        )
        return sum(row["made"] for row in _tracked(made.iter_rows(), progress, len(rows)))
    finally:
        ray.shutdown()


# ---- files


def _file(folder: Path, part: EmbedPart) -> Path:
    return folder / f"{part.name}.parquet"


def _settle(folder: Path, plan: dict, fit: Fit, again: str | None) -> None:
    """The folder, told what its vectors are of.

    again: the command that makes them anew by another fit; None: it was given.

    Raises:
        UserError: it holds vectors of other weights or pictures, of pictures fitted otherwise, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "vectors.json"
        if not path.exists():
            others = [file.name for file in folder.iterdir() if not file.name.startswith("vectors.json")]
            if others:
                what = f"{folder} holds something else than vectors ({quoted(others[0])})"
                raise UserError(f"{what}; choose another folder")
        before = json.loads(path.read_text()) if path.exists() else {"fit": asdict(fit), **plan}
        old = _fit_of(before.pop("fit", None), fit)
        if before != plan:
            raise UserError(f"{folder} holds vectors of another run or other pictures; choose another folder")
        if old != fit and again is not None:
            raise UserError(
                f"{folder}: its pictures were {old}, but the run has them {fit}; make it anew with `{again}`"
            )
        if old != fit or not path.exists():
            part = folder / f"vectors.json.{os.getpid()}.part"
            part.write_text(json.dumps({"fit": asdict(fit), **plan}))
            os.replace(part, path)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be used: {error}") from None


def _fit_of(described: Mapping | None, fit: Fit) -> Fit:
    """The fit that was written down; before any was, pictures were squashed."""
    return Fit(**described) if described is not None else Fit(fit.side)


def _done(path: Path, fit: Fit) -> bool:
    """Whether the file is there, of pictures so fitted."""
    return path.exists() and _about(path, fit)[1] == fit


def _about(path: Path, fit: Fit) -> tuple[dict[str, int], Fit, int]:
    """(pictures left out by reason, how the others are fitted, how many vectors) of a file.

    Raises:
        UserError: it is damaged, or not of tuwen.
    """
    try:
        footer = pq.read_metadata(path)
        entries = {name: json.loads(text) for name, text in footer.metadata.items() if name in (b"broken", b"fit")}
        return entries[b"broken"], _fit_of(entries.get(b"fit"), fit), footer.num_rows
    except (pa.ArrowException, OSError, KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{path}: damaged, or not of tuwen; delete it and run the same again") from None


@contextlib.contextmanager
def _claimed(target: Path, fit: Fit) -> Iterator[bool]:
    """Whether this process may make the file; a claim ends with the process, however it ends."""
    path = target.with_suffix(".lock")
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        try:
            yield not _done(target, fit)
        finally:
            path.unlink(missing_ok=True)


def _write(target: Path, table: pa.Table) -> None:
    part = target.with_suffix(".part")
    pq.write_table(table, part, compression="none")
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, target)


def _report(folder: Path, parts: Sequence[EmbedPart], made: int, skipped: Mapping[str, int], fit: Fit) -> EmbedReport:
    broken, pictures, done = Counter[str](skipped), 0, 0
    for path in (_file(folder, part) for part in parts):
        if _done(path, fit):
            faults, _, rows = _about(path, fit)
            broken.update(faults)
            pictures += rows
            done += 1
    return EmbedReport(done, pictures, dict(broken), made)


def _tracked(items, shown: bool, total: int | None = None):
    import sys

    if not (shown and sys.stderr.isatty()):
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, spoken("parts"), total=total, console=Console(stderr=True))
