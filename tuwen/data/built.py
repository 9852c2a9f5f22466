"""A built folder read: rows by their offsets in the shards, and whether they are still what was built.

A changed copy is found: by the sizes of shards and the hash of the index on opening, by a row's own sums when it is
read, and by the hash of every shard where `Shards.changed` is asked, as `tuwen data check` does. Copies built before
there were sums and hashes are read without.
"""

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tuwen.data.corpora.faults import one_line
from tuwen.data.corpus import BrokenImage, Caption, Corpus, Record, Relevance
from tuwen.data.images import decode
from tuwen.data.shards import INDEX, OLD_INDEX, TRUTHS, VERSION, hash_of, read_shard_json, tar_of
from tuwen.errors import UserError, quoted, refused

_OPEN_FILES = 200  # shards a reader keeps open; further ones are opened for each read


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
        meta = read_shard_json(self.folder / "corpus.json")
        if meta.get("version") != VERSION or meta.get("truth") not in TRUTHS:
            raise UserError(f"{self.folder / 'corpus.json'} was written by another version of tuwen; build it again")
        own = _split_of(meta, split, self.folder)
        self.name, self.split, self.languages = meta["name"], split, tuple(meta["languages"])
        self.fingerprint, self.notice, self.truth = own["fingerprint"], meta["notice"], meta["truth"]
        self.class_names, self.private = meta.get("class_names", {}), meta.get("private") is True
        self._count: int = own["count"]
        self._sizes, self._hashes, self._index_hash = own["shards"], own.get("hashes"), own.get("index")
        with os.scandir(self.folder) as files:  # once for all: a large corpus has tens of thousands
            sizes = {file.name: file.stat().st_size for file in files if file.name.endswith(".tar")}
        for shard, size in enumerate(self._sizes):
            path = tar_of(self.folder, split, shard)
            if sizes.get(path.name) != size:
                raise UserError(f"{path} is missing or not of {size:,} bytes; build or copy the corpus again")
        self._files: dict[int, int] = {}
        self._check_index()

    def __len__(self) -> int:
        return self._count

    def record(self, row: int) -> Record:
        entry = self._entry(row)
        data = self._read(entry["shard"], entry["json_offset"], entry["json_size"])
        if "json_sum" in (entry.dtype.names or ()) and zlib.crc32(data) != entry["json_sum"]:
            raise self._damaged(row, "its text is not what was built")
        try:
            content = json.loads(data)
            texts, columns = content["texts"], content["columns"]
            if b"\\ud" in data:  # half a character, which no text can hold
                json.dumps(content, ensure_ascii=False).encode()
            several = [text for own in texts.values() for text in (own if isinstance(own, list) else [None])]
            fits = isinstance(content["id"], str) and isinstance(content["image_id"], int) and isinstance(columns, dict)
            if not fits or not all(isinstance(text, str) for text in several):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._damaged(row, "its JSON is no row's") from None
        if self.truth == "scenes" and "cls" not in columns:
            from tuwen.data.corpora.scenes import older

            with refused(f"row {row} of {self.folder}: no scene's columns", "build the corpus again"):
                columns = older(columns, self.languages)
        return Record(content["id"], texts, content["image_id"], columns, self.private)

    def _damaged(self, row: int, what: str) -> UserError:
        shard = tar_of(self.folder, self.split, self._index[row]["shard"])
        return UserError(f"row {row} of {shard} is damaged: {what}; build or copy the corpus again")

    def changed(self) -> Iterator[str]:
        for shard, own in enumerate(self._hashes or ()):
            path = tar_of(self.folder, self.split, shard)
            if hash_of(path) != own:
                yield f"{path}: changed since it was built; build or copy the corpus again"

    def image(self, row: int) -> Tensor:
        return decode(self.encoded(row))

    def encoded(self, row: int) -> bytes:
        entry = self._entry(row)
        data = self._read(entry["shard"], entry["image_offset"], entry["image_size"])
        if "image_sum" in (entry.dtype.names or ()) and zlib.crc32(data) != entry["image_sum"]:
            raise BrokenImage("damaged", "its bytes are not those that were built")
        return data

    def image_ids(self) -> np.ndarray:
        return np.array(self._index["image_id"])

    def shard_starts(self) -> list[int]:
        """The first row of each shard that has any."""
        shards = np.asarray(self._index["shard"])
        return [] if not len(shards) else [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist()]

    def relevance(self, rows: Sequence[int], texts: Sequence[Caption]) -> Relevance:
        if self.truth == "identity":
            return super().relevance(rows, texts)
        from tuwen.data.corpora import scenes

        with refused(f"{self.folder}: no scenes' columns", "build the corpus again"):
            claims: dict[int, list] = {}
            for text in texts:
                if text.row not in claims:
                    claims[text.row] = self.record(text.row).columns["claims"]
            shown = [scenes.Scene.from_json(self.record(row).columns["scene"]) for row in rows]
            return scenes.relevance(shown, [claims[text.row][text.place] for text in texts])

    @cached_property
    def _index(self) -> np.ndarray:
        path = self.folder / f"{self.split}.index.npy"
        with refused(f"{path}: no index of shards", "build or copy the corpus again"):
            index = np.load(path, mmap_mode="r" if self._count else None)
        if index.dtype not in (INDEX, OLD_INDEX) or index.ndim != 1:
            raise UserError(f"{path} is no index of shards; build the corpus again")
        return index

    def _check_index(self) -> None:
        """Whether the index is the one that was built, and leads to places in the shards."""
        path = self.folder / f"{self.split}.index.npy"
        with refused(f"{path} cannot be read", "build or copy the corpus again", (OSError,)):
            changed = self._index_hash is not None and hash_of(path) != self._index_hash
        if changed:
            raise UserError(f"{path}: changed since it was built; build or copy the corpus again")
        if len(self._index) != self._count:
            raise UserError(f"{path} has {len(self._index)} rows, not {self._count}")
        fits = np.ones(self._count, dtype=bool)
        shards = np.asarray(self._index["shard"])
        fits &= (shards >= 0) & (shards < len(self._sizes))
        ends = np.array([*self._sizes, 0], dtype=np.int64)[np.where(fits, shards, -1)]
        for kind in ("image", "json"):
            offsets, sizes = (np.asarray(self._index[f"{kind}_{what}"]) for what in ("offset", "size"))
            fits &= (offsets >= 0) & (sizes >= 0) & (offsets <= ends) & (sizes <= ends - offsets)
        if not fits.all():
            raise UserError(f"{path}: row {int(fits.argmin())} lies outside its shard; build or copy the corpus again")

    def _entry(self, row: int) -> np.void:
        if not 0 <= row < self._count:
            raise IndexError(f"row {row} of {self._count}")
        return self._index[row]

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard by pread, which shares no position between threads and forked processes."""
        shard = int(shard)
        if shard not in self._files and len(self._files) >= _OPEN_FILES:
            with open(tar_of(self.folder, self.split, shard), "rb") as file:
                return os.pread(file.fileno(), int(size), int(offset))
        if shard not in self._files:
            self._files[shard] = os.open(tar_of(self.folder, self.split, shard), os.O_RDONLY)
        return os.pread(self._files[shard], int(size), int(offset))

    def __getstate__(self) -> dict:
        return {**{k: v for k, v in self.__dict__.items() if k != "_index"}, "_files": {}}

    def __del__(self, close=os.close):  # as the process ends, `os` may be gone already
        for file in self.__dict__.get("_files", {}).values():
            close(file)


def _split_of(meta: dict, split: str, folder: Path) -> dict:
    """What corpus.json says of a split, once it is sure to be of the form that is written."""
    path = folder / "corpus.json"
    splits, languages, classes = meta.get("splits"), meta.get("languages"), meta.get("class_names", {})
    if isinstance(splits, dict) and split not in splits:
        raise UserError(f"{folder} has no split {quoted(split)}; it has {one_line(', '.join(splits))}")
    own = splits.get(split) if isinstance(splits, dict) else None
    texts = [meta.get("name"), meta.get("notice"), *_listed(languages)]
    if isinstance(own, dict) and isinstance(classes, dict):
        sizes, hashes = _listed(own.get("shards")), _listed(own.get("hashes", []))
        texts += [own.get("fingerprint"), own.get("index", ""), *hashes]
        texts += [name for names in classes.values() for name in _listed(names)]
        numbers = [own.get("count"), *sizes]
        whole = all(isinstance(text, str) for text in texts) and all(type(n) is int and n >= 0 for n in numbers)
        if whole and len(hashes) in (0, len(sizes)):
            return own
    raise UserError(f"{path}: damaged; build the corpus again")


def _listed(value: Any) -> list:
    """The list, or one of what is no value of any kind."""
    return value if isinstance(value, list) else [None]


def open_shards(folder: str | os.PathLike, split: str) -> Shards:
    """One split of a built folder.

    Raises:
        UserError: as `Shards`.
    """
    return Shards(folder, split)
