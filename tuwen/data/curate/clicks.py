"""Click-through selection of a corpus, or of a click log, by the rule of `tuwen.data.clicked`."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tuwen.data.clicked import Rule, choose_pairs, clicked_pairs
from tuwen.data.corpora.csv_rows import csv_rows
from tuwen.data.corpora.faults import Fault, Faults, RowError
from tuwen.data.corpora.json_text import objects
from tuwen.data.corpora.scripts import is_blank, language_by_script
from tuwen.data.corpus import Corpus, text_id
from tuwen.data.shards import write_whole
from tuwen.data.subset import Subset
from tuwen.errors import UserError, quoted
from tuwen.outputs import check_free


def by_clicks(corpus: Corpus, rule: Rule) -> Subset:
    """The rows and texts of a corpus that stay by its column "clicks"; a row stays while one of its texts does.

    Raises:
        UserError: as `clicked_pairs`, or nothing stays.
    """
    pairs = clicked_pairs(corpus, rule)
    dropped: dict[int, set[str]] = {}
    for row, text, stays in zip(*pairs, strict=True):
        if not stays:
            dropped.setdefault(row, set()).add(text)
    left = {row for row, stays in zip(pairs.rows, pairs.stays, strict=True) if stays}
    if not left:
        where = f"{corpus.name}, split {corpus.split}"
        raise UserError(f"{where}: no pair stays by {rule}; lower the floor or the least rate")
    return Subset(corpus, sorted(left), {row: gone for row, gone in dropped.items() if row in left})


def select_log(log: str | Path, out: str | Path, rule: Rule) -> tuple[int, int, dict[str, int]]:
    """Writes a pair table of what stays of a click log; returns pairs seen, pairs kept, and faulty lines by reason.

    log: CSV, TSV or JSON lines with query, image, impressions, clicks; lines of one pair are summed. out: a .jsonl
        in the form of pairs.jsonl, a row a picture, anywhere at or above the pictures: paths, which in the log start
        at its folder, start at the table's. A file that is there is never replaced.

    Raises:
        UserError: no such log, a column is missing, nothing stays, or the table cannot be written.
    """
    check_free(out)
    faults = Faults("skip")
    sums: dict[tuple[str, str], list[int]] = {}
    for query, image, impressions, clicks in _log_lines(Path(log), faults):
        totals = sums.setdefault((query, image), [0, 0])
        totals[0] += impressions
        totals[1] += clicks
    if not sums:
        why = str(faults.listed[0]) if faults.listed else "write query, image, impressions, clicks"
        raise UserError(f"{log}: no usable line; {why}")
    pairs = sorted(sums)
    table = np.array([sums[pair] for pair in pairs], dtype=np.int64).reshape(-1, 2)
    queries = np.array([text_id(query) for query, _ in pairs], dtype=np.int64)
    chosen = choose_pairs(queries, table[:, 0], table[:, 1], np.arange(len(pairs)), rule)
    pictures: dict[str, dict[str, Any]] = {}
    for (query, image), counts, stays in zip(pairs, table.tolist(), chosen, strict=True):
        if stays:
            place = _from_table(Path(log).parent, image, Path(out).parent)
            row = pictures.setdefault(image, {"id": image, "image": place, "texts": {}, "clicks": []})
            row["texts"].setdefault(language_by_script(query), []).append((query, counts))
    if not pictures:
        raise UserError(f"{log}: no pair of {len(pairs)} stays by {rule}; lower the floor or the least rate")
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(out), "".join(map(_table_line, pictures.values())).encode())
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}; choose another file") from None
    return len(pairs), int(chosen.sum()), dict(faults.counts)


def _from_table(start: Path, image: str, table: Path) -> str:
    """A picture's path from the folder of the new table, where it lies below that folder; else as it is.

    Raises:
        UserError: it lies elsewhere, so that no path within the new folder leads to it.
    """
    if "://" in image or os.path.isabs(image):
        return image
    path = os.path.relpath(os.path.realpath(start / image), os.path.realpath(table))
    if path.startswith(".."):
        what = f"picture {quoted(image)} of the log does not lie below {table}"
        raise UserError(f"{what}; write the table into {start} or a folder above it")
    return path.replace(os.sep, "/")


def _table_line(row: dict[str, Any]) -> str:
    several = [pair for some in row["texts"].values() for pair in some]
    texts = {language: [query for query, _ in some] for language, some in row["texts"].items()}
    return json.dumps(row | {"texts": texts, "clicks": [counts for _, counts in several]}, ensure_ascii=False) + "\n"


def _log_lines(path: Path, faults: Faults) -> Iterator[tuple[str, str, int, int]]:
    """(query, image, impressions, clicks) of every usable line."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a click log, or a corpus with a column clicks")
    rows = _json_rows(path, faults) if path.suffix.lower() in (".jsonl", ".json") else _csv_rows(path, faults)
    for row, line in rows:
        try:
            query, image = str(row["query"]).strip(), str(row["image"]).strip()
            impressions, clicks = int(row["impressions"]), int(row["clicks"])
            if is_blank(query) or is_blank(image):
                raise RowError("empty text", "an empty query or image; write it or take the line out")
            if not 0 <= clicks <= impressions:
                raise RowError("wrong count", f"{clicks} clicks of {impressions} impressions; correct the log")
        except KeyError as error:
            faults.add(Fault(path, line, "missing key", f"no {error}; a line has query, image, impressions, clicks"))
        except (TypeError, ValueError):
            faults.add(Fault(path, line, "wrong type", "impressions and clicks are whole numbers"))
        except RowError as error:
            faults.add(Fault(path, line, error.reason, str(error)))
        else:
            yield query, image, impressions, clicks


def _json_rows(path: Path, faults: Faults) -> Iterator[tuple[dict[str, Any], int]]:
    return ((value, lines.number) for value, lines in objects(path, faults))


def _csv_rows(path: Path, faults: Faults) -> Iterator[tuple[dict[str, Any], int]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    return csv_rows(path, ("clicks", "image", "impressions", "query"), faults, delimiter)
