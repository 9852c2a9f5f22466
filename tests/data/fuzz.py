"""Mutated small corpora of every form read from end to end, each in a child process; what became of each is counted.

`python -m tests.data.fuzz [MUTATIONS] [FORM...]` prints a table: a form a row, how many mutations ended how.
"""

import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.made import json_lines, picture, put
from tests.data.published import MAKERS
from tests.fuzzing import ended, in_children, mutate, report
from tests.training import toy
from tuwen.data.beside import TABLE, laid_over, write_table
from tuwen.data.classes import classes_of
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpus import BrokenImage
from tuwen.data.curate.check import check
from tuwen.data.curate.quality import LanguageCheck
from tuwen.data.grounding import phrases_of
from tuwen.data.images import EXTENSIONS
from tuwen.data.needs import numbers
from tuwen.data.open import open_corpus, splits_of
from tuwen.data.shards import write_shards
from tuwen.errors import UserError


def rows(count: int) -> list[dict]:
    boxes = [{"phrase": "a dog", "box": [0.1, 0.1, 0.5, 0.5]}]
    splits = ("train", "test")
    return [
        {
            "id": str(n),
            "image": f"i/{n}.jpg",
            "texts": {"en": [f"dog {n}"], "zh": [f"狗{n}"]},
            "split": splits[n % 2],
            "price": n + 0.5,
            "cls": n % 2,
            "objects": boxes,
        }
        for n in range(count)
    ]


def pictures(folder: Path, count: int = 4) -> None:
    for n in range(count):
        put(folder, f"i/{n}.jpg", picture(40 * n + 20, "JPEG"))


def json_table(folder: Path) -> str:
    pictures(folder)
    put(folder, "pairs.jsonl", json_lines(*rows(4)))
    put(folder, "zeroshot.json", json.dumps({"classnames": {"en": ["cat", "dog"]}, "templates": {"en": ["a {c}"]}}))
    put(folder, "grounding.jsonl", json_lines({"id": "0", "objects": rows(1)[0]["objects"]}))
    return str(folder)


def csv_table(folder: Path) -> str:
    pictures(folder)
    lines = [f"{n},i/{n}.jpg,a dog {n},狗{n},{('train', 'test')[n % 2]},{n}.5,{n % 2}" for n in range(4)]
    put(folder, "pairs.csv", "\n".join(["id,image,text_en,text_zh,split,price,cls", *lines]))
    return str(folder)


def parquet_table(folder: Path) -> str:
    pictures(folder)
    plain = [{**row, "texts": None, "text_en": row["texts"]["en"][0]} for row in rows(4)]
    table = pa.Table.from_pylist([{k: v for k, v in row.items() if k != "texts"} for row in plain])
    pq.write_table(table, folder / "pairs.parquet", compression="none", use_dictionary=False, write_statistics=False)
    return str(folder)


def hub_parquet(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    cells = [{"image": {"bytes": picture(40 * n + 20), "path": None}, "caption": f"dog {n}"} for n in range(4)]
    path = folder / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(cells), path, compression="none", use_dictionary=False, write_statistics=False)
    return f"huggingface:{folder}"


def text_folder(folder: Path) -> str:
    for n in range(4):
        put(folder, f"{('train', 'test')[n % 2]}/{n}.jpg", picture(40 * n + 20))
        put(folder, f"{('train', 'test')[n % 2]}/{n}.txt", f"a dog {n}\n狗{n}\n")
    return str(folder)


def kinds_of_pictures(folder: Path) -> str:
    for n, kind in enumerate(("PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG", "JPEG2000")):
        ending = {"JPEG2000": "jp2", "JPEG": "jpg"}.get(kind, kind.lower())
        put(folder, f"{n}.{ending}", picture(30 * n + 20, kind))
        put(folder, f"{n}.txt", f"a dog {n}")
    return str(folder)


def shards(folder: Path) -> str:
    write_shards({split: Scenes(split, count=3, side=32) for split in ("train", "test")}, folder, progress=False)
    return str(folder)


def captions_of_clips(folder: Path) -> str:
    videos = [{"video_id": f"video{n}", "split": "train"} for n in range(2)]
    sentences = [{"video_id": f"video{n}", "caption": f"a dog {n}"} for n in range(2)]
    put(folder, "MSRVTT_data.json", json.dumps({"videos": videos, "sentences": sentences}))
    put(folder, "MSRVTT_JSFUSION_test.csv", "key,vid_key,video_id,sentence\n1,m,video0,a dog\n")
    for n in range(2):
        put(folder, f"video{n}.mp4", b"\0\0\0\x18ftypmp42" + bytes(100))
    return f"msrvtt:{folder}"


