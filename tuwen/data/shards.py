"""Corpora as tar shards in WebDataset layout, with an index of offsets for random access.

A built folder holds
    corpus.json         name, languages, splits, notice, truth rule; written last: a folder without it is unfinished
    train-00000.tar     000000000.jpg, 000000000.json, 000000001.jpg, ...: plain tar, two files a row, side by side
    train.index.npy     where each row's files lie (INDEX), memory-mapped by the reader
    broken.jsonl        rows left out because their picture was broken, where there were any
    building/           what is under way; gone once finished
"""

import hashlib
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tuwen.data.corpus import BrokenImage, Caption, Corpus, Record, Relevance
from tuwen.data.images import decode, encode_jpeg, shrink
from tuwen.errors import UserError

VERSION = 1
TRUTHS = ("identity", "scenes")  # rules of `Corpus.relevance` a built copy can follow
INDEX = np.dtype(
    [
        ("shard", "<i4"),
        ("image_offset", "<i8"),  # bytes from the start of the shard
        ("image_size", "<i8"),
        ("json_offset", "<i8"),
        ("json_size", "<i8"),
        ("image_id", "<i8"),
    ]
)
_BLOCK = 512  # of tar
_OPEN_FILES = 200  # shards a reader keeps open; further ones are opened for each read


def write(
    corpora: Mapping[str, Corpus],
    out: str | os.PathLike,
    side: int | None = 288,
    quality: int = 92,
    shard_size: int = 5000,
    progress: bool = True,
) -> dict[str, dict]:
    """Writes corpora by split and returns {split: {"count": rows written, "broken": {reason: rows left out}}}.

    Each shard is written under `building/`, flushed and renamed, so a killed build leaves nothing that looks finished
    and the same call resumes it, keeping finished shards; the result is the same bytes as of one that was never
    stopped. On a finished folder the same call does nothing.

    side: pictures are shrunk so that their shorter side is at most this; None leaves them as they are.
    quality: of the JPEGs (no chroma subsampling).
    shard_size: rows a shard.

    Raises:
        UserError: the folder holds another build, cannot be written, or a column is no JSON.
    """
    for corpus in corpora.values():
        if corpus.frames > 1:
            raise UserError(f"corpus {corpus.name}: rows are clips, which shards cannot hold; read it where it is")
    folder = Path(out)
    plan = _plan(corpora, side, quality, shard_size)
    if (folder / "corpus.json").exists():
        found = _read_json(folder / "corpus.json")
        if found.get("plan") != plan:
            raise UserError(f"{folder} holds a corpus built otherwise; choose another folder or delete it")
        return _report(found)
    _start(folder, plan)
    with _bar(progress) as bar:
        for split, corpus in corpora.items():
            task = bar.add_task(split, total=len(corpus))
            for shard, start in enumerate(range(0, len(corpus), shard_size)):
                rows = range(start, min(start + shard_size, len(corpus)))
                if not _done(folder, split, shard):
                    _write_shard(corpus, rows, folder, split, shard, side, quality, lambda: bar.advance(task))  # noqa: B023
                bar.update(task, completed=rows.stop)
    return _finish(corpora, folder, plan)


def _plan(corpora: Mapping[str, Corpus], side, quality, shard_size) -> dict:
    """What decides the bytes of a build; equal plans may be resumed."""
    if not corpora:
        raise UserError("there is no split to write")
    for split in corpora:
        if not split or not all(c.isalnum() or c in "-_" for c in split):
            raise UserError(f"split {split!r} cannot name a file; use letters, digits, - and _")
    if shard_size < 1 or not 1 <= quality <= 100 or (side is not None and side < 1):
        raise UserError(f"shard_size={shard_size}, quality={quality}, side={side}: positive numbers, quality up to 100")
    sources = {split: {"fingerprint": corpus.fingerprint, "rows": len(corpus)} for split, corpus in corpora.items()}
    return {"version": VERSION, "sources": sources, "side": side, "quality": quality, "shard_size": shard_size}


def _start(folder: Path, plan: dict) -> None:
    """Makes the folder ready to be written, or checks that what is under way there is the same build."""
    building = folder / "building"
    try:
        if (building / "plan.json").exists():
            if _read_json(building / "plan.json") != plan:
                raise UserError(f"{folder} holds an unfinished build of another corpus; delete it or choose another")
        else:
            if folder.exists() and any(folder.iterdir()) and not building.exists():
                raise UserError(f"{folder} is not empty; choose another folder for the shards")
            building.mkdir(parents=True, exist_ok=True)
            write_whole(building / "plan.json", json.dumps(plan).encode())
        for stale in building.glob("*.part"):
            stale.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None


def _done(folder: Path, split: str, shard: int) -> bool:
    return _tar(folder, split, shard).exists() and _sidecar(folder, split, shard).exists()


def _tar(folder: Path, split: str, shard: int) -> Path:
    return folder / f"{split}-{shard:05d}.tar"


