"""VQA v2: questions on pictures of COCO with ten people's answers each (Goyal et al., arXiv 1612.00837).

Layout (visualqa.org; fields as in GT-Vision-Lab/VQA): v2_OpenEnded_mscoco_SPLIT_questions.json with `questions`
[{image_id, question, question_id}], v2_mscoco_SPLIT_annotations.json with `annotations` [{question_id, question_type,
answer_type, multiple_choice_answer, answers: [{answer, answer_confidence, answer_id}]}] for train2014 and val2014.
Questions of test have no answers; test-dev's are among test's.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tuwen.data.corpora.asked import Asked, question
from tuwen.data.corpora.asked_set import AskedSet, Entry, list_of, optional, short
from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.json_text import field, load_json
from tuwen.data.corpora.published import Format

SPLITS = {"train": "train2014", "val": "val2014", "test-dev": "test-dev2015", "test": "test2015"}
_KEPT = ("question_id", "answers", "question_type", "answer_type")


class VQA2(AskedSet):
    def __init__(self, root: Path):
        super().__init__(root)
        self.questions = self.some({s: (f"v2_OpenEnded_mscoco_{name}_questions.json",) for s, name in SPLITS.items()})
        names = {split: f"v2_mscoco_{SPLITS[split]}_annotations.json" for split in ("train", "val")}
        self.answers = {split: self.needed(name) for split, name in names.items() if split in self.questions}

    def read_entries(self, faults: Faults) -> Iterator[Entry]:
        for split, path in self.questions.items():
            answers = self._answers(split, faults)
            for number, value in enumerate(list_of(path, load_json(path), "questions"), 1):
                name = value.get("question_id") if isinstance(value, dict) else None
                asked = answers.pop(name, None) if isinstance(name, int) else None
                yield Entry(path, 0, f"question {number}", split, (value, asked))

    def _answers(self, split: str, faults: Faults) -> dict[int, dict[str, Any]]:
        """Annotations by question; of people's answers the words alone, so that half a million fit into memory."""
        path = self.answers.get(split)
        answers: dict[int, dict[str, Any]] = {}
        for number, value in enumerate(list_of(path, load_json(path, _smaller), "annotations") if path else (), 1):
            try:
                answers[short(value, "question_id", int)] = value
            except RowError as error:
                assert path is not None
                faults.add(Fault(path, 0, error.reason, f"annotation {number}: {error}"))
        return answers

    def rows_of(self, entry: Entry) -> Iterable[tuple[str, tuple[str, ...], Asked]]:
        value, annotation = entry.value
        name, picture = short(value, "question_id", int), short(value, "image_id", int)
        columns: dict[str, Any] = {"question_id": name}
        answers = []
        if entry.split in self.answers:
            if annotation is None:
                raise RowError("no answers", f"question_id {name} is in no annotation; take both files of one release")
            answers = field(annotation, "answers", list)
            columns |= optional(annotation, kind="question_type", answer_type="answer_type")
        folder = "test2015" if entry.split.startswith("test") else SPLITS[entry.split]
        image = f"{folder}/COCO_{folder}_{picture:012d}.jpg"
        yield str(name), (image,), question(value.get("question"), answers, "en", **columns)


def _smaller(value: dict[str, Any]) -> Any:
    """Of an answer its words; of an annotation what is read."""
    if "answer_confidence" in value or "answer_id" in value:
        answer = value.get("answer")
        return sys.intern(answer) if isinstance(answer, str) else answer
    return {key: value[key] for key in _KEPT if key in value} if "multiple_choice_answer" in value else value


FORMATS = (
    Format(
        name="vqa-v2",
        title="VQA v2, questions on pictures of COCO",
        languages=("en",),
        needs="v2_OpenEnded_mscoco_{train2014,val2014,test-dev2015,test2015}_questions.json, "
        "v2_mscoco_{train2014,val2014}_annotations.json and COCO's train2014/, val2014/, test2015/",
        ask="visualqa.org/download.html; the pictures at cocodataset.org",
        licence="annotations CC-BY 4.0, pictures keep their owners' rights",
        records="train 443,757 questions, val 214,354, test-dev 107,394, test 447,793, the last two without answers",
        read=VQA2,
    ),
)
