"""Words, phrases and entities of texts, as spans over their tokens.

Words are those of `tuwen.data.chinese`; their parts of speech jieba's where a text has Han characters, else those of
English by textblob's lexicon and rules. What is found in a text depends on that text alone.

- "word": every token but the special ones lies in exactly one, in order; punctuation marks are words too.
- "phrase": noun phrases: a number above one, adjectives, nouns ("two large red apples", "很大的闹钟").
- "entity": mentions of the tokenizer's lexicon (`Lexicon.mentions`), whose `id` is the entity's row; without one,
  entries of its dictionary, by backward maximum matching over tokens; without either, runs of nouns ("alarm clock").
"""

import re
from collections.abc import Iterable, Sequence, Set
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from tuwen.data import draws
from tuwen.data.batch import Spans
from tuwen.data.chinese import has_han, segment, tagged
from tuwen.data.corpus import normalise
from tuwen.data.lexicons.lexicon import inside_word
from tuwen.data.text import Tokenizer

KINDS = ("word", "phrase", "entity")

_PHRASE = re.compile("(?:MQ?)?(?:R?AP?|NP)*N+")
_JIEBA = {"n": "N", "j": "N", "a": "A", "b": "A", "z": "A", "m": "M", "q": "Q", "d": "R", "u": "X"}
_PENN = {"NN": "N", "JJ": "A", "CD": "M", "RB": "R"}
_ONE = re.compile("one|1|一[^二三四五六七八九十百千万亿半]?", re.IGNORECASE)


class Tagged(NamedTuple):
    """A word at characters start..end-1 of a text.

    tag: N noun, A adjective, M number above one, Q measure word, R adverb, P 的, X anything else.
    """

    start: int
    end: int
    tag: str


@lru_cache(maxsize=1 << 16)
def words(text: str) -> tuple[Tagged, ...]:
    """The words of a text in order, white space left out, with their parts of speech."""
    if has_han(text):
        return tuple(Tagged(word.start, word.end, _chinese_tag(word.text, tag)) for word, tag in tagged(text))
    segments = segment(text)
    tags = _english_tags([word.text for word in segments])
    return tuple(Tagged(word.start, word.end, tag) for word, tag in zip(segments, tags, strict=True))


def phrases(text: str) -> list[tuple[int, int]]:
    """Characters (start, end) of the noun phrases of a text, none inside another."""
    return _runs(text, _PHRASE)


def entities(text: str) -> list[tuple[int, int]]:
    """Characters (start, end) of the runs of nouns of a text."""
    return _runs(text, re.compile("N+"))


def span_id(text: str) -> int:
    """int64 identity of what a span says, whatever its kind and case: equal words, equal id."""
    return draws.key("span", normalise(text).lower())


def backward_maximum_matching(
    ids: Sequence[int], entries: Set[tuple[int, ...]], starts: Sequence[bool] | None = None
) -> list[tuple[int, int]]:
    """(start, end) of pieces that partition the ids: from the end, the longest entry of two or more ids, else one id.

    BagFormer card, section 5b. starts: where a piece may begin, so that no entry is found inside a word.
    """
    longest = max(map(len, entries), default=1)
    pieces, end = [], len(ids)
    while end > 0:
        start = end - 1
        for size in range(min(longest, end), 1, -1):
            whole = starts is None or (starts[end - size] and (end == len(ids) or starts[end]))
            if whole and tuple(ids[end - size : end]) in entries:
                start = end - size
                break
        pieces.append((start, end))
        end = start
    return pieces[::-1]


