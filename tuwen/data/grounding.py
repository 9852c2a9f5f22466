"""Phrases of pictures with the boxes they mean, where a corpus knows them.

Two forms are read: a row's column "objects", a list of {"phrase": "a red cap", "box": [x0, y0, x1, y1]} ("phrase" may
be one a language); and a `grounding.jsonl` beside a table, whose lines have the row's id and such a list. Edges are
shares of the picture's width and height.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.scripts import language_by_script
from tuwen.data.corpus import Corpus, normalise
from tuwen.errors import UserError, quoted

FILE = "grounding.jsonl"


@dataclass(frozen=True)
class Phrase:
    """A phrase and every box [n, 4] float64 (x0, y0, x1, y1 in 0..1) it is right for in the picture of a row."""

    row: int
    text: str
    language: str
    boxes: np.ndarray


def phrases_of(corpus: Corpus, limit: int | None = None, faults: Faults | None = None) -> list[Phrase]:
    """The distinct phrases of each picture, by row. limit: at most so many pictures that have any.

    faults: takes what is wrong with lines and boxes, which are left out; None: as the corpus was opened (`on_bad`).

    Raises:
        UserError: the corpus knows no boxes; or faults stop at one, with the file and line, or the row.
    """
    faults = Faults(corpus.on_bad, corpus.name if corpus.private else "") if faults is None else faults
    beside = _beside(corpus, faults)
    phrases: list[Phrase] = []
    pictures: set[int] = set()
    for row in range(len(corpus)):
        record = corpus.record(row)
        place, objects = beside.get(record.id) or (corpus.where(row), record.columns.get("objects") or ())
        if not objects or record.image_id in pictures:
            continue
        if limit is not None and len(pictures) >= limit:
            break
        pictures.add(record.image_id)
        phrases += _grouped(row, place or (Path(f"row {record.called}"), 0), objects, faults)
    if not phrases:
        raise UserError(
            f"corpus {corpus.name}, split {corpus.split}: knows no boxes; give rows a column objects "
            f'[{{"phrase": ..., "box": [x0, y0, x1, y1]}}], or put {FILE} beside the table'
        )
    return phrases


Place = tuple[Path, int]  # a file and its line; 0: the whole of it


def _beside(corpus: Corpus, faults: Faults) -> dict[str, tuple[Place, Any]]:
    """By the row's id: place and objects of each line of the file beside the corpus's table, if there is one."""
    if corpus.parts:
        return {f"{part.name}/{name}": own for part in corpus.parts for name, own in _beside(part, faults).items()}
    origin = corpus.where(0) if len(corpus) else None
    path = origin[0].parent / FILE if origin else None
    if path is None or not path.is_file():
        return {}
    objects: dict[str, tuple[Place, Any]] = {}
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), start=1):
        if line.strip():
            try:
                content = json.loads(line)
                objects[str(content["id"])] = ((path, number), list(content["objects"]))
            except (ValueError, KeyError, TypeError, RecursionError):
                faults.add(Fault(path, number, "no boxes", 'not a JSON object with "id" and a list "objects"'))
    return objects


def _grouped(row: int, place: Place, objects: Any, faults: Faults) -> list[Phrase]:
    """One a phrase, whatever the number of its boxes."""
    if not isinstance(objects, Sequence) or isinstance(objects, str):
        faults.add(Fault(*place, "no boxes", f"objects are {quoted(objects)}, not a list of phrases with their boxes"))
        return []
    boxes: dict[tuple[str, str], list[np.ndarray]] = {}
    for item in objects:
        try:
            phrases, box = _checked(item)
        except RowError as error:
            faults.add(Fault(*place, error.reason, str(error)))
            continue
        for language, text in phrases.items():
            boxes.setdefault((language, normalise(text)), []).append(box)
    return [Phrase(row, text, language, np.stack(group)) for (language, text), group in boxes.items()]


def _checked(item: Any) -> tuple[dict[str, str], np.ndarray]:
    phrase = item.get("phrase") if isinstance(item, Mapping) else None
    phrases = {language_by_script(phrase): phrase} if isinstance(phrase, str) else phrase
    if not isinstance(phrases, Mapping) or not all(isinstance(x, str) and x.strip() for x in phrases.values()):
        raise RowError("no phrase", f"an object has no phrase: {quoted(item)}")
    try:
        box = np.array(item["box"], dtype=np.float64)
        left, top, right, bottom = box
    except (KeyError, TypeError, ValueError, OverflowError):
        raise RowError("no box", f"the box of {quoted(phrase)} is not four numbers") from None
    if not (np.isfinite(box).all() and 0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        wrong = f"the box of {quoted(phrase)}, {box.tolist()}, is none"
        raise RowError("no box", f"{wrong}; edges x0 < x1, y0 < y1 are in 0 to 1")
    return dict(phrases), box
