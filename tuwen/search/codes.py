"""Vectors of few bytes, by which very many pictures are compared first: whole numbers of eight bits, or single bits.

An int8 code of N bytes is the first N numbers of a vector, as a unit vector times 127 and rounded; codes are compared
by inner product. A binary code of N bytes is the signs of the first 8 N numbers; codes are compared by how many bits
differ. Prefixes serve best where the first numbers were trained to be a vector of their own (`model.nested`).

Scores of codes are whole numbers, exact in float32 whatever is computed together, and equal ones go by position.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from tuwen.errors import UserError

CODE = "code"  # the column of a table of pictures
KINDS = ("int8", "binary")
CHUNK = 8192  # codes scored at once: what they become in float32 stays in the processor's cache
GROUP = 16  # queries whose scores of all codes are held together


@dataclass(frozen=True)
class Code:
    """The form of a code. kind: "int8" or "binary". bytes: of each picture."""

    kind: str
    bytes: int

    def check(self, width: int) -> None:
        """Whether vectors of `width` numbers have such codes.

        Raises:
            UserError: unknown kind, more bytes than the vectors fill.
        """
        if self.kind not in KINDS:
            raise UserError(f"first-stage codes are {' or '.join(KINDS)}, not {self.kind!r}")
        most = width if self.kind == "int8" else width // 8
        if not 0 < self.bytes <= most:
            raise UserError(f"vectors of {width} numbers have {self.kind} codes of 1 to {most} bytes, not {self.bytes}")

    @classmethod
    def in_schema(cls, schema: pa.Schema) -> "Code | None":
        """The form of the codes that a table of pictures has, which its column's type says; None: it has none.

        Raises:
            ValueError: a column of that name which holds no codes.
        """
        if CODE not in schema.names:
            return None
        column = schema.field(CODE).type
        for code in (cls(kind, getattr(column, "list_size", 0)) for kind in KINDS):
            if column == code.arrow:
                return code
        raise ValueError(f"no codes are of type {column}")

    @property
    def arrow(self) -> pa.DataType:
        """The type of the column that holds them."""
        return pa.list_(pa.int8() if self.kind == "int8" else pa.uint8(), self.bytes)

    def pack(self, vectors: Tensor) -> Tensor:
        """[B, bytes] the codes of vectors [B, D]: int8, or uint8 of eight bits each, the first number's bit highest."""
        if self.kind == "int8":
            return (F.normalize(vectors[:, : self.bytes].float(), dim=1) * 127).round().to(torch.int8)
        bits = (vectors[:, : 8 * self.bytes] > 0).cpu().numpy()
        return torch.from_numpy(np.packbits(bits, axis=1))

    def column(self, vectors: Tensor) -> pa.Array:
        """The codes of vectors [B, D] as the column that holds them."""
        flat = pa.array(self.pack(vectors).cpu().contiguous().view(-1).numpy())
        return pa.FixedSizeListArray.from_arrays(flat, type=self.arrow)


def code_scores(codes: Tensor, queries: Tensor) -> np.ndarray:
    """[Q, N] float32 how near codes [N, bytes] are to those of queries [Q, bytes].

    Inner products of int8 codes; less the number of bits that differ of uint8 ones.
    """
    scores = np.empty((len(queries), len(codes)), dtype=np.float32)
    score = _products if codes.dtype == torch.int8 else _fewer_bits
    for start in range(0, len(codes), CHUNK):
        scores[:, start : start + CHUNK] = score(codes[start : start + CHUNK], queries)
    return scores


def _products(codes: Tensor, queries: Tensor) -> np.ndarray:
    return (queries.float() @ codes.float().T).numpy()


def _fewer_bits(codes: Tensor, queries: Tensor) -> np.ndarray:
    word = next(kind for kind in (np.uint64, np.uint32, np.uint16, np.uint8) if codes.shape[1] % kind(0).nbytes == 0)
    keys, asked = (np.ascontiguousarray(x.numpy()).view(word) for x in (codes, queries))
    apart = np.zeros((len(asked), len(keys)), dtype=np.int32)
    for place in range(keys.shape[1]):
        for row, query in zip(apart, asked[:, place], strict=True):
            row += np.bitwise_count(keys[:, place] ^ query)
    return -apart.astype(np.float32)


def shortlists(codes: Tensor, queries: Tensor, k: int, allowed: np.ndarray | None = None) -> list[np.ndarray]:
    """Positions of the k nearest codes to each query's, ascending; of equally near ones the first.

    codes: [N, bytes]; queries: [Q, bytes], codes too. allowed: [N] bool; None: all. Fewer where fewer are allowed.
    """
    k = min(k, len(codes) if allowed is None else int(allowed.sum()))
    near = []
    for group in queries.split(GROUP):
        scores = code_scores(codes, group)
        if allowed is not None:
            scores[:, ~allowed] = -np.inf
        near += [best_places(row, k) for row in scores]
    return near


def best_places(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k highest scores [N], ascending; of equal ones the first."""
    if not k:
        return np.empty(0, dtype=np.int64)
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > least)
    return np.sort(np.concatenate([above, np.flatnonzero(scores == least)[: k - len(above)]]))


def ranks(scores: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Of each position its place, from 0, in the order of scores [N]."""
    better = [(scores > scores[place]).sum() + (scores[:place] == scores[place]).sum() for place in places]
    return np.array(better, dtype=np.int64)
