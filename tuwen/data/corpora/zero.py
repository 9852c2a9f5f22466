"""Zero, the pre-training corpus of R2D2 (360's image search; arXiv 2205.03860, zero.so.com), and its text views.

JSON lines with the fields Url, Title, Content, Keywords, ImageKey, ImageUrl, ImageQuery (card `zero-benchmark.md`,
section 3). The texts of a picture are its views: ImageQuery (what users who clicked it had searched for: short, exact),
Title, and Content (long, noisy); training draws one a visit. The pre-training code is unreleased, so what is done here
is a [choice]: empty views are left out, HTML and addresses are stripped, an ImageKey that comes again is dropped.
Pictures lie anywhere in the folder as ImageKey.jpg, or as img2dataset fetched them by ImageUrl.
"""

import html
import re
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tuwen.data.corpora.captions import Folder, checked_caption
from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.fetched import Fetched
from tuwen.data.corpora.files import CorpusEntry
from tuwen.data.corpora.json_text import field, objects
from tuwen.data.corpora.published import Format
from tuwen.data.corpora.scripts import is_blank, language_by_script
from tuwen.data.corpora.streamed import Streamed
from tuwen.errors import UserError

VIEWS = ("ImageQuery", "Title", "Content")
_TAGS = re.compile(r"<(?:script|style)\b.*?</(?:script|style)>|<[a-zA-Z/!][^<>]*>", re.DOTALL | re.IGNORECASE)
_ADDRESS = re.compile(r"(?:https?://|www\.)[\w\-./?%&=#:~+,;@!$'()*]+", re.IGNORECASE | re.ASCII)


class Zero(Streamed):
    """views: which fields are texts; a record in which none of them says anything is a fault."""

    def __init__(self, root: Path, views: tuple[str, ...]):
        self.file = self.root = root
        self.views, self.folder = views, Folder(root)
        self.files = [path for path, _ in self.folder.matching(r".*\.jsonl?") if _holds_records(path)]
        if not self.files:
            raise UserError(f"{root}: no .json or .jsonl file with ImageKey and ImageUrl in its lines")

    @cached_property
    def fetched(self) -> Fetched:
        return Fetched(self.folder)

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        for number, path in enumerate(self.files):
            for value, lines in objects(path, faults):
                try:
                    yield self._made(value, self.position(number, lines.start), lines.number)
                except RowError as error:
                    faults.add(Fault(path, lines.number, error.reason, str(error)))

    def entry(self, position: int, line: int) -> CorpusEntry:
        path, offset = self.at(position)
        value, _ = next(objects(path, Faults("stop"), offset))
        return self._made(value, position, line)

    def _made(self, value: dict[str, Any], position: int, line: int) -> CorpusEntry:
        key, url = field(value, "ImageKey", str), field(value, "ImageUrl", str)
        if is_blank(key):
            raise RowError("missing key", "ImageKey is empty; every record has one of its own")
        text_of = {view: cleaned(field(value, view, str)) for view in self.views if value.get(view) is not None}
        texts: dict[str, list[str]] = {}
        for text in dict.fromkeys(text for text in text_of.values() if not is_blank(text)):
            texts.setdefault(language_by_script(text), []).append(checked_caption(text))
        if not texts:
            raise RowError("empty text", f"nothing in {', '.join(self.views)}; the record has no text")
        views = [view for view, text in text_of.items() if not is_blank(text)]
        image = self.fetched.find(url) or self.folder.picture(key)
        columns = {"views": views, "url": url} | ({"page": value["Url"]} if isinstance(value.get("Url"), str) else {})
        return CorpusEntry(position, line, key, image, texts, "train", columns=columns)


def cleaned(text: str) -> str:
    """The text without HTML and addresses, white space squeezed."""
    return " ".join(_ADDRESS.sub(" ", html.unescape(_TAGS.sub(" ", text))).split())


def _holds_records(path: Path) -> bool:
    """Whether its first lines look like records; img2dataset's .json beside a picture is none, whatever it repeats."""
    if any(path.with_suffix(ending).exists() for ending in (".jpg", ".png", ".webp")):
        return False
    with open(path, "rb") as file:
        head = file.read(65536)
    return b'"ImageKey"' in head or b'"ImageUrl"' in head


def _format(name: str, title: str, views: tuple[str, ...]) -> Format:
    return Format(
        name=name,
        title=title,
        languages=("zh",),
        needs="*.json or *.jsonl (Title, Content, ImageQuery, ImageKey, ImageUrl); pictures, or img2dataset's output",
        ask="zero.so.com; github.com/yuxie11/R2D2",
        licence="research only, pictures keep their owners' rights",
        records="250,000,000 pictures and 750,000,000 texts; first release 23,000,000, its tenth 2,300,000",
        read=partial(Zero, views=views),
    )


FORMATS = (
    _format("zero", "Zero, all three text views", VIEWS),
    _format("zero-query", "Zero, ImageQuery alone", ("ImageQuery",)),
    _format("zero-title", "Zero, Title alone", ("Title",)),
    _format("zero-content", "Zero, Content alone", ("Content",)),
)
