"""Rows of a CSV file that others wrote, by the names its first row gives."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from tuwen.data.corpora.faults import Fault, Faults, one_line
from tuwen.data.corpora.lines import Lines
from tuwen.data.private import UNSAID
from tuwen.errors import UserError


def csv_rows(
    path: Path, needed: Sequence[str], faults: Faults, delimiter: str = ","
) -> Iterator[tuple[dict[str, str], int]]:
    """Each row by column, with the line it ends on; rows of another width go to `faults`. A .gz is read as it lies.

    needed: columns that must be there.

    Raises:
        UserError: the first row has no such column.
    """
    with Lines(path, faults) as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        names: list[str] = []
        while True:
            lines.begin()
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                what = f"{one_line(str(error), 120)}; mend its quotes"
                if str(error).startswith("new-line character"):
                    what = "lines end in CR alone; save the file with LF or CRLF line ends"
                faults.add(Fault(path, lines.first[1], "broken row", what))
                lines.restart()
                reader = csv.reader(lines, delimiter=delimiter, strict=True)
                continue
            if not names and cells:
                names = [cell.strip() for cell in cells]
                lacking = [name for name in needed if name not in names]
                if lacking:
                    shown = UNSAID if faults.private else one_line(", ".join(names), 120)  # perhaps a patient's row
                    what = f"no column {lacking[0]} among {shown}; the first row names the columns"
                    raise UserError(one_line(f"{path}:{lines.first[1]}: {what}"))
            elif len(cells) == len(names):
                yield dict(zip(names, cells, strict=True)), lines.number
            elif cells:
                what = f"{len(cells)} cells under {len(names)} columns; put cells with commas in double quotes"
                faults.add(Fault(path, lines.first[1], "broken row", what))
