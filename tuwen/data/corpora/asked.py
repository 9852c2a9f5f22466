"""What is asked of a picture, in one form for every corpus: the columns of a row that is a question, a statement, ...

A row's one text is what a model reads; its columns say the same again as it was written, with the answer.

    questions   question, answers (of people, as many as answered; none where they are hidden), language
    statements  sentence, label (1 true, 0 false, null hidden), language; on one picture or two
    entailment  hypothesis, label (one of `LABELS`, null hidden), language, and where there is one, premise
    phrases     phrase, box (x0, y0, x1, y1, shares of width and height), boxes (every right one), language

Further columns are the corpus's own: "choices" (texts, of which one is the answer), "kind" (of question), ids.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tuwen.data.corpora.captions import checked_caption
from tuwen.data.corpora.faults import RowError, one_line
from tuwen.data.corpora.json_text import json_kind
from tuwen.errors import quoted

COLUMNS = {
    "questions": ("question", "answers"),
    "statements": ("sentence", "label"),
    "entailment": ("hypothesis", "label"),
    "phrases": ("phrase", "box"),
}
LABELS = ("entailment", "neutral", "contradiction")
MOST_ANSWERS = 1000
LONGEST_ANSWER = 2000  # characters

Asked = tuple[str, str, dict[str, Any]]  # language, the text, the columns


def question(text: Any, answers: Any, language: str, /, **more: Any) -> Asked:
    """A row that is a question.

    Raises:
        RowError: the question is no text, or the answers are no list of texts.
    """
    words = checked_caption(text)
    if not isinstance(answers, list | tuple) or len(answers) > MOST_ANSWERS:
        raise RowError("wrong type", f"answers are a list of at most {MOST_ANSWERS} texts, not {quoted(answers, 80)}")
    return language, words, {"question": words, "answers": [_answer(x) for x in answers], "language": language, **more}


def _answer(value: Any) -> str:
    if not isinstance(value, str):
        raise RowError("wrong type", f"an answer is a string, not {json_kind(value)}")
    if len(value) > LONGEST_ANSWER:
        raise RowError("text too long", f"an answer of {len(value):,} characters; at most {LONGEST_ANSWER:,} are one")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise RowError("broken JSON", "half a character (a lone \\ud... escape); write the character itself")
    return value.strip()


def statement(text: Any, label: Any, language: str, /, **more: Any) -> Asked:
    """A row that is true or false of its picture, or its two. label: true, false, 1, 0, their names, or None.

    Raises:
        RowError: the sentence is no text, the label none of these.
    """
    words = checked_caption(text)
    known = {"true": 1, "false": 0, "1": 1, "0": 0}
    value = known.get(label.lower()) if isinstance(label, str) else next((k for k in (0, 1) if label == k), None)
    if value is None and label is not None:
        raise RowError("wrong type", f"label is {quoted(label, 80)}; write true or false")
    return language, words, {"sentence": words, "label": value, "language": language, **more}


def entailment(text: Any, label: Any, language: str, /, premise: Any = None, **more: Any) -> Asked:
    """A row whose hypothesis follows from its picture, may be, or contradicts it. premise: a text beside the picture.

    Raises:
        RowError: hypothesis or premise is no text, the label none of `LABELS` or None.
    """
    words = checked_caption(text)
    if label is not None and label not in LABELS:
        raise RowError("wrong type", f"label is {quoted(label, 80)}; it is one of {', '.join(LABELS)}")
    beside = {} if premise is None else {"premise": checked_caption(premise)}
    return language, words, {"hypothesis": words, "label": label, "language": language, **beside, **more}


def phrase(text: Any, boxes: Sequence[Any], language: str, /, **more: Any) -> Asked:
    """A row whose phrase means a place of its picture. boxes: every right one; the first is "box".

    Raises:
        RowError: the phrase is no text, or a box is none.
    """
    words, checked = checked_caption(text), [box(edges) for edges in boxes]
    if not checked:
        raise RowError("missing key", f"no box for {one_line(words, 60)!r}; give one, or leave the phrase out")
    return language, words, {"phrase": words, "box": checked[0], "boxes": checked, "language": language, **more}


def box(edges: Any) -> list[float]:
    """The edges, checked.

    Raises:
        RowError: not x0 < x1 and y0 < y1 in 0..1.
    """
    numbers = edges if isinstance(edges, list | tuple) else []
    if len(numbers) != 4 or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers):
        raise RowError("wrong type", f"a box is four numbers, not {quoted(edges, 80)}")
    left, top, right, bottom = numbers
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):  # no NaN is
        raise RowError("no box", f"the box {quoted(edges, 80)} is none; edges x0 < x1, y0 < y1 are in 0 to 1")
    return [float(edge) for edge in numbers]


def kind_of(columns: Mapping[str, Any]) -> str:
    """Which of `COLUMNS` a row's columns are; "" for none."""
    return next((kind for kind, names in COLUMNS.items() if all(name in columns for name in names)), "")
