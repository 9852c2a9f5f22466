"""Stamps of Tux Paint (Debian's tuxpaint-stamps-default): drawings and photographs named in some 78 languages.

`NAME.png` has alpha as its mask, and is set on white as every such picture is. `NAME.txt` holds the English text in
its first line, then lines of `LANGUAGE.utf8=TEXT`; `zh_CN` is read as zh, `pt_BR` as pt-br. A text that repeats the
English one was never translated, and is left out. Pictures without a text (mirrored forms) are no stamps of their own.
"""

from collections.abc import Iterator
from pathlib import Path

from tuwen.data import draws
from tuwen.data.corpora.faults import Faults
from tuwen.data.corpora.files import CorpusEntry
from tuwen.data.corpora.folder import FolderSource
from tuwen.data.corpora.lines import Lines
from tuwen.data.corpora.published import Format
from tuwen.data.corpora.scripts import is_blank
from tuwen.errors import UserError

_TEST = 3  # of ten texts


class Stamps(FolderSource):
    """One stamp a row. Stamps of one English text are all of one split: three texts of ten are test.

    Raises:
        UserError: no folder of stamps.
    """

    def __init__(self, root: Path):
        super().__init__(root)
        if not any(self._files[2]):
            raise UserError(f"{root}: no picture with a text beside it; see `tuwen data list`")

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        _, _, texts = self._files
        return (self._entry(position, faults) for position in range(len(self)) if texts[position])

    def _entry(self, position: int, faults: Faults) -> CorpusEntry:
        pictures, ids, files = self._files
        captions: list[tuple[str, str]] = []
        for file in files[position]:
            with Lines(self.root / file, faults) as lines:
                for number, line in enumerate(lines):
                    code, marked, text = line.partition(".utf8=") if number else ("en", "=", line)
                    if marked and not is_blank(text):
                        captions.append((language_of_code(code), text.strip()))
        english = next((text for language, text in captions if language == "en"), "")
        texts = {language: [text] for language, text in captions if language == "en" or text != english}
        split = "test" if draws.key("stamp", english.casefold()) % 10 < _TEST else "train"
        return CorpusEntry(position, 0, ids[position], pictures[position], texts, split)


def language_of_code(code: str) -> str:
    """zh of "zh_CN", else the code in lower case with hyphens: pt-br of "pt_BR", ca-valencia of "ca@valencia"."""
    return "zh" if code == "zh_CN" else code.strip().lower().replace("_", "-").replace("@", "-")


FORMATS = (
    Format(
        name="tuxpaint",
        title="Tux Paint stamps",
        languages=("en", "zh", "zh-tw", "ja", "ko", "de", "fr", "es", "ru", "ar", "hi", "vi"),
        needs="/usr/share/tuxpaint/stamps, as Debian's package installs it",
        ask="apt-get install tuxpaint-stamps-default",
        licence="GPL-2+, some pictures in the public domain: see the package's copyright file",
        records="785 stamps, each named in up to 78 languages",
        read=Stamps,
    ),
)
