"""NLVR (Suhr et al. 2017) and NLVR2 (arXiv 1811.00491): true and false statements on a drawing, on two photographs.

Layout (github.com/lil-lab/nlvr), JSON lines. NLVR: SPLIT/SPLIT.json with {sentence, identifier n-m, directory, label};
the pictures SPLIT/images/DIRECTORY/SPLIT-n-m-k.png are up to six orders of the same three boxes, each a row. NLVR2:
train.json, dev.json, test1.json with {sentence, identifier split-set-pair-sentence, label, left_url, right_url, ...};
the pictures split-set-pair-img0.png and -img1.png. The column "group" is the set that was written about together: a
validation split is drawn by it, as the authors ask.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tuwen.data.corpora.asked import Asked, statement
from tuwen.data.corpora.asked_set import AskedSet, Entry, line_entries, optional, short
from tuwen.data.corpora.captions import split_name
from tuwen.data.corpora.faults import Faults, RowError
from tuwen.data.corpora.json_text import field
from tuwen.data.corpora.published import Format

ORDERS = 6
_NLVR = re.compile(r"(\d{1,9})-(\d{1,3})")
_NLVR2 = re.compile(r"((?:train|dev|test1|test2|test)-(\d{1,9})-(\d{1,3}))-(\d{1,3})")


def _identifier(value: Any, rule: re.Pattern[str]) -> re.Match[str]:
    name = short(value, "identifier")
    match = rule.fullmatch(name)
    if match is None:
        raise RowError("wrong type", f"identifier {name!r} is none of this set's; see its README")
    return match


class NLVR(AskedSet):
    def __init__(self, root: Path):
        super().__init__(root)
        self.annotations = self.some({split: (f"{split}.json",) for split in ("train", "dev", "test")})

    def read_entries(self, faults: Faults) -> Iterator[Entry]:
        for split, path in self.annotations.items():
            for entry in line_entries(path, split_name(split), faults):
                yield entry._replace(name=split)

    def rows_of(self, entry: Entry) -> Iterable[tuple[str, tuple[str, ...], Asked]]:
        match = _identifier(entry.value, _NLVR)
        directory = str(short(entry.value, "directory", (str, int)))
        if not directory.isdecimal():
            raise RowError("wrong type", f"directory {directory!r} is no number")
        asked = statement(
            field(entry.value, "sentence", str), field(entry.value, "label", (str, bool)), "en", group=match[1]
        )
        names = [f"{entry.name}-{match[0]}-{k}" for k in range(ORDERS)]
        paths = [f"{entry.name}/images/{directory}/{name}.png" for name in names]
        there = [k for k, path in enumerate(paths) if (self.root / self.folder.picture(path)).exists()]
        for k in there or [0]:
            yield names[k], (paths[k],), asked


class NLVR2(AskedSet):
    def __init__(self, root: Path):
        super().__init__(root)
        self.annotations = self.some({"train": ("train.json",), "val": ("dev.json",), "test": ("test1.json",)})

    def read_entries(self, faults: Faults) -> Iterator[Entry]:
        for split, path in self.annotations.items():
            yield from line_entries(path, split, faults)

    def rows_of(self, entry: Entry) -> Iterable[tuple[str, tuple[str, ...], Asked]]:
        match = _identifier(entry.value, _NLVR2)
        label, columns = field(entry.value, "label", (str, bool)), optional(entry.value, synset="synset")
        asked = statement(field(entry.value, "sentence", str), label, "en", group=match[2], **columns)
        yield match[0], (f"{match[1]}-img0.png", f"{match[1]}-img1.png"), asked


FORMATS = (
    Format(
        name="nlvr",
        title="NLVR, statements on drawings",
        languages=("en",),
        needs="{train,dev,test}/{train,dev,test}.json and their images/",
        ask="github.com/lil-lab/nlvr, nlvr/",
        licence="none stated; research release",
        records="train 12,409 statements, dev 989, public test 989, six pictures each",
        read=NLVR,
    ),
    Format(
        name="nlvr2",
        title="NLVR2, statements on two photographs",
        languages=("en",),
        needs="train.json, dev.json, test1.json and the pictures SPLIT-SET-PAIR-img{0,1}.png",
        ask="github.com/lil-lab/nlvr, nlvr2/; the pictures by a form",
        licence="statements CC-BY 4.0, pictures research only",
        records="train 86,373 statements, dev 6,982, public test 6,967",
        read=NLVR2,
    ),
)
