"""What a system asks of the rows of a corpus, and how a row answers: texts by language, sentences, columns."""

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from tuwen.data.beside import OfTexts
from tuwen.data.corpora.faults import one_line
from tuwen.data.corpus import Corpus, Record, text_id
from tuwen.data.spans import KINDS
from tuwen.data.views import View
from tuwen.errors import UserError

_CLOSING = r"[\"'”’」』)）]*"
_SENTENCE = re.compile(rf"(?s).+?(?:(?:[。！？!?][。！？!?.]*|\.+(?={_CLOSING}(?:\s|$|[^\x00-\x7f]))){_CLOSING}|$)")
_LOOKED_AT = 10_000  # records looked at before step 0, for what some of them may lack


class DataReads(Protocol):
    """What a system's encoders read of the data: `tuwen.systems.system.Reads`."""

    @property
    def spans(self) -> tuple[str, ...]: ...
    @property
    def clips(self) -> bool: ...
    @property
    def features(self) -> bool: ...


class DataNeeds(Protocol):
    """What pre-training a system needs of the data beside: `tuwen.systems.system.Needs`."""

    @property
    def views(self) -> Mapping[str, View]: ...
    @property
    def texts(self) -> int: ...
    @property
    def languages(self) -> int: ...
    @property
    def sentences(self) -> bool: ...
    @property
    def tags(self) -> bool: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def sources(self) -> Mapping[str, float]: ...
    @property
    def spans(self) -> tuple[str, ...]: ...
    @property
    def beside(self) -> tuple[str, ...]: ...


def check_reads(corpus: Corpus, reads: DataReads, pictures: int = 1) -> None:
    """Refuses a corpus whose rows a system's encoders cannot read, before any work.

    pictures: separate ones a row that are read.

    Raises:
        UserError: clips for a system that reads one picture a row; another number of pictures; no such spans, features.
    """
    where = f"corpus {corpus.name}, split {corpus.split}"
    if corpus.frames > 1 and not reads.clips:
        raise UserError(
            f"{where}: its rows are clips of {corpus.frames} pictures, and this system reads one picture a row; "
            "take a system that reads clips, or a corpus of single pictures"
        )
    if corpus.pictures != pictures:
        raise UserError(f"{where}: its rows have {corpus.pictures} separate pictures, {pictures} can be read")
    if set(reads.spans) - set(KINDS):
        raise UserError(f"{where}: the system needs {', '.join(reads.spans)} spans; there are {', '.join(KINDS)}")
    lacking = [name for name in ("features", "boxes") if len(corpus) and name not in corpus.record(0).columns]
    if reads.features and lacking:
        raise UserError(f"{where}: the system reads regions of pictures; add a column {lacking[0]!r} to every row")


def check_needs(
    corpus: Corpus, needs: DataNeeds, languages: tuple[str, ...] = (), source: str = "pairs"
) -> tuple[str, ...]:
    """Refuses a corpus that lacks what a system needs, before any work; what some of its rows lack, in lines to say.

    languages: those texts are drawn from; none: all of the corpus. source: "images" and "texts" ask one side alone.
    Of a large corpus `_LOOKED_AT` rows, evenly spread, are looked at.

    Raises:
        UserError: naming what is missing.
    """
    if source == "images":
        return ()
    where = f"corpus {corpus.name}, split {corpus.split}"
    unknown = [language for language in languages if language not in corpus.languages]
    if unknown:
        listed = one_line(", ".join(corpus.languages)) or "none"
        raise UserError(f"{where}: has no texts in {one_line(', '.join(unknown))}; it has {listed}")
    languages = languages or corpus.languages
    if len(languages) < needs.languages:
        raise UserError(f"{where}: the system needs texts in {needs.languages} languages a row; give more languages")
    if set(needs.spans) - set(KINDS):
        raise UserError(f"{where}: the system needs {', '.join(needs.spans)} spans; there are {', '.join(KINDS)}")
    beside = source == "pairs" and (needs.tags or needs.columns)
    if not beside and max(needs.texts, needs.languages) < 2:
        return ()
    rows = np.unique(np.linspace(0, len(corpus) - 1, min(_LOOKED_AT, len(corpus))).astype(np.int64))
    return _lacking(corpus, needs, languages, rows.tolist(), bool(beside), where)


