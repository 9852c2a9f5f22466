"""Visual entailment (SNLI-VE): does a sentence follow from a picture, may it be, or does the picture contradict it?"""

from collections.abc import Iterator
from typing import Any

from tuwen.data.corpora.asked import LABELS
from tuwen.data.corpora.asked_lines import FILES
from tuwen.data.exercises import exercises_of
from tuwen.tasks.labels import LabelTask, numbered, predicted, prepared


class Entailment(LabelTask):
    what = "does a sentence follow from a picture"
    why, needs = "picture and sentence are read together", ("fuse", "encode_images encode_texts")
    file = FILES["entailment"]

    def prepare(self, corpus):
        return prepared(self.config, exercises_of(corpus, "entailment"), LABELS)

    def rows(self, corpus, split):
        return numbered(self.config, exercises_of(corpus, "entailment"))

    def predictions(self, predictor, head, corpus, **beside) -> Iterator[dict[str, Any]]:
        for record, label in predicted(self.config, predictor, head, corpus):
            yield {"id": record.id, "label": label}
