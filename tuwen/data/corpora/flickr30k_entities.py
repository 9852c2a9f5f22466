"""Flickr30k Entities: phrases of captions with their boxes (Plummer et al., arXiv 1505.04870).

Layout (github.com/BryanPlummer/flickr30k_entities): {train,val,test}.txt list picture ids; Sentences/ID.txt has a
caption a line with its phrases as [/EN#CHAIN/TYPE... words]; Annotations/ID.xml the picture's size and objects, each
with the chains it belongs to (`name`) and its box (`bndbox`, pixels from 1 on), or `nobndbox` or `scene` in its
place. A phrase without a box is no row; one of several boxes is right with any of them.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tuwen.data.corpora.asked import Asked, phrase
from tuwen.data.corpora.asked_set import AskedSet, Entry
from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.lines import Lines
from tuwen.data.corpora.published import Format
from tuwen.data.corpora.xml_text import load_xml
from tuwen.errors import quoted, reason_of

_PHRASE = re.compile(r"\[/EN#(\d{1,12})((?:/[^\s/\]]{1,40}){1,20}) ([^\[\]]{1,2000})\]")


class Flickr30kEntities(AskedSet):
    def __init__(self, root: Path):
        super().__init__(root)
        self.lists = self.some({split: (f"{split}.txt",) for split in ("train", "val", "test")})

    def read_entries(self, faults: Faults) -> Iterator[Entry]:
        for split, path in self.lists.items():
            with Lines(path, faults) as lines:
                for text in lines:
                    picture = text.strip()
                    if not picture:
                        continue
                    if not (picture.isascii() and picture.isdecimal() and len(picture) < 20):
                        what = f"{quoted(picture, 60)} is no picture's number; one a line"
                        faults.add(Fault(path, lines.number, "broken row", what))
                        continue
                    yield from self._captions(path, lines.number, split, picture, faults)

    def _captions(self, listed: Path, line: int, split: str, picture: str, faults: Faults) -> Iterator[Entry]:
        sentences, boxes = (self.folder.annotation(f"{picture}.{ending}") for ending in ("txt", "xml"))
        if sentences is None or boxes is None:
            what = f"no {picture}.{'txt in Sentences' if sentences is None else 'xml in Annotations'}; put it there"
            faults.add(Fault(listed, line, "missing", what))
            return
        try:
            known = boxes_of(boxes)
        except RowError as error:
            faults.add(Fault(boxes, 0, error.reason, str(error)))
            return
        with Lines(sentences, faults) as lines:
            for text in lines:
                if text.strip():
                    yield Entry(sentences, lines.number, picture, split, (text.strip(), known))

    def rows_of(self, entry: Entry) -> Iterable[tuple[str, tuple[str, ...], Asked]]:
        text, boxes = entry.value
        phrases = list(_PHRASE.finditer(text))
        if text.count("[/EN#") != len(phrases):
            raise RowError("broken row", f"a phrase that is not [/EN#CHAIN/TYPE words]: {quoted(text, 80)}")
        sentence = _PHRASE.sub(r"\3", text)
        for number, match in enumerate(phrases):
            if match[1] in boxes:
                name = f"{entry.name}-{entry.line}-{number}"
                columns = {"chain": match[1], "kind": match[2].split("/")[1], "caption": sentence}
                image = f"flickr30k-images/{entry.name}.jpg"
                yield name, (image,), phrase(match[3], boxes[match[1]], "en", **columns)


def boxes_of(path: Path) -> dict[str, list[list[float]]]:
    """The boxes of each chain, as shares of the picture's width and height.

    Raises:
        RowError: broken XML, or one with declarations of its own (a DOCTYPE), or a box outside the picture.
    """
    root = load_xml(path)
    try:
        width, height = (int(root.findtext(f"size/{name}", "")) for name in ("width", "height"))
        boxes: dict[str, list[list[float]]] = {}
        for item in root.iter("object"):
            box = item.find("bndbox")
            if box is None:
                continue
            x0, y0, x1, y1 = (int(box.findtext(name, "")) for name in ("xmin", "ymin", "xmax", "ymax"))
            if not (0 < x0 <= x1 <= width < 10**6 and 0 < y0 <= y1 <= height < 10**6):
                raise RowError("no box", f"a box {x0}, {y0}, {x1}, {y1} in {width} x {height} pixels is none")
            edges = [(x0 - 1) / width, (y0 - 1) / height, x1 / width, y1 / height]
            for name in item.iter("name"):
                boxes.setdefault((name.text or "").strip(), []).append(edges)
        return boxes
    except ValueError as error:
        raise RowError("broken XML", f"no annotation ({reason_of(error, 80)}); take the official file") from None


FORMATS = (
    Format(
        name="flickr30k-entities",
        title="Flickr30k Entities, phrases with boxes",
        languages=("en",),
        needs="{train,val,test}.txt, Sentences/, Annotations/ and the pictures in flickr30k-images/",
        ask="github.com/BryanPlummer/flickr30k_entities; pictures at shannon.cs.illinois.edu/DenotationGraph",
        licence="annotations for research, pictures keep their owners' rights",
        records="train 29,783 pictures, val 1,000, test 1,000, five captions each; test 14,481 phrases with boxes",
        read=Flickr30kEntities,
    ),
)
