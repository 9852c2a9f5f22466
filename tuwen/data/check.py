"""What is wrong with a corpus, and what is in it: every fault of every split, with its file and line."""

import dataclasses
import hashlib
import itertools
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.progress import track
from rich.table import Table
from rich.text import Text

from tuwen.data.corpora.faults import one_line
from tuwen.data.corpora.files import EVERY, FileCorpus, NoRows
from tuwen.data.corpora.scripts import is_blank
from tuwen.data.corpus import BrokenImage, Corpus, all_texts, languages_and_texts, normalise, text_id
from tuwen.data.open import open_corpus, splits_of
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError

SHOWN = 30  # faults printed; the JSON has them all


@dataclass(frozen=True)
class Found:
    """One fault: its reason for counting, its place, and the line with its fix."""

    reason: str
    message: str


@dataclass
class Contents:
    """What one split holds. A spread is [smallest, median, largest].

    rows: usable ones. pictures: distinct ones, by their pixels; fewer than rows where a picture stands in several.
    height, width: spread, in pixels. characters, tokens: spread, of the texts; tokens only with a tokenizer.
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
    split_rule: str


@dataclass
class Findings:
    """What `check` found. A picture or text that stands twice in a split is counted, and no fault.

    shared: for each two splits, how many pictures, texts, and pairs of both they have in common. Each shared picture
        is a fault ("leak"), as it flatters a test.
    """

    location: str
    faults: list[Found] = field(default_factory=list)
    splits: dict[str, Contents] = field(default_factory=dict)
    shared: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def reasons(self) -> dict[str, int]:
        """Faults by reason, the most frequent first."""
        return dict(Counter(fault.reason for fault in self.faults).most_common())

    def __bool__(self) -> bool:
        """Whether there are faults."""
        return bool(self.faults)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "reasons": self.reasons}

    def __rich__(self) -> Group:
        parts: list[Any] = [self._contents()]
        for pair, common in self.shared.items():
            parts.append(Text(f"{pair} share {', '.join(f'{n} {what}' for what, n in common.items())}"))
        if not self.faults:
            return Group(*parts, Text("no faults", style="green"))
        counts = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        parts.append(Text(f"{len(self.faults)} faults: {counts}", style="red"))
        parts += [Text(fault.message) for fault in self.faults[:SHOWN]]
        if len(self.faults) > SHOWN:
            parts.append(Text(f"... and {len(self.faults) - SHOWN} more; --json lists all"))
        return Group(*parts)

    def _contents(self) -> Table:
        table = Table(title=Text(self.location), title_justify="left")
        table.add_column("")
        for split in self.splits:
            table.add_column(Text(split), justify="right")
        for name in (one.name for one in dataclasses.fields(Contents)):
            values = [_shown(getattr(contents, name)) for contents in self.splits.values()]
            if any(values):
                table.add_row(name.replace("_", " "), *map(Text, values))
        return table


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key} {count:,}" for key, count in value.items())
    return " / ".join(map(str, value)) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) else value


def check(location: str | Path, tokenizer: Tokenizer | None = None, quiet: bool = False) -> Findings:
    """Every fault of every split of the corpus at a location, and what the splits hold. Decodes every picture.

    tokenizer: counts tokens too. quiet: no progress bar (there is none off a terminal either).

    Raises:
        UserError: there is no corpus at all.
    """
    findings = Findings(str(location))
    faults: dict[Found, None] = {}  # a broken line is found again in every split
    opened: dict[str, _Reader] = {}
    console = Console(stderr=True)
    for split in splits_of(location) or (EVERY,):
        try:
            corpus = open_corpus(location, split, on_bad="skip")
        except NoRows as error:
            faults.update((Found(fault.reason, str(fault)), None) for fault in error.faults)
            if not error.faults:
                faults[Found("no rows", str(error))] = None
            continue
        faults.update((Found(fault.reason, str(fault)), None) for fault in getattr(corpus, "faults", ()))
        reader = opened[split] = _Reader(corpus, tokenizer)
        hidden = quiet or not console.is_terminal
        rows = track(range(len(corpus)), split, console=console, transient=True, disable=hidden)
        for row in rows:
            faults.update(dict.fromkeys(reader.read(row)))
        findings.splits[split] = reader.contents()
    for first, second in itertools.combinations(opened.values(), 2):
        findings.shared[f"{first.corpus.split} and {second.corpus.split}"] = first.shared(second)
        faults.update(dict.fromkeys(second.leaks(first)))
    findings.faults = list(faults)
    return findings


class _Reader:
    """Reads a split row by row and remembers, as numbers, what stands in it."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer | None):
        self.corpus, self.tokenizer = corpus, tokenizer
        self._ids: dict[int, int] = {}
        self._pictures: dict[int, list[int]] = {}  # rows by identity: of the pixels, and the corpus's own
        self._texts: Counter[int] = Counter()
        self._pairs: set[int] = set()
        self._languages: Counter[str] = Counter()
        self._sizes: list[tuple[int, int]] = []
        self._characters, self._tokens = array("l"), array("l")
        self._distinct = self._wordless = 0

    def read(self, row: int) -> Iterator[Found]:
        """The faults of one row."""
        try:
            record = self.corpus.record(row)
        except UserError as error:
            yield Found("unreadable row", str(error))
            return
        first = self._ids.setdefault(hash(record.id), row)
        if first != row:
            yield self._found(row, "duplicate id", f"id {record.id!r} stands in row {first} too; give each its own")
        try:
            image = self.corpus.image(row)
        except BrokenImage as error:
            yield self._found(row, error.reason, f"picture of {record.id!r}: {error}; replace it or remove the row")
        else:
            self._sizes.append((image.shape[1], image.shape[2]))
            pixels = _number(image.numpy().tobytes() + str(image.shape).encode())
            self._distinct += pixels not in self._pictures
            for identity in (pixels, record.image_id):
                self._pictures.setdefault(identity, []).append(row)
            self._pairs.update(hash((pixels, text_id(text))) for text in all_texts(record))
        texts = list(languages_and_texts(record))
        self._wordless += not texts
        for language, text in texts:
            if is_blank(text):
                yield self._found(row, "empty text", f"{record.id!r} has an empty text in {language}; write it")
            self._languages[language] += 1
            self._texts[text_id(text)] += 1
            self._characters.append(len(normalise(text)))
        if self.tokenizer is not None and texts:
            self._tokens.extend(len(ids) for ids in self.tokenizer.ids([text for _, text in texts]))

    def _found(self, row: int, reason: str, what: str) -> Found:
        return Found(reason, one_line(f"{self._place(row)}: {what}"))

    def _place(self, row: int) -> str:
        if isinstance(self.corpus, FileCorpus):
            file, line = self.corpus.where(row)
            return f"{file}:{line}" if line else str(file)
        return f"{self.corpus.name} {self.corpus.split} row {row}"

    def contents(self) -> Contents:
        texts = self._texts.total()
        return Contents(
            rows=len(self.corpus),
            pictures=self._distinct,
            texts=texts,
            distinct_texts=len(self._texts),
            rows_without_text=self._wordless,
            languages=dict(sorted(self._languages.items())),
            height=_spread([height for height, _ in self._sizes]),
            width=_spread([width for _, width in self._sizes]),
            characters=_spread(self._characters),
            tokens=_spread(self._tokens),
            split_rule=getattr(self.corpus, "split_rule", ""),
        )

    def shared(self, other: "_Reader") -> dict[str, int]:
        return {
            "pictures": len({rows[0] for rows in self._common(other).values()}),
            "texts": len(self._texts.keys() & other._texts.keys()),
            "pairs": len(self._pairs & other._pairs),
        }

    def leaks(self, other: "_Reader") -> Iterator[Found]:
        """Rows of this split whose picture stands in the other one too."""
        told: set[int] = set()
        for identity, rows in self._common(other).items():
            there = other._place(other._pictures[identity][0])
            for row in sorted(set(rows) - told):
                what = f"its picture is in split {other.corpus.split} too ({there}); keep it in one split"
                yield self._found(row, "leak", what)
            told.update(rows)

    def _common(self, other: "_Reader") -> dict[int, list[int]]:
        return {identity: rows for identity, rows in self._pictures.items() if identity in other._pictures}


def _number(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def _spread(values: Sequence[int]) -> list[int]:
    return [min(values), int(np.median(values)), max(values)] if len(values) else []
