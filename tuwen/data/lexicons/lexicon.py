"""A lexicon: entities with names in several languages, what relates them, and how a text is linked to them.

Shape legend: N entities, E edges, D width of vectors.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from tuwen.data.chinese import has_han, segment, simplify
from tuwen.data.corpus import normalise
from tuwen.errors import UserError, quoted

LONGEST = 100  # characters of a name that is looked for in texts


class Mention(NamedTuple):
    """An entity at characters start..end-1 of a text: its row in the lexicon."""

    start: int
    end: int
    row: int


@dataclass(frozen=True, eq=False)
class Lexicon:
    """Entities by row; the id of a text's entity span is its row (`tuwen.data.spans`).

    ids: of each entity, as its source calls it (a name, UMLS's concept). names: of each, by language, the first of a
    language is the one to show; at least one. relations: names of the kinds of edges. edges: [E, 3] int64 row of the
    head, kind, row of the tail. vectors: [N, D] float32, what was learnt of the graph (`tuwen knowledge`), or None.
    """

    ids: tuple[str, ...]
    names: tuple[Mapping[str, Sequence[str]], ...]
    relations: tuple[str, ...] = ()
    edges: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int64))
    vectors: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digest(self) -> str:
        """Equal for lexicons of equal entities, names and edges, whatever was learnt of them."""
        rows = [self.ids, [sorted((k, tuple(v)) for k, v in names.items()) for names in self.names], self.relations]
        return hashlib.blake2b(repr(rows).encode() + self.edges.tobytes(), digest_size=16).hexdigest()

    def name(self, row: int, language: str = "en") -> str:
        """The entity's name to show, in the language where it has one."""
        names = self.names[row]
        return next(iter(names.get(language) or next(iter(names.values()))))

    # ---- linking

    def mentions(self, text: str) -> list[Mention]:
        """The entities that a text as `normalise` gives it names: from the left the longest name, none overlapping.

        Case, and traditional or simplified characters, count alike; English plurals count as their singular. A name of
        letters begins and ends where words do, one of several Chinese characters lies anywhere, and one of a single
        character must be a word by itself (马 is a horse, and none in 马上).
        """
        looked_up = _folded(text)
        mentions: list[Mention] = []
        place, words = 0, None
        while place < len(text):
            mention = self._longest(looked_up, place)
            if mention is not None and mention.end - mention.start == 1 and has_han(text[place]):
                words = {(word.start, word.end) for word in segment(text)} if words is None else words
                mention = mention if (mention.start, mention.end) in words else None
            if mention is not None:
                mentions.append(mention)
            place = place + 1 if mention is None else mention.end
        return mentions

    def _longest(self, text: str, start: int) -> Mention | None:
        if text[start].isspace() or inside_word(text, start):
            return None
        for size in self._sizes.get(text[start], ()):
            end = start + size
            row = self._rows.get(text[start:end]) if end <= len(text) and not inside_word(text, end) else None
            if row is not None:
                return Mention(start, end, row)
        return None

    @cached_property
    def _rows(self) -> dict[str, int]:
        """Row by name as it is looked up; of a name that several entities have, the first one's."""
        rows: dict[str, int] = {}
        plurals: dict[str, int] = {}
        for row, names in enumerate(self.names):
            for language, several in names.items():
                for name in several:
                    key = _folded(name)
                    if len(key) <= LONGEST:
                        rows.setdefault(key, row)
                        if language == "en" and len(key) > 2 and key[-1].isalpha():
                            plurals.setdefault(_plural(key), row)
        return {**plurals, **rows}

    @cached_property
    def _sizes(self) -> dict[str, tuple[int, ...]]:
        """By first character the lengths of names, longest first."""
        sizes: dict[str, set[int]] = {}
        for key in self._rows:
            sizes.setdefault(key[0], set()).add(len(key))
        return {first: tuple(sorted(several, reverse=True)) for first, several in sizes.items()}

    # ---- choosing

    def counts(self, texts: Iterable[str]) -> np.ndarray:
        """[N] int64: how many texts name each entity, each once a text."""
        counts = np.zeros(len(self), dtype=np.int64)
        for text in texts:
            counts[list({mention.row for mention in self.mentions(normalise(text))})] += 1
        return counts

    def among(self, rows: Sequence[int]) -> "Lexicon":
        """The lexicon of these entities alone, in this order, with the edges among them."""
        place = np.full(len(self), -1, dtype=np.int64)
        place[list(rows)] = np.arange(len(rows))
        edges = self.edges.copy()
        edges[:, [0, 2]] = place[self.edges[:, [0, 2]]]
        edges = edges[(edges[:, 0] >= 0) & (edges[:, 2] >= 0)]
        used, kinds = np.unique(edges[:, 1], return_inverse=True)
        edges[:, 1] = kinds
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            names=tuple(self.names[row] for row in rows),
            relations=tuple(self.relations[kind] for kind in used),
            edges=edges,
            vectors=None if self.vectors is None else self.vectors[list(rows)],
        )


