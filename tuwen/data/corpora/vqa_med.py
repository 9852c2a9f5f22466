"""VQA-Med 2019 (Ben Abacha et al., ImageCLEF 2019): questions on radiology pictures of MedPix.

Layout (github.com/abachaa/VQA-Med-2019): All_QA_Pairs_{train,val}.txt, "synpic41148|question|answer" a line, beside
C1_Modality_train.txt to C4_Abnormality_train.txt, the same lines by kind, and Train_images/, Val_images/; of the test
VQAMed2019_Test_Questions_w_Ref_Answers.txt, "synpic54082|kind|question|answer", or VQAMed2019_Test_Questions.txt
without answers, and VQAMed2019_Test_Images/. The corpus is private.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tuwen.data.corpora.asked import Asked, question
from tuwen.data.corpora.asked_set import SHORT, AskedSet, Entry
from tuwen.data.corpora.faults import Faults, RowError
from tuwen.data.corpora.lines import Lines
from tuwen.data.corpora.published import Format
from tuwen.errors import quoted

KINDS = ("Modality", "Plane", "Organ", "Abnormality")
ANSWERED, HIDDEN = "VQAMed2019_Test_Questions_w_Ref_Answers.txt", "VQAMed2019_Test_Questions.txt"


class VQAMed(AskedSet):
    private = True

    def __init__(self, root: Path):
        super().__init__(root)
        names = {split: (f"All_QA_Pairs_{split}.txt",) for split in ("train", "val")}
        test = (ANSWERED,) if self.folder.annotation(ANSWERED) else (HIDDEN,)
        self.annotations = self.some({**names, "test": test})

    def read_entries(self, faults: Faults) -> Iterator[Entry]:
        for split, path in self.annotations.items():
            kinds = self._kinds(split) if split != "test" else {}
            with Lines(path, faults) as lines:
                for text in lines:
                    if text.strip():
                        yield Entry(path, lines.number, kinds.get(text.strip(), ""), split, text.strip())

    def _kinds(self, split: str) -> dict[str, str]:
        """What kind of question each line is, where the files by kind are there."""
        kinds: dict[str, str] = {}
        for number, kind in enumerate(KINDS, 1):
            path = self.folder.annotation(f"C{number}_{kind}_{split}.txt")
            if path:
                with Lines(path, Faults("skip")) as lines:
                    kinds |= dict.fromkeys((text.strip() for text in lines), kind.lower())
        return kinds

    def rows_of(self, entry: Entry) -> Iterable[tuple[str, tuple[str, ...], Asked]]:
        cells = [cell.strip() for cell in entry.value.split("|")]
        kind = cells.pop(1) if entry.file.name == ANSWERED and len(cells) == 4 else entry.name
        hidden = entry.file.name == HIDDEN
        if len(cells) != 3 - hidden:
            raise RowError("broken row", f"{quoted(entry.value, 80)}: a line is picture|question|answer")
        picture, words = cells[:2]
        if not picture or len(picture) > SHORT or not picture.isprintable():
            raise RowError("broken row", f"{quoted(picture, 60)} is no picture's name")
        columns: dict[str, Any] = {"kind": kind[:SHORT]} if kind.strip() else {}
        yield f"{entry.split}-{entry.line}", (picture,), question(words, cells[2:], "en", **columns)


FORMATS = (
    Format(
        name="vqa-med-2019",
        title="VQA-Med 2019, questions on radiology pictures",
        languages=("en",),
        needs=f"All_QA_Pairs_{{train,val}}.txt, {ANSWERED}, and the folders of pictures beside them",
        ask="github.com/abachaa/VQA-Med-2019",
        licence="research; pictures of MedPix",
        records="train 12,792 questions on 3,200 pictures, val 2,000 on 500, test 500 on 500",
        read=VQAMed,
    ),
)
