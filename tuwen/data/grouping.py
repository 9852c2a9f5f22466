"""Orders in which neighbours are alike (GRIT-VLP, Byun et al., ECCV 2022; sections are the method card's).

Pure functions of vectors, entries and keys; every draw is arithmetic over the key. Entries are int64 throughout.
Shape legend: n entries, D width of the vectors.
"""

import numpy as np

from tuwen.data import draws

Key = tuple[int | str, ...]
SEARCH, QUEUES = 1920, 25  # the code's sub-queue, and how many of them a queue holds (48,000)


def sizes(batch_size: int, search: int | None = None, queue: int | None = None) -> tuple[int, int]:
    """(search space, queue) in entries: those given, or the code's, made whole batches.

    Raises:
        ValueError: not so that whole batches fill a search space and whole search spaces a queue.
    """
    search = -(-SEARCH // batch_size) * batch_size if search is None else search
    queue = QUEUES * search if queue is None else queue
    if search < 1 or search % batch_size or queue < 1 or queue % search:
        raise ValueError(
            f"group_search must be a multiple of batch_size ({batch_size}) and group_queue one of group_search, "
            f"got {search} and {queue}"
        )
    return search, queue


def chain(scores: np.ndarray, start: int) -> np.ndarray:
    """[n] int64 places, each once, from the start on: picture -> its nearest text -> that text's nearest picture -> ...

    Section 4.1, step 4: each hop goes to the most similar place that is unused; of equals to the first.
    scores: [n, n] float, rows pictures, columns texts. Used places are masked by -inf, not by zeros in a softmax,
    which underflow makes equal to unused ones (section 10); rows of a softmax rank as its logits do.
    """
    by_picture = np.nan_to_num(scores.astype(np.float32), nan=-1e30, neginf=-1e30)
    by_text = np.ascontiguousarray(by_picture.T)
    free = np.ones(len(scores), dtype=bool)
    order = np.empty(len(scores), dtype=np.int64)
    place = start
    for step in range(len(scores)):
        order[step], free[place] = place, False
        if step + 1 < len(scores):
            row = (by_text if step % 2 else by_picture)[place]
            place = int(np.where(free, row, -np.inf).argmax())
    return order


def grouped(images: np.ndarray, texts: np.ndarray, entries: np.ndarray, search: int, key: Key) -> np.ndarray:
    """[n] int64: the entries of a queue, shuffled, cut into search spaces, each chained from a start drawn in it.

    Section 4.1, steps 2 and 3, with the last search space as long as what is left. images, texts: [n, D] float32.
    """
    shuffled = draws.generator(*key, "examples").permutation(len(entries))
    parts = []
    for number, begin in enumerate(range(0, len(entries), search)):
        own = shuffled[begin : begin + search]
        start = int(draws.generator(*key, "start", number).integers(len(own)))
        parts.append(entries[own][chain(images[own] @ texts[own].T, start)])
    return np.concatenate(parts) if parts else entries[:0]


def with_blocks_shuffled(order: np.ndarray, size: int, key: Key) -> np.ndarray:
    """Consecutive blocks of `size` entries in another order, each as it was (section 4.1, step 5)."""
    blocks = order.reshape(-1, size)
    return blocks[draws.generator(*key, "blocks").permutation(len(blocks))].reshape(-1)


def with_left_out(order: np.ndarray, count: int, key: Key) -> np.ndarray:
    """The order with every entry of 0..count-1 that is not in it, in the places of as many, which leave it."""
    absent = np.setdiff1d(np.arange(count, dtype=np.int64), order)
    generator = draws.generator(*key, "left out")
    joined = order.copy()
    joined[generator.choice(len(order), len(absent), replace=False)] = generator.permutation(absent)
    return joined
