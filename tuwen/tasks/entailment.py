"""Visual entailment (SNLI-VE): does a sentence follow from a picture, may it be, or does the picture contradict it?"""

from collections.abc import Iterator
from typing import Any

from tuwen.data.corpora.asked import LABELS
from tuwen.data.corpora.asked_lines import FILES
from tuwen.data.exercises import exercises_of
from tuwen.tasks import choosing
from tuwen.tasks.heads import head_of
from tuwen.tasks.labels import LabelConfig, choices_of, numbered, predicted, prepared
from tuwen.tasks.task import Task


class Entailment(Task):
    what, metric = "does a sentence follow from a picture", "accuracy"
    why, needs = "picture and sentence are read together", ("fuse", "encode_images encode_texts")
    file, verb, learnt = FILES["entailment"], "judge", True
    Config = LabelConfig

    def prepare(self, corpus):
        return prepared(self.config, exercises_of(corpus, "entailment"), LABELS)

    def rows(self, corpus, split):
        return numbered(self.config, exercises_of(corpus, "entailment"))

    def head(self, system, tokenizer):
        return head_of(system, self, len(self.config.labels), "class")

    def measure(self, predictor, head, corpus, **options):
        return choosing.measure_choices("entailment", choices_of(self.config), predictor, head, corpus, **options)

    def validate(self, predictor, head, corpus):
        return {"score": self.measure(predictor, head, corpus, limit=choosing.WATCHED, baselines=False)["accuracy"]}

    def table(self, measured):
        return choosing.table_of_choices(measured, measured["system"])

    def use(self, predictor, head, pictures, texts, **how):
        """A `Choice` a row: "entailment", "neutral" or "contradiction", and its probability."""
        return choosing.use_choices(choices_of(self.config), predictor, head, pictures, texts, self.pictures)

    def predictions(self, predictor, head, corpus) -> Iterator[dict[str, Any]]:
        for record, label in predicted(self.config, predictor, head, corpus):
            yield {"id": record.id, "label": label}
