"""Part of a corpus, or several corpora as one: what is seen changes, the pictures and texts stay where they are."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from tuwen.data import draws
from tuwen.data.corpus import Caption, Corpus, Record, Relevance, languages_and_texts
from tuwen.errors import UserError


class Subset(Corpus):
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
        self.base, self.rows = base, np.asarray(rows, dtype=np.int64)
        self._dropped, self._rewrite = dict(dropped or {}), rewrite
        self.name, self.split, self.languages, self.notice = base.name, base.split, base.languages, base.notice
        self.frames, self.pictures, self.class_names = base.frames, base.pictures, dict(base.class_names)
        if getattr(base, "truth", None):
            self.truth = base.truth  # type: ignore[attr-defined]
        told = hashlib.blake2b(base.fingerprint.encode(), digest_size=16)
        told.update(self.rows.tobytes())
        told.update(repr((sorted((row, sorted(texts)) for row, texts in self._dropped.items()), rewriting)).encode())
        self.fingerprint = told.hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, row: int) -> Record:
        base = self._base(row)
        record = self.base.record(base)
        gone = self._dropped.get(base, set())
        if not gone and self._rewrite is None:
            return record
        kept = [text not in gone for _, text in languages_and_texts(record)]
        texts = {
            language: [self._rewrite(text) if self._rewrite else text for text in several if text not in gone]
            for language, several in record.texts.items()
        }
        columns = dict(record.columns)
        for name in ("claims", "clicks"):  # one a text
            if len(columns.get(name, ())) == len(kept):
                columns[name] = [value for value, stays in zip(columns[name], kept, strict=True) if stays]
        return replace(record, texts=texts, columns=columns)

    def image(self, row: int) -> Tensor:
        return self.base.image(self._base(row))

    def clip(self, row: int) -> Tensor:
        return self.base.clip(self._base(row))

    def shown(self, row: int) -> Sequence[Tensor]:
        return self.base.shown(self._base(row))

    def relevance(self, rows: Sequence[int], texts: Sequence[Caption]) -> Relevance:
        if self._dropped or self._rewrite is not None:
            return super().relevance(rows, texts)
        moved = [replace(text, row=self._base(text.row)) for text in texts]
        return self.base.relevance([self._base(row) for row in rows], moved)

    def _base(self, row: int) -> int:
        if not 0 <= row < len(self.rows):
            raise IndexError(f"row {row} of {len(self.rows)}")
        return int(self.rows[row])


def fraction(corpus: Corpus, share: float, seed: int = 0) -> Subset:
    """That share of the rows, in their order, drawn by (seed, picture): all rows of a picture stay together.

    A smaller share is part of a larger one.

    Raises:
        UserError: not a share, or no row is left.
    """
    if not 0 < share <= 1:
        raise UserError(f"a fraction of {share} is none; give one above 0 and up to 1")
    import torch

    ids = torch.from_numpy(image_ids(corpus))
    chosen = draws.uniform(ids, 1, seed, "fraction")[:, 0].numpy() < share
    if not chosen.any():
        raise UserError(f"no row of {corpus.name}, split {corpus.split}, is left at a fraction of {share}")
    return Subset(corpus, np.flatnonzero(chosen))


def by_ids(corpora: Mapping[str, Corpus], ids: Iterable[str]) -> dict[str, Corpus]:
    """The rows of these ids, in the corpora's order, by split; splits without any are left out.

    Raises:
        UserError: an id that no row has.
    """
    wanted = set(ids)
    if not wanted:
        raise UserError(f"{', '.join(corpora)}: no ids are wanted; list some, one a line")
    found: set[str] = set()
    chosen: dict[str, Corpus] = {}
    for split, corpus in corpora.items():
        names = {row: corpus.record(row).id for row in range(len(corpus))}
        rows = [row for row, name in names.items() if name in wanted]
        found |= {names[row] for row in rows}
        if rows:
            chosen[split] = Subset(corpus, rows)
    if wanted - found:
        what = f"{len(wanted - found)} of {len(wanted)} ids are of no row, e.g. {min(wanted - found)!r}"
        raise UserError(f"{', '.join(corpora)}: {what}")
    return chosen


def image_ids(corpus: Corpus) -> np.ndarray:
    """[rows] int64 identities of the pictures."""
    known = getattr(corpus, "image_ids", None)
    if known is not None:
        return known()
    return np.array([corpus.record(row).image_id for row in range(len(corpus))], dtype=np.int64)


class MixedCorpus(Corpus):
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
        shapes = {(part.frames, part.pictures) for part in parts}
        if len(shapes) > 1:
            several = ", ".join(f"{part.name} {part.frames} and {part.pictures}" for part in parts)
            raise UserError(f"the parts of a mixture must have as many frames and pictures a row; they have {several}")
        ((self.frames, self.pictures),) = shapes
        self.parts, self.weights = tuple(parts), tuple(weights)
        self.name, self.split = "+".join(part.name for part in parts), parts[0].split
        self.languages = tuple(dict.fromkeys(language for part in parts for language in part.languages))
        self.notice = "; ".join(dict.fromkeys(part.notice for part in parts if part.notice))
        self.start = np.cumsum([0, *map(len, parts)])
        told = repr([(part.fingerprint, weight) for part, weight in zip(parts, weights, strict=True)])
        self.fingerprint = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return int(self.start[-1])

    def record(self, row: int) -> Record:
        part, inner = self._place(row)
        record = part.record(inner)
        return replace(record, id=f"{part.name}/{record.id}")

    def image(self, row: int) -> Tensor:
        part, inner = self._place(row)
        return part.image(inner)

    def clip(self, row: int) -> Tensor:
        part, inner = self._place(row)
        return part.clip(inner)

    def shown(self, row: int) -> Sequence[Tensor]:
        part, inner = self._place(row)
        return part.shown(inner)

    def _place(self, row: int) -> tuple[Corpus, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        number = int(np.searchsorted(self.start, row, side="right")) - 1
        return self.parts[number], row - int(self.start[number])
