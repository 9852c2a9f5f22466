"""Classes of pictures for zero-shot classification: their names and prompts by language, and each row's class."""

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tuwen.data.corpora.faults import one_line
from tuwen.data.corpus import Corpus, Record
from tuwen.errors import UserError, quoted, reason_of

FILE = "zeroshot.json"
SETS = Path(__file__).parent / "class_sets"  # names and prompts that come with tuwen, each with its source
PROMPTS = {
    "en": ("{c}", "a photo of a {c}.", "a picture of the {c}."),
    "zh": ("{c}", "{c}的照片。", "一张{c}的图片。"),
}
FORM = '{"classnames": {LANGUAGE: [names]}, "templates": {...}}'


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

    def note(self, languages: Sequence[str]) -> str:
        """What a reader of the figures must know: pictures left out, names that several classes share; else ""."""
        lines = []
        if (self.labels < 0).any():
            lines.append(f"left out: {int((self.labels < 0).sum()):,} pictures without one class")
        for language in languages:
            if names := self.shared_names(language):
                what = one_line(", ".join(f"{name} ({', '.join(map(str, of))})" for name, of in names.items()), 200)
                lines.append(f"in {language} several classes have one name, and the first is always taken: {what}")
        return "\n".join(lines)

    def shared_names(self, language: str) -> dict[str, list[int]]:
        """Names that several classes have, with these: no prompt can tell them apart, and the first one always wins."""
        counts = Counter(self.names[language])
        several = {name for name, count in counts.items() if count > 1}
        return {
            name: [k for k, other in enumerate(self.names[language]) if other == name]
            for name in counts
            if name in several
        }


def class_sets() -> list[str]:
    """Names of the class sets that come with tuwen."""
    return sorted(path.stem for path in SETS.glob("*.json"))


def classes_of(corpus: Corpus, file: str | Path | None = None) -> Classes:
    """The classes of a corpus's rows, by their column "cls": a number, a name, names by language, or null for none.

    file: names and prompts as `{"classnames": {"en": [...], "zh": [...]}, "templates": {"en": ["a photo of a {c}."]}}`
    (the form of CLIP_benchmark), or one of `class_sets`; None: what the corpus itself says of its classes
    (`Corpus.class_names`, the zeroshot.json beside its table), else the rows' own texts, where the rows of a class
    agree on one. A file's "folders", one a class, name classes too; where rows have a column "class" of such folders,
    it tells their class, since "cls" is a number among the folders that are there.

    Raises:
        UserError: no class anywhere, one that is none of the file's, or a file that is not of that form.
    """
    records = [corpus.record(row) for row in range(len(corpus))]
    keys = [_key(corpus, record) for record in records]
    if all(key is None for key in keys):
        raise UserError(f'corpus {corpus.name}: its rows have no column "cls" that names their class; add one')
    file = _set_or_file(file) if file is not None else corpus.zero_shot
    if file is not None:
        names, prompts, folders = _read(file)
        shown = [record.columns.get("class") for record in records]
        if not set(folders).isdisjoint(name for name in shown if isinstance(name, str)):
            keys = [key if name is None else str(name) for name, key in zip(shown, keys, strict=True)]
        return Classes(names, prompts, _numbered(keys, {**names, "folders": folders}, str(file)))
    if corpus.class_names:
        return Classes(corpus.class_names, {}, _numbered(keys, corpus.class_names, f"corpus {corpus.name}"))
    return _by_own_texts(records, keys)


def class_names(corpus: Corpus) -> list[str | None]:
    """What each row's column "cls" says, as one name that is equal in every split; None for no class.

    Raises:
        UserError: a value that names no class.
    """
    names: list[str | None] = []
    for row in range(len(corpus)):
        key = _key(corpus, corpus.record(row))
        names.append(
            " / ".join(name for _, name in key) if isinstance(key, tuple) else None if key is None else str(key)
        )
    return names


def _key(corpus: Corpus, record: Record) -> Hashable:
    """What a row's column "cls" says: a whole number, a name, (language, name) pairs, or None for no class."""
    value: Any = record.columns.get("cls")
    if isinstance(value, float) and value.is_integer():  # of a table whose column has gaps
        value = int(value)
    if isinstance(value, Mapping) and value and all(isinstance(part, str) for part in (*value, *value.values())):
        return tuple(value.items())
    if value is None or value == "" or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | np.integer):
        what = f'column "cls" of row {record.called} is {record.quoted(value)}'
        raise UserError(f"corpus {corpus.name}: {what}; write the class's number or name, or null for none")
    return value if isinstance(value, str) else int(value)


