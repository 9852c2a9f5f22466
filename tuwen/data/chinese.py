"""Chinese, and other text without spaces: words with their places, traditional to simplified, full-width forms."""

import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

from tuwen.errors import UserError

Segmenter = Callable[[str], Iterable[str]]  # the pieces of a text in order; it may leave white space out

_HANS = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # escaped: U+F900 itself normalises to U+8C48
_HAN = re.compile(rf"[{_HANS}]")
# kana, Thai, Lao, Burmese and Khmer are words by character, since nothing there tells where a word ends
_SIGNS = r"\u3040-\u30ff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
# a run of letters and digits with apostrophes and hyphens inside; any other sign by itself
_WORD = re.compile(rf"[{_SIGNS}]|\w+(?:['’-]\w+)*|[^\w\s]")
_LETTERS = rf"(?:(?![{_HANS}{_SIGNS}])\w)+"
_PLAIN = re.compile(rf"{_LETTERS}(?:['’-]{_LETTERS})*")
_WIDE = re.compile(r"[\u3000\uff01-\uff5e\uffe0-\uffe6]+")


class Word(NamedTuple):
    """A word and its place: text[start:end]."""

    text: str
    start: int
    end: int


def segment(text: str, segmenter: Segmenter | None = None) -> list[Word]:
    """The words of a text in order; they do not overlap, and cover all of it but white space.

    With Han characters by jieba's dictionary and hidden Markov model (rjieba), looked up in simplified characters, so
    that a text in traditional ones falls into the same words. Else runs of letters and digits; signs are words by
    themselves. Offsets count characters of the text as given.

    segmenter: for languages that neither does justice, e.g. Japanese or Thai.

    Raises:
        UserError: the segmenter gives a piece that the text does not hold at that place.
    """
    if segmenter is not None:
        return _placed(text, segmenter(text))
    if not has_han(text):
        return [Word(match[0], *match.span()) for match in _WORD.finditer(text)]
    return [word for word, _ in tagged(text)]


def tagged(text: str) -> list[tuple[Word, str]]:
    """The words of a text with Han characters as `segment` gives them, with jieba's parts of speech ("n", "eng", ...).

    Words of other scripts that the dictionary would cut are whole again, as in a text without Han characters.
    """
    import rjieba

    looked_up = simplify(text)
    whole = {place: match for match in _PLAIN.finditer(text) for place in range(*match.span())}
    words: list[tuple[Word, str]] = []
    end = 0
    for piece, tag in rjieba.tag(looked_up if len(looked_up) == len(text) else text):
        start, end = end, end + len(piece)
        if start in whole and start > whole[start].start() and end <= whole[start].end():
            first, first_tag = words.pop()
            words.append((Word(text[first.start : end], first.start, end), first_tag))
        elif not piece.isspace():
            words.append((Word(text[start:end], start, end), tag))
    return words


def has_han(text: str) -> bool:
    """Whether a text has Han characters."""
    return _HAN.search(text) is not None


def simplify(text: str) -> str:
    """Traditional characters as simplified ones, by OpenCC's "t2s" with its phrases (乾燥 becomes 干燥, 乾隆 stays).

    Nearly always of the same length, character by character.
    """
    return _converter().convert(text) if has_han(text) else text


def half_width(text: str) -> str:
    """Full-width letters, digits and signs as ASCII (Ａ１，becomes A1,), the ideographic space as a plain one.

    Every tokenizer does so anyway (`tuwen.data.corpus.normalise`, NFKC, which also touches much else); this is for the
    texts that people see.
    """
    import unicodedata

    return _WIDE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)


def _placed(text: str, pieces: Iterable[str]) -> list[Word]:
    words, end = [], 0
    for piece in filter(None, map(str.strip, pieces)):
        start = end + len(text[end:]) - len(text[end:].lstrip())
        if not text.startswith(piece, start):
            raise UserError(f"the segmenter gave {piece!r}, but the text goes on {text[start : start + 20]!r}")
        end = start + len(piece)
        words.append(Word(piece, start, end))
    return words


@cache
def _converter() -> Any:
    import opencc

    return opencc.OpenCC("t2s")
