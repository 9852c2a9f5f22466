"""Classes of pictures for zero-shot classification: their names and prompts by language, and each row's class."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tuwen.data.corpus import Corpus, Record
from tuwen.errors import UserError

FILE = "zeroshot.json"
PROMPTS = {
    "en": ("{c}", "a photo of a {c}.", "a picture of the {c}."),
    "zh": ("{c}", "{c}的照片。", "一张{c}的图片。"),
}


@dataclass(frozen=True)
class Classes:
    """names: language -> a name a class. prompts: language -> texts with {c} for the name. labels: [rows] int64.

    A row that has no class, or several, is labelled -1.
    """

    names: Mapping[str, Sequence[str]]
    prompts: Mapping[str, Sequence[str]]
    labels: np.ndarray

    def texts(self, language: str) -> list[list[str]]:
        """The text of every class [C], a prompt after the other."""
        prompts = self.prompts.get(language) or PROMPTS.get(language) or ("{c}",)
        return [[prompt.replace("{c}", name) for name in self.names[language]] for prompt in prompts]


def classes_of(corpus: Corpus, file: str | Path | None = None) -> Classes:
    """The classes of a corpus's rows, by their column "cls" (a number or a name); of scenes, the one thing shown.

    file: names and prompts as `{"classnames": {"en": [...], "zh": [...]}, "templates": {"en": ["a photo of a {c}."]}}`
    (the form of CLIP_benchmark); None: the zeroshot.json beside the corpus's table, else the rows' own texts, where the
    rows of a class agree on one.

    Raises:
        UserError: no class anywhere, or a file that is not of that form.
    """
    records = [corpus.record(row) for row in range(len(corpus))]
    if "cls" not in records[0].columns and "scene" in records[0].columns:
        return _things(corpus, records)
    if not all("cls" in record.columns for record in records):
        raise UserError(f'corpus {corpus.name}: its rows have no column "cls" that names their class; add one')
    keys = [record.columns["cls"] for record in records]
    file = Path(file) if file is not None else getattr(corpus, "zero_shot", None)
    if file is None:
        return _by_own_texts(records, keys)
    names, prompts = _read(file)
    return Classes(names, prompts, _numbered(keys, names, file))


def _numbered(keys: Sequence, names: Mapping[str, Sequence[str]], file: Path) -> np.ndarray:
    """Numbers of classes by number, or by name in any language."""
    place = {name: k for known in names.values() for k, name in reversed(list(enumerate(known)))}
    count = len(next(iter(names.values())))
    labels = []
    for key in keys:
        number = place.get(str(key)) if isinstance(key, str) and not key.isdecimal() else int(key)
        if number is None or not 0 <= number < count:
            raise UserError(f"{file}: class {key!r} of the corpus is none of its {count} classes")
        labels.append(number)
    return np.array(labels, dtype=np.int64)


def _by_own_texts(records: Sequence[Record], keys: Sequence) -> Classes:
    """Classes in sorted order, called by the text that all their rows share in a language."""
    known = {key: k for k, key in enumerate(sorted(set(keys), key=str))}
    said: dict[str, dict] = {}
    for record, key in zip(records, keys, strict=True):
        for language, texts in record.texts.items():
            for text in texts[:1]:
                said.setdefault(language, {}).setdefault(key, set()).add(text)
    shared = {
        language: [next(iter(by_key[key])) for key in known]
        for language, by_key in said.items()
        if all(len(by_key.get(key, ())) == 1 for key in known)
    }
    names = shared or {"en": [str(key).replace("_", " ") for key in known]}
    return Classes(names, {}, np.array([known[key] for key in keys], dtype=np.int64))


def _things(corpus: Corpus, records: Sequence[Record]) -> Classes:
    """Scenes of one kind of thing; every kind that such a scene of the split shows is a class."""
    from tuwen.data.corpora.scenes.things import OTHER_LANGUAGES, THINGS, foreign_name

    shown = [{item["thing"] for item in record.columns["scene"]["objects"]} for record in records]
    kinds = sorted({next(iter(things)) for things in shown if len(things) == 1})
    if not kinds:
        raise UserError(f"corpus {corpus.name}, split {corpus.split}: no scene shows one kind of thing alone")
    names = {"en": [THINGS[kind].name for kind in kinds], "zh": [THINGS[kind].chinese for kind in kinds]}
    for language in set(corpus.languages) & set(OTHER_LANGUAGES):
        names[language] = [foreign_name(kind, language) for kind in kinds]
    labels = [kinds.index(next(iter(things))) if len(things) == 1 else -1 for things in shown]
    return Classes(names, {}, np.array(labels, dtype=np.int64))


def _read(file: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Class names and prompts by language, checked."""
    try:
        held = json.loads(file.read_text("utf-8"))
        names, prompts = held["classnames"], held.get("templates", {})
    except OSError as error:
        raise UserError(f"{file}: cannot be read as classes: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f'{file}: is not {{"classnames": {{LANGUAGE: [names]}}, "templates": {{...}}}}') from None
    for part, where in ((names, "classnames"), (prompts, "templates")):
        fits = isinstance(part, dict) and all(
            isinstance(told, list) and told and all(isinstance(text, str) and text for text in told)
            for told in part.values()
        )
        if not fits:
            raise UserError(f"{file}: {where} must be lists of texts by language")
    if len({len(known) for known in names.values()}) != 1:
        raise UserError(f"{file}: classnames must have as many names in every language")
    for language, told in prompts.items():
        prompts[language] = [prompt.replace("{}", "{c}") for prompt in told]
        bad = next((prompt for prompt in prompts[language] if "{c}" not in prompt), None)
        if bad is not None:
            raise UserError(f"{file}: template {bad!r} has no {{c}} for the class's name")
    return names, prompts
