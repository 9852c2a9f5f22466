"""Random draws as arithmetic: a pure function of (seed, epoch, row, purpose), on any device.

No generator has a state to save, so a resumed run, another number of processes or another order of
workers draws the same numbers for the same row.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # the constants of splitmix64, as signed 64-bit integers
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


def key(*parts: int | str) -> int:
    """A signed 64-bit key of any integers and strings, the same on every machine."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def generator(*parts: int | str) -> np.random.Generator:
    """A numpy generator seeded by the parts, for draws made one row at a time (crops, which text)."""
    return np.random.Generator(np.random.PCG64(key(*parts) & (2**64 - 1)))


def sample(count: int, most: int | None, *parts: int | str) -> np.ndarray:
    """[min(count, most)] int64 positions below `count`, rising, drawn without replacement; None: all.

    Drawn, as steps of one length through rows that alternate (languages, kinds) would meet one kind alone.
    """
    if most is None or most >= count:
        return np.arange(count)
    return np.sort(generator(*parts).permutation(count)[:most])


def mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64: a bijection whose output bits look independent of the input's."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def uniform(rows: Tensor, count: int, *parts: int | str) -> Tensor:
    """[R, count] float64 in [0, 1): `count` draws for each row key (int64 [R]), named by the parts.

    A row's draws depend on nothing but its key and the parts, not on the rows beside it.
    """
    counter = torch.arange(count, device=rows.device, dtype=torch.int64)
    bits = mix(mix(rows ^ key(*parts))[:, None] + counter * _GOLDEN)
    return _shift(bits, 11).double() * 2.0**-53


def _shift(x: Tensor, by: int) -> Tensor:
    """Logical right shift of int64 (torch's own keeps the sign)."""
    return (x >> by) & ((1 << (64 - by)) - 1)
