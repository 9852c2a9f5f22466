"""A folder of pictures with their texts beside them: dog.jpg and dog.txt, each line a text.

`dog.zh.txt` holds Chinese texts, `dog.en.txt` English ones; the languages of `dog.txt` are told by script. Folders may
be nested; where every picture lies in a first folder named train, val, dev or test, that is its split. Files without
an ending are pictures where they begin as one does. Hidden files, text files that are links, and what is called as
`NOTES` are passed over. Pictures of a form that is not read, texts beside no picture where others are, and tables
beside the pictures are faults. A folder without any text is pictures alone, for an index.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Container, Iterator
from functools import cached_property
from pathlib import Path

from tuwen.data import images
from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.files import CorpusEntry, Source
from tuwen.data.corpora.lines import Lines
from tuwen.data.corpora.scripts import is_blank, language_by_script
from tuwen.data.private import marked
from tuwen.errors import UserError

_PICTURES_TOO = "heic heif dcm dicom jxl svg psd tga raw dng cr2 nef arw ico"
UNREAD = (
    frozenset(f".{name}" for name in _PICTURES_TOO.split()) - images.EXTENSIONS
)  # endings of pictures that are not read
_EXTRAS = {".heic": "heic", ".heif": "heic", ".dcm": "medical", ".dicom": "medical"}
TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".xlsx", ".xls")
COMPANIONS = ("vqa", "nlvr", "entailment", "grounding", "mmt")  # tables that are read by their own names
NOTES = ("readme", "license", "licence", "notice", "source", "credits", "attribution", "copying", "requirements")
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM")
SPLITS = ("train", "val", "valid", "validation", "dev", "test")

_ENDINGS = " ".join(sorted(images.EXTENSIONS))
_LANGUAGE = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]{1,8})*")


class FolderSource(Source):
    """The pictures of a folder in the order of their paths. A position is the rank of a path.

    wordless: whether pictures without texts are rows where others have some; they are where none has.
    """

    def __init__(self, location: str | Path, wordless: bool = False):
        self.wordless = wordless
        self._closed: list[Fault] = []  # folders that cannot be looked into
        self._others: dict[str, list[str]] = {}  # by stem, files that are neither pictures that are read nor texts
        self.file = self.root = Path(location)
        self.name = self.root.resolve().name
        if not self.root.is_dir():
            raise UserError(f"{self.root}: no such folder; name a folder of pictures")
        self.private = marked(self.root)

    def __len__(self) -> int:
        return len(self._files[0])

    @cached_property
    def _files(self) -> tuple[list[str], list[str], list[list[str]]]:
        """Picture paths, their ids, and the text files beside each.

        Links to folders are not followed, and text files must be plain files inside the folder.
        """
        pictures: list[str] = []
        beside: dict[str, list[str]] = {}
        for folder, folders, names in os.walk(self.root, onerror=self._note_closed):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            place = os.path.relpath(folder, self.root)
            for name in sorted(names):
                path = name if place == "." else f"{place}/{name}".replace(os.sep, "/")
                stem, extension = os.path.splitext(path)
                if name.startswith("."):
                    continue
                if extension.lower() in images.EXTENSIONS or (
                    not extension and _begins_as_picture(os.path.join(folder, name))
                ):
                    pictures.append(path)
                elif extension.lower() == ".txt" and stat.S_ISREG(os.lstat(os.path.join(folder, name)).st_mode):
                    beside.setdefault(stem, []).append(path)
                else:
                    self._others.setdefault(stem, []).append(path)
        pictures.sort()
        read = {os.path.splitext(path)[0] for path in pictures}
        self._unread = [
            path
            for stem, paths in sorted(self._others.items())
            for path in paths
            if stem not in read and (stem in beside or os.path.splitext(path)[1].lower() in UNREAD)
        ]
        unread = {os.path.splitext(path)[0] for path in self._unread}
        lone = {stem for stem in beside if stem not in read | unread and not self._language_of(stem, read)}
        self._lone = [path for stem in sorted(lone) for path in beside[stem] if not _is_note(path)]
        return self._matched(pictures, beside)

    @staticmethod
    def _language_of(stem: str, read: Container[str]) -> str:
        """The language that a text file's name tells, where its picture is there."""
        owner, dot, language = stem.rpartition(".")
        return language if dot and owner in read and _LANGUAGE.fullmatch(language) else ""

    def _note_closed(self, error: OSError) -> None:
        what = f"the folder cannot be looked into: {error.strerror}; mend its permissions"
        self._closed.append(Fault(Path(error.filename), 0, "unreadable", what))

    def _matched(self, pictures, beside) -> tuple[list[str], list[str], list[list[str]]]:
        stems = [os.path.splitext(path)[0] for path in pictures]
        texts: dict[str, list[str]] = {stem: list(beside.get(stem, ())) for stem in stems}
        for stem, files in beside.items():
            if stem not in texts and self._language_of(stem, texts):
                texts[stem.rpartition(".")[0]] += files
        counts = Counter(stems)
        ids = [stem if counts[stem] == 1 else path for stem, path in zip(stems, pictures, strict=True)]
        return pictures, ids, [texts[stem] for stem in stems]

    @cached_property
    def _split_folders(self) -> bool:
        """Whether every picture lies in a folder named as a split."""
        pictures = self._files[0]
        return bool(pictures) and all("/" in path and path.split("/", 1)[0] in SPLITS for path in pictures)

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        pictures, _, texts = self._files
        wordless = self.wordless or not any(texts)
        for fault in (*self._closed, *self._unseen(wordless and not self.wordless)):
            faults.add(fault)
        for position, path in enumerate(pictures):
            try:
                entry = self._entry(position, faults)
            except RowError as error:
                faults.add(Fault(self.root / path, 0, error.reason, str(error)))
                continue
            if entry.texts or wordless:
                yield entry
            elif not texts[position]:
                name = os.path.splitext(os.path.basename(path))[0]
                what = f"no text beside it; write {name}.txt or move the picture away"
                faults.add(Fault(self.root / path, 0, "no text", what))
            else:
                what = f"no text in {texts[position][0]}; write one a line"
                faults.add(Fault(self.root / path, 0, "empty text", what))

    def _unseen(self, without_texts: bool) -> Iterator[Fault]:
        """What looks like pictures or their texts and is not read."""
        for path in self._unread:
            extra = _EXTRAS.get(os.path.splitext(path)[1].lower(), "")
            install = f"pip install 'tuwen[{extra}]', or " if extra else ""
            what = (
                f"no kind of picture that is read ({_ENDINGS}); {install}save it as JPEG, or give it its right ending"
            )
            yield Fault(self.root / path, 0, "unread format", what)
        for path in self._lone if not without_texts else ():
            yield Fault(
                self.root / path, 0, "no picture", "no picture beside this text; put it there, or move the text"
            )
        for path in (path for paths in self._others.values() for path in paths):
            stem, ending = os.path.splitext(os.path.basename(path))
            if ending.lower() in TABLES and stem not in COMPANIONS and not _is_note(path):
                what = f"a table that is not read, beside pictures; name it in place of {self.name}"
                yield Fault(self.root / path, 0, "unread table", f"{what}, call it pairs{ending}, or move it away")

    def entry(self, position: int, line: int) -> CorpusEntry:
        return self._entry(position, Faults("skip"))

    def place(self, entry: CorpusEntry) -> tuple[Path, int]:
        return self.root / entry.image, 0

    def _entry(self, position: int, faults: Faults) -> CorpusEntry:
        pictures, ids, texts = self._files
        path = pictures[position]
        if not path.isprintable():
            raise RowError("bad name", "characters in the name that do not print; rename the file")
        split = path.split("/", 1)[0] if self._split_folders else None
        return CorpusEntry(position, 0, ids[position], path, self._texts(path, texts[position], faults), split)

    def _texts(self, picture: str, files: list[str], faults: Faults) -> dict[str, list[str]]:
        stem = os.path.splitext(picture)[0]
        spoken: dict[str, list[str]] = {}
        for file in files:
            language = file[len(stem) + 1 : -len(".txt")]
            with Lines(self.root / file, faults) as lines:
                for text in lines:
                    if not is_blank(text):
                        spoken.setdefault(language or language_by_script(text), []).append(text.strip())
        return spoken


def _is_note(path: str) -> bool:
    """Whether a file is about the folder: README.txt, LICENSE_en.txt, ..."""
    return os.path.basename(path).lower().startswith(NOTES)


def _begins_as_picture(path: str) -> bool:
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(_STARTS) or (start[:4], start[8:12]) == (b"RIFF", b"WEBP")
