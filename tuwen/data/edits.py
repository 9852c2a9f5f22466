"""Wrong reports made of right ones: sides, extents and negations turned round, names of findings exchanged.

The generator of MAX-VL's oversight (its card, section 6), for reports in English and Chinese. Words are found by
themselves, "left," as well as "left"; what has nothing to turn comes back as it was, and is no wrong report.
"""

import re
from collections.abc import Mapping, Sequence

KINDS = ("location", "extent", "negation", "name")

_LOCATION = {
    "en": [
        ("left", "right"),
        ("upper", "lower"),
        ("apical", "basal"),
        ("central", "peripheral"),
        ("above", "below"),
    ],
    "zh": [
        ("左", "右"),
        ("上叶", "下叶"),
        ("上肺", "下肺"),
        ("上方", "下方"),
        ("上部", "下部"),
        ("肺尖", "肺底"),
        ("中央", "周围"),
    ],
}
_EXTENT = {
    "en": [("mild", "severe"), ("mildly", "severely"), ("minimal", "extensive"), ("small", "large")],
    "zh": [("轻度", "重度"), ("少量", "大量"), ("很小", "很大"), ("局限", "广泛")],
}
_ONE_WAY = {
    "en": {"slight": "severe", "slightly": "severely"},
    "zh": {"轻微": "重度"},
}  # no way back (card, section 10)
# the first that fits turns one statement round
_NEGATION = {
    "en": [
        (r"\bno evidence of\b", "evidence of"),
        (r"\bthere (is|are) no\b", r"there \1"),
        (r"\bwithout\b", "with"),
        (r"\b(is|are|was|were|does|do|has|have) not\b", r"\1"),
        (r"\bno\b ", ""),
        (r"\bthere is (?:a|an)\b", "there is no"),
        (r"\bthere (are|is)\b", r"there \1 no"),
        (r"\b(shows?|showed|showing|demonstrates?|demonstrated|reveals?|revealed)\b(?: an?\b)?", r"\1 no"),
        (r"\bevidence of\b", "no evidence of"),
        (r"\b(is|are|was|were)\b", r"\1 not"),
        (r"\bwith\b", "without"),
    ],
    "zh": [
        ("未见", "可见"),
        ("没有", "有"),
        ("无", "有"),
        ("可见", "未见"),
        ("有", "没有"),
    ],
}


def location(text: str, language: str) -> str:
    """Every side and place exchanged for its opposite; twice is the text itself."""
    return _exchanged(text, language, _both_ways(_LOCATION.get(language, ())))


def extent(text: str, language: str) -> str:
    """Every extent exchanged for its opposite."""
    pairs = _both_ways(_EXTENT.get(language, ())) | _ONE_WAY.get(language, {})
    return _exchanged(text, language, pairs)


def negation(text: str, language: str) -> str:
    """One statement denied, or one denial stated, the first that can be."""
    for pattern, instead in _NEGATION.get(language, ()):
        match = re.search(pattern, text, re.IGNORECASE)
        if match is not None:
            turned = text[: match.start()] + _cased(match[0], match.expand(instead)) + text[match.end() :]
            return _cased(text, turned)
    return text


def exchanged_name(text: str, language: str, own: Sequence[str], other: str) -> str:
    """The first of a row's own names that the text has exchanged for another; longer names are looked for first."""
    for name in sorted(own, key=len, reverse=True):
        turned = _exchanged(text, language, {name.lower(): other})
        if turned != text:
            return turned
    return text


def edited(kind: str, text: str, language: str, own: Sequence[str] = (), other: str | None = None) -> str:
    """A text as a kind of error turns it. own, other: for "name", the row's names and one that it has not."""
    if kind == "name":
        return text if other is None else exchanged_name(text, language, own, other)
    return {"location": location, "extent": extent, "negation": negation}[kind](text, language)


def _both_ways(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    return {a: b for pair in pairs for a, b in (pair, pair[::-1])}


def _exchanged(text: str, language: str, words: Mapping[str, str]) -> str:
    """All at once, so that nothing is exchanged twice."""
    if not words:
        return text
    edge = "" if language in ("zh", "ja") else r"\b"
    every = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.sub(rf"{edge}(?:{every}){edge}", lambda m: _cased(m[0], words[m[0].lower()]), text, flags=re.I)


def _cased(before: str, after: str) -> str:
    """What takes the place of a text that began with a capital letter begins with one too."""
    return after[:1].upper() + after[1:] if before[:1].isupper() else after
