"""DAQUAR: questions on photographs of rooms (Malinowski and Fritz 2014), the set of 894 things.

Layout: qa.894.raw.{train,test}.txt, a question that names its picture ("... in the image3 ?") and its answer, line by
line in turn; pictures nyu_depth_images/image3.png. An answer may be a list, "chair, table": one answer of one person,
right only as a whole.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tuwen.data.corpora.asked import Asked, question
from tuwen.data.corpora.asked_set import AskedSet, Entry
from tuwen.data.corpora.faults import Faults, RowError, one_line
from tuwen.data.corpora.lines import Lines
from tuwen.data.corpora.published import Format

_PICTURE = re.compile(r"\bimage(\d{1,6})\b")
_ENDING = re.compile(r"\s*(?:(?:in|on|of)\s+)?(?:the\s+)?image\d{1,6}\s*\??\s*$")


class Daquar(AskedSet):
    def __init__(self, root: Path):
        super().__init__(root)
        self.annotations = self.some({split: (f"qa.894.raw.{split}.txt",) for split in ("train", "test")})

    def read_entries(self, faults: Faults) -> Iterator[Entry]:
        for split, path in self.annotations.items():
            asked = None
            with Lines(path, faults) as lines:
                for text in lines:
                    if not text.strip():
                        continue
                    if _PICTURE.search(text):  # a question, after which its answer stands
                        if asked:
                            yield Entry(path, asked[0], "", split, (asked[1], None))
                        asked = (lines.number, text.strip())
                    elif asked:
                        yield Entry(path, asked[0], "", split, (asked[1], text.strip()))
                        asked = None
                    else:
                        yield Entry(path, lines.number, "", split, (None, text.strip()))
            if asked:
                yield Entry(path, asked[0], "", split, (asked[1], None))

    def rows_of(self, entry: Entry) -> Iterable[tuple[str, tuple[str, ...], Asked]]:
        text, answer = entry.value
        if text is None or answer is None:
            shown = one_line(text or answer, 60)
            what = (
                f"{shown!r} has no answer below it"
                if text
                else f"answer {shown!r} has no question that names a picture"
            )
            raise RowError("broken row", f"{what}; questions and answers stand line by line in turn")
        number = _PICTURE.findall(text)[-1]
        words = _ENDING.sub("", text).strip() or text
        yield f"{entry.split}-{entry.line}", (f"nyu_depth_images/image{number}.png",), question(words, [answer], "en")


FORMATS = (
    Format(
        name="daquar",
        title="DAQUAR, 894 things",
        languages=("en",),
        needs="qa.894.raw.{train,test}.txt and the pictures in nyu_depth_images/",
        ask="mpi-inf.mpg.de, visual Turing challenge",
        licence="research only; pictures of NYU Depth v2",
        records="train 6,795 questions, test 5,673",
        read=Daquar,
    ),
)
