"""One split of a corpus read row by row: its faults, what is remarkable in it, and, as numbers, what stands in it."""

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tuwen.data.corpora.faults import one_line
from tuwen.data.corpora.scripts import is_blank
from tuwen.data.corpus import BrokenImage, Corpus, Record, all_texts, languages_and_texts, normalise, text_id
from tuwen.data.curate.quality import LanguageCheck, QualityLimits, flatness, is_grey, is_placeholder, perceptual_hash
from tuwen.data.private import hides
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError


@dataclass(frozen=True)
class Finding:
    """A fault or a remark: its reason for counting, and the line with its place and fix.

    split, row: where it is; "" and -1 for what is no row. text: the one meant, "" for the picture or the whole row.
    other: the split ("CORPUS SPLIT" of another corpus) and row it is a copy of.
    """

    reason: str
    message: str
    split: str = ""
    row: int = -1
    text: str = ""
    other: tuple[str, int] | None = None


RARE = ("", ".jpe")  # endings of pictures that are read here, and not by many other programs


@dataclass
class Contents:
    """What one split holds. A spread is [smallest, median, largest].

    rows: usable ones. pictures: distinct ones, by their pixels; fewer than rows where a picture stands in several.
    height, width: spread, in pixels. characters, tokens: spread, of the texts; tokens only with a tokenizer.
    truncated: texts that are longer than the given length.
    """

    rows: int
    pictures: int
    texts: int
    distinct_texts: int
    rows_without_text: int
    languages: dict[str, int]
    height: list[int]
    width: list[int]
    characters: list[int]
    tokens: list[int]
    truncated: int
    split_rule: str


