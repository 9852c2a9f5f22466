"""Pictures that img2dataset fetched, by their address; and the list of what is still to fetch."""

import csv
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tuwen.data import draws, images
from tuwen.data.corpora.arrow import arrow_file, checked_rows
from tuwen.data.corpora.captions import Folder
from tuwen.data.corpora.faults import Fault, Faults, one_line
from tuwen.data.corpora.files import CorpusEntry
from tuwen.errors import UserError
from tuwen.outputs import check_free

_HEAD = ("url", "caption", "key")


class Fetched:
    """What img2dataset fetched, by the .parquet beside each shard, from output of its form `files` or `webdataset`.

    One address costs some 150 bytes of memory.
    """

    def __init__(self, folder: Folder):
        self.folder = folder
        self._places: dict[int, str] = {}
        for path, _ in folder.matching(r"\d+\.parquet"):
            shard = path.with_suffix("")
            inside = dict(self._members(shard)) if shard.with_suffix(".tar").is_file() else None
            for key, url in fetched_rows(path, success=True):
                place = inside.get(key) if inside is not None else self._file(shard, key)
                if place:
                    self._places[draws.key("url", url)] = place

    def find(self, url: str) -> str | None:
        """Where the picture of an address is: a path from the folder, or "TAR:OFFSET:SIZE"."""
        return self._places.get(draws.key("url", url))

    def _file(self, shard: Path, key: str) -> str | None:
        if not key.isalnum() or len(key) > 64:  # img2dataset numbers its pictures; a path is none of its keys
            return None
        path = next((path for path in map(shard.joinpath, _names(key)) if path.is_file()), None)
        return path.relative_to(self.folder.root).as_posix() if path else None

    def _members(self, shard: Path) -> Iterator[tuple[str, str]]:
        tar = self.folder.plain(shard.with_suffix(".tar"))
        name = tar.relative_to(self.folder.root).as_posix()
        for member, offset, size in members(tar, Faults("skip")):
            stem, _, extension = member.rpartition(".")
            if f".{extension.lower()}" in images.EXTENSIONS:
                yield stem.rsplit("/", 1)[-1], f"{name}:{offset}:{size}"


def fetched_rows(path: Path, success: bool) -> Iterator[tuple[str, str]]:
    """(key, address) of the rows of img2dataset's .parquet that were fetched; or (caption, address) of the others.

    Raises:
        UserError: no readable Parquet file. One that img2dataset did not write has no such rows.
    """
    needed = ["key" if success else "caption", "url", "status"]
    with arrow_file(path, "fetch the shard again"), pq.ParquetFile(path) as file:
        if not {"url", "status"} <= set(file.schema_arrow.names):
            return
        columns = [name for name in needed if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=columns):
            for row in checked_rows(batch).to_pylist():
                if (row["status"] == "success") == success and row["url"] and isinstance(row["url"], str):
                    yield str(row.get(needed[0]) or ""), row["url"]


def members(tar: Path, faults: Faults) -> Iterator[tuple[str, int, int]]:
    """(name, offset and size of its data) of the plain files of a tar; where it breaks off is a fault."""
    size = tar.stat().st_size
    try:
        with tarfile.open(tar, "r:") as file:
            for member in file:
                if not member.isreg() or member.sparse is not None:
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{one_line(member.name, 60)} goes on past the end of the file")
                yield member.name, member.offset_data, member.size
                file.members = []  # type: ignore[attr-defined]  # or it keeps them all
    except (tarfile.TarError, OSError, UnicodeDecodeError, ValueError, OverflowError) as error:
        what = f"the tar breaks off or is none ({one_line(str(error), 120)}); what comes after is lost, copy it again"
        faults.add(Fault(tar, 0, "truncated", what))


class MissingList:
    """Writes the addresses of pictures that are not there as CSV with the columns url, caption, key, a line each.

    img2dataset takes it: `img2dataset --url_list FILE --input_format csv --url_col url --caption_col caption`.
    """

    def __init__(self, path: Path):
        self.count = 0
        check_free(path, ",".join(_HEAD))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: Any = open(path, "w", newline="", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}; choose another file") from None
        self._writer = csv.writer(self._file)
        self._writer.writerow(_HEAD)

    def __enter__(self) -> "MissingList":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def add(self, entry: CorpusEntry, url: str) -> None:
        text = next((text for several in entry.texts.values() for text in several), "")
        self.write(url, text, entry.id)

    def write(self, url: str, caption: str, key: str = "") -> None:
        self.count += 1
        self._writer.writerow((url, " ".join(caption.split()), key))  # its reader cuts files at line ends


def _names(key: str) -> list[str]:
    return [f"{key}{extension}" for extension in (".jpg", ".png", ".webp", ".jpeg")]
