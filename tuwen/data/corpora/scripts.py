"""What can be told of a text from its characters alone."""

import unicodedata
from collections import Counter


def is_blank(text: str) -> bool:
    """No character that shows: empty, white space, or invisible ones."""
    return not any(c.isprintable() and not c.isspace() for c in text)


def language_by_script(text: str) -> str:
    """The language of a text that does not say: "zh" if it has Han characters, "en" if most letters are Latin.

    All else is "und", texts with kana or hangul too. A guess: every language in Latin letters passes for English.
    """
    scripts = Counter(map(_script, filter(str.isalpha, text)))
    if scripts["kana"] or scripts["hangul"]:
        return "und"
    if scripts["han"]:
        return "zh"
    return "en" if 2 * scripts["latin"] > scripts.total() else "und"


def _script(letter: str) -> str:
    if letter.isascii():
        return "latin"
    name = unicodedata.name(letter, "")
    for start, script in _SCRIPTS:
        if name.startswith(start):
            return script
    return "other"


_SCRIPTS = (
    ("CJK", "han"),
    ("LATIN", "latin"),
    ("FULLWIDTH LATIN", "latin"),
    ("HIRAGANA", "kana"),
    ("KATAKANA", "kana"),
    ("HALFWIDTH KATAKANA", "kana"),
    ("HANGUL", "hangul"),
)