def _lacking(corpus: Corpus, needs: DataNeeds, languages, rows: list[int], beside: bool, where: str) -> tuple[str, ...]:
    """What some of the rows lack; refuses what all lack."""
    untold, untagged = 0, 0
    able: set[str] = set()
    for row in rows:
        record = corpus.record(row)
        texts = texts_of(record, languages, needs)
        able |= texts.keys()
        untold += not texts
        if beside:
            untagged += needs.tags and not any(tags_of(record, language) for language in record.texts)
            for name in needs.columns:
                numbers(record, name)
    few = f"texts in {needs.languages} languages" if needs.languages > 1 else f"{needs.texts} texts in one language"
    if rows and untold == len(rows) and max(needs.texts, needs.languages) > 1:
        raise UserError(f"{where}: the system needs {few} a row, and no row has them; take a corpus with more texts")
    if rows and untagged == len(rows):
        raise UserError(f'{where}: the system needs a column "tags", names of what each picture shows; add it')
    of = f"of {len(rows)} rows" + (" looked at" if len(rows) < len(corpus) else "")
    lines = [f"{untagged} {of} have no tags; an empty text stands there"] if untagged else []
    if max(needs.texts, needs.languages) > 1:
        lines += [f"{untold} {of} have no {few}, which the system needs; others take their place"] if untold else []
        alone = [name for name in languages if name not in able]
        lines += [f"no text is drawn in {', '.join(alone)}: no row has {few} there"] if alone else []
    return tuple(f"{where}: {line}" for line in lines)


def sentences(text: str) -> list[str]:
    """The sentences of a text: each ends with 。！？!? or a full stop before white space or Chinese, quotes included.

    Pieces without a letter or digit are dropped; a text of nothing else is one sentence.
    """
    pieces = (piece.strip() for piece in _SENTENCE.findall(text))
    return [piece for piece in pieces if re.search(r"\w", piece)] or [text]


def texts_of(record: Record, languages: Sequence[str], needs: DataNeeds) -> dict[str, list[str]]:
    """The texts that say something, by language in the given order; languages with fewer than needed are left out.

    None at all where fewer languages remain than are needed.
    """
    texts = {name: [text for text in record.texts.get(name, ()) if text.strip()] for name in languages}
    enough = {name: several for name, several in texts.items() if len(several) >= needs.texts}
    return enough if len(enough) >= needs.languages else {}


def further_texts(
    record: Record, needs: DataNeeds, languages: Sequence[str], text: tuple[str, int]
) -> dict[str, tuple[str, int]]:
    """Texts that go beside the one drawn of a row, by name, in its language.

    Of every column of `needs.beside` the text in the drawn one's place.
    "ambiguous": the text as a translator is given it, where the record has a column of that name beside its texts and
    parallel texts are asked for. "tags": names of what the picture shows, where they are asked for.
    """
    language, further = languages[text[1]], {}
    several = record.columns.get("ambiguous", {}).get(language, ()) if needs.languages > 1 else ()
    place = list(record.texts[language]).index(text[0])
    if place < len(several):
        further["ambiguous"] = (several[place], text[1])
    for name in needs.beside:
        further[name] = (record.columns[name][language][place], text[1])
    if needs.tags:
        further["tags"] = (tags_of(record, language), text[1])
    return further


def tags_of(record: Record, language: str) -> str:
    """The names in a row's column "tags", one after the other: a list, or one a language; "" where there is none."""
    tags = record.columns.get("tags", ())
    tags = tags.get(language, ()) if isinstance(tags, Mapping) else tags
    if isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags):
        raise UserError(
            f'row {record.called}: column "tags" must hold names, as ["dog", "ball"], got {record.quoted(tags)}'
        )
    return " ".join(tags)


def every_text(corpus: Corpus, languages: Sequence[str], needs: DataNeeds) -> np.ndarray:
    """[texts, 2] int64: corpus row and place among `texts_of` of every text."""
    counts = [sum(map(len, texts_of(corpus.record(row), languages, needs).values())) for row in range(len(corpus))]
    rows = np.repeat(np.arange(len(counts)), counts)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([rows, places], axis=1)


def numbers(record: Record, name: str, text: str | None = None) -> np.ndarray:
    """A column's value as float32, int64 or bool. text: whose value is meant, of a column that has one a text."""
    if name not in record.columns:
        raise UserError(f"row {record.called}: has no column {name!r}, which the system needs; add it to every row")
    own = record.columns[name]
    if isinstance(own, OfTexts):
        own = list(own.values()) if text is None else own.get(text_id(text))
    try:
        value = np.asarray(own)
    except ValueError:
        value = np.asarray(None)
    if value.dtype.kind not in "biuf":
        raise UserError(
            f"row {record.called}: column {name!r} must hold numbers, got {record.quoted(record.columns[name])}"
        )
    return value.astype({"b": np.bool_, "f": np.float32}.get(value.dtype.kind, np.int64))
