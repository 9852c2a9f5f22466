"""Multi30k (github.com/multi30k/dataset): Flickr30k in English, German, French and Czech, a file a language.

Task 1: one sentence a picture and its translations (data/task1/raw/SPLIT.LANGUAGE[.gz], pictures in
data/task1/image_splits/SPLIT.txt). The aligned sentences also stand in the column "parallel". Task 2: five captions a
picture and language, written independently (data/task2/raw/SPLIT.K.LANGUAGE[.gz]): never parallel text (card
`ernie-unix2.md`, section 14).
"""

import gzip
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tuwen.data.corpora.captions import Annotation, CaptionSet
from tuwen.data.corpora.faults import Faults
from tuwen.data.corpora.lines import decoded
from tuwen.data.corpora.published import Format
from tuwen.errors import UserError

LARGEST = 256 * 2**20  # bytes of an unpacked file; more is a bomb
_FILE = r"(?P<split>train|val|test_\d{4}(?:_[a-z]+)?)"


class Multi30k(CaptionSet):
    def __init__(self, root: Path, task: int):
        super().__init__(root)
        number = r"\.[1-5]" if task == 2 else ""
        self.task = task
        self.texts: dict[str, list[tuple[str, Path]]] = {}
        for path, match in self.folder.matching(_FILE + number + r"\.(?P<language>en|de|fr|cs)(?:\.gz)?"):
            self.texts.setdefault(match["split"], []).append((match["language"], path))
            self._refuse_twice(match["split"])
        if not self.texts:
            raise UserError(f"{root}: no file such as train{number and '.1'}.en in it; see `tuwen data list`")

    def _refuse_twice(self, split: str) -> None:
        names = [path.name.removesuffix(".gz") for _, path in self.texts[split]]
        if len(set(names)) < len(names):
            raise UserError(f"{self.texts[split][-1][1]}: {names[-1]} is there twice; keep one of the two")

    def read_annotations(self, faults: Faults) -> Iterator[Annotation]:
        for split, files in self.texts.items():
            lines_of = {path: _lines(path) for _, path in files}
            pictures_file = self.needed(f"{split}.txt" if self.task == 1 else f"{split}_images.txt")
            pictures = [line.strip().partition("#")[0] for line in _lines(pictures_file)]
            for path, lines in lines_of.items():
                if len(lines) != len(pictures):
                    what = f"{len(lines)} lines for the {len(pictures)} pictures of {pictures_file.name}"
                    raise UserError(f"{path}: {what}; the files belong to different splits or are cut short")
            for number, picture in enumerate(pictures):
                captions = [(language, lines_of[path][number]) for language, path in files]
                columns = {"parallel": [dict(captions)]} if self.task == 1 else {}
                for k, (language, text) in enumerate(captions):
                    texts = {language: [text]}
                    yield Annotation(files[k][1], number + 1, split, picture, texts, columns={} if k else columns)


def _lines(path: Path) -> list[str]:
    """The lines of a text file, unpacked where it is packed."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            raw = file.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be unpacked: {error}; download it again") from None
    if len(raw) > LARGEST:
        raise UserError(f"{path}: over {LARGEST // 2**20} MiB; it is another file than it is called")
    return decoded(raw, path).removesuffix("\n").replace("\r\n", "\n").split("\n")


def _format(task: int, title: str, needs: str, records: str) -> Format:
    return Format(
        name=f"multi30k-task{task}",
        title=title,
        languages=("en", "de", "fr", "cs") if task == 1 else ("en", "de"),
        needs=needs + ", and the pictures in flickr30k-images/",
        ask="github.com/multi30k/dataset; the pictures by the form at shannon.cs.illinois.edu/DenotationGraph",
        licence="captions CC BY-NC-SA 4.0 [from memory], pictures keep their owners' rights",
        records=records,
        read=partial(Multi30k, task=task),
    )


FORMATS = (
    _format(
        1,
        "Multi30k task 1, translations",
        "raw/SPLIT.{en,de,fr,cs}[.gz] and image_splits/SPLIT.txt of data/task1",
        "train 29,000 pictures, val 1,014, test_2016_flickr 1,000, test_2017_flickr 1,000, test_2017_mscoco 461, "
        "test_2018_flickr 1,071",
    ),
    _format(
        2,
        "Multi30k task 2, independent captions",
        "raw/SPLIT.{1..5}.{en,de}[.gz] and image_splits/SPLIT_images.txt of data/task2",
        "train 29,000 pictures, val 1,014, test_2016 1,000, 5 captions a language",
    ),
)
