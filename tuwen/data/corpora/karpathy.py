"""Karpathy's splits of COCO, Flickr30k and Flickr8k (caption_datasets.zip of deepimagesent).

One JSON object: `{"images": [{"filename", "filepath" (COCO), "split", "sentences": [{"raw"}, ...]}, ...]}`. The split
"restval" of COCO (the rest of its val2014) counts as train, as everybody trains on it.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tuwen.data.corpora.captions import Annotation, CaptionSet
from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.json_text import field, load_json
from tuwen.data.corpora.published import Format
from tuwen.errors import UserError

SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


class Karpathy(CaptionSet):
    def __init__(self, root: Path, annotation: str):
        super().__init__(root)
        self.annotation = self.needed(annotation)

    def read_annotations(self, faults: Faults) -> Iterator[Annotation]:
        try:
            pictures = field(load_json(self.annotation), "images", list)
        except RowError as error:
            raise UserError(f"{self.annotation}: {error}; it is another file than it is called") from None
        for number, item in enumerate(pictures, 1):
            try:
                name, split = field(item, "filename", str), field(item, "split", str)
                if split not in SPLITS:
                    raise RowError("no split", f"split {split!r}; there are {', '.join(SPLITS)}")
                texts = [field(sentence, "raw", str) for sentence in field(item, "sentences", list)]
            except RowError as error:
                faults.add(Fault(self.annotation, 0, error.reason, f"picture {number}: {error}"))
                continue
            folder = item.get("filepath")
            path = f"{folder}/{name}" if isinstance(folder, str) and folder else name
            yield Annotation(self.annotation, 0, SPLITS[split], path, {"en": texts})


def _format(name: str, title: str, annotation: str, pictures: str, ask: str, records: str) -> Format:
    return Format(
        name=name,
        title=title,
        languages=("en",),
        needs=f"{annotation} and the pictures in {pictures}",
        ask=f"cs.stanford.edu/people/karpathy/deepimagesent (caption_datasets.zip); the pictures at {ask}",
        licence="pictures keep their owners' rights; see where they are asked for",
        records=records,
        read=partial(Karpathy, annotation=annotation),
    )


_FORM = "shannon.cs.illinois.edu/DenotationGraph, by a form"
FORMATS = (
    _format(
        "coco-karpathy",
        "COCO captions, Karpathy's split",
        "dataset_coco.json",
        "train2014/ and val2014/",
        "cocodataset.org",
        "train 113,287 pictures, val 5,000, test 5,000, about 5 captions each",
    ),
    _format(
        "flickr30k-karpathy",
        "Flickr30k, Karpathy's split",
        "dataset_flickr30k.json",
        "flickr30k-images/",
        _FORM,
        "train 29,000 pictures, val 1,014, test 1,000, 5 captions each",
    ),
    _format(
        "flickr8k-karpathy",
        "Flickr8k, Karpathy's split",
        "dataset_flickr8k.json",
        "Flicker8k_Dataset/",
        _FORM,
        "train 6,000 pictures, val 1,000, test 1,000, 5 captions each",
    ),
)
