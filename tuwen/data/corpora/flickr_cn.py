"""Flickr8k-CN and Flickr30k-CN (Li et al., ICMR 2016; Lan et al., ACM MM 2017; github.com/li-xirong/cross-lingual-cap).

A line is `picture#language#k text`: zhc written in Chinese, zhb and zhg machine translations, zhm a human one of the
test captions. Flickr30k-CN is published segmented, its test with parts of speech ("男孩:n 在:p"), which gave others
implausible scores; words are joined again here (`captions.joined`), and what still looks like a mark is a fault.
The layout is that of copies in public code, not of a copy seen here: one collection a folder, NAME/ImageSets/NAME.txt
(ids) and NAME/TextData/seg.NAME.caption.txt; for Flickr8k-CN data/flickr8k{train,val,test}.txt and
data/flickr8kzhc.caption.txt.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tuwen.data.corpora.captions import Annotation, CaptionSet, checked_caption, joined
from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.lines import Lines
from tuwen.data.corpora.published import Format
from tuwen.errors import UserError

_LINE = re.compile(r"(\S+?)#([a-z]{2,4})#(\d+)\s+(.*)", re.DOTALL)
_PICTURES = "the pictures by the form at shannon.cs.illinois.edu/DenotationGraph"


class FlickrCN(CaptionSet):
    """captions: pattern of caption files; lists: pattern of the files that list the pictures of a split."""

    def __init__(self, root: Path, captions: str, lists: str):
        super().__init__(root)
        self.captions = [path for path, _ in self.folder.matching(captions)]
        self.lists = self.folder.matching(lists)
        if not self.captions or not self.lists:
            what = "captions" if not self.captions else "lists of the pictures of each split"
            raise UserError(f"{root}: no {what} in it; see `tuwen data list` for the files that are needed")

    def read_annotations(self, faults: Faults) -> Iterator[Annotation]:
        splits = self._splits(faults)
        for path in self.captions:
            with Lines(path, faults) as lines:
                for text in lines:
                    if not text.strip():
                        continue
                    match = _LINE.fullmatch(text.strip())
                    try:
                        if match is None:
                            raise RowError("broken row", "not of the form picture#language#number text; mend the line")
                        picture, caption = match[1].removesuffix(".jpg"), joined(checked_caption(match[4]))
                        if picture not in splits:
                            raise RowError("no split", f"picture {picture!r} is on no split's list; add it to one")
                    except RowError as error:
                        faults.add(Fault(path, lines.number, error.reason, str(error)))
                        continue
                    yield Annotation(path, lines.number, splits[picture], f"{picture}.jpg", {"zh": [caption]})

    def _splits(self, faults: Faults) -> dict[str, str]:
        """The split of each picture."""
        splits: dict[str, str] = {}
        for path, match in self.lists:
            with Lines(path, faults) as lines:
                for text in lines:
                    picture = text.strip().removesuffix(".jpg")
                    first = splits.setdefault(picture, match["split"])
                    if picture and first != match["split"]:
                        what = f"picture {picture!r} is on the list of {first} too; take it off one"
                        faults.add(Fault(path, lines.number, "leak", what))
        return splits


FORMATS = (
    Format(
        name="flickr8k-cn",
        title="Flickr8k-CN",
        languages=("zh",),
        needs="data/flickr8kzhc.caption.txt, data/flickr8k{train,val,test}.txt and the pictures of Flickr8k",
        ask="github.com/li-xirong/flickr8kcn; " + _PICTURES,
        licence="research only, pictures keep their owners' rights",
        records="8,000 pictures, 5 captions each",
        read=partial(
            FlickrCN,
            captions=r"flickr8kzhc\.captions?\.txt",
            lists=r"flickr[78]k(?P<split>train|val|test)\.txt",
        ),
    ),
    Format(
        name="flickr30k-cn",
        title="Flickr30k-CN",
        languages=("zh",),
        needs="flickr30kzhbboson{train,val}/, flickr30kzhmbosontest/ with ImageSets/ and TextData/; flickr30k-images/",
        ask="github.com/li-xirong/cross-lingual-cap; " + _PICTURES,
        licence="research only, pictures keep their owners' rights",
        records="train 29,783 pictures, 148,915 texts (machine); val 1,000, 5,000 (machine); test 1,000, 5,000 (human)",
        read=partial(
            FlickrCN,
            captions=r"seg\.flickr30kzh[bm]\w*\.captions?\.txt",
            lists=r"flickr30kzh[bm]\w*?(?P<split>train|val|test)\.txt",
        ),
    ),
)
