"""The four annotated sets of the Zero benchmark (CCMB): ICM and IQM for matching, ICR and IQR for retrieval.

Read as in section 4 of the card `zero-benchmark.md` (from github.com/yuxie11/R2D2, data/*_dataset.py): JSON lines with
`text` and `image_path`, and `label` (1 they belong together, 0 not) for matching. The four share one folder of
pictures, `IQR_IQM_ICR_ICM_images`. The official loaders keep only the base name of `image_path`, so two pictures of
one name would pass for one; here that is a fault. Their "test" is the val file over again: there is none here, since
the labels of the real one were never published. Report val, and say so.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tuwen.data.corpora.captions import Annotation, CaptionSet
from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.json_text import field, objects
from tuwen.data.corpora.published import Format

IMAGES = "IQR_IQM_ICR_ICM_images"


class ZeroTask(CaptionSet):
    """train/NAME_train.json and val/NAME_val.json. labelled: each line is a pair to judge, and a row of its own."""

    def __init__(self, root: Path, stem: str, labelled: bool):
        super().__init__(root)
        self.labelled = labelled
        there = {split: self.folder.annotation(f"{stem}_{split}.json") for split in ("train", "val")}
        self.annotations = {split: path for split, path in there.items() if path}
        if not self.annotations:
            self.needed(f"{stem}_train.json", f"{stem}_val.json")

    def read_annotations(self, faults: Faults) -> Iterator[Annotation]:
        for split, path in self.annotations.items():
            for value, lines in objects(path, faults):
                try:
                    picture, text = field(value, "image_path", str), field(value, "text", str)
                    columns = {}
                    if self.labelled:
                        columns["label"] = field(value, "label", int)
                        if columns["label"] not in (0, 1):
                            raise RowError("wrong type", f"label is {columns['label']}; 1 is a match, 0 is none")
                except RowError as error:
                    faults.add(Fault(path, lines.number, error.reason, str(error)))
                    continue
                row = f"{split}-{lines.number}" if self.labelled else ""
                yield Annotation(path, lines.number, split, picture, {"zh": [text]}, row, columns)


def _format(name: str, title: str, stem: str, records: str) -> Format:
    labelled = stem.endswith("itm")
    return Format(
        name=name,
        title=title,
        languages=("zh",),
        needs=f"train/{stem}_train.json, val/{stem}_val.json and the pictures in {IMAGES}/",
        ask="zero.so.com",
        licence="research only, pictures keep their owners' rights",
        records=records,
        read=partial(ZeroTask, stem=stem, labelled=labelled),
    )


FORMATS = (
    _format("icm", "Zero ICM, image-caption matching", "long_itm", "400,000 labelled pairs, half of them right"),
    _format("iqm", "Zero IQM, image-query matching", "short_itm", "400,000 labelled pairs, half of them right"),
    _format("icr", "Zero ICR, image-caption retrieval", "long_itr", "200,000 pairs"),
    _format("iqr", "Zero IQR, image-query retrieval", "short_itr", "200,000 pairs"),
)