class SplitReader:
    """Reads a split row by row and remembers, as numbers, what stands in it.

    label: what the split is called in findings. hashes: (row, perceptual hash) of pictures that are not mostly empty.
    texts_at: row of each distinct text's first standing.
    """

    def __init__(
        self, corpus: Corpus, label: str, tokenizer: Tokenizer | None, length: int | None, limits: QualityLimits
    ):
        self.corpus, self.label, self.tokenizer, self.length, self.limits = corpus, label, tokenizer, length, limits
        self.hashes: list[tuple[int, int]] = []
        self.texts_at: dict[str, int] = {}
        self._language = LanguageCheck(corpus.languages)
        self._ids: dict[int, int] = {}
        self._pictures: dict[int, list[int]] = {}  # rows by identity: of the pixels, and the corpus's own
        self._texts: Counter[int] = Counter()
        self._pairs: set[int] = set()
        self._languages: Counter[str] = Counter()
        self._sizes: list[tuple[int, int]] = []
        self._characters, self._tokens = array("l"), array("l")
        self._distinct = self._wordless = 0

    def read(self, row: int) -> tuple[list[Finding], list[Finding]]:
        """The faults of one row, and the remarks on it."""
        try:
            record = self.corpus.record(row)
        except UserError as error:
            return [Finding("unreadable row", str(error), self.label, row)], []
        faults = list(self._id(record, row))
        remarks: list[Finding] = []
        try:
            image = self.corpus.image(row)
        except BrokenImage as error:
            what = f"picture of {record.id!r}: {error}; replace it or remove the row"
            faults.append(self.finding(row, error.reason, what))
        else:
            remarks += self._picture(record, row, image)
        for language, text in languages_and_texts(record):
            if is_blank(text):
                what = f"{record.id!r} has an empty text in {language}; write it"
                faults.append(self.finding(row, "empty text", what, text))
            remarks += self._text(row, language, text)
        self._wordless += not record.texts or not any(record.texts.values())
        remarks += self._lengths(record, row)
        return faults, remarks

    def _id(self, record: Record, row: int) -> Iterator[Finding]:
        first = self._ids.setdefault(hash(record.id), row)
        if first != row:
            yield self.finding(row, "duplicate id", f"id {record.id!r} stands in row {first} too; give each its own")

    def _picture(self, record: Record, row: int, image: Tensor) -> Iterator[Finding]:
        height, width = image.shape[1], image.shape[2]
        self._sizes.append((height, width))
        pixels = _number(image.numpy().tobytes() + str(image.shape).encode())
        first = self._pictures.get(pixels, [row])[0]
        self._distinct += pixels not in self._pictures
        for identity in (pixels, record.image_id):
            self._pictures.setdefault(identity, []).append(row)
        self._pairs.update(hash((pixels, text_id(text))) for text in all_texts(record))
        if first != row and not self._named_alike(first, row):
            what = f"the very picture of {self.place(first)}"
            yield self.finding(row, "duplicate picture", what, other=(self.label, first))
        path = self.corpus.path(row)
        ending = os.path.splitext(path)[1].lower()
        if ending in RARE and os.path.isfile(path):  # of a picture within a file there is none
            what = f"read, though its ending is {ending or 'none'}: {one_line(path, 120)}"
            yield self.finding(row, "rare ending", what)
        if min(height, width) < self.limits.side:
            yield self.finding(row, "small picture", f"{width} x {height} pixels")
        if max(height, width) > self.limits.aspect * min(height, width):
            yield self.finding(row, "extreme picture", f"{width} x {height} pixels, very long or high")
        if is_grey(image):
            yield self.finding(row, "grey picture", "without colours")
        share = flatness(image)
        if share >= self.limits.flat:
            yield self.finding(row, "empty picture", f"{100 * share:.0f} % of it is of one colour")
        elif first == row:
            self.hashes.append((row, perceptual_hash(image)))

    def _text(self, row: int, language: str, text: str) -> Iterator[Finding]:
        self._languages[language] += 1
        self._texts[text_id(text)] += 1
        self._characters.append(len(normalise(text)))
        self.texts_at.setdefault(text, row)
        if is_placeholder(text):
            what = f"{one_line(text, 20)!r} for a text, as programs write an empty cell; write one, or take it out"
            yield self.finding(row, "placeholder text", what, text)
            return
        other = self._language.doubt(text, language, self.limits.unsure)
        if other:
            what = f"said to be {language}, looks like {other}: {one_line(text, 80)}"
            yield self.finding(row, "other language", what, text)

    def _lengths(self, record: Record, row: int) -> Iterator[Finding]:
        texts = list(all_texts(record))
        if self.tokenizer is None or not texts:
            return
        for text, ids in zip(texts, self.tokenizer.ids(texts), strict=True):
            self._tokens.append(len(ids))
            if self.length is not None and len(ids) + 2 > self.length:
                what = f"{len(ids)} tokens, {len(ids) + 2 - self.length} over: {one_line(text, 80)}"
                yield self.finding(row, "truncated text", what, text)

    def _named_alike(self, first: int, row: int) -> bool:
        path = self.corpus.path(first)
        return bool(path) and path == self.corpus.path(row)

    def finding(
        self, row: int, reason: str, what: str, text: str = "", other: tuple[str, int] | None = None
    ) -> Finding:
        message = one_line(f"{self.place(row)}: {reason if hides(self.corpus.private) else what}")
        return Finding(reason, message, self.label, row, text, other)

    def place(self, row: int) -> str:
        if (origin := self.corpus.where(row)) and not hides(self.corpus.private):
            file, line = origin
            return f"{file}:{line}" if line else str(file)
        return f"{self.corpus.name} {self.corpus.split} row {row}"

    def contents(self) -> Contents:
        limit = self.length or 0
        return Contents(
            rows=len(self.corpus),
            pictures=self._distinct,
            texts=self._texts.total(),
            distinct_texts=len(self._texts),
            rows_without_text=self._wordless,
            languages=dict(sorted(self._languages.items())),
            height=_spread([height for height, _ in self._sizes]),
            width=_spread([width for _, width in self._sizes]),
            characters=_spread(self._characters),
            tokens=_spread(self._tokens),
            truncated=sum(count + 2 > limit for count in self._tokens) if limit else 0,
            split_rule=self.corpus.split_rule,
        )

    def shared(self, other: "SplitReader") -> dict[str, int]:
        return {
            "pictures": len({rows[0] for rows in self._common(other).values()}),
            "texts": len(self._texts.keys() & other._texts.keys()),
            "pairs": len(self._pairs & other._pairs),
        }

    def copies(self, other: "SplitReader", reason: str, what: str) -> Iterator[Finding]:
        """Rows of this split whose picture stands in the other one too, by its pixels or its identity."""
        reported: set[int] = set()
        for identity, rows in self._common(other).items():
            there = other._pictures[identity][0]
            for row in sorted(set(rows) - reported):
                line = what.format(split=other.corpus.split, place=other.place(there))
                yield self.finding(row, reason, line, other=(other.label, there))
            reported.update(rows)

    def _common(self, other: "SplitReader") -> dict[int, list[int]]:
        return {identity: rows for identity, rows in self._pictures.items() if identity in other._pictures}


def _number(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def _spread(values: Sequence[int]) -> list[int]:
    return [min(values), int(np.median(values)), max(values)] if len(values) else []
