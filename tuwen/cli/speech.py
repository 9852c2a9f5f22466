"""What the command line says of itself, in English or in Chinese: one catalogue, by --lang or LANG."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

LANGUAGES = ("en", "zh")
OPTION = "--lang"
_CHOSEN = "TUWEN_LANG"  # what --lang sets, for this process and those it starts


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
    """A message in the language; as it is where the catalogue has none (a test names those of the help)."""
    if chosen_language() == "en":
        return text
    known = catalogue()
    plain = text[:1].lower() + text[1:].removesuffix(".")  # a summary that became a description
    return known.get(text) or (known[plain] + "。" if plain in known else text)


@functools.cache
def catalogue() -> dict[str, str]:
    """Chinese by English."""
    lines = (Path(__file__).parent / "chinese.tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)
