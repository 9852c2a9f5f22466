"""COCO's own captions (Chen et al., arXiv 1504.00325), in its own files rather than Karpathy's.

Layout (cocodataset.org): captions_{train,val}{2014,2017}.json with `images` [{id, file_name, width, height, ...}] and
`annotations` [{id, image_id, caption}]; image_info_test{2014,2017}.json with `images` alone, whose captions are hidden:
rows without texts, to be captioned for the server. The column "image_id" is what its files call a picture.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuwen.data.corpora.asked_set import list_of, short
from tuwen.data.corpora.captions import Annotation, CaptionSet
from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.json_text import field, load_json
from tuwen.data.corpora.published import Format

YEARS = ("2014", "2017")
STEMS = {"train": "captions_train", "val": "captions_val", "test": "image_info_test"}


class CocoCaptions(CaptionSet):
    def __init__(self, root: Path):
        super().__init__(root)
        names = {split: tuple(f"{stem}{year}.json" for year in YEARS) for split, stem in STEMS.items()}
        there = {split: self.folder.annotation(*several) for split, several in names.items()}
        self.annotations = {split: path for split, path in there.items() if path}
        if not self.annotations:
            self.needed(*names["train"])

    def read_annotations(self, faults: Faults) -> Iterator[Annotation]:
        for split, path in self.annotations.items():
            content = load_json(path)
            captions: dict[int, list[str]] = {}
            for number, value in enumerate(list_of(path, content, "annotations") if split != "test" else (), 1):
                try:
                    captions.setdefault(short(value, "image_id", int), []).append(field(value, "caption", str))
                except RowError as error:
                    faults.add(Fault(path, 0, error.reason, f"annotation {number}: {error}"))
            for number, value in enumerate(list_of(path, content, "images"), 1):
                try:
                    name, image = short(value, "id", int), short(value, "file_name")
                    if split != "test" and name not in captions:
                        raise RowError("empty text", f"id {name} has no caption; take the files of one release")
                except RowError as error:
                    faults.add(Fault(path, 0, error.reason, f"picture {number}: {error}"))
                    continue
                texts: dict[str, list[str]] = {"en": captions[name]} if name in captions else {}
                columns: dict[str, Any] = {"image_id": name}
                yield Annotation(path, 0, split, f"{split}{path.stem[-4:]}/{image}", texts, "", columns)


FORMATS = (
    Format(
        name="coco-captions",
        title="COCO captions",
        languages=("en",),
        needs="captions_{train,val}{2014,2017}.json, image_info_test{2014,2017}.json, and train2014/, val2014/, ...",
        ask="cocodataset.org",
        licence="captions CC-BY 4.0, pictures keep their owners' rights",
        records="2014: train 82,783 pictures, val 40,504, test 40,775 without captions; about 5 captions each",
        read=CocoCaptions,
    ),
)