def find_spans(texts: Sequence[str], tokenizer: Tokenizer, length: int, kinds: Sequence[str]) -> Spans | None:
    """The spans of the kinds asked for in texts as `tokenizer.encode(texts, length)` gives them; None: no kinds.

    Spans come by text, then kind, then place; `id` is `span_id` of the words, or a row of the lexicon. Of a text cut
    short, words keep the tokens left; phrases and entities that are not whole are left out.
    """
    if not kinds:
        return None
    rows: list[tuple[int, int, int, int, int]] = []
    for sequence, (text, places) in enumerate(zip(map(normalise, texts), tokenizer.places(texts), strict=True)):
        room = min(len(places), length - 2)
        for kind in kinds:
            for start, end, row in _token_spans(text, places, tokenizer, kind):
                whole = end <= room or (kind == "word" and start < room)
                if whole:
                    identity = span_id(text[places[start, 0] : places[end - 1, 1]]) if row is None else row
                    rows.append((sequence, start + 1, min(end, room) + 1, identity, KINDS.index(kind)))
    table = torch.from_numpy(np.array(rows, dtype=np.int64).reshape(-1, 5))
    return Spans(*(column.contiguous() for column in table.unbind(1)))


# ---- from characters to tokens


def _token_spans(text: str, places: np.ndarray, tokenizer: Tokenizer, kind: str) -> list[tuple[int, int, int | None]]:
    """(start, end, row of the lexicon) among the content tokens, which cover the characters `places` [n, 2]."""
    if not len(places):
        return []
    if kind == "word":
        return [(*piece, None) for piece in _word_tokens(text, places)]
    if kind == "entity" and tokenizer.lexicon is not None:
        return _covering(tokenizer.lexicon.mentions(text), places)
    if kind == "entity" and tokenizer.entries:
        starts = [not inside_word(text, place) for place in places[:, 0].tolist()]
        pieces = backward_maximum_matching(tokenizer.ids([text])[0].tolist(), tokenizer.entries, starts)
        return [(*piece, None) for piece in pieces if piece[1] - piece[0] > 1]
    runs = phrases(text) if kind == "phrase" else entities(text)
    return _covering([(*run, None) for run in runs], places)


def _covering(runs: Iterable[tuple[int, int, int | None]], places: np.ndarray) -> list[tuple[int, int, int | None]]:
    """Runs of characters as the tokens that have any of them."""
    spans = []
    for start, end, row in runs:
        covered = np.flatnonzero((places[:, 1] > start) & (places[:, 0] < end))
        if len(covered):
            spans.append((int(covered[0]), int(covered[-1]) + 1, row))
    return spans


def _word_tokens(text: str, places: np.ndarray) -> list[tuple[int, int]]:
    """Runs of tokens whose last character lies in one word; a token of no word is one by itself."""
    owner = np.full(len(text) + 1, -1, dtype=np.int64)
    for number, word in enumerate(words(text)):
        owner[word.start : word.end] = number
    label = np.where(places[:, 1] > places[:, 0], owner[places[:, 1] - 1], -1)
    begins = np.flatnonzero(np.diff(label, prepend=-2) | (label < 0))
    return list(zip(begins.tolist(), [*begins[1:].tolist(), len(label)], strict=True))


# ---- parts of speech


def _runs(text: str, pattern: re.Pattern) -> list[tuple[int, int]]:
    tagged = words(text)
    tags = "".join(word.tag for word in tagged)
    return [(tagged[run.start()].start, tagged[run.end() - 1].end) for run in pattern.finditer(tags)]


def _chinese_tag(word: str, tag: str) -> str:
    if word == "的":
        return "P"
    if tag == "eng":
        return _english_tags([word])[0]
    if tag == "vn" or (tag in ("i", "l") and len(word) < 4):  # nouns that jieba lists as verbs or idioms
        return "N"
    if tag == "m" and _ONE.fullmatch(word):
        return "X"
    return _JIEBA.get(tag[0], "X")


def _english_tags(words: list[str]) -> list[str]:
    tags = _english_tagger().find_tags(words) if words else []
    plain = [not word[0].isalnum() or _ONE.fullmatch(word) for word in words]
    return ["X" if no else _PENN.get(tag[:2], "X") for (_, tag), no in zip(tags, plain, strict=True)]


@lru_cache(maxsize=1)
def _english_tagger():
    from textblob.en import parser

    return parser
