"""What is common to tasks whose rows carry a label among a few: two-picture statements, entailment."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from tuwen.data.corpus import Corpus, Record, languages_and_texts
from tuwen.data.items import WithColumns
from tuwen.errors import UserError
from tuwen.predictor import Predictor
from tuwen.systems.system import Head
from tuwen.tasks import choosing
from tuwen.tasks.blind import Blind, beginnings_of, check_beginnings
from tuwen.tasks.heads import head_of
from tuwen.tasks.task import Task, TaskConfig


@dataclass(frozen=True)
class LabelConfig(TaskConfig):
    """way: "paper" learns the system's own head where its paper gives one; "classes" the default.

    blind: learns without the picture, or without the text, as a baseline.
    labels, beginnings: what the training split decided: labels, the commonest first, and the commonest by how texts
        begin.
    """

    way: Literal["paper", "classes"] = "paper"
    blind: Literal["none", "picture", "text"] = "none"
    labels: tuple[str, ...] = ()
    beginnings: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        check_beginnings(self.beginnings, len(self.labels))


Config = TypeVar("Config", bound=LabelConfig)


class LabelTask(Task):
    """A task of choosing a row's label: its head, its measure, its table. What is left to say is what its rows are."""

    metric, verb, learnt = "accuracy", "judge", True
    figure = "accuracy"
    Config = LabelConfig

    def head(self, system, tokenizer):
        return head_of(system, self, len(self.config.labels), "class")

    def measure(self, predictor, head, corpus, **options):
        return choosing.measure_choices(self.name(), choices_of(self.config), predictor, head, corpus, **options)

    def validate(self, predictor, head, corpus):
        return {"score": self.measure(predictor, head, corpus, limit=choosing.WATCHED, baselines=False)["accuracy"]}

    def table(self, measured):
        return choosing.table_of_choices(measured, measured["system"])

    def use(self, predictor, head, pictures, texts, **how):
        """A `Choice` a row: one of the labels, and its probability."""
        return choosing.use_choices(choices_of(self.config), predictor, head, pictures, texts, self.pictures)


def label_of(value: Any) -> str | None:
    """A row's label by its name; None where it is hidden."""
    if value is None:
        return None
    return value if isinstance(value, str) else ("true" if value else "false")


def prepared(config: Config, rows: Corpus, known: Sequence[str]) -> Config:
    """The config with labels and beginnings of the rows trained on. known: all labels there may be.

    Raises:
        UserError: a label that is none of them, or rows of one label alone.
    """
    pairs = []
    for row in range(len(rows)):
        record = rows.record(row)
        label = label_of(record.columns["label"])
        if label is not None and label not in known:
            where = f"corpus {rows.name}, row {record.called}"
            raise UserError(f"{where}: label {record.quoted(label, 40)} is none of {', '.join(known)}")
        if label is not None:
            pairs.append((next(languages_and_texts(record))[1], label))
    counts = {label: sum(label == own for _, own in pairs) for label in known}
    if sum(count > 0 for count in counts.values()) < 2:
        where = f"corpus {rows.name}, split {rows.split}"
        raise UserError(f"{where}: {len(pairs)} rows have labels, all of one kind; there is nothing to learn")
    labels = tuple(sorted(known, key=lambda label: -counts[label]))
    numbers = [labels.index(label) for _, label in pairs]
    return replace(config, labels=labels, beginnings=beginnings_of((text for text, _ in pairs), numbers))


def numbered(config: LabelConfig, rows: Corpus) -> Corpus:
    """The rows with a column "class": the label's number, -1 where it is hidden."""
    number = {label: k for k, label in enumerate(config.labels)}

    def make(record: Record, row: int) -> Mapping[str, int]:
        label = label_of(record.columns["label"])
        return {"class": -1 if label is None else number.get(label, -1)}

    made = WithColumns(rows, make, repr(config.labels))
    return made if config.blind == "none" else Blind(made, config.blind)


def choices_of(config: LabelConfig) -> choosing.Choices:
    return choosing.Choices(
        config.labels,
        config.beginnings,
        earned=lambda record, k: float(label_of(record.columns["label"]) == config.labels[k]),
        kind=lambda record: str(record.columns.get("kind", "")),
    )


def predicted(
    config: LabelConfig, predictor: Predictor, head: Head | None, rows: Corpus
) -> Iterator[tuple[Record, str]]:
    """(row, the label chosen for it) of all rows that can be read."""
    return choosing.predicted_choices(choices_of(config), predictor, head, rows)