def table_beside(folder: Path) -> str:
    """A table for `data.beside`: of each of toy rows, and what the loader makes something of."""
    columns = {"row": [str(row) for row in range(8)], "text": pa.array([None] * 8, pa.int64()), "noise": [0.5] * 8}
    columns |= {"tags": [{"en": ["red"]}] * 8, "written": [{"en": "a dog", "zh": "狗"}] * 8}
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / TABLE, pa.table(columns))
    return str(folder)


BESIDE = "table beside a corpus"
OWN = {
    BESIDE: table_beside,
    "pairs.jsonl": json_table,
    "pairs.csv": csv_table,
    "pairs.parquet": parquet_table,
    "parquet of the hub": hub_parquet,
    "folder with texts": text_folder,
    "pictures of seven kinds": kinds_of_pictures,
    "built shards": shards,
    "msrvtt": captions_of_clips,
}
TWINS = {"muge", "iqm", "iqr", "flickr30k-karpathy", "flickr8k-karpathy", "zero-query", "zero-title", "zero-content"}
FORMS = [*OWN, *sorted(set(MAKERS) - TWINS)]


def make(form: str, folder: Path) -> str:
    """A whole corpus of the form; its location."""
    if form in OWN:
        return OWN[form](folder)
    MAKERS[form](folder)
    return f"{form}:{folder}"


def mutated(form: str, number: int, whole: Path, folder: Path) -> str:
    """A copy of a corpus with one file mutated, annotations more often than pictures; its location."""
    dice = random.Random(f"{form}/{number}")
    shutil.copytree(whole, folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock.mdb"]
    told = [path for path in files if path.suffix.lower() not in EXTENSIONS]
    path = dice.choice(told if told and dice.random() < 0.8 else files)
    path.write_bytes(mutate(path.read_bytes(), dice))
    return str(folder) if form in OWN and form not in ("parquet of the hub", "msrvtt") else f"{_name(form)}:{folder}"


def _name(form: str) -> str:
    return {"parquet of the hub": "huggingface"}.get(form, form)


def read_all(location: str) -> str:
    """Reads all that can be read there: "read", "line", or, where a message is too long or not one line, "flood"."""
    lines: list[str] = []
    try:
        splits = splits_of(location)
    except UserError as error:
        return ended([str(error)])
    for split in splits or ("all",):
        for on_bad in ("skip", "stop"):
            try:
                corpus = open_corpus(location, split, on_bad)
                lines += [str(fault) for fault in getattr(corpus, "faults", ())]
                for row in range(len(corpus)):
                    corpus.record(row)
                    try:
                        corpus.clip(row)
                    except BrokenImage as error:
                        lines.append(str(error))
            except UserError as error:
                lines.append(str(error))
                continue
            for look in (phrases_of, classes_of):
                try:
                    look(corpus)
                except UserError as error:
                    lines.append(str(error))
    try:
        lines += [fault.message for fault in check(location, quiet=True).faults]
    except UserError as error:
        lines.append(str(error))
    return ended(lines)


def read_beside(place: str) -> str:
    """Lays the table over rows, and reads what is then there."""
    try:
        rows = laid_over(toy.Memory(8), [place])
        for row in range(len(rows)):
            numbers(rows.record(row), "noise")
    except UserError as error:
        return ended([str(error)])
    return "read"


def attempt(form: str, place: str, number: int) -> str:
    """Reads the whole corpus beside it with one file mutated."""
    LanguageCheck.doubt = lambda *_: None  # type: ignore[method-assign]  # no reader; its models take seconds
    folder = Path(place) / f"copy{number}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        location = mutated(form, number, Path(place) / "whole", folder)
        return read_beside(location) if form == BESIDE else read_all(location)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def outcomes(form: str, numbers: range) -> dict[int, tuple[str, str]]:
    """What became of each mutation and its end, as `tests.fuzzing.in_children` gives it."""
    with tempfile.TemporaryDirectory() as place:
        make(form, Path(place) / "whole")
        return in_children(numbers, attempt, form, place)


def main(arguments: list[str]) -> None:
    count = int(arguments[0]) if arguments else 100
    whole: Counter[str] = Counter()
    for form in arguments[1:] or FORMS:
        began = time.monotonic()
        whole += report(form, outcomes(form, range(count)), began)
    print(f"all: {whole.total()} mutations, {dict(whole)}")


if __name__ == "__main__":
    main(sys.argv[1:])
