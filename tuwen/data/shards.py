"""Corpora as tar shards in WebDataset layout, with an index of offsets for random access.

A built folder holds
    corpus.json         name, languages, splits, notice, truth rule; written last: a folder without it is unfinished
    train-00000.tar     000000000.jpg, 000000000.json, 000000001.jpg, ...: plain tar, two files a row, side by side
    train.index.npy     where each row's files lie and their sums (INDEX), memory-mapped by the reader
    broken.jsonl        rows left out because their picture was broken, where there were any
    building/           what is under way; gone once finished

`tuwen.data.built` reads it.
"""

import hashlib
import json
import os
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tuwen.data.corpus import BrokenImage, Corpus, Record
from tuwen.data.images import encode_jpeg, shrink
from tuwen.data.private import hides, own_only
from tuwen.errors import UserError, reason_of, refused

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
        ("image_sum", "<u4"),  # CRC-32 of the bytes
        ("json_sum", "<u4"),
    ]
)
OLD_INDEX = np.dtype([field for field in INDEX.descr if not field[0].endswith("_sum")])
_BLOCK = 512  # of tar


def write_shards(
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
        if corpus.pictures > 1:
            what = f"rows have {corpus.pictures} pictures, and shards hold one a row; read it where it is"
            raise UserError(f"corpus {corpus.name}: {what}")
    folder = Path(out)
    plan = _plan(corpora, side, quality, shard_size)
    if (folder / "corpus.json").exists():
        written = read_shard_json(folder / "corpus.json")
        if written.get("plan") != plan:
            raise UserError(f"{folder} holds a corpus built otherwise; choose another folder or delete it")
        return _report(written)
    _start(folder, plan)
    with _bar(progress) as bar:
        for split, corpus in corpora.items():
            task = bar.add_task(split, total=len(corpus))
            for shard, start in enumerate(range(0, len(corpus), shard_size)):
                rows = range(start, min(start + shard_size, len(corpus)))
                if not _done(folder, split, shard):
                    _write_shard(corpus, rows, folder, split, shard, side, quality, lambda: bar.advance(task))  # noqa: B023
                bar.update(task, completed=rows.stop)
    if any(corpus.private for corpus in corpora.values()):
        own_only(folder)
    with refused(f"{folder}: the corpus cannot be finished", "make room and run it again", (OSError,)):
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
            if read_shard_json(building / "plan.json") != plan:
                raise UserError(f"{folder} holds an unfinished build of another corpus; delete it or choose another")
        else:
            if folder.exists() and any(folder.iterdir()) and not building.exists():
                raise UserError(f"{folder} is not empty; choose another folder for the shards")
            building.mkdir(parents=True, exist_ok=True)
            write_whole(building / "plan.json", json.dumps(plan).encode())
        for stale in building.glob("*.part"):
            stale.unlink()
    except OSError as error:
        what = f"cannot write to {folder}: {reason_of(error)}"
        raise UserError(f"{what}; make room, or choose another folder, and run it again") from None


def _done(folder: Path, split: str, shard: int) -> bool:
    there = tar_of(folder, split, shard).exists() and _sidecar(folder, split, shard).exists()
    return there and "hash" in read_shard_json(_sidecar(folder, split, shard))  # not of a version without sums


def tar_of(folder: Path, split: str, shard: int) -> Path:
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
                    name = "" if hides(corpus.private) else record.id
                    broken.append(
                        {"split": split, "row": row, "id": name, "reason": error.reason, "detail": str(error)}
                    )
                else:
                    jpeg = encode_jpeg(image if side is None else shrink(image, side), quality)
                    index.append((shard, *_add_row(file, row, jpeg, record)))
                advance()
            file.write(bytes(2 * _BLOCK))
            file.write(bytes(-file.tell() % tarfile.RECORDSIZE))
            file.flush()
            os.fsync(file.fileno())
        finished = {"index": index, "broken": broken, "hash": hash_of(part)}
        write_whole(_sidecar(folder, split, shard), json.dumps(finished).encode())
        os.replace(part, tar_of(folder, split, shard))
    except OSError as error:
        what = f"shard {tar_of(folder, split, shard)} cannot be written: {reason_of(error)}"
        raise UserError(f"{what}; make room, or choose another folder, and run it again") from None
    finally:
        part.unlink(missing_ok=True)


def _add_row(file, row: int, jpeg: bytes, record: Record) -> tuple[int, ...]:
    """Writes a row's two files and returns what INDEX holds of it after the shard."""
    content = {"id": record.id, "texts": {k: list(v) for k, v in record.texts.items()}, "image_id": record.image_id}
    try:
        encoded = json.dumps({**content, "columns": dict(record.columns)}, ensure_ascii=False, default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        what = f"row {row} ({record.called}) cannot be written as JSON: {reason_of(error)}"
        raise UserError(f"{what}; mend or drop the column") from None
    image_offset = _add_file(file, f"{row:09d}.jpg", jpeg)
    json_offset = _add_file(file, f"{row:09d}.json", encoded)
    places = (image_offset, len(jpeg), json_offset, len(encoded))
    return *places, record.image_id, zlib.crc32(jpeg), zlib.crc32(encoded)


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
    if isinstance(value, Decimal):
        return float(value)  # as a table's own is in an index: numbers stay numbers
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is no JSON value")


def _finish(corpora: Mapping[str, Corpus], folder: Path, plan: dict) -> dict[str, dict]:
    """Joins the shards' indexes, writes corpus.json last, and clears what is no longer needed."""
    splits = {}
    lost: list[dict] = []
    for split, corpus in corpora.items():
        shards = range(-(-len(corpus) // plan["shard_size"]))
        parts = [read_shard_json(_sidecar(folder, split, shard)) for shard in shards]
        broken, count = _join(parts, folder, split, len(corpus))
        lost += broken
        splits[split] = {
            "count": count,
            "shards": [tar_of(folder, split, shard).stat().st_size for shard in shards],
            "hashes": [part["hash"] for part in parts],
            "index": hash_of(folder / f"{split}.index.npy"),
            "fingerprint": _fingerprint(plan, split),
            "broken": dict(Counter(row["reason"] for row in broken)),
        }
    if lost:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lost)
        write_whole(folder / "broken.jsonl", lines.encode())
    first = next(iter(corpora.values()))
    languages = list(dict.fromkeys(language for corpus in corpora.values() for language in corpus.languages))
    meta = {"name": first.name, "version": VERSION, "languages": languages, "splits": splits, "notice": first.notice}
    meta |= {"private": True} if any(corpus.private for corpus in corpora.values()) else {}
    meta |= {"truth": first.truth, "class_names": dict(first.class_names), "plan": plan}
    write_whole(folder / "corpus.json", json.dumps(meta, ensure_ascii=False, indent=1).encode())
    shutil.rmtree(folder / "building", ignore_errors=True)
    return _report(meta)


def hash_of(path: Path) -> str:
    """Of a file's bytes; 32 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _join(parts: Sequence[dict], folder: Path, split: str, rows: int) -> tuple[list[dict], int]:
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
        file.flush()
        os.fsync(file.fileno())
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


def read_shard_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {reason_of(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged; build the corpus again")
    return content


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
