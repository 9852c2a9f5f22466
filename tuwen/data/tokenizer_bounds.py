"""What a stranger's tokenizer.json may do to a text: make it so much longer, and no more."""

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from tuwen.errors import UserError, refused

GROWTH = 256  # times; the largest in use is some 20, by compatibility characters
STEPS = 64
MOST_WORDS = 10_000_000
_ADDED = 1_000  # characters
_MAPPED = 64  # characters that stand for one, in SentencePiece's own map


def refuse_unbounded(state: Mapping[str, Any], source: str) -> None:
    """Refuses a tokenizer that multiplies each text, before it is made.

    Raises:
        UserError: its steps together make a text more than `GROWTH` times as long, or are more than `STEPS`; it has
            more than `MOST_WORDS` entries, or one of an id beyond.
    """
    with refused(f"{source}: not a tokenizer.json of the tokenizers library"):
        for part in ("normalizer", "pre_tokenizer", "decoder"):
            growth, steps = 1.0, 0
            for step in _steps(state.get(part)):
                growth, steps = growth * _growth(step), steps + 1
                if growth > GROWTH or steps > STEPS:
                    raise UserError(f"{source}: refused, its {part} makes a text many times as long")
        words = state["model"].get("vocab") or {}
        ids = words.values() if isinstance(words, dict) else [len(words)]
        if len(words) > MOST_WORDS or any(number > MOST_WORDS for number in ids):
            raise UserError(f"{source}: more than {MOST_WORDS:,} entries, or ids beyond")


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a part, of sequences in sequences one after the other."""
    left = [part] if part else []
    while left:
        step = left.pop(0)
        inner = next((step[name] for name in ("normalizers", "pretokenizers", "decoders") if name in step), None)
        if inner is None:
            yield step
        else:
            left = [*inner, *left]


def _growth(step: Mapping[str, Any]) -> float:
    """How many times as long a text may be after the step."""
    kind = step.get("type")
    if kind == "Replace":
        replaced = step["pattern"].get("String")  # a regex may match nothing, at every place
        new = len(step["content"])
        return max(1.0, new / len(replaced) if replaced else new + 1 if new else 1)
    if kind == "Prepend":
        return 1.0 if len(step["prepend"]) <= _ADDED else len(step["prepend"])
    if kind == "Precompiled":
        blob = base64.b64decode(step["precompiled_charsmap"] or "")
        mapped = blob[4 + int.from_bytes(blob[:4], "little") :]
        longest = max(map(len, mapped.split(b"\0")), default=0)
        return 1.0 if longest <= _MAPPED else longest
    return 1.0
