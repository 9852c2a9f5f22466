"""What tuwen says to people, in English or in Chinese: one catalogue for help, errors, tables and pages.

The code says everything in English. Where it reaches a person, `spoken` looks it up in chinese.tsv: a line a message,
English, a tab, Chinese; `{}` stands for a value, `{0}` and so on in the Chinese where their order is another. What
programs read (JSON, tables in files) stays English.
"""

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path

LANGUAGES = ("en", "zh")
OPTION = "--lang"
_CHOSEN = "TUWEN_LANG"  # what --lang sets, for this process and those it starts
_VALUE = "{}"
_DEPTH = 4  # messages within values of messages
_PARTS = 8  # sentences of a message
_FAULTS = frozenset(
    ("damaged", "missing", "not a file", "not a picture", "outside", "too large", "truncated", "unreadable")
)
_PREFIXES = 8  # places ("pairs.csv:3: ", "config field x: ") that may stand before a message


def choose_language(argv: Sequence[str]) -> list[str]:
    """The words without `--lang LANGUAGE`, wherever it stands; what it names is spoken from here on."""
    words = list(argv)
    for k, word in enumerate(words):
        name, _, value = word.partition("=")
        if name == OPTION and (value or words[k + 1 : k + 2]) and (value or words[k + 1]) in LANGUAGES:
            os.environ[_CHOSEN] = value or words[k + 1]
            del words[k : k + (1 if value else 2)]
            break
    return words


def chosen_language() -> str:
    """By TUWEN_LANG, else as other programs do by LC_ALL, LC_MESSAGES, LANG: the first that is set."""
    names = (_CHOSEN, "LC_ALL", "LC_MESSAGES", "LANG")
    return "zh" if next((os.environ[name] for name in names if os.environ.get(name)), "").startswith("zh") else "en"


def spoken(text: str) -> str:
    """A message in the person's language; as it is where the catalogue has none (a test names what must have one)."""
    return text if chosen_language() == "en" else in_chinese(text)


def in_chinese(text: str, depth: int = _DEPTH) -> str:
    """A message in Chinese, with the messages within its values; as it is where the catalogue has none."""
    if (whole := _whole(text, depth)) is not None:
        return whole
    place = -2
    for _ in range(_PREFIXES):
        place = text.find(": ", place + 2)
        if place < 0:
            break
        if (rest := _whole(text[place + 2 :], depth)) is not None:
            prefix = text[:place]  # a kind of fault; else a file, a line, a field, as they are called
            return (f"{_whole(prefix, depth)}：" if prefix in _FAULTS else f"{prefix}: ") + rest
    parts = text.split("; ", _PARTS)  # sentences that were put together
    said = [in_chinese(part, depth) for part in parts] if len(parts) > 1 else parts
    return text if said == parts else "；".join(said)


def _whole(text: str, depth: int) -> str | None:
    """A whole message in Chinese, by its line or by the one with values that has most of its words."""
    known = catalogue()
    if text in known:
        return known[text]
    plain = text[:1].lower() + text[1:].removesuffix(".")  # a summary that became a description
    if plain in known:
        return known[plain] + "。"
    for pieces, chinese in _patterns():
        values = _values(text, pieces)
        if values is not None:
            # a value of one word is a name, and stays as it is
            said = [in_chinese(value, depth - 1) if depth and " " in value else value for value in values]
            return _filled(chinese, said)
    return None


def _values(text: str, pieces: Sequence[str]) -> list[str] | None:
    """What stands between the pieces, the shortest first; None where the text is not of them. No backtracking."""
    at, end = len(pieces[0]), len(text) - len(pieces[-1])
    if end < at or not text.startswith(pieces[0]) or not text.endswith(pieces[-1]):
        return None
    values = []
    for piece in pieces[1:-1]:
        place = text.find(piece, at, end)
        if place < 0:
            return None
        values.append(text[at:place])
        at = place + len(piece)
    return [*values, text[at:end]]


def _filled(chinese: str, values: Sequence[str]) -> str:
    """The values in their places: {} the next one, {0} the first."""
    following = iter(values)
    return re.sub(r"\{(\d?)\}", lambda match: values[int(match[1])] if match[1] else next(following), chinese)


@functools.cache
def catalogue() -> dict[str, str]:
    """Chinese by English."""
    lines = (Path(__file__).parent / "chinese.tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


@functools.cache
def _patterns() -> list[tuple[list[str], str]]:
    """The messages with values: (what stands around the values, Chinese), those with most words of their own first."""
    patterns = [(english.split(_VALUE), chinese) for english, chinese in catalogue().items() if _VALUE in english]
    return sorted(patterns, key=lambda pattern: -sum(map(len, pattern[0])))


def readable(size: float) -> str:
    """Bytes as people say them."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"
