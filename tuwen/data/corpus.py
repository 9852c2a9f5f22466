"""A corpus: random access to pictures with their texts, identities, relevance, and a fingerprint."""

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from tuwen.data import draws
from tuwen.data.corpora.faults import Fault
from tuwen.data.private import UNSAID, hides
from tuwen.errors import quoted


class BrokenImage(Exception):
    """A picture that cannot be used. `reason` is a short category for counting, the message says the rest."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def normalise(text: str) -> str:
    """NFKC with white space squeezed: the one form of a text in training, testing and identity."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def text_id(text: str) -> int:
    """int64 identity of a text: equal after normalisation, equal id."""
    return draws.key("text", normalise(text))


@dataclass(frozen=True)
class Record:
    """One row of a corpus: a picture and its texts by language (either may be missing in a one-modality corpus).

    image_id: int64; equal ids are one picture, also across rows.
    columns: whatever else the corpus knows of the row ("boxes", "scene", "category", ...).
    private: whether texts and id stand in nothing that was not asked for.
    """

    id: str
    texts: Mapping[str, Sequence[str]]
    image_id: int
    columns: Mapping[str, Any] = field(default_factory=dict)
    private: bool = False

    @property
    def called(self) -> str:
        """The id for a message, where it may stand in one."""
        return self.quoted(self.id)

    def quoted(self, value: Any, most: int = 60) -> str:
        """Something of the row for a message, where it may stand in one."""
        return UNSAID if hides(self.private) else quoted(value, most)


class Corpus:
    """Random access to the rows of one split.

    A subclass sets `name`, `split`, `languages` (in a fixed order: the index is `Texts.language`) and
    `fingerprint` (changes when and only when the content does), and gives `__len__`, `record` and `image`.
    Instances are read from worker processes: open files lazily, hold no locks.

    All else is optional and has its default here; what wraps a corpus (`subset.Wrapped`) hands all of it on.
    """

    name: str
    split: str
    languages: tuple[str, ...]
    fingerprint: str
    class_names: Mapping[str, Sequence[str]] = MappingProxyType({})  # by language, where "cls" numbers known classes
    notice: str = ""  # licence or attribution that built copies must carry
    private: bool = False  # whether its texts and names stand in nothing that was not asked for (`data.private`)
    frames: int = 1  # of the one clip a row is; 1: rows are no clips
    parts: "tuple[Corpus, ...]" = ()  # of a mixture, and the share of each
    weights: tuple[float, ...] | None = None
    pictures: int = 1  # separate pictures a row: two views of a chest, the two that a statement is about
    truth: str = "identity"  # which rule `relevance` follows, for built copies: one of `shards.TRUTHS`
    on_bad: str = "stop"  # at what is wrong with rows, or with what lies beside them: "stop", or "skip" and count
    skipped: Mapping[str, int] = MappingProxyType({})  # rows that reading left out, by reason
    faults: Sequence[Fault] = ()  # what is wrong with them, each with its file and line
    queries: Sequence[tuple[int, str, str]] = ()  # number, language and text of each that a server asks of the split
    split_rule: str = ""  # where the split comes from
    zero_shot: Path | None = None  # the file of class names and prompts beside the corpus (`classes`)

    def __len__(self) -> int:
        raise NotImplementedError

    def record(self, row: int) -> Record:
        raise NotImplementedError

    def image(self, row: int) -> Tensor:
        """[3, H, W] uint8 RGB.

        Raises:
            BrokenImage: missing, truncated, too large, or not a picture.
        """
        raise NotImplementedError

    def clip(self, row: int) -> Tensor:
        """[frames, 3, H, W] uint8 RGB: the row's pictures in order.

        Raises:
            BrokenImage: as `image`.
        """
        return self.image(row)[None]

    def shown(self, row: int) -> Sequence[Tensor]:
        """All [3, H, W] of a row in order: the frames of its clip, or its separate pictures, whose sizes may differ.

        Raises:
            BrokenImage: as `image`.
        """
        return list(self.clip(row)) if self.frames > 1 else [self.image(row)]

    def encoded(self, row: int) -> bytes | None:
        """The row's picture as it lies in its file, still encoded; None where it lies in none.

        Raises:
            BrokenImage: the file has gone, can no longer be read, or has changed.
        """
        return None

    def image_ids(self) -> np.ndarray:
        """[rows] int64 identities of the pictures."""
        return np.array([self.record(row).image_id for row in range(len(self))], dtype=np.int64)

    def exercises(self, kind: str) -> "Corpus | None":
        """What the corpus itself asks of pictures, as rows of a kind of `exercises.exercises_of`; None: nothing."""
        return None

    def where(self, row: int) -> tuple[Path, int] | None:
        """The file and line the row comes from, the line 0 where the whole file is meant; None: from none."""
        return None

    def path(self, row: int) -> str:
        """Where the row's picture lies: its file, absolute, or its place in an archive; "" where in none."""
        return ""

    def changed(self) -> Iterator[str]:
        """A line for each file whose bytes are not those that were built; reads them all."""
        yield from ()

    def relevance(self, rows: Sequence[int], texts: Sequence["Caption"]) -> "Relevance":
        """Which of the given rows' pictures each text is right for; by default those it was written for.

        A text belongs to every picture some row of the corpus pairs it with, by identity, not by position.
        """
        owners: dict[int, set[int]] = {}
        for position, row in enumerate(rows):
            for text in all_texts(self.record(row)):
                owners.setdefault(text_id(text), set()).add(position)
        return Relevance.of(len(rows), [sorted(owners.get(text.id, ())) for text in texts])

    def gallery(self, language: str | None = None, limit: int | None = None) -> "Gallery":
        """Every distinct picture of the split once, and every distinct text (of one language) once, with the truth.

        limit: at most so many pictures, the first of the split.
        """
        pictures: dict[int, int] = {}  # position by identity
        rows: list[int] = []
        of_row: dict[int, int] = {}  # position of each row's picture
        captions: dict[tuple[str, int], Caption] = {}
        for row in range(len(self)):
            record = self.record(row)
            if record.image_id not in pictures:
                if limit is not None and len(rows) >= limit:
                    continue
                pictures[record.image_id] = len(rows)
                rows.append(row)
            of_row[row] = pictures[record.image_id]
            for place, (spoken, text) in enumerate(languages_and_texts(record)):
                if language is None or spoken == language:
                    caption = Caption(text, spoken, text_id(text), row, place)
                    captions.setdefault((spoken, caption.id), caption)
        texts = list(captions.values())
        return Gallery(self, rows, texts, self._relevance_by_picture(of_row, len(rows), texts))

    def _relevance_by_picture(self, of_row: Mapping[int, int], count: int, texts: "list[Caption]") -> "Relevance":
        """`relevance`, when a picture may stand in several rows, each with texts of its own."""
        truth = self.relevance(list(of_row), texts)
        if len(of_row) == count:
            return truth
        place = np.fromiter(of_row.values(), dtype=np.int64, count=len(of_row))
        return Relevance.of(count, [np.unique(place[truth.images_of(t)]).tolist() for t in range(len(texts))])


