"""Click-through selection: pairs that users who searched for the text really clicked.

Zero (card `zero-benchmark.md`, section 3) keeps of 5 billion pairs those with a high click-through rate. Thresholds and
statistic were not published, so these are a [choice]: a floor of impressions, below which a rate says nothing (1 of 1
is no 100 %), and the lower end of Wilson's interval (Wilson, JASA 1927) as the rate. For each query, pictures are
ranked by it.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tuwen.data.corpora.csv_rows import csv_rows
from tuwen.data.corpora.faults import Fault, Faults, RowError, one_line
from tuwen.data.corpora.json_text import objects
from tuwen.data.corpora.scripts import is_blank, language_by_script
from tuwen.data.corpus import Corpus, all_texts, text_id
from tuwen.data.shards import write_whole
from tuwen.data.subset import Subset
from tuwen.errors import UserError, quoted
from tuwen.outputs import check_free

Z = 1.96  # of a two-sided interval of 95 %


@dataclass(frozen=True)
class Rule:
    """Which pairs stay.

    floor: fewest impressions. least: lowest Wilson bound, 0 for any. top: at most so many pictures a query; None: all.
    share: this share of all pairs that reach the floor, those with the highest bound; None: all.
    """

    floor: int = 5
    least: float = 0.0
    top: int | None = None
    share: float | None = None

    def __post_init__(self):
        if self.floor < 1 or not 0 <= self.least <= 1 or (self.top is not None and self.top < 1):
            settings = f"floor={self.floor}, least={self.least}, top={self.top}"
            raise UserError(f"{settings}: floor and top are 1 or more, least is 0 to 1")
        if self.share is not None and not 0 < self.share <= 1:
            raise UserError(f"a share of {self.share} is none; give one above 0 and up to 1")


def wilson(clicks: np.ndarray, impressions: np.ndarray, z: float = Z) -> np.ndarray:
    """Lower end of Wilson's interval of the rate, float64 in [0, 1]; 0 where there is no impression."""
    n = np.maximum(np.asarray(impressions, dtype=np.float64), 1.0)
    rate = np.minimum(np.asarray(clicks, dtype=np.float64) / n, 1.0)
    centre = rate + z * z / (2 * n)
    spread = z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return np.where(np.asarray(impressions) > 0, np.clip((centre - spread) / (1 + z * z / n), 0, 1), 0.0)


def choose_pairs(
    queries: np.ndarray, impressions: np.ndarray, clicks: np.ndarray, keys: np.ndarray, rule: Rule
) -> np.ndarray:
    """[N] bool, which pairs stay. The order of the pairs does not matter.

    queries, keys: [N] int64, the query and what breaks ties between equal bounds (lower first), e.g. the picture.

    Raises:
        UserError: more clicks than impressions, or a negative number.
    """
    impressions, clicks = np.asarray(impressions), np.asarray(clicks)
    wrong = np.flatnonzero((clicks > impressions) | (clicks < 0))
    if wrong.size:
        at = int(wrong[0])
        raise UserError(f"pair {at}: {clicks[at]} clicks of {impressions[at]} impressions; correct the log")
    bound = wilson(clicks, impressions)
    stays = (impressions >= rule.floor) & (bound >= rule.least)
    best = np.lexsort((keys, queries, -bound))  # the highest bound first, whatever the order of the log
    if rule.top is not None:
        by_query = best[np.argsort(queries[best], kind="stable")]
        by_query = by_query[stays[by_query]]
        starts = np.r_[True, np.diff(queries[by_query]) != 0] if by_query.size else np.zeros(0, dtype=bool)
        first = np.maximum.accumulate(np.where(starts, np.arange(len(by_query)), 0))
        stays[by_query[np.arange(len(by_query)) - first >= rule.top]] = False
    if rule.share is not None:
        limit = round(rule.share * int((impressions >= rule.floor).sum()))
        ranked = best[stays[best]]
        stays[ranked[limit:]] = False
    return stays


def by_clicks(corpus: Corpus, rule: Rule) -> Subset:
    """The rows and texts of a corpus that stay by its column "clicks": [impressions, clicks] a text.

    A query is a text, by its identity; a row stays while one of its texts does.

    Raises:
        UserError: no such column, of another form, or nothing stays.
    """
    rows, texts, pictures = [], [], []
    counts: list[Sequence[int]] = []
    for row in range(len(corpus)):
        record = corpus.record(row)
        several = list(all_texts(record))
        counts += _counts(record.columns.get("clicks"), len(several), f"{corpus.name} {corpus.split} row {row}")
        rows += [row] * len(several)
        texts += several
        pictures += [record.image_id] * len(several)
    totals = np.array(counts, dtype=np.int64).reshape(-1, 2)
    queries = np.array([text_id(text) for text in texts], dtype=np.int64)
    chosen = choose_pairs(queries, totals[:, 0], totals[:, 1], np.array(pictures, dtype=np.int64), rule)
    dropped: dict[int, set[str]] = {}
    for row, text, stays in zip(rows, texts, chosen, strict=True):
        if not stays:
            dropped.setdefault(row, set()).add(text)
    left = {row for row, stays in zip(rows, chosen, strict=True) if stays}
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


def _counts(value: Any, texts: int, where: str) -> Sequence[Sequence[int]]:
    if value is None:
        raise UserError(f"{where}: no column clicks; give [impressions, clicks] for each text, in the texts' order")
    array = np.asarray(value)
    if array.shape != (texts, 2) or array.dtype.kind not in "iu":
        raise UserError(f"{where}: clicks is {one_line(str(value), 60)}, not [impressions, clicks] for {texts} texts")
    return array.tolist()


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
