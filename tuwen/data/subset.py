"""Part of a corpus, or several corpora as one: what is seen changes, the pictures and texts stay where they are."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from tuwen.data import draws
from tuwen.data.corpus import Caption, Corpus, Record, Relevance, languages_and_texts
from tuwen.errors import UserError, quoted


class Wrapped(Corpus):
    """Rows of other corpora: whatever a `Corpus` may have is asked of the corpus a row comes from, or of all together.

    A subclass gives `fingerprint`, `__len__` and `_origin`, and changes what it means to change.
    """

    def __init__(self, wrapped: Sequence[Corpus]):
        """Raises:
        UserError: corpora whose rows have not as many frames and pictures.
        """
        self.wrapped = tuple(wrapped)
        shapes = {(corpus.frames, corpus.pictures) for corpus in wrapped}
        if len(shapes) > 1:
            several = ", ".join(f"{corpus.name} {corpus.frames} and {corpus.pictures}" for corpus in wrapped)
            raise UserError(f"the parts of a mixture must have as many frames and pictures a row; they have {several}")
        ((self.frames, self.pictures),) = shapes
        self.name, self.split = "+".join(corpus.name for corpus in wrapped), wrapped[0].split
        self.languages = tuple(dict.fromkeys(language for corpus in wrapped for language in corpus.languages))
        self.notice = _joined(corpus.notice for corpus in wrapped)
        self.queries = wrapped[0].queries if len(wrapped) == 1 else ()
        self.split_rule = _joined(corpus.split_rule for corpus in wrapped)
        self.on_bad = wrapped[0].on_bad
        self.private = any(corpus.private for corpus in wrapped)
        self.skipped = sum((Counter(corpus.skipped) for corpus in wrapped), Counter())
        self.faults = tuple(fault for corpus in wrapped for fault in corpus.faults)
        # numbers of classes mean what they meant only where all have the same
        alike = all(corpus.class_names == wrapped[0].class_names for corpus in wrapped)
        self.class_names = dict(wrapped[0].class_names) if alike else {}
        files = {corpus.zero_shot for corpus in wrapped}
        self.zero_shot = files.pop() if len(files) == 1 else None

    def _origin(self, row: int) -> tuple[Corpus, int]:
        """The corpus a row comes from, and its row there.

        Raises:
            IndexError: no such row.
        """
        raise NotImplementedError

    def record(self, row: int) -> Record:
        corpus, inner = self._origin(row)
        return corpus.record(inner)

    def image(self, row: int) -> Tensor:
        corpus, inner = self._origin(row)
        return corpus.image(inner)

    def clip(self, row: int) -> Tensor:
        corpus, inner = self._origin(row)
        return corpus.clip(inner)

    def shown(self, row: int) -> Sequence[Tensor]:
        corpus, inner = self._origin(row)
        return corpus.shown(inner)

    def encoded(self, row: int) -> bytes | None:
        corpus, inner = self._origin(row)
        return corpus.encoded(inner)

    def where(self, row: int) -> tuple[Path, int] | None:
        corpus, inner = self._origin(row)
        return corpus.where(inner)

    def path(self, row: int) -> str:
        corpus, inner = self._origin(row)
        return corpus.path(inner)

    def changed(self) -> Iterator[str]:
        for corpus in self.wrapped:
            yield from corpus.changed()


def _joined(notices: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, notices)))


class Subset(Wrapped):
    """Some rows of a corpus, in the given order, perhaps without some of their texts.

    base: the corpus. rows: [R] int64 of it. dropped: base row -> texts of it that are left out. rewrite: what becomes
        of every text that stays, and `rewriting` its name, which the fingerprint follows.
    """

    def __init__(
        self,
        base: Corpus,
        rows: Sequence[int] | np.ndarray,
        dropped: Mapping[int, set[str]] | None = None,
        rewrite: Callable[[str], str] | None = None,
        rewriting: str = "",
    ):
        super().__init__([base])
        self.base, self.rows = base, np.asarray(rows, dtype=np.int64)
        self._dropped, self._rewrite = dict(dropped or {}), rewrite
        self.truth = base.truth
        digest = hashlib.blake2b(base.fingerprint.encode(), digest_size=16)
        digest.update(self.rows.tobytes())
        digest.update(repr((sorted((row, sorted(texts)) for row, texts in self._dropped.items()), rewriting)).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, row: int) -> Record:
        record = super().record(row)
        gone = self._dropped.get(int(self.rows[row]), set())
        if not gone and self._rewrite is None:
            return record
        staying = [text not in gone for _, text in languages_and_texts(record)]
        texts = {
            language: [self._rewrite(text) if self._rewrite else text for text in several if text not in gone]
            for language, several in record.texts.items()
        }
        columns = dict(record.columns)
        for name in ("claims", "clicks"):  # one a text
            if len(columns.get(name, ())) == len(staying):
                columns[name] = [value for value, stays in zip(columns[name], staying, strict=True) if stays]
        return replace(record, texts=texts, columns=columns)

    def image_ids(self) -> np.ndarray:
        return self.base.image_ids()[self.rows]

    def relevance(self, rows: Sequence[int], texts: Sequence[Caption]) -> Relevance:
        if self._dropped or self._rewrite is not None:
            return super().relevance(rows, texts)
        moved = [replace(text, row=self._origin(text.row)[1]) for text in texts]
        return self.base.relevance([self._origin(row)[1] for row in rows], moved)

    def _origin(self, row: int) -> tuple[Corpus, int]:
        if not 0 <= row < len(self.rows):
            raise IndexError(f"row {row} of {len(self.rows)}")
        return self.base, int(self.rows[row])


class Marked(Subset):
    """Some rows of a corpus, each with one column of numbers in place of its own columns.

    name: of the column. values: what it holds, one a row.
    """

    def __init__(self, base: Corpus, rows: Sequence[int] | np.ndarray, name: str, values: Sequence[np.ndarray | int]):
        super().__init__(base, rows)
        self._name, self._values = name, list(values)
        digest = hashlib.blake2b(f"{self.fingerprint}\x1f{name}".encode(), digest_size=16)
        for value in self._values:
            digest.update(np.asarray(value).tobytes())
        self.fingerprint = digest.hexdigest()

    def record(self, row: int) -> Record:
        return replace(super().record(row), columns={self._name: self._values[row]})


def fraction(corpus: Corpus, share: float, seed: int = 0) -> Subset:
    """That share of the rows, in their order, drawn by (seed, picture): all rows of a picture stay together.

    A smaller share is part of a larger one.

    Raises:
        UserError: not a share, or no row is left.
    """
    if not 0 < share <= 1:
        raise UserError(f"a fraction of {share} is none; give one above 0 and up to 1")
    import torch

    ids = torch.from_numpy(corpus.image_ids())
    chosen = draws.uniform(ids, 1, seed, "fraction")[:, 0].numpy() < share
    if not chosen.any():
        raise UserError(f"no row of {corpus.name}, split {corpus.split}, is left at a fraction of {share}")
    return Subset(corpus, np.flatnonzero(chosen))


def by_ids(corpora: Mapping[str, Corpus], ids: Iterable[str]) -> dict[str, Corpus]:
    """The rows of these ids, in the corpora's order, by split; splits without any are left out.

    Raises:
        UserError: an id that no row has.
    """
    asked = set(ids)
    if not asked:
        raise UserError(f"{', '.join(corpora)}: no ids are wanted; list some, one a line")
    known: set[str] = set()
    chosen: dict[str, Corpus] = {}
    for split, corpus in corpora.items():
        names = {row: corpus.record(row).id for row in range(len(corpus))}
        rows = [row for row, name in names.items() if name in asked]
        known |= {names[row] for row in rows}
        if rows:
            chosen[split] = Subset(corpus, rows)
    if asked - known:
        what = f"{len(asked - known)} of {len(asked)} ids are of no row, e.g. {quoted(min(asked - known), 80)}"
        raise UserError(f"{', '.join(corpora)}: {what}")
    return chosen


class MixedCorpus(Wrapped):
    """The rows of several corpora one after the other, and the share of each that training sees (`order.MixedOrder`).

    parts: splits of one name. weights: positive; a part's share of every epoch. Which row is seen when is arithmetic
    of (seed, step): each part is gone through in an order of its own, whole before any row comes again.
    """

    def __init__(self, parts: Sequence[Corpus], weights: Sequence[float]):
        """Raises:
        UserError: no part, a weight that is no positive number, or an empty part.
        """
        if not parts or len(parts) != len(weights):
            raise UserError(f"a mixture of {len(parts)} corpora with {len(weights)} weights; give each corpus one")
        wrong = [weight for weight in weights if not 0 < weight < np.inf]
        if wrong:
            raise UserError(f"weight {wrong[0]}; weights are positive numbers, leave a corpus out instead")
        empty = [part.name for part in parts if not len(part)]
        if empty:
            raise UserError(f"{empty[0]}, split {parts[0].split}: no rows to mix")
        super().__init__(parts)
        self.parts, self.weights = self.wrapped, tuple(weights)
        self.start = np.cumsum([0, *map(len, parts)])
        identity = repr([(part.fingerprint, weight) for part, weight in zip(parts, weights, strict=True)])
        self.fingerprint = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return int(self.start[-1])

    def record(self, row: int) -> Record:
        record = super().record(row)
        return replace(record, id=f"{self._origin(row)[0].name}/{record.id}")

    def image_ids(self) -> np.ndarray:
        return np.concatenate([part.image_ids() for part in self.parts])

    def _origin(self, row: int) -> tuple[Corpus, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        number = int(np.searchsorted(self.start, row, side="right")) - 1
        return self.parts[number], row - int(self.start[number])
