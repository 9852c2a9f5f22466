"""AIC-ICC: the Chinese captions of AI Challenger 2017 (Wu et al., arXiv 1711.06475).

A JSON list of `{"image_id": "NAME.jpg", "caption": [five sentences], "url": ...}` a split. The test labels were not
published with the pictures; retrieval is reported on the first 10,000 pictures of validation, as WenLan 2.0 does
(card `wukong.md`, section 6): ask for the split val and `--limit 10000`.
"""

from collections.abc import Iterator
from pathlib import Path

from tuwen.data.corpora.captions import Annotation, CaptionSet
from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.json_text import field, load_json
from tuwen.data.corpora.published import Format
from tuwen.errors import UserError

_SPLITS = {"train": "train", "validation": "val", "test_a": "test_a", "test_b": "test_b"}


class AicIcc(CaptionSet):
    def __init__(self, root: Path):
        super().__init__(root)
        self.annotations = self.folder.matching(r"caption_(?P<split>train|validation|test_[ab])_annotations_\d+\.json")
        if not self.annotations:
            raise UserError(f"{root}: no file caption_train_annotations_20170902.json in it; see `tuwen data list`")

    def read_annotations(self, faults: Faults) -> Iterator[Annotation]:
        for path, match in self.annotations:
            split = _SPLITS[match["split"]]
            folder = path.parent.relative_to(self.root) / f"caption_{match['split']}_images_{path.stem[-8:]}"
            value = load_json(path)
            if not isinstance(value, list):
                raise UserError(f"{path}: holds no list of pictures; it is another file than it is called")
            for number, item in enumerate(value, 1):
                try:
                    name, captions = field(item, "image_id", str), field(item, "caption", list)
                    if not captions:
                        raise RowError("empty text", "no caption; write one or take the picture out")
                except RowError as error:
                    faults.add(Fault(path, 0, error.reason, f"picture {number}: {error}"))
                    continue
                yield Annotation(path, 0, split, f"{folder.as_posix()}/{name}", {"zh": captions})


FORMATS = (
    Format(
        name="aic-icc",
        title="AIC-ICC, AI Challenger image captioning",
        languages=("zh",),
        needs="caption_{train,validation}_annotations_DATE.json and caption_{train,validation}_images_DATE/",
        ask="challenger.ai (closed; copies at tianchi.aliyun.com)",
        licence="research only, pictures keep their owners' rights",
        records="train 210,000 pictures, val 30,000, 5 captions each",
        read=AicIcc,
    ),
)
