"""vqa.jsonl, nlvr.jsonl and entailment.jsonl beside a pair table: what is asked of its pictures, a line each.

    {"id": "1", "image": "images/1.jpg", "question": "What is it?", "answers": ["a dog"], "split": "train"}
    {"id": "1", "images": ["images/1.jpg", "images/2.jpg"], "sentence": "Both show a dog.", "label": true}
    {"id": "1", "image": "images/1.jpg", "hypothesis": "A dog sleeps.", "label": "neutral"}

Named by its own path, such a file is a corpus whose rows are of the form in `asked`. Without `lang`, the language is
told by script; without `answers` or `label`, they are hidden; further keys become columns.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tuwen.data.corpora.asked import COLUMNS, Asked, entailment, question, statement
from tuwen.data.corpora.columns import KEYS, LANGUAGE
from tuwen.data.corpora.faults import RowError, one_line
from tuwen.data.corpora.files import CorpusEntry
from tuwen.data.corpora.json_text import json_kind
from tuwen.data.corpora.scripts import language_by_script
from tuwen.data.corpora.table import LANGUAGE_KEY, JsonLines, near_key, string_of

FILES = {"questions": "vqa.jsonl", "statements": "nlvr.jsonl", "entailment": "entailment.jsonl"}
MOST_PICTURES = 64  # a row


class AskedLines(JsonLines):
    """One of `FILES`. A position is the offset of a line."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.name = path.resolve().parent.name
        self.kind = next(kind for kind, name in FILES.items() if name == path.name)

    def made(self, value: Any, position: int, line: int) -> CorpusEntry:
        if not isinstance(value, dict):
            return super().made(value, position, line)
        language, text, columns = asked_of(self.kind, value)
        if not LANGUAGE_KEY.fullmatch(language):
            raise RowError("wrong type", f"lang: {one_line(language, 40)!r} is no language code such as en or zh")
        named = {key: value[key] for key in ("id", "image", "split", "image_id") if key in value}
        further: tuple[str, ...] = ()
        if "images" in value:
            pictures = value["images"]
            if "image" in value or not isinstance(pictures, list) or not 0 < len(pictures) <= MOST_PICTURES:
                raise RowError("wrong type", f"images are a list of 1 to {MOST_PICTURES} paths, in place of image")
            named["image"], *rest = pictures
            further = tuple(string_of("images", picture) for picture in rest)
        entry = super().made(named | {"texts": {language: [text]}}, position, line)
        return replace(entry, columns=columns, further=further)


def asked_of(kind: str, value: dict[str, Any]) -> Asked:
    """What a line asks. Keys of no meaning of their own become columns.

    Raises:
        RowError: a missing key, or a value of a wrong kind.
    """
    rest = {key: cell for key, cell in value.items() if key not in (*KEYS, "images")}
    named = [rest.pop(name) for name in LANGUAGE if name in rest]
    name = COLUMNS[kind][0]
    if name not in rest:
        raise RowError("missing key", f"no key {name!r}{near_key(name, rest)}")
    text = rest.pop(name)
    language = named[0] if named else language_by_script(text) if isinstance(text, str) else ""
    if not isinstance(language, str):
        raise RowError("wrong type", f"lang is {json_kind(language)}; write a language code such as en or zh")
    if kind == "questions":
        answers = rest.pop("answers", [])
        return question(text, [answers] if isinstance(answers, str) else answers, language, **rest)
    label = rest.pop("label", None)
    return (statement if kind == "statements" else entailment)(text, label, language, **rest)
