"""Arrow and Parquet that others wrote: what is wrong with a file is one line, and nothing of it is read unchecked."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from tuwen.errors import UserError, refused

_Rows = TypeVar("_Rows", pa.Table, pa.RecordBatch)


@contextlib.contextmanager
def arrow_file(path: Path, fix: str = "write or download it anew") -> Iterator[None]:
    """While it lasts, what pyarrow raises is a `UserError` with the file's name."""
    try:
        with refused(f"{path}: no readable Arrow or Parquet file", fix):
            yield
    except StopIteration:  # of a stream that ends before its schema
        raise UserError(f"{path}: no readable Arrow or Parquet file (it is empty); {fix}") from None


def checked_rows(rows: _Rows) -> _Rows:
    """The rows, after every offset and every text has been looked at: pyarrow trusts what a file says of these, and a
    damaged one would end the process.

    Raises:
        pa.ArrowInvalid: an offset that leads elsewhere, or a text that is no UTF-8.
    """
    rows.validate(full=True)
    return rows
