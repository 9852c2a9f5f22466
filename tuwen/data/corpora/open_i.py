"""Open-i's chest X-rays of Indiana University (Demner-Fushman et al. 2016) with their reports.

Layout (openi.nlm.nih.gov/faq): ecgen-radiology/1.xml of NLMCXR_reports.tgz, an eCitation with uId (CXR1), AbstractText
by Label (COMPARISON, INDICATION, FINDINGS, IMPRESSION), MeSH/major and a parentImage a picture; CXR1_1_IM-0001-3001.png
of NLMCXR_png.tgz, or the .dcm of NLMCXR_dcm.tgz (extra `medical`). No split is published: a tenth of the studies is
test, by a hash of their names, so that the pictures of a study stay together.

`open-i`: a row a picture; its texts are the findings and the impression of its study. `open-i-studies`: a row a study
of just two pictures. Columns: "study", "sections" (which text is which), "mesh". The corpus is private.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tuwen.data.corpora.captions import Held, checked_caption
from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.files import CorpusEntry
from tuwen.data.corpora.published import Format
from tuwen.data.corpora.reports import SECTIONS, texts_of_sections
from tuwen.data.corpora.xml_text import load_xml
from tuwen.data.corpus import hashed_split
from tuwen.errors import UserError

MOST = 1000  # headings of a report, and pictures of one
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")


class OpenI(Held):
    """pairs: rows are studies of two pictures, not single pictures."""

    private = True

    def __init__(self, root: Path, pairs: bool):
        super().__init__(root)
        self.pairs = pairs
        self.annotations = [path for path, _ in self.folder.matching(r"\d{1,9}\.xml")]
        if not self.annotations:
            raise UserError(f"{root}: no file 1.xml of ecgen-radiology in it; see `tuwen data list`")

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        self.rows, self.files = [], []
        for path in sorted(self.annotations, key=lambda path: int(path.stem)):
            try:
                yield from self._rows_of(path)
            except RowError as error:
                faults.add(Fault(path, 0, error.reason, str(error)))

    def _rows_of(self, path: Path) -> Iterator[CorpusEntry]:
        root = load_xml(path)
        study = root.find("uId")
        name = study.get("id", "") if study is not None else ""
        pictures = [picture.get("id", "") for picture in root.iter("parentImage")][:MOST]
        if not all(map(_NAME.fullmatch, (name, *pictures))) or len(set(pictures)) < len(pictures):
            raise RowError("broken XML", "uId or parentImage has no id, or one twice; take the official file")
        abstract = {part.get("Label", "").lower(): part.itertext() for part in root.iter("AbstractText")}
        words = {label: " ".join("".join(text).split()) for label, text in abstract.items()}
        sections = {section: checked_caption(words[section]) for section in SECTIONS if words.get(section)}
        if not sections:
            raise RowError("empty text", "a report without findings and impression")
        texts, columns = texts_of_sections(sections)
        columns |= {"study": name, "mesh": [part.text or "" for part in root.iter("major")][:MOST]}
        rows = [tuple(pictures)] * (len(pictures) == 2) if self.pairs else [(picture,) for picture in pictures]
        for row in rows:
            first, *rest = (self.folder.picture(f"{picture}.png") for picture in row)
            own = {"id": name if self.pairs else row[0], "image": first, "further": tuple(rest), "texts": texts}
            yield self.keep(path, 0, split=hashed_split(name), columns=dict(columns), **own)


def _format(name: str, title: str, records: str, pairs: bool) -> Format:
    return Format(
        name=name,
        title=title,
        languages=("en",),
        needs="ecgen-radiology/*.xml of NLMCXR_reports.tgz and the pictures of NLMCXR_png.tgz (or _dcm)",
        ask="openi.nlm.nih.gov/faq",
        licence="CC BY-NC-ND 4.0",
        records=records,
        read=partial(OpenI, pairs=pairs),
    )


FORMATS = (
    _format("open-i", "Open-i, chest X-rays with reports", "7,470 pictures of 3,955 reports", False),
    _format("open-i-studies", "Open-i, studies of two pictures", "a row a study", True),
)
