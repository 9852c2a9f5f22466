"""What a locked tower gave, kept on disk: computed once, for every epoch, seed and system that asks again.

A store is a folder of two files that only grow: values.bin (float32, entry after entry) and index.bin (an entry:
key int64, offset int64 in rows, rows int64). An entry is listed after its values are on the disk, so that a killed
process loses what it was writing and nothing else; a second process that writes at once is refused its turn and reads.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_ENTRY = 3 * 8  # bytes


class FeatureStore:
    """[n, width] float32 by int64 key, in a folder."""

    def __init__(self, folder: str | Path, width: int):
        self.folder, self.width = Path(folder), width
        self.folder.mkdir(parents=True, exist_ok=True)
        self._values, self._index = self.folder / "values.bin", self.folder / "index.bin"
        for path in (self._values, self._index):
            path.touch()
        self.places: dict[int, tuple[int, int]] = {}
        self._map: np.ndarray | None = None
        self._lock = (self.folder / "lock").open("w")
        self.writes = _locks(self._lock)
        self._read_index()

    def __contains__(self, key: int) -> bool:
        return key in self.places

    def __len__(self) -> int:
        return len(self.places)

    def read(self, key: int) -> np.ndarray:
        """[n, width] of a key that is held; a view into the file."""
        begin, rows = self.places[key]
        if self._map is None or begin + rows > len(self._map):
            flat = np.memmap(self._values, np.float32, "r")
            self._map = flat[: len(flat) // self.width * self.width].reshape(-1, self.width)
        return self._map[begin : begin + rows]

    def write(self, keys: Sequence[int], values: Sequence[np.ndarray]) -> None:
        """Adds entries; those held already stay as they are, and a store of another process's takes none."""
        fresh = [(key, value) for key, value in zip(keys, values, strict=True) if key not in self.places]
        if not self.writes or not fresh:
            return
        row_bytes = 4 * self.width
        with self._values.open("r+b") as file:
            begin = file.seek(0, os.SEEK_END) // row_bytes
            file.seek(begin * row_bytes)  # over what a killed process left half written
            entries = []
            for key, value in dict(fresh).items():
                file.write(np.ascontiguousarray(value, dtype=np.float32).tobytes())
                entries.append((key, begin, len(value)))
                begin += len(value)
            file.flush()
            os.fsync(file.fileno())
        with self._index.open("r+b") as file:
            file.seek(file.seek(0, os.SEEK_END) // _ENTRY * _ENTRY)
            file.write(np.array(entries, dtype=np.int64).tobytes())
        self.places |= {key: (first, rows) for key, first, rows in entries}

    def _read_index(self) -> None:
        data = self._index.read_bytes()
        entries = np.frombuffer(data[: len(data) // _ENTRY * _ENTRY], dtype=np.int64).reshape(-1, 3)
        stored = self._values.stat().st_size // (4 * self.width)
        self.places = {int(k): (int(b), int(n)) for k, b, n in entries if b + n <= stored}


class TextFeatures:
    """States of whole texts by a locked text tower; the same ids are computed once."""

    def __init__(self, store: FeatureStore, mask_id: int):
        """mask_id: texts with this id in them are masked at random and would never come again: they are not kept."""
        self.store, self.mask_id = store, mask_id

    def states(self, ids: Tensor, mask: Tensor, run: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """[B, L, W] of ids [B, L] and mask [B, L]; zero at padding."""
        keys = [key_of(row[real].tobytes()) for row, real in zip(ids.cpu().numpy(), mask.cpu().numpy(), strict=True)]
        lengths = mask.sum(1).tolist()
        new = [n for n, key in enumerate(keys) if key not in self.store]
        computed: dict[int, np.ndarray] = {}
        if new:
            rows = torch.tensor(new, device=ids.device)
            states = run(ids[rows], mask[rows]).float().cpu().numpy()
            computed = {n: states[k][mask[n].cpu().numpy()] for k, n in enumerate(new)}
            masked = (ids == self.mask_id).any(1).tolist()
            lasting = [n for n in new if not masked[n]]
            self.store.write([keys[n] for n in lasting], [computed[n] for n in lasting])
        out = torch.zeros(*ids.shape, self.store.width)
        places = mask.cpu()
        for n, key in enumerate(keys):
            values = computed[n] if n in computed else self.store.read(key)
            assert len(values) == lengths[n]
            out[n, places[n]] = torch.from_numpy(np.array(values))
        return out.to(ids.device)

    def __deepcopy__(self, memo) -> "TextFeatures":
        return self  # a teacher's copy of a locked tower reads the same store


def key_of(data: bytes) -> int:
    """int64 of some bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def _locks(file) -> bool:
    """Whether this process is the one that writes; the lock goes with the process."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
