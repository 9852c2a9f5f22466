"""Wukong: 100 million Chinese pairs of addresses and captions (Gu et al., arXiv 2202.06767).

The release is 256 CSV files, wukong_100m_N.csv, with the columns url and caption. Wukong-Test is wukong_test.csv, with
the picture's name in dir, the caption in text, and its url. Further columns become columns here.
Pictures are fetched with img2dataset into the same folder; `--missing` writes what is still to fetch. The site's own
filters (both sides over 200 pixels, aspect 1/3 to 3) are findings of `tuwen data check`.
"""

import csv
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from tuwen.data.corpora.captions import Folder, checked_caption
from tuwen.data.corpora.faults import Fault, Faults, RowError, one_line
from tuwen.data.corpora.fetched import Fetched
from tuwen.data.corpora.files import CorpusEntry
from tuwen.data.corpora.lines import Lines
from tuwen.data.corpora.published import Format
from tuwen.data.corpora.scripts import language_by_script
from tuwen.data.corpora.streamed import Streamed
from tuwen.errors import UserError


class WukongPairs(Streamed):
    untyped = True

    def __init__(self, root: Path):
        self.file = self.root = root
        self.folder = Folder(root)
        self.files = [path for path, _ in self.folder.matching(r"wukong(_100m_\d+|_test)\.csv")]
        if not self.files:
            raise UserError(f"{root}: no file wukong_100m_0.csv in it; see `tuwen data list`")
        self.headers = [_header(path) for path in self.files]

    @cached_property
    def fetched(self) -> Fetched:
        return Fetched(self.folder)

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        for number, path in enumerate(self.files):
            with Lines(path, faults) as lines:
                reader = csv.reader(lines, strict=True)
                headed = False
                while True:
                    lines.begin()
                    try:
                        cells = next(reader)
                        if cells and headed:
                            yield self._made(number, cells, *lines.first)
                        headed = headed or bool(cells)
                    except StopIteration:
                        break
                    except csv.Error as error:
                        what = f"{one_line(str(error), 120)}; put captions with commas in double quotes"
                        faults.add(Fault(path, lines.first[1], "broken row", what))
                        lines.restart()
                        reader = csv.reader(lines, strict=True)
                    except RowError as error:
                        faults.add(Fault(path, lines.first[1], error.reason, str(error)))

    def entry(self, position: int, line: int) -> CorpusEntry:
        path, offset = self.at(position)
        with Lines(path, Faults("stop"), offset) as lines:
            return self._made(self.files.index(path), next(csv.reader(lines, strict=True)), offset, line)

    def _made(self, number: int, cells: list[str], offset: int, line: int) -> CorpusEntry:
        names, path = self.headers[number], self.files[number]
        if len(cells) != len(names):
            what = f"{len(cells)} cells under {len(names)} columns; put captions with commas in double quotes"
            raise RowError("broken row", what)
        row = dict(zip(names, cells, strict=True))
        url, text = row.pop("url").strip(), checked_caption(row.pop(_caption(names) or ""))
        if not url.startswith(("http://", "https://")):
            raise RowError("broken row", f"url is {one_line(url, 60)!r}, no address")
        image = self.fetched.find(url) or (self.folder.picture(row["dir"]) if row.get("dir") else url)
        split = "test" if path.stem == "wukong_test" else "train"
        name = f"{path.stem}-{line}"
        texts = {language_by_script(text): [text]}
        return CorpusEntry(self.position(number, offset), line, name, image, texts, split, columns=row | {"url": url})


def _caption(names: list[str]) -> str | None:
    return next((name for name in ("caption", "text") if name in names), None)


def _header(path: Path) -> list[str]:
    with Lines(path, Faults("stop")) as lines:
        first = next((text for text in lines if text.strip()), "")
    try:
        names = [name.strip() for name in next(csv.reader([first.strip()], strict=True), [])]
    except csv.Error as error:
        raise UserError(f"{path}:1: {error}; the first row names the columns, url,caption") from None
    if "url" not in names or not _caption(names):
        shown = one_line(", ".join(names), 120) or "nothing"
        raise UserError(f"{path}:1: no columns url and caption but {shown}; the first row names the columns")
    return names


FORMATS = (
    Format(
        name="wukong",
        title="Wukong",
        languages=("zh",),
        needs="wukong_100m_{0..255}.csv (url, caption), wukong_test.csv (dir, text, url); img2dataset's output",
        ask="wukong-dataset.github.io/wukong-dataset",
        licence="CC BY-NC-SA 4.0 [from memory], pictures keep their owners' rights",
        records="about 100,000,000 pairs",
        read=WukongPairs,
    ),
)