def _sidecar(folder: Path, split: str, shard: int) -> Path:
    """Index and broken rows of one shard of a build under way."""
    return folder / "building" / f"{split}-{shard:05d}.json"


def _write_shard(corpus, rows, folder, split, shard, side, quality, advance) -> None:
    part = folder / "building" / f"{split}-{shard:05d}.tar.part"
    index: list[tuple[int, ...]] = []
    broken: list[dict] = []
    try:
        with open(part, "wb") as file:
            for row in rows:
                record = corpus.record(row)
                try:
                    image = corpus.image(row)
                except BrokenImage as error:
                    broken.append(
                        {"split": split, "row": row, "id": record.id, "reason": error.reason, "detail": str(error)}
                    )
                else:
                    jpeg = encode_jpeg(image if side is None else shrink(image, side), quality)
                    index.append((shard, *_add_row(file, row, jpeg, record), record.image_id))
                advance()
            file.write(bytes(2 * _BLOCK))
            file.write(bytes(-file.tell() % tarfile.RECORDSIZE))
            file.flush()
            os.fsync(file.fileno())
        write_whole(_sidecar(folder, split, shard), json.dumps({"index": index, "broken": broken}).encode())
        os.replace(part, _tar(folder, split, shard))
    except OSError as error:
        raise UserError(f"shard {_tar(folder, split, shard)} cannot be written: {error}") from None
    finally:
        part.unlink(missing_ok=True)


def _add_row(file, row: int, jpeg: bytes, record: Record) -> tuple[int, int, int, int]:
    """Writes a row's two files and returns image offset, image size, json offset, json size."""
    content = {"id": record.id, "texts": {k: list(v) for k, v in record.texts.items()}, "image_id": record.image_id}
    try:
        told = json.dumps({**content, "columns": dict(record.columns)}, ensure_ascii=False, default=_plain).encode()
    except (TypeError, ValueError) as error:
        raise UserError(f"row {row} ({record.id}) cannot be written as JSON: {error}") from None
    image_offset = _add_file(file, f"{row:09d}.jpg", jpeg)
    return image_offset, len(jpeg), _add_file(file, f"{row:09d}.json", told), len(told)


def _add_file(file, name: str, data: bytes) -> int:
    """Appends one tar member and returns the offset of its data. Times and owners are zero: equal data, equal tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    file.write(info.tobuf(tarfile.USTAR_FORMAT))
    offset = file.tell()
    file.write(data)
    file.write(bytes(-len(data) % _BLOCK))
    return offset


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, date | time | Decimal):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is no JSON value")


def _finish(corpora: Mapping[str, Corpus], folder: Path, plan: dict) -> dict[str, dict]:
    """Joins the shards' indexes, writes corpus.json last, and clears what is no longer needed."""
    splits = {}
    lost: list[dict] = []
    for split, corpus in corpora.items():
        shards = range(-(-len(corpus) // plan["shard_size"]))
        parts = (_read_json(_sidecar(folder, split, shard)) for shard in shards)
        broken, count = _join(parts, folder, split, len(corpus))
        lost += broken
        splits[split] = {
            "count": count,
            "shards": [_tar(folder, split, shard).stat().st_size for shard in shards],
            "fingerprint": _fingerprint(plan, split),
            "broken": dict(Counter(row["reason"] for row in broken)),
        }
    if lost:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lost)
        write_whole(folder / "broken.jsonl", lines.encode())
    first = next(iter(corpora.values()))
    languages = list(dict.fromkeys(language for corpus in corpora.values() for language in corpus.languages))
    meta = {"name": first.name, "version": VERSION, "languages": languages, "splits": splits, "notice": first.notice}
    meta |= {"truth": getattr(first, "truth", "identity"), "class_names": dict(first.class_names), "plan": plan}
    write_whole(folder / "corpus.json", json.dumps(meta, ensure_ascii=False, indent=1).encode())
    shutil.rmtree(folder / "building", ignore_errors=True)
    return _report(meta)


def _join(parts: Iterator[dict], folder: Path, split: str, rows: int) -> tuple[list[dict], int]:
    """Writes a split's index shard by shard; returns the broken rows and the number of rows written."""
    target = folder / "building" / f"{split}.index.part"
    broken: list[dict] = []
    count = 0
    joined = np.zeros(rows, dtype=INDEX)
    for part in parts:
        broken += part["broken"]
        joined[count : count + len(part["index"])] = [tuple(row) for row in part["index"]]
        count += len(part["index"])
    with open(target, "wb") as file:
        np.save(file, joined[:count])
    os.replace(target, folder / f"{split}.index.npy")
    return broken, count


def _fingerprint(plan: dict, split: str) -> str:
    parts = (plan["version"], plan["sources"][split], plan["side"], plan["quality"])
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _report(meta: dict) -> dict[str, dict]:
    return {split: {"count": s["count"], "broken": s["broken"]} for split, s in meta["splits"].items()}


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file under another name, flushes, renames: it is there whole or not at all."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _bar(shown: bool):
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(elapsed_when_finished=True),
    )
    return progress.Progress(*columns, console=Console(stderr=True), disable=not shown)


