"""What is common to tasks that choose a class for pictures and a text: the choice, what it earns, its baselines.

Shape legend: R rows, C classes.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tuwen.data import draws
from tuwen.data.batch import Images
from tuwen.data.corpus import Corpus, Record, languages_and_texts
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.predictor import Predictor
from tuwen.systems.system import Head
from tuwen.tasks.blind import by_beginning
from tuwen.tasks.encoding import encoded_rows, measured
from tuwen.tasks.marks import Marks

WATCHED = 1000  # rows that a validation during training looks at
BATCH = 64


class Choice(NamedTuple):
    """What was chosen, and its probability among the classes."""

    name: str
    probability: float


@dataclass(frozen=True)
class Choices:
    """What a task chooses among and how a choice is marked.

    names: [C] of the classes, the training split's commonest first. earned: what a class earns in a row, 0 to 1.
    allowed: classes that a row lets choose among; None: all. kind: of a row, by which marks are told apart; "" none.
    """

    names: Sequence[str]
    beginnings: Mapping[str, int]
    earned: Callable[[Record, int], float]
    kind: Callable[[Record], str]
    allowed: Callable[[Record], Sequence[int] | None] = lambda record: None


def measure_choices(
    task: str,
    choices: Choices,
    predictor: Predictor,
    head: Head,
    corpus: Corpus,
    *,
    batch_size: int = BATCH,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    baselines: bool = True,
    marks: Marks | None = None,
) -> dict[str, Any]:
    """Accuracy in percent with half its 95% interval over rows, over all, by language and by kind; and of baselines:
    the commonest class, the commonest by how the text begins (blind to the picture), and the head given another row's
    picture or text. limit: at most so many rows, drawn. marks: where what every row earns is told.

    Raises:
        UserError: an unknown language, no row in a language that the run knows, or no picture can be read.
    """
    began = time.monotonic()
    known = measured(predictor, corpus, languages)
    rows = [row for row in range(len(corpus)) if _language(corpus.record(row)) in known]
    rows = [rows[k] for k in draws.sample(len(rows), limit, "measured")]
    if not rows:
        raise UserError(f"corpus {corpus.name}, split {corpus.split}: no row in {', '.join(known)}")
    broken: Counter[str] = Counter()
    earned: dict[str, list[float]] = defaultdict(list)
    places: list[Record] = []
    with predictor.evaluating():
        for part in encoded_rows(predictor, corpus, rows, batch_size, broken, task):
            records = [corpus.record(int(row)) for row in part.rows]
            places += records
            chosen = {"head": part, "other_picture": part.mixed("picture"), "other_text": part.mixed("text")}
            for name, given in chosen.items() if baselines else [("head", part)]:
                best = choose(choices, head, predictor, given.images, given.texts, records)[0].tolist()
                earned[name] += [choices.earned(record, k) for record, k in zip(records, best, strict=True)]
    if not places:
        raise UserError(f"corpus {corpus.name}, split {corpus.split}: none of the pictures can be read")
    if marks is not None:
        marks.add("all", 100 * np.array(earned["head"]), [record.image_id for record in places])
    if baselines:
        earned["majority"] = [choices.earned(record, 0) for record in places]
        guesses = [by_beginning(_text(record), choices.beginnings) for record in places]
        earned["blind"] = [choices.earned(record, k) for record, k in zip(places, guesses, strict=True)]
    return {
        "system": predictor.name,
        "corpus": corpus.name,
        "split": corpus.split,
        "task": task,
        **_accuracy(earned.pop("head"), places, choices),
        "baselines": {name: _accuracy(own, places, choices) for name, own in earned.items()},
        "classes": len(choices.names),
        "images": len({record.image_id for record in places}),
        "broken": dict(broken),
        "seconds": time.monotonic() - began,
    }


def choose(
    choices: Choices, head: Any, predictor: Predictor, images: Sequence[Encoded], texts: Encoded, records=()
) -> tuple[Tensor, Tensor]:
    """(class [R], its probability [R]) of the greatest of the head's logits, among those that a row's record allows."""
    logits = head.logits(predictor.system, images, texts).float().cpu()
    for k, record in enumerate(records):
        if allowed := choices.allowed(record):
            shut = torch.ones(logits.shape[1], dtype=torch.bool)
            shut[list(allowed)] = False
            logits[k] = logits[k].masked_fill(shut, -torch.inf)
    best = logits.argmax(1)
    probability = logits.sigmoid() if getattr(head, "binary", False) else logits.softmax(1)
    return best, probability.gather(1, best[:, None])[:, 0]


def predicted_choices(
    choices: Choices, predictor: Predictor, head: Any, corpus: Corpus
) -> Iterator[tuple[Record, str]]:
    """(row, the name of what is chosen for it) of all rows that can be read."""
    with predictor.evaluating():
        for part in encoded_rows(predictor, corpus, range(len(corpus)), BATCH, Counter(), "predictions"):
            records = [corpus.record(int(row)) for row in part.rows]
            best = choose(choices, head, predictor, part.images, part.texts, records)[0]
            for record, k in zip(records, best.tolist(), strict=True):
                yield record, choices.names[k]


def use_choices(
    choices: Choices, predictor: Predictor, head: Head, pictures: Sequence[Any], texts: Sequence[str], several: int
) -> list[Choice]:
    """What is chosen for each (picture or pictures, text). several: pictures a row.

    pictures: a picture a row, or a sequence of them; or the rows of an `Encoded`, or of one for each of several, which
    `Model.keep` gave before.
    """
    given = _rows_given(pictures, several)
    counts = {len(part) for part in given} if given else {len(pictures)}
    if counts != {len(texts)}:
        rows = " and ".join(str(count) for count in sorted(counts))
        raise UserError(f"{rows} rows of pictures and {len(texts)} texts; give as many of both")
    out: list[Choice] = []
    with predictor.evaluating():
        for start in range(0, len(texts), BATCH):
            part = torch.arange(start, min(start + BATCH, len(texts)))
            if given:
                images = [predictor.ready(encoded.select(part)) for encoded in given]
            else:
                images = _encoded(predictor, [pictures[k] for k in part.tolist()], several)
            encoded = predictor.encode(predictor.tokens(texts[start : start + BATCH]))
            best, probability = choose(choices, head, predictor, images, encoded)
            named = zip(best.tolist(), probability.tolist(), strict=True)
            out += [Choice(choices.names[k], p) for k, p in named]
    return out


def _rows_given(pictures: Any, several: int) -> list[Encoded]:
    """Pictures that are encoded already, one entry for each of several a row; none where they are pictures."""
    parts = [pictures] if isinstance(pictures, Encoded) else list(pictures)
    if not parts or not all(isinstance(part, Encoded) for part in parts):
        return []
    if len(parts) != several:
        raise UserError(f"{len(parts)} sequences of encoded pictures; this task is about {several} a row")
    return parts


def _encoded(predictor: Predictor, rows: Sequence[Any], several: int) -> list[Encoded]:
    """One `Encoded` a picture of the rows."""
    shown = [row if several > 1 else [row] for row in rows]
    if wrong := next((row for row in shown if len(row) != several), None):
        raise UserError(f"{len(wrong)} pictures in a row; this task is about {several}")
    parts = [torch.stack([predictor.pixels(row[k]) for row in shown]) for k in range(several)]
    return [predictor.encode(Images(pixels)) for pixels in parts]


def table_of_choices(measured: dict[str, Any], head: str) -> tuple[str, tuple[str, ...], list[tuple]]:
    """The head's accuracy by language and kind, beside its baselines. head: the name of the first column's entry."""
    named = {
        "majority": "the commonest",
        "blind": "blind to the picture: the commonest by how the text begins",
        "other_picture": f"{head}, another row's picture",
        "other_text": f"{head}, another row's text",
    }
    kinds = [kind for kind in measured["kinds"] if kind]
    spoken = list(measured["languages"]) if len(measured["languages"]) > 1 else []
    columns = ("", "all", *spoken, *kinds)
    rows = []
    for name, own in ((head, measured), *((named[name], own) for name, own in measured["baselines"].items())):
        first = f"{own['accuracy']:.1f} +- {own['interval']:.1f}"
        rest = [f"{own['languages'][language]['accuracy']:.1f}" for language in spoken]
        rows.append((name, first, *rest, *(f"{own['kinds'][kind]['accuracy']:.1f}" for kind in kinds)))
    remark = f"accuracy in percent over {measured['rows']} rows of {measured['images']} pictures"
    return f"{remark}, {measured['classes']} classes", columns, rows


def _accuracy(marks: Sequence[float], records: Sequence[Record], choices: Choices) -> dict[str, Any]:
    by_language, by_kind = defaultdict(list), defaultdict(list)
    for mark, record in zip(marks, records, strict=True):
        by_language[_language(record)].append(mark)
        by_kind[choices.kind(record)].append(mark)
    return {
        **_mean(marks),
        "languages": {name: _mean(own) for name, own in sorted(by_language.items())},
        "kinds": {name: _mean(own) for name, own in sorted(by_kind.items())},
    }


def _mean(marks: Sequence[float]) -> dict[str, Any]:
    """Mean in percent, half the normal 95% interval of it over rows, their number."""
    values = 100 * np.array(marks)
    interval = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return {"accuracy": float(values.mean()), "interval": interval, "rows": len(values)}


def _language(record: Record) -> str:
    return next(languages_and_texts(record))[0]


def _text(record: Record) -> str:
    return next(languages_and_texts(record))[1]
