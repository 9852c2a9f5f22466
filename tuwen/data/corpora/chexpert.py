"""CheXpert (Irvin et al., arXiv 1901.07031): chest X-rays with labels of fourteen findings, and no reports.

Layout: train.csv, valid.csv and test.csv (or test_labels.csv) with Path
("CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg"), Frontal/Lateral, AP/PA and a column a finding
(1.0 there, 0.0 not, -1.0 uncertain, empty not mentioned). Rows have no texts; columns: "findings" (by name, as in
`mimic-cxr`), "view", "patient", "study". Sex and Age are not read. The corpus is private.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from tuwen.data.corpora.captions import Held, split_name
from tuwen.data.corpora.csv_rows import csv_rows
from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.files import CorpusEntry
from tuwen.data.corpora.published import Format
from tuwen.data.corpora.reports import labels_of

_PLACE = r"(?:train|valid|test)/(patient\d{1,9})/(study\d{1,6})/view\d{1,3}_\w{1,20}"
_PATH = re.compile(rf"(?:CheXpert-v1\.0(?:-small)?/)?({_PLACE})\.jpg")
FILES = {"train": ("train.csv",), "valid": ("valid.csv",), "test": ("test.csv", "test_labels.csv")}


class CheXpert(Held):
    private = True

    def __init__(self, root: Path):
        super().__init__(root)
        there = {split: self.folder.annotation(*names) for split, names in FILES.items()}
        self.annotations = {split: path for split, path in there.items() if path}
        if not self.annotations:
            self.needed(*FILES["train"])

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        self.rows, self.files = [], []
        for split, path in self.annotations.items():
            for row, line in csv_rows(path, ("Path", "Cardiomegaly"), faults):
                try:
                    yield self._made(path, line, split_name(split), row)
                except ValueError as error:
                    faults.add(Fault(path, line, "wrong type", str(error)))
                except RowError as error:
                    faults.add(Fault(path, line, error.reason, str(error)))

    def _made(self, path: Path, line: int, split: str, row: dict[str, str]) -> CorpusEntry:
        match = _PATH.fullmatch(row["Path"].strip())
        if match is None:
            raise RowError("broken row", "Path is none of the set; take the official file")
        side, angle = (row.get(name, "").strip()[:20] for name in ("Frontal/Lateral", "AP/PA"))
        view = angle or side or ("Lateral" if match[1].endswith("lateral") else "Frontal")
        columns = {"findings": labels_of(row), "view": view, "patient": match[2], "study": f"{match[2]}/{match[3]}"}
        beside = f"{path.parent.relative_to(self.root).as_posix()}/{match[1]}.jpg".removeprefix("./")
        names = [name for name in (match[0], f"{match[1]}.jpg", beside) if (self.root / name).is_file()]
        image = names[0] if names else beside
        return self.keep(path, line, id=match[1], image=image, texts={}, split=split, columns=columns)


FORMATS = (
    Format(
        name="chexpert",
        title="CheXpert, chest X-rays with labels of findings",
        languages=(),
        needs="train.csv, valid.csv, test.csv and the pictures in train/, valid/, test/ (or CheXpert-v1.0-small/)",
        ask="stanfordmlgroup.github.io/competitions/chexpert, by a signed agreement",
        licence="Stanford University Dataset Research Use Agreement; nothing of it may be passed on",
        records="train 223,414 pictures, valid 234, test 668",
        read=CheXpert,
    ),
)
