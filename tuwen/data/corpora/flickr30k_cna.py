"""Flickr30k-CNA: Flickr30k's captions translated again by people, of the Zero benchmark.

Read as in section 4 of the card `zero-benchmark.md`: a TSV a split, `id#k<TAB>caption` or `id<TAB>caption`; lines
shorter than three characters are nothing. Splits and pictures are those of Flickr30k-CN, the translations are not: say
which one you train and test on.
"""

from collections.abc import Iterator
from pathlib import Path

from tuwen.data.corpora.captions import Annotation, CaptionSet
from tuwen.data.corpora.faults import Fault, Faults
from tuwen.data.corpora.lines import Lines
from tuwen.data.corpora.published import Format

_FILES = {
    "train": ("flickr30k_cna_train.txt",),
    "val": ("flickr30k_cna_val.txt",),
    "test": ("flickr30k_cna_test.txt", "flickr30k_cn_test.txt"),  # of the official code, of the published archive
}


class Flickr30kCNA(CaptionSet):
    def __init__(self, root: Path):
        super().__init__(root)
        there = {split: self.folder.annotation(*names) for split, names in _FILES.items()}
        self.annotations = {split: path for split, path in there.items() if path}
        if not self.annotations:
            self.needed(*(name for names in _FILES.values() for name in names))

    def read_annotations(self, faults: Faults) -> Iterator[Annotation]:
        for split, path in self.annotations.items():
            with Lines(path, faults) as lines:
                for text in lines:
                    if len(text.strip()) < 3:
                        continue
                    cells = text.rstrip("\r\n").split("\t")
                    if len(cells) != 2 or not cells[0].strip():
                        what = f"{len(cells)} columns, not id and caption with a tab between; mend the line"
                        faults.add(Fault(path, lines.number, "broken row", what))
                        continue
                    picture = cells[0].strip().partition("#")[0].removesuffix(".jpg")
                    yield Annotation(path, lines.number, split, f"{picture}.jpg", {"zh": [cells[1]]})


FORMATS = (
    Format(
        name="flickr30k-cna",
        title="Flickr30k-CNA",
        languages=("zh",),
        needs="flickr30k_cna_{train,val}.txt, flickr30k_cna_test.txt or flickr30k_cn_test.txt; flickr30k-images/",
        ask="zero.so.com; the pictures by the form at shannon.cs.illinois.edu/DenotationGraph",
        licence="research only, pictures keep their owners' rights",
        records="31,783 pictures, 5 captions each",
        read=Flickr30kCNA,
    ),
)
