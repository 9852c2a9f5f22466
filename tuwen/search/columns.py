"""The columns of an index's table: vectors and codes as Arrow has them, and metadata by name."""

from urllib.parse import quote, unquote

import pyarrow as pa
import torch
from torch import Tensor

COLUMN = "column_"
KINDS = {"text": pa.string(), "number": pa.float64(), "flag": pa.bool_(), "tags": pa.list_(pa.string())}


def vector_column(vectors: Tensor) -> pa.Array:
    """[B, D] float32 as Arrow's lists of fixed size."""
    flat = pa.array(vectors.float().contiguous().view(-1).numpy())
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def as_matrix(column: pa.Array | pa.ChunkedArray) -> Tensor:
    """[B, D] of Arrow's lists of fixed size: float32 vectors, int8 or uint8 codes."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).copy()).view(-1, column.type.list_size)


def metadata_columns(schema: pa.Schema) -> dict[str, str]:
    """Metadata columns by name, with their kind: "text", "number", "flag" or "tags"."""
    kinds = {kind: name for name, kind in KINDS.items()}
    own = [field for field in schema if field.name.startswith(COLUMN)]
    return {unquote(field.name.removeprefix(COLUMN)): kinds[field.type] for field in own}


def field_of(column: str) -> str:
    """The table's name of a metadata column; Lance knows no dots in names."""
    return COLUMN + quote(column, safe="").replace(".", "%2E")
