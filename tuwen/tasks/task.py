"""The contract of a downstream task: what a row is, what is learnt for it, how it is measured. One file a task.

A task that is learnt trains as everything does: the same loop, step and checkpoints. While its `Head` is attached
`System.forward` gives the head's losses; its weights are the run's `head.*`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tuwen.data.corpus import Corpus
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.predictor import Predictor
from tuwen.systems.system import Head, System


@dataclass(frozen=True)
class TaskConfig:
    """Settings of a task that is learnt (`--set task.NAME=VALUE`), with what `Task.prepare` fixed from the corpus.

    name: the task's, which is its file's.
    """

    name: str = ""


class Task:
    """A downstream task, named as its file. A task without a head is measured alone: nothing is learnt for it.

    what: in a line; why: what it needs its capabilities for; metric: the first of those it is measured by.
    figure: where in what `measure` gives the number stands that systems are compared by, greater is better: keys apart
        by dots, * for the mean over all keys there, alternatives apart by |.
    needs: alternatives, of which a system must have one: capabilities (`System.can`), several of them apart by a space.
    pictures: separate ones a row; a head is handed one `Encoded` each.
    beside: further splits that measuring reads, handed to `measure` by name where the corpus has them.
    file: that holds the task's rows beside a corpus's pairs.jsonl.
    verb: of `tuwen.load(RUN)`, that does this ("answer"). learnt: nothing can be done before a head is learnt.
    marked: whether `measure` tells what single rows add to the figure (`marks`); not so where it is of a whole text.
    """

    what: ClassVar[str]
    why: ClassVar[str]
    metric: ClassVar[str]
    figure: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    pictures: ClassVar[int] = 1
    beside: ClassVar[tuple[str, ...]] = ()
    file: ClassVar[str] = ""
    verb: ClassVar[str] = ""
    learnt: ClassVar[bool] = False
    marked: ClassVar[bool] = True
    Config: ClassVar[type[TaskConfig]] = TaskConfig

    def __init__(self, config: TaskConfig | None = None):
        self.config: Any = replace(self.Config(), name=self.name()) if config is None else config

    @classmethod
    def name(cls) -> str:
        return cls.__module__.rpartition(".")[2]

    def prepare(self, corpus: Corpus) -> TaskConfig:
        """The config with what the training split decides (answers, labels); it is kept in the run's config.yaml."""
        return self.config

    def rows(self, corpus: Corpus, split: str) -> Corpus:
        """The task's own rows of a corpus opened at a split: a row is a question, a statement; column "label"."""
        return corpus

    def head(self, system: System, tokenizer: Tokenizer) -> Head:
        """What is learnt: the paper's own head (`System.adapt`), or the task's default. tokenizer: the run's.

        Raises:
            UserError: if nothing is learnt for this task.
        """
        raise UserError(
            f"task {self.name()} has no head: it is measured on what a run has learnt (`tuwen eval --task`)"
        )

    def measure(self, predictor: Predictor, head: Head | None, corpus: Corpus, **options: Any) -> dict[str, Any]:
        """The metrics with their baselines, as JSON: {"system", "corpus", "split", "task", "broken", ...}.

        predictor: the system, live during training or loaded. head: its head of this task, where it has one.
        """
        raise NotImplementedError

    def validate(self, predictor: Predictor, head: Head, corpus: Corpus) -> Mapping[str, Any]:
        """What is watched while the head is learnt: "score", by which the run's weights are chosen, greater is better,
        and further numbers by name. corpus: rows of validation."""
        raise NotImplementedError

    def use(
        self, predictor: Predictor, head: Head | None, pictures: Sequence[Any], texts: Sequence[str] | None, **how: Any
    ) -> list[Any]:
        """What the task's verb gives, one entry a row.

        pictures: one a row, or where a row has several, a sequence of them each. texts: questions, statements, phrases.
        """
        raise NotImplementedError

    def table(self, measured: dict[str, Any]) -> tuple[str, tuple[str, ...], list[tuple]]:
        """(a remark above it, names of its columns, rows) of what was measured."""
        raise NotImplementedError

    def predictions(
        self, predictor: Predictor, head: Head | None, corpus: Corpus, **beside: Corpus
    ) -> Iterator[dict[str, Any]]:
        """One entry a row, as a scoring server takes them. beside: as for `measure`.

        Raises:
            UserError: if nobody scores this task by a file.
        """
        raise UserError(f"task {self.name()} has no file of predictions")
