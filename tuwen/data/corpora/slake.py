"""SLAKE (Liu et al., arXiv 2102.09542): questions on medical pictures in English and Chinese.

Layout (med-vqa.com/slake): {train,validate,test}.json, lists of {qid, img_id, img_name ("xmlab1/source.jpg"), question,
answer, q_lang (en or zh), location, modality, answer_type (OPEN or CLOSED), base_type, content_type, triple}; pictures
imgs/xmlab1/source.jpg. Masks, boxes and the knowledge graph beside them are not read. The corpus is private.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tuwen.data.corpora.asked import Asked, question
from tuwen.data.corpora.asked_set import AskedSet, Entry, list_of, optional, short
from tuwen.data.corpora.faults import Faults, RowError
from tuwen.data.corpora.json_text import field, load_json
from tuwen.data.corpora.published import Format
from tuwen.errors import quoted

FILES = {"train": ("train.json",), "val": ("validate.json", "validation.json"), "test": ("test.json",)}
LANGUAGES = ("en", "zh")


class Slake(AskedSet):
    private = True

    def __init__(self, root: Path):
        super().__init__(root)
        self.annotations = self.some(FILES)

    def read_entries(self, faults: Faults) -> Iterator[Entry]:
        for split, path in self.annotations.items():
            for number, value in enumerate(list_of(path, load_json(path, private=bool(faults.private))), 1):
                yield Entry(path, 0, f"entry {number}", split, value)

    def rows_of(self, entry: Entry) -> Iterable[tuple[str, tuple[str, ...], Asked]]:
        value = entry.value
        name, picture, language = short(value, "qid", int), short(value, "img_name"), short(value, "q_lang")
        if language not in LANGUAGES:
            raise RowError("wrong type", f"q_lang is {quoted(language, 40)}; it is en or zh")
        columns: dict[str, Any] = {"question_id": name}
        columns |= optional(value, kind="content_type", answer_type="answer_type", base="base_type")
        columns |= optional(value, organ="location", modality="modality")
        answers = [field(value, "answer", str)]
        asked = question(field(value, "question", str), answers, language, **columns)
        yield f"{entry.split}-{name}", (f"imgs/{picture}",), asked


FORMATS = (
    Format(
        name="slake",
        title="SLAKE, questions on medical pictures",
        languages=LANGUAGES,
        needs="{train,validate,test}.json and the pictures in imgs/",
        ask="med-vqa.com/slake",
        licence="CC BY 4.0 [from memory]",
        records="14,028 questions on 642 pictures, half of them in Chinese",
        read=Slake,
    ),
)
