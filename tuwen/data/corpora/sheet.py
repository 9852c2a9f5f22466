"""Rows of a spreadsheet (.xlsx), read by openpyxl."""

import datetime
import zipfile
from pathlib import Path
from typing import Any

from tuwen.errors import UserError

LARGEST = 2**30  # bytes unpacked


def sheet_rows(path: Path) -> list[tuple[int, list[Any]]]:
    """(row of the sheet from 1, cells) of all rows with something in them, of the first sheet that has any.

    Dates are texts as 2024-05-31, whole numbers are int, empty cells and texts of white space None.

    Raises:
        UserError: no spreadsheet, a damaged one, or one of over 1 GiB unpacked.
    """
    import openpyxl

    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
                raise UserError(f"{path}: over {LARGEST >> 30} GiB unpacked; save it as .csv")
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            for sheet in book.worksheets:
                sheet.reset_dimensions()  # some programs write "A1" there, and all else would be passed over
                rows = [(n, [_cell(c) for c in cells]) for n, cells in enumerate(sheet.iter_rows(values_only=True), 1)]
                if filled := [(n, cells) for n, cells in rows if any(cell is not None for cell in cells)]:
                    return filled
        finally:
            book.close()
    except (UserError, MemoryError):
        raise
    except Exception as error:  # openpyxl raises a dozen kinds on damaged files
        raise UserError(f"{path}: no spreadsheet that can be read ({type(error).__name__}); save it anew") from None
    return []


def _cell(value: Any) -> Any:
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, str):
        return value if value.strip() else None
    return value if value is None or isinstance(value, bool | int | float) else str(value)
