"""What a system asks of the rows of a corpus, and how a row answers: texts by language, sentences, columns."""

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from tuwen.data.corpus import Corpus, Record
from tuwen.data.spans import KINDS
from tuwen.errors import UserError

_CLOSING = r"[\"'”’」』)）]*"
_SENTENCE = re.compile(rf"(?s).+?(?:(?:[。！？!?][。！？!?.]*|\.+(?={_CLOSING}(?:\s|$|[^\x00-\x7f]))){_CLOSING}|$)")
_LOOKED_AT = 100  # records looked at for missing columns before step 0


class DataNeeds(Protocol):
    """What a system asks of the data: `tuwen.systems.system.Needs`."""

    @property
    def views(self) -> Mapping[str, int]: ...
    @property
    def texts(self) -> int: ...
    @property
    def sentences(self) -> bool: ...
    @property
    def languages(self) -> int: ...
    @property
    def spans(self) -> tuple[str, ...]: ...
    @property
    def tags(self) -> bool: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def clips(self) -> bool: ...
    @property
    def sources(self) -> Mapping[str, float]: ...


def check_needs(
    corpus: Corpus, needs: DataNeeds, languages: tuple[str, ...] = (), source: str = "pairs", pictures: int = 1
) -> None:
    """Refuses a corpus that lacks what a system needs, before any work.

    languages: those texts are drawn from; none: all of the corpus. source: "images" and "texts" ask one side alone.
    pictures: separate ones a row that can be read.

    Raises:
        UserError: naming what is missing.
    """
    if source == "images":
        return
    where = f"corpus {corpus.name}, split {corpus.split}"
    unknown = [language for language in languages if language not in corpus.languages]
    if unknown:
        raise UserError(
            f"{where}: has no texts in {', '.join(unknown)}; it has {', '.join(corpus.languages) or 'none'}"
        )
    if len(languages or corpus.languages) < needs.languages:
        raise UserError(f"{where}: the system needs texts in {needs.languages} languages a row; give more languages")
    refuse_clips(corpus, needs, pictures)
    if set(needs.spans) - set(KINDS):
        raise UserError(f"{where}: the system needs {', '.join(needs.spans)} spans; there are {', '.join(KINDS)}")
    if needs.tags and source == "pairs" and len(corpus) and "tags" not in corpus.record(0).columns:
        raise UserError(f'{where}: the system needs a column "tags", names of what each picture shows; add it')
    if needs.columns and source == "pairs":
        for row in sorted({int(row) for row in np.linspace(0, len(corpus) - 1, _LOOKED_AT)} if len(corpus) else ()):
            record = corpus.record(row)
            for name in needs.columns:
                numbers(record, name)


def refuse_clips(corpus: Corpus, needs: DataNeeds, pictures: int = 1) -> None:
    """Refuses a corpus of clips to a system that reads one picture a row, and rows of other than `pictures` pictures.

    Raises:
        UserError: naming both.
    """
    if corpus.frames > 1 and not needs.clips:
        raise UserError(
            f"corpus {corpus.name}, split {corpus.split}: its rows are clips of {corpus.frames} pictures, "
            "and the system reads one picture a row; clip, cookie and tokenflow read clips"
        )
    if corpus.pictures != pictures:
        raise UserError(
            f"corpus {corpus.name}, split {corpus.split}: its rows have {corpus.pictures} separate pictures, "
            f"{pictures} can be read"
        )


def sentences(text: str) -> list[str]:
    """The sentences of a text: each ends with 。！？!? or a full stop before white space or Chinese, quotes included.

    Pieces without a letter or digit are dropped; a text of nothing else is one sentence.
    """
    pieces = (piece.strip() for piece in _SENTENCE.findall(text))
    return [piece for piece in pieces if re.search(r"\w", piece)] or [text]


def texts_of(record: Record, languages: Sequence[str]) -> dict[str, list[str]]:
    """The texts that say something, by language in the given order; languages without any are left out."""
    found = {name: [text for text in record.texts.get(name, ()) if text.strip()] for name in languages}
    return {name: texts for name, texts in found.items() if texts}


def further_texts(
    record: Record, needs: DataNeeds, languages: Sequence[str], text: tuple[str, int]
) -> dict[str, tuple[str, int]]:
    """Texts that go beside the one drawn of a row, by name, in its language.

    "ambiguous": the text as a translator is given it, where the record has a column of that name beside its texts and
    parallel texts are asked for. "tags": names of what the picture shows, where they are asked for.
    """
    language, found = languages[text[1]], {}
    several = record.columns.get("ambiguous", {}).get(language, ()) if needs.languages > 1 else ()
    place = list(record.texts[language]).index(text[0])
    if place < len(several):
        found["ambiguous"] = (several[place], text[1])
    if needs.tags:
        found["tags"] = (tags_of(record, language), text[1])
    return found


def tags_of(record: Record, language: str) -> str:
    """The names in a row's column "tags", one after the other: a list, or one a language; "" where there is none."""
    tags = record.columns.get("tags", ())
    tags = tags.get(language, ()) if isinstance(tags, Mapping) else tags
    if isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags):
        raise UserError(f'row {record.id}: column "tags" must hold names, as ["dog", "ball"], got {tags!r}')
    return " ".join(tags)


def every_text(corpus: Corpus, languages: Sequence[str]) -> np.ndarray:
    """[texts, 2] int64: corpus row and place among `texts_of` of every text."""
    counts = [sum(map(len, texts_of(corpus.record(row), languages).values())) for row in range(len(corpus))]
    rows = np.repeat(np.arange(len(counts)), counts)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([rows, places], axis=1)


def numbers(record: Record, name: str) -> np.ndarray:
    """A column's value as float32, int64 or bool."""
    if name not in record.columns:
        raise UserError(f"row {record.id}: has no column {name!r}, which the system needs; add it to every row")
    try:
        value = np.asarray(record.columns[name])
    except ValueError:
        value = np.asarray(None)
    if value.dtype.kind not in "biuf":
        raise UserError(f"row {record.id}: column {name!r} must hold numbers, got {record.columns[name]!r}")
    return value.astype({"b": np.bool_, "f": np.float32}.get(value.dtype.kind, np.int64))
