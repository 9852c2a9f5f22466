"""Visual question answering: one of the answers that the training split knows, for a picture and a question.

Marks are VQA v2's (`tuwen.tasks.answers`). Rows that have "choices" are answered by one of them (multiple choice);
those with "answer_type" (open, closed, ...) or "kind" are told apart in the table.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from tuwen.data.corpora.asked_lines import FILES
from tuwen.data.corpus import Corpus, Record, languages_and_texts
from tuwen.data.exercises import exercises_of
from tuwen.data.items import WithColumns
from tuwen.errors import UserError
from tuwen.tasks import choosing
from tuwen.tasks.answers import most_given, plain_answer, soft_targets, vqa_accuracy
from tuwen.tasks.blind import Blind, beginnings_of, check_beginnings
from tuwen.tasks.heads import head_of
from tuwen.tasks.task import Task, TaskConfig

ANSWER_TOKENS = 12  # of an answer that a decoder says, special ones included


@dataclass(frozen=True)
class VQAConfig(TaskConfig):
    """most, least: answers kept at most, and what one must earn in all of the training split (VQA v2: 3129 and 9).

    way: "paper" learns the system's own head where its paper gives one; "classes" a classifier over the answers.
    blind: learns without the picture, or without the question, as a baseline.
    answers, beginnings: what the training split decided: answers, best first, and the commonest by how questions begin.
    """

    most: int = 3129
    least: float = 1.0
    way: Literal["paper", "classes"] = "paper"
    blind: Literal["none", "picture", "text"] = "none"
    answers: tuple[str, ...] = ()
    beginnings: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        if self.most < 1:
            raise ValueError(f"most must be at least 1, got {self.most}")
        check_beginnings(self.beginnings, len(self.answers))


class VQA(Task):
    what, metric = "an answer to a question about a picture", "VQA accuracy"
    figure = "accuracy"
    why, needs = "picture and question are read together", ("fuse", "encode_images encode_texts")
    file, verb, learnt = FILES["questions"], "answer", True
    Config = VQAConfig

    def prepare(self, corpus: Corpus) -> VQAConfig:
        config, rows = self.config, questions_of(corpus)
        records = [rows.record(row) for row in range(len(rows))]
        given = [soft_targets(record.columns["answers"]) for record in records]
        answers = most_given([record.columns["answers"] for record in records], config.most, config.least)
        if not answers:
            raise UserError(f"corpus {corpus.name}, split {corpus.split}: no answer earns task.least={config.least}")
        number = {answer: k for k, answer in enumerate(answers)}
        best = [max((a for a in own if a in number), key=own.__getitem__, default=None) for own in given]
        pairs = [(_question(record), number[a]) for record, a in zip(records, best, strict=True) if a is not None]
        texts, classes = zip(*pairs, strict=True)
        return replace(config, answers=answers, beginnings=beginnings_of(texts, classes))

    def rows(self, corpus: Corpus, split: str) -> Corpus:
        number = {answer: k for k, answer in enumerate(self.config.answers)}

        def targets(record: Record, row: int) -> Mapping[str, Any]:
            given = record.columns["answers"]
            earned, share = (np.zeros(len(number), dtype=np.float32) for _ in range(2))
            for answer, value in soft_targets(given).items():
                if answer in number:
                    earned[number[answer]] = value
            for form, count in Counter(plain_answer(answer) for answer in given).items():
                if form in number:
                    share[number[form]] = count / len(given)
            return {"target": earned, "weight": share}

        rows = WithColumns(questions_of(corpus), targets, repr(self.config.answers))
        return rows if self.config.blind == "none" else Blind(rows, self.config.blind)

    def head(self, system, tokenizer):
        head = head_of(system, self, len(self.config.answers), "target")
        if (tell := getattr(head, "tell_answers", None)) is not None:
            tell(*tokenizer.encode(self.config.answers, ANSWER_TOKENS))
        return head

    @property
    def choices(self) -> choosing.Choices:
        number = {answer: k for k, answer in enumerate(self.config.answers)}

        def allowed(record: Record) -> Sequence[int] | None:
            given = [number.get(plain_answer(answer)) for answer in record.columns.get("choices") or ()]
            return [k for k in given if k is not None]

        return choosing.Choices(
            self.config.answers,
            self.config.beginnings,
            earned=lambda record, k: vqa_accuracy(self.config.answers[k], record.columns["answers"]),
            kind=lambda record: str(record.columns.get("answer_type", record.columns.get("kind", ""))),
            allowed=allowed,
        )

    def measure(self, predictor, head, corpus, **options):
        return choosing.measure_choices("vqa", self.choices, predictor, head, corpus, **options)

    def validate(self, predictor, head, corpus):
        marks = self.measure(predictor, head, corpus, limit=choosing.WATCHED, baselines=False)
        return {"score": marks["accuracy"]}

    def table(self, measured):
        return choosing.table_of_choices(measured, measured["system"])

    def use(self, predictor, head, pictures, texts, **how):
        """A `Choice` a row: the answer and its probability."""
        return choosing.use_choices(self.choices, predictor, head, pictures, texts, self.pictures)

    def predictions(self, predictor, head, corpus, **beside) -> Iterator[dict[str, Any]]:
        """As VQA v2's server takes them."""
        for record, answer in choosing.predicted_choices(self.choices, predictor, head, corpus):
            yield {"question_id": int(record.id) if record.id.isdecimal() else record.id, "answer": answer}


def questions_of(corpus: Corpus) -> Corpus:
    """Rows that are questions; the whole of a split whose answers are not hidden.

    Raises:
        UserError: a corpus that knows no questions.
    """
    return exercises_of(corpus, "questions")


def _question(record: Record) -> str:
    return next(languages_and_texts(record))[1]