class LexiconMaker:
    """Gathers names and edges by the source's own ids; entities stand in the order in which they were first named."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, list[str]]] = {}
        self._edges: dict[tuple[str, str, str], None] = {}

    def entity(self, id: str) -> None:
        self._names.setdefault(id, {})

    def name(self, id: str, name: str, language: str) -> None:
        several = self._names.setdefault(id, {}).setdefault(language, [])
        if name not in several:
            several.append(name)

    def edge(self, head: str, relation: str, tail: str) -> None:
        self.entity(head)
        self.entity(tail)
        self._edges.setdefault((head, relation, tail))

    def lexicon(self, source: str) -> Lexicon:
        """What was gathered; an entity without a name is called by its id.

        Raises:
            UserError: no entity.
        """
        if not self._names:
            raise UserError(f"{source}: names no entity")
        rows = {id: row for row, id in enumerate(self._names)}
        kinds = {kind: number for number, kind in enumerate(dict.fromkeys(kind for _, kind, _ in self._edges))}
        edges = [(rows[head], kinds[kind], rows[tail]) for head, kind, tail in self._edges]
        names = tuple(
            {language: tuple(several) for language, several in by.items()} or {language_of_name(id): (id,)}
            for id, by in self._names.items()
        )
        return Lexicon(tuple(self._names), names, tuple(kinds), np.array(edges, dtype=np.int64).reshape(-1, 3))


def language_of_name(name: str) -> str:
    """Of a name whose language nobody tells: Chinese where it has Han characters, else English."""
    return "zh" if has_han(name) else "en"


def checked_vectors(vectors: np.ndarray, entities: int, source: str) -> np.ndarray:
    """[N, D] float32, if they are that and finite.

    Raises:
        UserError: they are not.
    """
    if vectors.ndim != 2 or len(vectors) != entities or vectors.dtype.kind != "f" or not vectors.shape[1]:
        shape = quoted(list(vectors.shape), 60)
        raise UserError(f"{source}: vectors {shape} are none of {entities:,} entities; make them anew")
    if not np.isfinite(vectors).all():
        raise UserError(f"{source}: has vectors that are not finite; make them anew")
    return vectors.astype(np.float32)


def inside_word(text: str, place: int) -> bool:
    """Whether a word of letters or digits goes on at a character."""
    return 0 < place < len(text) and text[place - 1 : place + 1].isalnum() and not has_han(text[place - 1 : place + 1])


def _folded(text: str) -> str:
    """A text as it is looked up, of the same length: simplified characters, small letters."""
    simple = simplify(text)
    simple = simple if len(simple) == len(text) else text
    return "".join(low if len(low := letter.lower()) == 1 else letter for letter in simple)


def _plural(name: str) -> str:
    if name.endswith(("s", "x", "z", "ch", "sh")):
        return f"{name}es"
    return f"{name[:-1]}ies" if name.endswith("y") and name[-2] not in "aeiou" else f"{name}s"
