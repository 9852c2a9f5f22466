"""Files of predictions that scoring servers take, checked by their rules before they are sent.

VQA v2 (GT-Vision-Lab/VQA, `loadRes`): a JSON list of {"question_id": int, "answer": str}, every question of the split
once and no other. NLVR2 (lil-lab/nlvr, eval/metrics.py): lines IDENTIFIER,PREDICTION with true or false in letters of
any size, every identifier once. COCO captions (cocodataset.org, `loadRes`): a JSON list of {"image_id": int,
"caption": str}, every picture once. MUGE (Tianchi; card zero-benchmark, section 5): JSON lines {"query_id": int,
"item_ids": ten different ints}, or in Chinese-CLIP's words text_id and image_ids; no query missing, others allowed.
"""

import csv
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from tuwen.data.corpus import Corpus
from tuwen.errors import UserError, quoted, reason_of

BEST = 10  # pictures a query of MUGE


def check_predictions(entries: list[dict[str, Any]], corpus: Corpus) -> None:
    """What was predicted for all rows of a split, by the rules of its server; of other corpora nobody has rules.

    Raises:
        UserError: as the checks below.
    """
    records = (corpus.record(row) for row in range(len(corpus)))
    if corpus.name == "vqa-v2":
        check_answers(entries, {record.columns["question_id"] for record in records})
    elif corpus.name == "nlvr2":
        check_statements([list(entry.values()) for entry in entries], {record.id for record in records})
    elif corpus.name == "coco-captions":
        check_captions(entries, {record.columns["image_id"] for record in records})
    elif corpus.queries:
        asked = {number for number, _, _ in corpus.queries}
        check_rankings(entries, asked, {record.columns["image_id"] for record in records})


def check_answers(entries: Any, questions: Collection[int]) -> None:
    """VQA v2. questions: ids of the split.

    Raises:
        UserError: which entry breaks the rules, and how.
    """
    asked = [_id_of(number, entry, "question_id") for number, entry in enumerate(_listed(entries), 1)]
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry.get("answer"), str):
            raise UserError(f"entry {number}: answer is {quoted(entry.get('answer'), 60)}; write a text")
    _complete(asked, questions, "question_id")


def check_statements(rows: Iterable[Any], identifiers: Collection[str]) -> None:
    """NLVR2. rows: of the file, each an identifier and what is predicted.

    Raises:
        UserError: as `check_answers`.
    """
    named = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, list | tuple) or len(row) != 2 or not isinstance(row[0], str):
            raise UserError(f"line {number}: {quoted(row, 80)}; write an identifier, a comma, and true or false")
        if str(row[1]).lower() not in ("true", "false"):
            raise UserError(f"line {number}: the prediction is {quoted(row[1], 60)}; write true or false")
        named.append(row[0])
    _complete(named, identifiers, "identifier")


def check_captions(entries: Any, pictures: Collection[int]) -> None:
    """COCO captions. pictures: ids of the split.

    Raises:
        UserError: as `check_answers`.
    """
    shown = [_id_of(number, entry, "image_id") for number, entry in enumerate(_listed(entries), 1)]
    for number, entry in enumerate(entries, 1):
        caption = entry.get("caption")
        if not isinstance(caption, str) or not caption.strip():
            raise UserError(f"entry {number}: caption is {quoted(caption, 60)}; write a text")
    _complete(shown, pictures, "image_id")


def check_rankings(entries: Any, queries: Collection[int], items: Collection[int] | None = None) -> None:
    """MUGE. queries: ids that must be there. items: ids that there are, where they are known.

    Raises:
        UserError: as `check_answers`.
    """
    asked = []
    for number, entry in enumerate(_listed(entries), 1):
        names = (
            ("query_id", "item_ids") if isinstance(entry, Mapping) and "query_id" in entry else ("text_id", "image_ids")
        )
        asked.append(_id_of(number, entry, names[0]))
        best = entry.get(names[1])
        if not isinstance(best, list) or len(best) != BEST:
            count = len(best) if isinstance(best, list) else "no list of"
            raise UserError(f"entry {number}: {count} {names[1]}; write {BEST}, the likeliest first")
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in best):
            raise UserError(f"entry {number}: {names[1]} are {quoted(best, 80)}; write whole numbers")
        if len(set(best)) != BEST:
            raise UserError(f"entry {number}: one of {names[1]} stands twice: {quoted(best, 80)}")
        if items is not None and (strange := next((item for item in best if item not in items), None)) is not None:
            raise UserError(f"entry {number}: {names[1]} has {quoted(strange, 40)}, which is no picture of the split")
    _complete(asked, queries, "query", others=True)


def _listed(entries: Any) -> list[Any]:
    if not isinstance(entries, list):
        raise UserError(f"the file is no list of entries but {quoted(entries, 60)}")
    return entries


def _id_of(number: int, entry: Any, key: str) -> int:
    value = entry.get(key) if isinstance(entry, Mapping) else None
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"entry {number}: {key} is {quoted(value, 60)}; write a whole number")
    return value


def _complete(named: list[Any], wanted: Collection[Any], key: str, others: bool = False) -> None:
    """Every id once. others: ids beside those wanted are allowed."""
    seen: set[Any] = set()
    for name in named:
        if name in seen:
            raise UserError(f"{key} {quoted(name, 60)} stands twice; predict once for each")
        seen.add(name)
    known = set(wanted)
    if missing := known - seen:
        raise UserError(
            f"{len(missing):,} of {len(known):,} predictions are missing, e.g. {key} {quoted(min(missing), 60)}"
        )
    if not others and (strange := seen - known):
        raise UserError(
            f"{len(strange):,} predictions are for nothing of the split, e.g. {key} {quoted(min(strange), 60)}"
        )


def read_predictions(path: str | Path) -> Any:
    """The content of a .json list, of .jsonl lines, or the rows of a .csv file.

    Raises:
        UserError: it cannot be read as its name says.
    """
    path = Path(path)
    try:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                return list(csv.reader(file))
        text = path.read_text(encoding="utf-8")
        return (
            [json.loads(line) for line in text.splitlines() if line.strip()]
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix or 'JSON'} ({reason_of(error)})") from None


def write_predictions(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """One entry a row: a JSON list, JSON lines, or comma-separated values without a first row of names."""
    listed = list(entries)
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            csv.writer(file).writerows(entry.values() for entry in listed)
        elif path.suffix == ".jsonl":
            file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in listed)
        else:
            json.dump(listed, file, ensure_ascii=False)
