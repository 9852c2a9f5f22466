"""Texts alone: a UTF-8 file with one text a line, for systems that also learn from texts without pictures."""

import hashlib
from array import array
from collections import Counter
from pathlib import Path

from torch import Tensor

from tuwen.data import draws
from tuwen.data.corpora.faults import Faults
from tuwen.data.corpora.lines import Lines
from tuwen.data.corpora.scripts import is_blank, language_by_script
from tuwen.data.corpus import BrokenImage, Corpus, Record
from tuwen.data.private import marked
from tuwen.errors import UserError

SPLITS = ("train",)


class TextLines(Corpus):
    """The lines of a file that say something, all of them the split "train". The language is told by script.

    Raises:
        UserError: FILE:LINE and what is wrong; another split; no text in it.
    """

    def __init__(self, location: str | Path, split: str = "train", on_bad: str = "stop"):
        self.file = Path(location)
        if split not in SPLITS:
            raise UserError(f"{self.file}: texts alone have no split {split!r}, only train")
        self.name, self.split = self.file.stem, split
        self.private = marked(self.file.parent)
        faults, self._offsets = Faults(on_bad, self.name if self.private else ""), array("q")
        digest, languages = hashlib.blake2b(digest_size=16), set()
        with Lines(self.file, faults) as lines:
            for text in lines:
                if not is_blank(text):
                    self._offsets.append(lines.start)
                    languages.add(language_by_script(text))
                    digest.update(text.strip().encode() + b"\n")
        self.faults, self.skipped = tuple(faults.listed), Counter(faults.counts)
        self.languages, self.fingerprint = tuple(sorted(languages)), digest.hexdigest()
        if not self._offsets:
            raise UserError(f"{self.file}: no text in it; write one a line")

    def __len__(self) -> int:
        return len(self._offsets)

    def record(self, row: int) -> Record:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        with Lines(self.file, Faults("skip"), self._offsets[row]) as lines:
            text = next(lines, "").strip()
        texts = {language_by_script(text): [text]}
        return Record(f"{row}", texts, draws.key("no picture", row), private=self.private)

    def image(self, row: int) -> Tensor:
        raise BrokenImage("missing", f"{self.file} holds texts alone")