def _numbered(keys: Sequence[Hashable], names: Mapping[str, Sequence[str]], where: str) -> np.ndarray:
    """Numbers of classes by number, or by name in any language."""
    place = {name: k for known in names.values() for k, name in reversed(list(enumerate(known)))}
    count = len(next(iter(names.values())))
    labels = []
    for key in keys:
        shown = dict(key).values() if isinstance(key, tuple) else (key,)
        number = next((place[name] for name in shown if name in place), None)
        if number is None and (isinstance(key, int) or (isinstance(key, str) and key.isascii() and key.isdecimal())):
            number = int(key) if len(str(key)) < 10 else count
        number = -1 if key is None else number
        if number is None or not -1 <= number < count or (number < 0 and key is not None):
            raise UserError(f"{where}: class {quoted(key)} of the corpus is none of its {count} classes")
        labels.append(number)
    return np.array(labels, dtype=np.int64)


def _by_own_texts(records: Sequence[Record], keys: Sequence[Hashable]) -> Classes:
    """Classes in sorted order, called as their key says, or by the text that all their rows share in a language."""
    known = {key: k for k, key in enumerate(sorted({key for key in keys if key is not None}, key=str))}
    given: dict[str, dict] = {}
    for record, key in zip(records, keys, strict=True):
        own = dict(key) if isinstance(key, tuple) else {k: texts[0] for k, texts in record.texts.items() if texts}
        for language, name in own.items() if key is not None else ():
            given.setdefault(language, {}).setdefault(key, set()).add(name)
    shared = {
        language: [next(iter(by_key[key])) for key in known]
        for language, by_key in given.items()
        if all(len(by_key.get(key, ())) == 1 for key in known)
    }
    names = shared or {"en": [str(key).replace("_", " ") for key in known]}
    labels = [-1 if key is None else known[key] for key in keys]
    return Classes(names, {}, np.array(labels, dtype=np.int64))


def _set_or_file(file: str | Path) -> Path:
    """A file, or where there is none of that name the class set that is called so.

    Raises:
        UserError: neither.
    """
    path = Path(file)
    if path.is_file() or path.suffix or len(path.parts) > 1:
        return path
    if str(file) not in class_sets():
        raise UserError(f"{quoted(str(file))}: neither a file of classes nor a set of {', '.join(class_sets())}")
    return SETS / f"{file}.json"


def _read(file: Path) -> tuple[dict[str, list[str]], dict[str, list[str]], list[str]]:
    """Class names and prompts by language, and the classes' folders where the file has them, checked."""
    try:
        content = json.loads(file.read_text("utf-8"))
        names, prompts, folders = content["classnames"], content.get("templates", {}), content.get("folders", [])
    except OSError as error:
        raise UserError(f"{file}: cannot be read as classes: {reason_of(error)}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{file}: is not {FORM}") from None
    for part, where in ((names, "classnames"), (prompts, "templates")):
        fits = isinstance(part, dict) and all(
            isinstance(texts, list) and texts and all(isinstance(text, str) and text.strip() for text in texts)
            for texts in part.values()
        )
        if not fits or (part is names and not names):
            raise UserError(f"{file}: {where} must be lists of texts by language")
    if len({len(known) for known in names.values()}) != 1:
        raise UserError(f"{file}: classnames must have as many names in every language")
    count = len(next(iter(names.values())))
    texts = isinstance(folders, list) and all(isinstance(folder, str) for folder in folders)
    if folders and not (texts and len(folders) == count):
        raise UserError(f"{file}: folders must be a list of {count} names, one a class")
    for language, texts in prompts.items():
        prompts[language] = [prompt.replace("{}", "{c}") for prompt in texts]
        bad = next((prompt for prompt in prompts[language] if "{c}" not in prompt), None)
        if bad is not None:
            raise UserError(f"{file}: template {quoted(bad)} has no {{c}} for the class's name")
    return names, prompts, folders