class Shards(Corpus):
    """A split of a built folder. Memory does not grow with the rows: index and records are read when asked for.

    Raises:
        UserError: no finished corpus there, no such split, or a shard is missing or of another size.
    """

    def __init__(self, folder: str | os.PathLike, split: str):
        self.folder = Path(folder)
        if not (self.folder / "corpus.json").is_file():
            what = "an unfinished build; run it again" if (self.folder / "building").exists() else "no corpus.json"
            raise UserError(f"{self.folder} holds {what}")
        meta = _read_json(self.folder / "corpus.json")
        if meta.get("version") != VERSION or meta.get("truth") not in TRUTHS:
            raise UserError(f"{self.folder / 'corpus.json'} was written by another version of tuwen; build it again")
        if split not in meta["splits"]:
            raise UserError(f"{self.folder} has no split {split!r}; it has {', '.join(meta['splits'])}")
        found = meta["splits"][split]
        self.name, self.split, self.languages = meta["name"], split, tuple(meta["languages"])
        self.fingerprint, self.notice, self.truth = found["fingerprint"], meta["notice"], meta["truth"]
        self.class_names = meta.get("class_names", {})
        self._count: int = found["count"]
        with os.scandir(self.folder) as files:  # once for all: a large corpus has tens of thousands
            sizes = {file.name: file.stat().st_size for file in files if file.name.endswith(".tar")}
        for shard, size in enumerate(found["shards"]):
            path = _tar(self.folder, split, shard)
            if sizes.get(path.name) != size:
                raise UserError(f"{path} is missing or not of {size:,} bytes; build or copy the corpus again")
        self._files: dict[int, int] = {}
        if len(self._index) != self._count:
            raise UserError(f"{self.folder / f'{split}.index.npy'} has {len(self._index)} rows, not {self._count}")

    def __len__(self) -> int:
        return self._count

    def record(self, row: int) -> Record:
        entry = self._entry(row)
        data = self._read(entry["shard"], entry["json_offset"], entry["json_size"])
        try:
            told = json.loads(data)
        except ValueError:
            raise UserError(f"row {row} of {_tar(self.folder, self.split, entry['shard'])} is damaged") from None
        columns = told["columns"]
        if self.truth == "scenes" and "cls" not in columns:
            from tuwen.data.corpora.scenes import older

            columns = older(columns, self.languages)
        return Record(told["id"], told["texts"], told["image_id"], columns)

    def image(self, row: int) -> Tensor:
        return decode(self.encoded(row))

    def encoded(self, row: int) -> bytes:
        """The row's JPEG as it lies in the shard."""
        entry = self._entry(row)
        return self._read(entry["shard"], entry["image_offset"], entry["image_size"])

    def image_ids(self) -> np.ndarray:
        """[rows] int64, without reading a record."""
        return np.array(self._index["image_id"])

    def shard_starts(self) -> list[int]:
        """The first row of each shard that has any."""
        shards = np.asarray(self._index["shard"])
        return [] if not len(shards) else [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist()]

    def relevance(self, rows: Sequence[int], texts: Sequence[Caption]) -> Relevance:
        if self.truth == "identity":
            return super().relevance(rows, texts)
        from tuwen.data.corpora import scenes

        claims: dict[int, list] = {}
        for text in texts:
            if text.row not in claims:
                claims[text.row] = self.record(text.row).columns["claims"]
        shown = [scenes.Scene.from_json(self.record(row).columns["scene"]) for row in rows]
        return scenes.relevance(shown, [claims[text.row][text.place] for text in texts])

    @cached_property
    def _index(self) -> np.ndarray:
        path = self.folder / f"{self.split}.index.npy"
        try:
            index = np.load(path, mmap_mode="r" if self._count else None)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        if index.dtype != INDEX:
            raise UserError(f"{path} is no index of shards; build the corpus again")
        return index

    def _entry(self, row: int) -> np.void:
        if not 0 <= row < self._count:
            raise IndexError(f"row {row} of {self._count}")
        return self._index[row]

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard by pread, which shares no position between threads and forked processes."""
        shard = int(shard)
        if shard not in self._files and len(self._files) >= _OPEN_FILES:
            with open(_tar(self.folder, self.split, shard), "rb") as file:
                return os.pread(file.fileno(), int(size), int(offset))
        if shard not in self._files:
            self._files[shard] = os.open(_tar(self.folder, self.split, shard), os.O_RDONLY)
        return os.pread(self._files[shard], int(size), int(offset))

    def __getstate__(self) -> dict:
        return {**{k: v for k, v in self.__dict__.items() if k != "_index"}, "_files": {}}

    def __del__(self):
        for file in self.__dict__.get("_files", {}).values():
            os.close(file)


def open_shards(folder: str | os.PathLike, split: str) -> Shards:
    """One split of a built folder.

    Raises:
        UserError: as `Shards`.
    """
    return Shards(folder, split)
