"""COCO-CN: Chinese sentences written by people for pictures of COCO (Li et al., arXiv 1805.08661).

Layout of release 201805 v1.1: coco-cn_{train,val,test}.txt list picture ids, imageid.human-written-caption.txt holds
`id#k<TAB>sentence`. Read are the written sentences alone: the protocol is 1,000 test pictures and 1,053 sentences, not
the 5,000 translations (card `zero-benchmark.md`, section 5), which lie in files of their own.
"""

from collections.abc import Iterator
from pathlib import Path

from tuwen.data.corpora.captions import Annotation, CaptionSet
from tuwen.data.corpora.faults import Fault, Faults
from tuwen.data.corpora.lines import Lines
from tuwen.data.corpora.published import Format

SPLITS = ("train", "val", "test")


class CocoCN(CaptionSet):
    def __init__(self, root: Path):
        super().__init__(root)
        self.lists = {split: self.needed(f"coco-cn_{split}.txt") for split in SPLITS}
        self.captions = self.needed("imageid.human-written-caption.txt")

    def read_annotations(self, faults: Faults) -> Iterator[Annotation]:
        splits = self._splits(faults)
        with Lines(self.captions, faults) as lines:
            for text in lines:
                if not text.strip():
                    continue
                name, tab, sentence = text.rstrip("\r\n").partition("\t")
                picture = name.partition("#")[0].strip()
                if not tab or not picture:
                    what = "not id#number and a sentence with a tab between; mend the line"
                    faults.add(Fault(self.captions, lines.number, "broken row", what))
                elif picture not in splits:
                    what = f"picture {picture!r} is on no split's list; add it to one"
                    faults.add(Fault(self.captions, lines.number, "no split", what))
                else:
                    yield Annotation(self.captions, lines.number, splits[picture], f"{picture}.jpg", {"zh": [sentence]})

    def _splits(self, faults: Faults) -> dict[str, str]:
        splits: dict[str, str] = {}
        for split, path in self.lists.items():
            with Lines(path, faults) as lines:
                for text in lines:
                    picture = text.strip()
                    if picture and splits.setdefault(picture, split) != split:
                        what = f"picture {picture!r} is on the list of {splits[picture]} too; take it off one"
                        faults.add(Fault(path, lines.number, "leak", what))
        return splits


FORMATS = (
    Format(
        name="coco-cn",
        title="COCO-CN",
        languages=("zh",),
        needs="coco-cn_{train,val,test}.txt, imageid.human-written-caption.txt and COCO's train2014/, val2014/",
        ask="github.com/li-xirong/coco-cn; the pictures at cocodataset.org",
        licence="sentences MIT, pictures keep their owners' rights",
        records="train 18,341 pictures, 20,065 texts; val 1,000, 1,100; test 1,000, 1,053",
        read=CocoCN,
    ),
)