@dataclass(frozen=True)
class Caption:
    """A text of a gallery: what it says, its language, its identity, and where it stands (row, place in the row)."""

    text: str
    language: str
    id: int
    row: int
    place: int


@dataclass(frozen=True)
class Relevance:
    """Right pairs of a gallery, as sorted image positions a text: images[start[t] : start[t + 1]]."""

    image_count: int
    start: np.ndarray  # [T + 1] int64
    images: np.ndarray  # [pairs] int64

    @classmethod
    def of(cls, image_count: int, images: Sequence[Sequence[int]]) -> "Relevance":
        start = np.cumsum([0, *(len(row) for row in images)], dtype=np.int64)
        flat = np.fromiter((image for row in images for image in row), dtype=np.int64, count=int(start[-1]))
        return cls(image_count, start, flat)

    def __len__(self) -> int:
        return len(self.start) - 1

    def images_of(self, text: int) -> np.ndarray:
        return self.images[self.start[text] : self.start[text + 1]]

    def transpose(self) -> "Relevance":
        """The same pairs seen from the pictures: sorted text positions a picture."""
        text = np.repeat(np.arange(len(self)), np.diff(self.start))
        order = np.lexsort((text, self.images))
        counts = np.bincount(self.images, minlength=self.image_count)
        return Relevance(len(self), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), text[order])


@dataclass(frozen=True)
class Gallery:
    """What retrieval is measured on: rows of distinct pictures, distinct texts, and which belong together."""

    corpus: Corpus
    rows: list[int]
    texts: list[Caption]
    relevance: Relevance


def captions_apart(corpus: Corpus, language: str | None = None, limit: int | None = None) -> Gallery:
    """The gallery as published results count it: every text of every row stands for itself, equal ones too, and is
    right for the picture of its own row alone, whatever else the corpus knows. The pictures are those of `gallery`.
    """
    rows = corpus.gallery(language, limit).rows
    place = {corpus.record(row).image_id: position for position, row in enumerate(rows)}
    captions, right = [], []
    for row in range(len(corpus)):
        record = corpus.record(row)
        for number, (spoken, text) in enumerate(languages_and_texts(record)):
            if record.image_id in place and spoken == (language or spoken):
                captions.append(Caption(text, spoken, text_id(text), row, number))
                right.append([place[record.image_id]])
    return Gallery(corpus, rows, captions, Relevance.of(len(rows), right))


def languages_and_texts(record: Record) -> Iterator[tuple[str, str]]:
    """(language, text) of a record in a fixed order."""
    return ((language, text) for language, texts in record.texts.items() for text in texts)


def all_texts(record: Record) -> Iterator[str]:
    return (text for _, text in languages_and_texts(record))


def hashed_split(identity: str) -> str:
    """The split of a row that names none: "test" for a tenth of the identities, "train" for the rest."""
    digest = hashlib.blake2b(identity.encode(), digest_size=4).digest()
    return "test" if int.from_bytes(digest, "little") % 10 == 0 else "train"
