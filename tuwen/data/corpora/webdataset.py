"""WebDataset tars, above all as img2dataset writes them: KEY.jpg, KEY.txt, KEY.json side by side.

Texts are the lines of KEY.txt (KEY.zh.txt: of that language) and what KEY.json has under `CAPTIONS`; equal ones count
once. The language is what KEY.json says under "language" or "lang", else told by script. Further fields of KEY.json
become columns. The split is the name of a folder or a part of a tar's name (train-00000.tar, cc3m-train-0000.tar),
else a hash decides. Fetches that failed stand in the .parquet beside a tar; `--missing` lists them. For tars written by
tuwen itself, name the folder of shards.
"""

import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuwen.data import images
from tuwen.data.corpora.captions import SPLITS, Folder, checked_caption, split_name
from tuwen.data.corpora.faults import Fault, Faults, RowError, one_line
from tuwen.data.corpora.fetched import fetched_rows, members
from tuwen.data.corpora.files import CorpusEntry, Source
from tuwen.data.corpora.json_text import json_kind, parse
from tuwen.data.corpora.lines import guess_encoding
from tuwen.data.corpora.parts import read_part
from tuwen.data.corpora.published import Format
from tuwen.data.corpora.scripts import language_by_script
from tuwen.data.corpus import BrokenImage
from tuwen.errors import UserError

CAPTIONS = ("caption", "captions", "text", "texts", "title", "alt", "alt_text", "description", "original_caption")
LARGEST = 16 * 2**20  # bytes of a text or JSON member
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:[-_][A-Za-z0-9]{1,8})?")
_NOT_COLUMNS = {*CAPTIONS, "language", "lang", "exif", "status", "error_message"}


class WebDataset(Source):
    """A position is a sample's rank; only offsets are kept, 64 bytes a sample."""

    def __init__(self, root: Path):
        self.file = self.root = root
        self.folder = Folder(root)
        self.tars = [path for path, _ in self.folder.matching(r".*\.tar")]
        if not self.tars:
            packed = self.folder.matching(r".*\.(?:tar\.gz|tgz|tar\.zst)")
            hint = f"; unpack {packed[0][0].name} first, packed tars have no random access" if packed else ""
            raise UserError(f"{root}: no .tar file in it{hint}")
        self._tar = array("l")
        self._places = {kind: array("q") for kind in ("picture", "text", "json")}  # offset, size, offset, size, ...
        self._texts: dict[int, list[tuple[str, tuple[int, int]]]] = {}  # of samples with other texts than one .txt

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        self._tar, self._texts = array("l"), {}
        self._places = {kind: array("q") for kind in self._places}
        for number, tar in enumerate(self.tars):
            for key, parts in _samples(tar, faults):
                try:
                    yield self._add(number, key, parts)
                except RowError as error:
                    faults.add(Fault(tar, 0, error.reason, f"sample {one_line(key, 60)}: {error}"))

    def _add(self, number: int, key: str, parts: dict[str, tuple[int, int]]) -> CorpusEntry:
        pictures = [name for name in parts if f".{name.rsplit('.', 1)[-1].lower()}" in images.EXTENSIONS]
        texts = [name for name in parts if name.rsplit(".", 1)[-1].lower() == "txt"]
        if len(pictures) != 1:
            raise RowError("no picture" if not pictures else "broken row", f"{len(pictures)} pictures; one a sample")
        position = len(self._tar)
        self._tar.append(number)
        nowhere = (0, 0)
        chosen = {"picture": parts[pictures[0]], "text": parts.get("txt", nowhere), "json": parts.get("json", nowhere)}
        for kind, place in chosen.items():
            self._places[kind].extend(place)
        if texts not in ([], ["txt"]):
            named = [(name.removesuffix("txt").rstrip("."), parts[name]) for name in texts]
            self._texts[position] = [(name if _LANGUAGE.fullmatch(name) else "", place) for name, place in named]
        try:
            return self._made(position, key)
        except RowError:
            self._tar.pop()
            self._texts.pop(position, None)
            for places in self._places.values():
                del places[-2:]
            raise

    def entry(self, position: int, line: int) -> CorpusEntry:
        return self._made(position, "")

    def place(self, entry: CorpusEntry) -> tuple[Path, int]:
        return self.tars[self._tar[entry.position]], 0

    def url(self, entry: CorpusEntry) -> str:
        return str(entry.columns.get("url", ""))

    def absent(self) -> Iterator[tuple[str, str]]:
        for path, _ in self.folder.matching(r"\d+\.parquet"):
            yield from ((url, caption) for caption, url in fetched_rows(path, success=False))

    def read(self, image: str) -> bytes:
        return read_part(self.root, image) or b""

    def _made(self, position: int, key: str) -> CorpusEntry:
        tar = self.tars[self._tar[position]]
        name = tar.relative_to(self.root).as_posix()
        at = 2 * position
        parts = {kind: (place[at], place[at + 1]) for kind, place in self._places.items()}
        content = parse(self._text(name, parts["json"]), constants=True) if parts["json"][1] else {}
        if not isinstance(content, dict):
            raise RowError("wrong type", f"its .json is {json_kind(content)}, not an object")
        spoken = next((content[k] for k in ("language", "lang") if isinstance(content.get(k), str)), "")
        spoken = spoken if _LANGUAGE.fullmatch(spoken) else ""
        texts: dict[str, list[str]] = {}
        files = self._texts.get(position) or ([("", parts["text"])] if parts["text"][1] else [])
        captions = list(_captions(content, spoken))
        whole = {text.strip() for _, text in captions}
        lines = [
            (language or spoken, line)
            for language, place in files
            for line in _lines(self._text(name, place), whole)
            if line.strip()
        ]
        for language, text in (*lines, *captions):
            several = texts.setdefault(language or language_by_script(text), [])
            if checked_caption(text) not in several:
                several.append(checked_caption(text))
        if not texts:
            raise RowError("no text", "neither .txt nor .json has a caption")
        columns = {k: v for k, v in content.items() if k not in _NOT_COLUMNS and not isinstance(v, dict | list)}
        picture = f"{name}:{parts['picture'][0]}:{parts['picture'][1]}"
        return CorpusEntry(position, 0, f"{name[:-4]}/{position}", picture, texts, _split(name), columns=columns)

    def _text(self, tar: str, place: tuple[int, ...]) -> str:
        if place[1] > LARGEST:
            raise RowError("text too long", f"a text of {place[1]:,} bytes; at most {LARGEST:,} are read")
        try:
            raw = read_part(self.root, f"{tar}:{place[0]}:{place[1]}") or b""
        except BrokenImage as error:
            raise RowError(error.reason, str(error)) from None
        if b"\0" in raw:
            raise RowError("NUL byte", "a NUL byte in a text; it is damaged, or UTF-16: save it as UTF-8")
        try:
            return raw.removeprefix(b"\xef\xbb\xbf").decode()
        except UnicodeDecodeError:
            raise RowError("not UTF-8", f"a text is not UTF-8 (perhaps {guess_encoding(raw)}); save it so") from None


