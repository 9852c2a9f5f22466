"""The form of Chinese-CLIP, in which MUGE is published: pictures as base64 in a TSV, texts with their pictures' ids.

`SPLIT_imgs.tsv` holds `id<TAB>base64`, `SPLIT_texts.jsonl` holds `{"text_id", "text", "image_ids": [...]}`
(github.com/OFA-Sys/Chinese-CLIP). Tianchi calls the same files of MUGE `MR_SPLIT_imgs.tsv` and
`MR_SPLIT_queries.jsonl`, and the fields "query_id", "query_text", "item_ids".

A row is a picture with all texts that name it, so a query with several right pictures stands in several rows and is
one text by its identity. Texts of a test split without pictures have hidden labels: they are in no row, and among
`queries`, which a server asks. The column "image_id" is a picture's number.
"""

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuwen.data.corpora.captions import Held, checked_caption, split_name
from tuwen.data.corpora.faults import Fault, Faults, RowError, one_line
from tuwen.data.corpora.files import CorpusEntry
from tuwen.data.corpora.json_text import field, objects
from tuwen.data.corpora.lines import Lines
from tuwen.data.corpora.parts import read_part
from tuwen.data.corpora.published import Format
from tuwen.data.corpora.scripts import language_by_script
from tuwen.data.corpus import BrokenImage
from tuwen.errors import UserError

_PICTURES = r"(?:MR_)?(?P<split>[\w-]+)_imgs\.tsv"


class ChineseClip(Held):
    """`image` of an entry is "FILE:OFFSET:SIZE" of its base64."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.pictures = {match["split"]: path for path, match in self.folder.matching(_PICTURES)}
        self.asked: dict[str, list[tuple[int, str, str]]] = {}
        if not self.pictures:
            raise UserError(f"{root}: no file train_imgs.tsv or MR_train_imgs.tsv in it; see `tuwen data list`")

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        self.rows, self.files, self.asked = [], [], {}
        for split, path in sorted(self.pictures.items()):
            texts = self._texts(split, faults)
            named = set(texts)
            for number, offset, size, line in _pictures(path, faults):
                image = f"{path.relative_to(self.root).as_posix()}:{offset}:{size}"
                captions = texts.pop(number, {})
                name = f"{split}/{number}"
                own = {"split": split_name(split), "columns": {"image_id": number}}
                yield self.keep(path, line, id=name, image=image, texts=captions, **own)
            for number in sorted(texts):
                what = f"picture {number} has texts but no line here; add it, or take it out of its texts' image_ids"
                faults.add(Fault(path, 0, "missing", what))
            if not named and split != "test":
                faults.add(Fault(path, 0, "no text", f"no picture has a text; see {split}_texts.jsonl"))

    def _texts(self, split: str, faults: Faults) -> dict[int, dict[str, list[str]]]:
        """Texts by language of each picture of a split."""
        texts: dict[int, dict[str, list[str]]] = {}
        path = self.needed(f"{split}_texts.jsonl", f"MR_{split}_queries.jsonl")
        for value, lines in objects(path, faults):
            key, named = ("query_text", "item_ids") if "query_text" in value else ("text", "image_ids")
            hidden = split == "test" and named not in value
            try:
                text, pictures = checked_caption(field(value, key, str)), [] if hidden else field(value, named, list)
                if not all(map(_is_number, pictures)):
                    raise RowError("wrong type", f"{named} are whole numbers, not {one_line(str(pictures), 60)}")
                if not pictures and split != "test":
                    raise RowError("no picture", f"a text without a picture; give its {named} or take it out")
            except RowError as error:
                faults.add(Fault(path, lines.number, error.reason, str(error)))
                continue
            number_of_query = value.get("query_id", value.get("text_id"))
            if isinstance(number_of_query, int) and not isinstance(number_of_query, bool):
                query = number_of_query, language_by_script(text), text
                self.asked.setdefault(split_name(split), []).append(query)
            for number in dict.fromkeys(map(int, pictures)):
                texts.setdefault(number, {}).setdefault(language_by_script(text), []).append(text)
        return texts

    def queries(self, split: str) -> list[tuple[int, str, str]]:
        return self.asked.get(split, [])

    def read(self, image: str) -> bytes:
        return decode_base64(read_part(self.root, image) or b"")


def decode_base64(raw: bytes) -> bytes:
    """Raises:
    BrokenImage: no base64.
    """
    try:
        data = base64.b64decode(raw.strip(), altchars=b"-_" if b"-" in raw or b"_" in raw else None, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BrokenImage("damaged", f"no base64: {error}") from None
    if not data:
        raise BrokenImage("empty", "no bytes")
    return data


def _is_number(value: Any) -> bool:
    """Whether it is a picture's id: a whole number, or one written as a string."""
    text = str(value).strip()
    return text.isascii() and text.isdigit()


def _pictures(path: Path, faults: Faults) -> Iterator[tuple[int, int, int, int]]:
    """(id, offset and size of the base64, line) of every picture of a TSV; an id that comes again is a fault."""
    seen: dict[int, int] = {}
    with Lines(path, faults) as lines:
        for text in lines:
            if not text.strip():
                continue
            cells = text.rstrip("\r\n").split("\t")
            if len(cells) != 2 or not _is_number(cells[0]):
                what = "not a whole number and base64 with a tab between; mend the line"
                faults.add(Fault(path, lines.number, "broken row", what))
                continue
            number = int(cells[0])
            if seen.setdefault(number, lines.number) != lines.number:
                what = f"picture {number} stands in line {seen[number]} too; give each an id of its own"
                faults.add(Fault(path, lines.number, "duplicate id", what))
                continue
            head = len(text.split("\t", 1)[0].encode()) + 1
            yield number, lines.start + head + lines.mark, len(cells[1].encode()), lines.number


def _format(name: str, title: str, ask: str, licence: str, records: str) -> Format:
    needs = "SPLIT_imgs.tsv and SPLIT_texts.jsonl, or MR_SPLIT_imgs.tsv and MR_SPLIT_queries.jsonl; train, valid, test"
    return Format(name, title, ("zh",), needs, ask, licence, records, ChineseClip)


FORMATS = (
    _format(
        "muge",
        "MUGE, queries of a shop and its pictures",
        "tianchi.aliyun.com/muge, by an application",
        "research only, see the application",
        "train 129,380 pictures, 250,314 pairs; valid 29,806, 30,588; test about 30,399, labels hidden",
    ),
    _format(
        "chinese-clip",
        "any corpus in the form of Chinese-CLIP",
        "your own, or the copies linked at github.com/OFA-Sys/Chinese-CLIP",
        "that of its makers",
        "-",
    ),
)
