"""The LMDB that Chinese-CLIP makes of its TSV form (cn_clip/preprocess/build_lmdb_dataset.py).

`SPLIT/imgs` maps a picture's id to its base64, `SPLIT/pairs` a number to the pickled triple (image id, text id, text).
The files are read in a process of their own (`lmdb_files`). Nothing is unpickled: the triple is read off the pickle's
own opcodes, of which only constants are allowed.
"""

import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuwen.data.corpora.captions import Held, checked_caption, split_name
from tuwen.data.corpora.chinese_clip import decode_base64
from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.files import CorpusEntry
from tuwen.data.corpora.lmdb_files import DamagedLmdb, opened
from tuwen.data.corpora.published import Format
from tuwen.data.corpora.scripts import language_by_script
from tuwen.data.corpus import BrokenImage
from tuwen.errors import UserError

_CONSTANTS = (
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "INT",
    "UNICODE",
)
_FRAME = ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "TUPLE3", "STOP")


class ChineseClipLmdb(Held):
    """`image` of an entry is "SPLIT:ID"."""

    def __init__(self, root: Path):
        super().__init__(root)
        paths = [path for path, _ in self.folder.matching(r"data\.mdb") if path.parent.name == "pairs"]
        self.splits = {path.parent.parent.name: path.parent.parent for path in paths}
        if not self.splits:
            raise UserError(f"{root}: no file SPLIT/pairs/data.mdb in it; see `tuwen data list`")

    def entries(self, faults: Faults) -> Iterator[CorpusEntry]:
        self.rows, self.files = [], []
        for split, folder in sorted(self.splits.items()):
            self._read_first(self.folder.plain(folder / "imgs" / "data.mdb"))
            texts: dict[int, dict[str, list[str]]] = {}
            for key, value in self._values(folder / "pairs"):
                if key == b"num_samples":
                    continue
                try:
                    number, text = _triple(value)
                    captions = texts.setdefault(number, {})
                    captions.setdefault(language_by_script(text), []).append(checked_caption(text))
                except RowError as error:
                    shown = key[:40].decode(errors="replace")
                    faults.add(Fault(folder / "pairs", 0, error.reason, f"pair {shown!r}: {error}"))
            for number, captions in sorted(texts.items()):
                name = f"{split}/{number}"
                image = f"{split}:{number}"
                yield self.keep(folder / "imgs", 0, id=name, image=image, texts=captions, split=split_name(split))

    def read(self, image: str) -> bytes:
        split, number = image.split(":")
        try:
            raw = opened(self.folder.plain(self.splits[split] / "imgs" / "data.mdb")).get(number.encode())
        except DamagedLmdb as error:
            raise BrokenImage("damaged", f"{split}/imgs: {error}") from None
        if raw is None:
            raise BrokenImage("missing", f"no picture {number} in {split}/imgs")
        return decode_base64(raw)

    def _read_first(self, data: Path) -> None:
        """Whether anything can be read of it, before every picture is asked for."""
        try:
            opened(data).get(b"0")
        except DamagedLmdb as error:
            raise UserError(f"{data}: no readable LMDB ({error}); build it again") from None

    def _values(self, path: Path) -> Iterator[tuple[bytes, bytes]]:
        try:
            yield from opened(self.folder.plain(path / "data.mdb")).items()
        except DamagedLmdb as error:
            raise UserError(f"{path}: damaged ({error}); build it again") from None


def _triple(value: bytes) -> tuple[int, str]:
    """(image id, text) of a pickled (image id, text id, text), without unpickling it.

    Raises:
        RowError: anything else.
    """
    constants: list[Any] = []
    try:
        for opcode, argument, _ in pickletools.genops(value):
            if opcode.name in _CONSTANTS:
                constants.append(argument)
            elif opcode.name not in _FRAME:
                raise RowError("broken row", f"a pickle that does more than hold numbers and texts ({opcode.name})")
    except (ValueError, IndexError, OverflowError, MemoryError):
        raise RowError("broken row", "no pickle of (image id, text id, text); build the LMDB again") from None
    if [type(constant) for constant in constants] not in ([int, int, str], [int, str, str]):
        raise RowError("wrong type", "no triple of image id (a whole number), text id, text; build the LMDB again")
    return constants[0], constants[2]


FORMATS = (
    Format(
        name="chinese-clip-lmdb",
        title="any corpus in the LMDB form of Chinese-CLIP",
        languages=("zh",),
        needs="lmdb/SPLIT/imgs/data.mdb and lmdb/SPLIT/pairs/data.mdb (and the package lmdb: tuwen[formats])",
        ask="your own, made by cn_clip/preprocess/build_lmdb_dataset.py",
        licence="that of its makers",
        records="-",
        read=ChineseClipLmdb,
    ),
)
