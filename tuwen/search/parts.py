"""The parts of `Encoded` that re-ranking reads, as bytes of a record: float32, float16 or int8, whole or pooled.

A part of a picture is a matrix [n, W] (or [n, ...]); n may differ between pictures, as of systems that see regions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded

PRECISIONS = ("float32", "float16", "int8")
_HALF_LARGEST = 65504.0


@dataclass(frozen=True)
class Part:
    """One kept part. name: as in `System.index_fields` ("tokens", "states.last"); rest: shape of a picture's rows;
    masked: whether the system itself gives a mask with it; flat: whether a picture has one row [W] and no n."""

    name: str
    rest: tuple[int, ...]
    masked: bool
    flat: bool = False

    @property
    def width(self) -> int:
        return math.prod(self.rest)

    @property
    def unit(self) -> bool:
        """Whether rows are unit vectors."""
        return self.name == "tokens"


@dataclass(frozen=True)
class Layout:
    """How the parts of a system's pictures lie in a record.

    precision: "float32", "float16", or "int8" with one scale a row of W. budget: most rows a picture; more are pooled;
    None: all.
    """

    parts: tuple[Part, ...]
    precision: str = "float16"
    budget: int | None = None

    @classmethod
    def of(cls, fields: Sequence[str], sample: Encoded, precision: str, budget: int | None) -> "Layout":
        """The layout for `System.index_fields`, read off an encoded picture. A budget of 0 keeps no part.

        Raises:
            UserError: unknown precision, negative budget.
        """
        if precision not in PRECISIONS:
            raise UserError(f"tokens are kept as {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}, not {precision!r}")
        if budget is not None and budget < 0:
            raise UserError(f"a token budget of {budget} makes no sense; give 0 to keep none, or how many to keep")
        parts = []
        for name, value, mask in _named(fields, sample):
            parts.append(Part(name, tuple(value.shape[2:] or value.shape[1:]), mask is not None, value.dim() == 2))
        return cls(() if budget == 0 else tuple(parts), precision, budget)

    def to_json(self) -> dict:
        return {"parts": [asdict(part) for part in self.parts], "precision": self.precision, "budget": self.budget}

    @classmethod
    def from_json(cls, described: Mapping) -> "Layout":
        parts = (Part(p["name"], tuple(p["rest"]), p["masked"], p["flat"]) for p in described["parts"])
        return cls(tuple(parts), described["precision"], described["budget"])

    def write(self, encoded: Encoded) -> dict[str, list[bytes]]:
        """Each part's bytes, one entry a picture."""
        named = {name: (value, mask) for name, value, mask in _named([p.name for p in self.parts], encoded)}
        return {part.name: [self._pack(part, x) for x in _valid(*named[part.name])] for part in self.parts}

    def read(self, columns: Mapping[str, Sequence[bytes]], pooled: Tensor | None) -> Encoded:
        """Pictures again, float32; rows of unequal length are padded and masked."""
        tokens = token_mask = state_mask = None
        states = {}
        for part in self.parts:
            rows = [self._unpack(part, data) for data in columns[part.name]]
            value, mask = _stack(rows, part)
            if part.name == "tokens":
                tokens, token_mask = value, mask
            else:
                states[part.name.removeprefix("states.")] = value
                state_mask = mask if mask is not None else state_mask
        return Encoded(pooled, tokens, token_mask, states, state_mask)

    def size(self, sample: Encoded) -> dict[str, int]:
        """Bytes a picture of each part, of the first picture of the sample."""
        return {name: len(rows[0]) for name, rows in self.write(sample).items()}

    # ---- one picture

    def _pack(self, part: Part, x: Tensor) -> bytes:
        x = x.reshape(-1, part.width).float()
        if self.budget is not None and len(x) > self.budget:
            x = pooled_rows(x, self.budget)
            x = F.normalize(x, dim=1) if part.unit else x
        if self.precision == "float32":
            return x.cpu().numpy().astype("<f4").tobytes()
        if self.precision == "float16":
            return x.clamp(-_HALF_LARGEST, _HALF_LARGEST).half().cpu().numpy().tobytes()
        scale = x.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
        whole = (x / scale).round().to(torch.int8).cpu().numpy()
        return scale.cpu().numpy().astype("<f4").tobytes() + whole.tobytes()

    def _unpack(self, part: Part, data: bytes) -> Tensor:
        if self.precision == "float32":
            return torch.from_numpy(np.frombuffer(data, "<f4").copy()).view(-1, part.width)
        if self.precision == "float16":
            flat = torch.from_numpy(np.frombuffer(data, "<f2").copy()).float().view(-1, part.width)
        else:
            rows = len(data) // (4 + part.width)
            scale = torch.from_numpy(np.frombuffer(data, "<f4", rows).copy())[:, None]
            whole = torch.from_numpy(np.frombuffer(data, np.int8, offset=4 * rows).copy()).view(rows, part.width)
            flat = whole.float() * scale
        return F.normalize(flat, dim=1) if part.unit else flat


def pooled_rows(x: Tensor, budget: int) -> Tensor:
    """[n, W] as at most `budget` rows, each the mean of neighbours.

    Where n is one more than a square, the first row (a class token) stays and the rest is pooled as a grid; where n is
    a square, as a grid; else as a line.
    """
    n, width = x.shape
    for first in (1, 0):
        side = math.isqrt(n - first)
        small = math.isqrt(max(budget - first, 0))
        if side * side == n - first and 0 < small < side:
            grid = x[first:].T.reshape(1, width, side, side)
            pooled = F.adaptive_avg_pool2d(grid, small).reshape(width, -1).T
            return torch.cat([x[:first], pooled])
    return F.adaptive_avg_pool1d(x.T[None], budget)[0].T


def _named(fields: Sequence[str], encoded: Encoded) -> list[tuple[str, Tensor, Tensor | None]]:
    """(name, value, mask) of the parts that the fields name and the pictures have, "pooled" and masks left out."""
    named: list[tuple[str, Tensor, Tensor | None]] = []
    if "tokens" in fields and encoded.tokens is not None:
        named.append(("tokens", encoded.tokens, encoded.token_mask))
    for name, state in encoded.states.items():
        if "states" in fields or f"states.{name}" in fields:
            mask = encoded.state_mask
            fits = mask is not None and state.dim() > 2 and state.shape[:2] == mask.shape
            named.append((f"states.{name}", state, mask if fits else None))
    return named


def _valid(value: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Each picture's rows without padding."""
    return list(value) if mask is None else [x[real] for x, real in zip(value, mask, strict=True)]


def _stack(rows: list[Tensor], part: Part) -> tuple[Tensor, Tensor | None]:
    """[B, n, ...] and the mask [B, n], None where nothing is padded and the system gives none itself."""
    if part.flat:
        return torch.cat(rows).view(-1, *part.rest), None
    lengths = torch.tensor([len(x) for x in rows])
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    value = padded.view(*padded.shape[:2], *part.rest)
    if not part.masked and bool((lengths == lengths[0]).all()):
        return value, None
    return value, torch.arange(padded.shape[1])[None] < lengths[:, None]
