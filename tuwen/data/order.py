"""Which row is seen when: pure arithmetic of (seed, epoch, step)."""

from collections.abc import Sequence

import numpy as np

from tuwen.data import draws
from tuwen.data.corpus import Corpus
from tuwen.errors import UserError

_ROUNDS = 24  # many, so that a handful of rows is as well mixed as millions


class Order:
    """The rows of every step's global batch, a function of (rows, batch size, seed, step) alone.

    Each epoch goes through the rows in another order. It has rows // batch_size whole batches; the rows at
    the end of an epoch's order that fill no batch are left out of that epoch, other rows each epoch.
    No permutation is held in memory, and to resume takes nothing but the step number.

    The permutation is a keyed Feistel network on a x b >= rows cells with cycle walking (Black and Rogaway,
    "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, method 3).
    """

    def __init__(self, rows: int, batch_size: int, seed: int):
        """Raises:
        UserError: fewer rows than a batch holds.
        """
        if batch_size < 1:
            raise UserError(f"a batch of {batch_size} rows is empty; set batch_size to 1 or more")
        if rows < batch_size:
            raise UserError(
                f"{rows} rows do not fill a batch of {batch_size}; "
                f"take {max(rows, 1)} or less (--set train.batch_size={max(rows, 1)})"
            )
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = rows // batch_size

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def batch(self, step: int, plan: np.ndarray | None = None) -> np.ndarray:
        """[batch_size] int64 rows of the global batch of a step (counted from 0 over all epochs).

        plan: [steps_per_epoch * batch_size] integer rows in order (array or tensor), in place of the permutation of
            the step's epoch.

        Raises:
            UserError: the plan is not of an epoch, or names rows the corpus does not have.
        """
        if step < 0:
            raise ValueError(f"steps count from 0, not {step}")
        first = step % self.steps_per_epoch * self.batch_size
        if plan is None:
            return self.permutation(self.epoch(step), np.arange(first, first + self.batch_size))
        return self._planned(plan, first)

    def permutation(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """[n] int64 rows at the given positions (int64 [n] in [0, rows)) of an epoch's order."""
        small = int(np.ceil(np.sqrt(self.rows)))
        large = -(-self.rows // small)
        keys = [np.uint64(draws.key(self.seed, epoch, "order", k) & (2**64 - 1)) for k in range(_ROUNDS)]
        permuted = _feistel(np.asarray(positions, dtype=np.uint64), small, large, keys)
        outside = np.flatnonzero(permuted >= self.rows)
        while outside.size:
            permuted[outside] = _feistel(permuted[outside], small, large, keys)
            outside = outside[permuted[outside] >= self.rows]
        return permuted.astype(np.int64)

    def slice_of(self, rank: int, world: int) -> slice:
        """The part of every global batch that process `rank` of `world` takes.

        Raises:
            UserError: the batch does not divide by the number of processes.
        """
        if self.batch_size % world:
            raise UserError(
                f"a batch of {self.batch_size} does not divide among {world} processes; "
                f"set batch_size to a multiple of {world}"
            )
        share = self.batch_size // world
        return slice(rank * share, (rank + 1) * share)

    def _planned(self, plan: np.ndarray, first: int) -> np.ndarray:
        needed = self.steps_per_epoch * self.batch_size
        if len(plan) != needed:
            raise UserError(f"the plan of an epoch has {len(plan)} rows and must have {needed}")
        rows = np.array(plan[first : first + self.batch_size], dtype=np.int64)
        if rows.min() < 0 or rows.max() >= self.rows:
            raise UserError(f"the plan of an epoch names a row outside 0..{self.rows - 1} near position {first}")
        return rows


class MixedOrder(Order):
    """The rows of several corpora that lie one after the other, each with its share of every epoch.

    An epoch has as many places as there are rows; part k takes `places[k]` of them, as near to its weight as whole
    numbers allow, spread evenly, so that every batch has its share too. Each part is gone through in permutations of
    its own that go on from epoch to epoch, so that none of its rows comes a second time before all have come once (but
    for the places that fill no batch).
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], batch_size: int, seed: int):
        """Raises:
        UserError: as `Order`, or a weight so small that its part gets no place.
        """
        super().__init__(sum(lengths), batch_size, seed)
        self.lengths = np.array(lengths, dtype=np.int64)
        shares = np.array(weights, dtype=np.float64) / sum(weights) * self.rows
        self.places = np.floor(shares).astype(np.int64)
        left = np.argsort(self.places - shares, kind="stable")[: self.rows - int(self.places.sum())]
        self.places[left] += 1
        if self.places.min() < 1:
            raise UserError(f"a weight of {min(weights)} among {weights} gives its corpus no row; make it larger")

    def permutation(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        at = np.asarray(positions, dtype=np.int64)  # among the places that earlier parts leave
        rows, open_ = np.empty_like(at), np.arange(len(at))
        left, start = self.rows, 0
        for k, (places, length) in enumerate(zip(self.places.tolist(), self.lengths.tolist(), strict=True)):
            before = at * places // left  # places of this part that come earlier
            own = (at + 1) * places // left > before
            rows[open_[own]] = start + self._visited(k, epoch * places + before[own])
            at, open_ = (at - before)[~own], open_[~own]
            left, start = left - places, start + length
        return rows

    def _visited(self, part: int, visits: np.ndarray) -> np.ndarray:
        """[n] int64 rows of a part at its first, second, ... place since the start of training."""
        length = int(self.lengths[part])
        order, cycles, rows = (
            Order(length, 1, draws.key(self.seed, "part", part)),
            visits // length,
            np.empty_like(visits),
        )
        for cycle in np.unique(cycles):
            chosen = cycles == cycle
            rows[chosen] = order.permutation(int(cycle), visits[chosen] % length)
        return rows


def order_of(corpus: Corpus, entries: int, batch_size: int, seed: int) -> Order:
    """The order of a corpus, or of a mixture by its weights. entries: how many it runs over (`loader.order_rows`).

    Raises:
        UserError: as `Order`; or a mixture of which every text is to be an entry.
    """
    if corpus.weights is None:
        return Order(entries, batch_size, seed)
    lengths = [len(part) for part in corpus.parts]
    if sum(lengths) != entries:
        raise UserError(f"{corpus.name} mixes corpora by rows; set data.texts to one")
    return MixedOrder(lengths, corpus.weights, batch_size, seed)


def _feistel(x: np.ndarray, small: int, large: int, keys: list[np.uint64]) -> np.ndarray:
    """A bijection of [0, small * large), uint64: rounds add a keyed hash of one half to the other in turn."""
    a, b = np.uint64(small), np.uint64(large)
    left: np.ndarray = x % a
    right: np.ndarray = x // a
    for k in range(0, _ROUNDS, 2):
        left = (left + _hash(right, keys[k]) % a) % a
        right = (right + _hash(left, keys[k + 1]) % b) % b
    return right * a + left


def _hash(x: np.ndarray, key: np.uint64) -> np.ndarray:
    """splitmix64's finaliser of x under a key."""
    x = (x ^ key) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
