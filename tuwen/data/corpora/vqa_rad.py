"""VQA-RAD: doctors' questions on radiology pictures (Lau et al. 2018).

Layout (osf.io/89kps): `VQA_RAD Dataset Public.json`, a list of {qid, phrase_type, image_name, image_organ, question,
question_type, answer, answer_type (OPEN or CLOSED), ...}; test is what phrase_type calls test_freeform or test_para.
Its pictures are in both splits: a validation split is best drawn by picture. The corpus is private.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tuwen.data.corpora.asked import Asked, question
from tuwen.data.corpora.asked_set import AskedSet, Entry, list_of, optional, short
from tuwen.data.corpora.faults import Faults
from tuwen.data.corpora.json_text import field, load_json
from tuwen.data.corpora.published import Format

FILE = "VQA_RAD Dataset Public.json"


class VQARAD(AskedSet):
    private = True

    def __init__(self, root: Path):
        super().__init__(root)
        self.annotation = self.needed(FILE)

    def read_entries(self, faults: Faults) -> Iterator[Entry]:
        entries = list_of(self.annotation, load_json(self.annotation, private=bool(faults.private)))
        for number, value in enumerate(entries, 1):
            kind = value.get("phrase_type") if isinstance(value, dict) else ""
            split = "test" if isinstance(kind, str) and kind.startswith("test") else "train"
            yield Entry(self.annotation, 0, f"entry {number}", split, value)

    def rows_of(self, entry: Entry) -> Iterable[tuple[str, tuple[str, ...], Asked]]:
        value = entry.value
        name, picture = short(value, "qid", (int, str)), short(value, "image_name")
        answer = field(value, "answer", (str, int, float))
        said = answer if isinstance(answer, str) else str(short(value, "answer", (int, float)))
        columns: dict[str, Any] = optional(value, kind="question_type", answer_type="answer_type", organ="image_organ")
        yield str(name), (picture,), question(field(value, "question", str), [said], "en", **columns)


FORMATS = (
    Format(
        name="vqa-rad",
        title="VQA-RAD, questions on radiology pictures",
        languages=("en",),
        needs=f"{FILE} and the pictures in `VQA_RAD Image Folder`/",
        ask="osf.io/89kps",
        licence="CC0 1.0; pictures of MedPix",
        records="train 1,797 questions, test 451, on 315 pictures",
        read=VQARAD,
    ),
)
