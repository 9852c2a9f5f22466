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
from tuwen.data.items import Item, WithColumns, items_of
from tuwen.errors import UserError
from tuwen.tasks import choosing
from tuwen.tasks.answers import most_given, plain_answer, soft_targets, vqa_accuracy
from tuwen.tasks.blind import Blind, beginnings_of
from tuwen.tasks.encoding import encoded_rows
from tuwen.tasks.heads import Classifier
from tuwen.tasks.task import Task, TaskConfig


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


class VQA(Task):
    what, metric = "an answer to a question about a picture", "VQA accuracy"
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

        def targets(record: Record) -> Mapping[str, Any]:
            values = np.zeros(len(number), dtype=np.float32)
            for answer, earned in soft_targets(record.columns["answers"]).items():
                if answer in number:
                    values[number[answer]] = earned
            return {"target": values}

        rows = WithColumns(questions_of(corpus), targets, repr(self.config.answers))
        return rows if self.config.blind == "none" else Blind(rows, self.config.blind)

    def head(self, system, tokenizer):
        return Classifier(system, self, len(self.config.answers), "target")

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

    def predictions(self, predictor, head, corpus) -> Iterator[dict[str, Any]]:
        """As VQA v2's server takes them."""
        with predictor.evaluating():
            for part in encoded_rows(predictor, corpus, range(len(corpus)), choosing.BATCH, Counter(), "answers"):
                records = [corpus.record(int(row)) for row in part.rows]
                best = choosing.choose(self.choices, head, predictor, part.images, part.texts, records)[0]
                for record, k in zip(records, best.tolist(), strict=True):
                    number = int(record.id) if record.id.isdecimal() else record.id
                    yield {"question_id": number, "answer": self.config.answers[k]}


def questions_of(corpus: Corpus) -> Corpus:
    """Rows that are questions (`tuwen.data.exercises`); of built scenes, those in their column "questions".

    Raises:
        UserError: a corpus that knows no questions.
    """
    columns = corpus.record(0).columns if len(corpus) else {}
    if "answers" in columns or "questions" not in columns or corpus.exercises("questions") is not None:
        return exercises_of(corpus, "questions")

    def asked(row: int, record: Record) -> Iterator[Item]:
        for place, item in enumerate(record.columns["questions"]):
            for language in corpus.languages:
                if language in item["question"]:
                    columns = {"answers": [item["answer"][language]], "kind": item["kind"]}
                    name = f"{record.id}-{place}-{language}"
                    yield Item((row,), name, language, item["question"][language], columns)

    return items_of(corpus, asked)


def _question(record: Record) -> str:
    return next(languages_and_texts(record))[1]
