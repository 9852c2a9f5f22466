"""What a medical picture shows, by name: which of several findings a row has, and the prompts that ask for each.

Columns that say so, the first that rows have: "findings" (by name 1, 0, -1 uncertain or null not mentioned, as
CheXpert's labels; or a list of those there), "finding" (names apart by commas, one text), "tags" (a list of names, or
one a language, as of scenes).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tuwen.data.corpus import Corpus, Record
from tuwen.errors import UserError, reason_of

UNCERTAIN = -1
NOTHING = ("no finding", "normal", "none")  # names of a row without any
UNLABELLED = ("todo", "unknown", "")  # of a row that nobody has looked at
COLUMNS = ("findings", "finding", "tags")
POSITIVE = {
    "en": ("{c}.", "There is {c}.", "The picture shows {c}."),
    "zh": ("{c}", "图中有{c}", "可见{c}。"),
}
NEGATIVE = {"en": ("No {c}.",), "zh": ("未见{c}。",)}
FORM = '{"FINDING": {LANGUAGE: {"positive": [texts], "negative": [texts]}}}'
MOST = 1000


@dataclass(frozen=True)
class Findings:
    """names: C of them. labels: [rows, C] int64: 1 there, 0 not, `UNCERTAIN` not known of."""

    names: tuple[str, ...]
    labels: np.ndarray


def findings_of(corpus: Corpus, language: str = "en") -> Findings:
    """The findings of a corpus's rows, the commonest first; a row that nobody labelled is uncertain of all.

    language: of the names, where rows have them by language.

    Raises:
        UserError: no column that names any.
    """
    rows = [findings_named(corpus.record(row), language) for row in range(len(corpus))]
    if all(row is None for row in rows):
        raise UserError(
            f'corpus {corpus.name}, split {corpus.split}: no row names findings; add a column "findings", as '
            '{"Edema": 1, "Fracture": 0} or ["Edema"]'
        )
    counts: dict[str, int] = {}
    for row in rows:
        for name, value in (row or {}).items():
            counts[name] = counts.get(name, 0) + (value == 1)
    names = tuple(sorted(counts, key=lambda name: (-counts[name], name)))[:MOST]
    labels = [[UNCERTAIN if row is None else row.get(name, 0) for name in names] for row in rows]
    return Findings(names, np.array(labels, dtype=np.int64).reshape(len(rows), len(names)))


def findings_named(record: Record, language: str) -> dict[str, int] | None:
    """Findings of a row by name; None for a row that nobody has labelled."""
    column = next((name for name in COLUMNS if name in record.columns), None)
    value: Any = None if column is None else record.columns[column]
    if column == "tags" and isinstance(value, Mapping):
        value = value.get(language)
    if value is None:
        return None
    if column == "findings" and isinstance(value, Mapping):
        return {str(name): _label(record, label) for name, label in value.items()}
    listed = value.split(",") if isinstance(value, str) else value
    if not isinstance(listed, Sequence) or not all(isinstance(name, str) for name in listed):
        raise UserError(f'row {record.called}: column "{column}" must hold names, got {record.quoted(value)}')
    names = [name.strip() for name in listed]
    if isinstance(value, str) and names[0].lower() in UNLABELLED:
        return None
    return {name: 1 for name in names if name.lower() not in (*NOTHING, *UNLABELLED)}


def _label(record: Record, value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, bool | int | float) and value in (-1, 0, 1):
        return int(value)
    raise UserError(f"row {record.called}: a finding is {record.quoted(value, 40)}; write 1, 0, -1 (uncertain) or null")


def prompts_of(
    names: Sequence[str], language: str, file: str | Path | None = None
) -> list[tuple[list[str], list[str]]]:
    """(texts that say a finding is there, texts that say it is not) of every name.

    file: `FORM`; a finding that it has not is asked for by the plain prompts.

    Raises:
        UserError: a file that is not of that form, or that has no finding of these.
    """
    given = {} if file is None else _read(Path(file))
    if given and not any(language in given.get(name, {}) for name in names):
        raise UserError(f"{file}: has prompts in {language} for none of the {len(names)} findings")
    positive, negative = POSITIVE.get(language, ("{c}",)), NEGATIVE.get(language, ("no {c}",))
    return [
        given.get(name, {}).get(
            language, ([t.replace("{c}", name) for t in positive], [t.replace("{c}", name) for t in negative])
        )
        for name in names
    ]


def _read(file: Path) -> dict[str, dict[str, tuple[list[str], list[str]]]]:
    try:
        content = json.loads(file.read_text("utf-8"))
        return {
            name: {language: (_texts(of["positive"]), _texts(of["negative"])) for language, of in spoken.items()}
            for name, spoken in content.items()
        }
    except OSError as error:
        raise UserError(f"{file}: cannot be read as prompts: {reason_of(error)}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{file}: is not {FORM}") from None


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        raise ValueError
    return value
