"""What a tower gives, the vectors first-stage search uses and the states fusion reads; and what is made of both sides.

Shape legend: B rows, I pictures, T texts, N tokens or pairs, D shared embedding width, W a tower's own width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tuwen.data.batch import Batch
from tuwen.errors import UserError


@dataclass(frozen=True)
class Encoded:
    """One row a picture or text; no row depends on another.

    pooled: [B, D] unit norm, the first-stage vector; None where a system has none.
    tokens: [B, N, D] unit norm in the same space, for token-wise scores; token_mask: [B, N] bool.
    states: what fusion reads, by name ("last", "layer7", "map"), each [B, N, W] (or [B, ...]).
    state_mask: [B, N] bool, True on real tokens; None: all are real.
    """

    pooled: Tensor | None = None
    tokens: Tensor | None = None
    token_mask: Tensor | None = None
    states: Mapping[str, Tensor] = field(default_factory=dict)
    state_mask: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Encoded":
        """The function applied to every tensor held."""

        def apply(x: Tensor | None) -> Tensor | None:
            return None if x is None else function(x)

        states = {name: function(state) for name, state in self.states.items()}
        return Encoded(apply(self.pooled), apply(self.tokens), apply(self.token_mask), states, apply(self.state_mask))

    def __len__(self) -> int:
        first = next(x for x in (self.pooled, self.tokens, *self.states.values()) if x is not None)
        return first.shape[0]

    def select(self, rows: Tensor) -> "Encoded":
        """The given rows (int64 [R]), of which some may be there twice."""
        # x[rows] would sum gradients in no fixed order
        return self.map(lambda x: x.index_select(0, torch.as_tensor(rows, device=x.device)))

    def to(self, device) -> "Encoded":
        return self.map(lambda x: x.to(device))

    def detach(self) -> "Encoded":
        return self.map(lambda x: x.detach())

    @staticmethod
    def cat(parts: Sequence["Encoded"]) -> "Encoded":
        """Rows of all parts one after the other; shorter sequences are padded and masked."""

        def join(values):
            if values[0] is None:
                return None
            longest = [max(v.shape[d] for v in values) for d in range(1, values[0].dim())]
            return torch.cat([_pad(v, longest) for v in values])

        states = {name: join([p.states[name] for p in parts]) for name in parts[0].states}
        masks = [p.state_mask for p in parts]
        return Encoded(
            join([p.pooled for p in parts]),
            join([p.tokens for p in parts]),
            join([p.token_mask for p in parts]),
            states,
            join(masks),
        )


@dataclass(frozen=True)
class Scores:
    """First-stage scores: i2t [I, T] for ranking texts of a picture, t2i [I, T] for ranking pictures of a text."""

    i2t: Tensor
    t2i: Tensor


@dataclass(frozen=True)
class Fused:
    """Joint states of pictures and a text: pooled [B, W], states [B, L, W], mask [B, L].

    words, patches: of one stream over both, which of its positions are the text's and the pictures'; None: each side
    has a stream of its own.
    """

    pooled: Tensor
    states: Tensor
    mask: Tensor | None
    words: slice | None = None
    patches: slice | None = None


@dataclass(frozen=True)
class Located:
    """Where in N pictures what N texts say is; at least one of boxes and heat.

    boxes: [N, K, 4] x0, y0, x1, y1 as shares of width and height, best first; scores: [N, K] of the same.
    heat: [N, h, w] how much each place of a grid over the picture belongs to the text.
    """

    boxes: Tensor | None = None
    scores: Tensor | None = None
    heat: Tensor | None = None


def first_vectors(encoded: Mapping[str, Encoded], batch: Batch) -> dict[str, Tensor]:
    """{"images", "texts"}: detached [B, D] float32 vectors of the first stage, as `encode` gave them.

    Raises:
        UserError: the system gives none, or not one a row.
    """
    vectors = {}
    for name in ("images", "texts"):
        pooled = encoded[name].pooled if name in encoded else None
        if pooled is None or len(pooled) != len(batch):
            raise UserError(
                f"config field train.order: grouped chains one vector a picture and a text, and this system gives no "
                f"{name} such a vector in every step; leave train.order shuffled"
            )
        vectors[name] = pooled.detach().float()
    return vectors


def _pad(x: Tensor, longest: list[int]) -> Tensor:
    padding = [p for have, want in zip(reversed(x.shape[1:]), reversed(longest), strict=True) for p in (0, want - have)]
    return torch.nn.functional.pad(x, padding) if any(padding) else x