def _samples(tar: Path, faults: Faults) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """(key, {rest of the name: offset and size}) of neighbours that share their names up to the first dot."""
    key, parts = "", dict[str, tuple[int, int]]()
    for name, offset, size in members(tar, faults):
        folder, _, base = name.rpartition("/")
        stem, _, rest = base.partition(".")
        if not rest or base.startswith("."):
            continue
        if f"{folder}/{stem}" != key and parts:
            yield key, parts
            parts = {}
        key = f"{folder}/{stem}"
        parts[rest] = (offset, size)
    if parts:
        yield key, parts


def _lines(text: str, whole: set[str]) -> list[str]:
    """The lines of a .txt; a caption of several lines that the .json has too is one text."""
    return [text] if text.strip() in whole else text.split("\n")


def _captions(content: dict[str, Any], spoken: str) -> Iterator[tuple[str, str]]:
    """(language or "", text) of the caption fields of a .json."""
    for name in CAPTIONS:
        value = content.get(name)
        by_language = value if isinstance(value, dict) else {spoken: value}
        for language, several in by_language.items():
            for text in several if isinstance(several, list) else [several]:
                if isinstance(text, str) and text.strip():
                    yield language if _LANGUAGE.fullmatch(language) else spoken, text
                elif text is not None and not isinstance(text, str):
                    raise RowError("wrong type", f"{name} is {json_kind(text)}, not a text")


def _split(name: str) -> str | None:
    folder, _, base = name.rpartition("/")
    named = [part for part in (*folder.split("/"), *re.split(r"[^A-Za-z]+", base)) if part.lower() in SPLITS]
    return split_name(named[-1]) if named else None


FORMATS = (
    Format(
        name="webdataset",
        title="WebDataset tars (img2dataset, pixparse, your own)",
        languages=(),
        needs="*.tar with KEY.jpg, KEY.txt and KEY.json; the .parquet beside them for --missing",
        ask="your own, or any corpus fetched by github.com/rom1504/img2dataset",
        licence="that of its makers",
        records="-",
        read=WebDataset,
    ),
)
