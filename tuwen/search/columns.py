"""Vectors and codes as Arrow's columns, and back."""

import pyarrow as pa
import torch
from torch import Tensor


def vector_column(vectors: Tensor) -> pa.Array:
    """[B, D] float32 as Arrow's lists of fixed size."""
    flat = pa.array(vectors.float().contiguous().view(-1).numpy())
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def as_matrix(column: pa.Array | pa.ChunkedArray) -> Tensor:
    """[B, D] of Arrow's lists of fixed size: float32 vectors, int8 or uint8 codes."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).copy()).view(-1, column.type.list_size)
