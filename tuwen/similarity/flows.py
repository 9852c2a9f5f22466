"""A score of a picture and a text by their tokens is a sum of flow times similarity; a method is a choice of flow.

With unit tokens v_n of a picture, w_l of a text, and c_nl = v_n . w_l:  S = sum_nl F_nl c_nl  (TokenFlow, Zou 2022).
A flow comes in two directions: F of S_i2t, which ranks the texts of a picture, and F of S_t2i, which ranks pictures.

| method                        | class       | F of S_i2t                                         |
|-------------------------------|-------------|----------------------------------------------------|
| FILIP, Wukong                 | MaxFlow     | 1/N where l is the best of n, else 0               |
| ColBERT's MaxSim              | MaxFlow sum | 1 where l is the best of n, else 0                 |
| TokenFlow                     | SoftFlow    | d_n / N softmax_l(sharpness e_l c_nl)              |
| word mover, earth mover       | Transport   | the plan that carries masses d to masses e         |

Shape legend: ... any leading axes that broadcast, N image tokens, L text tokens. Masks are True on real tokens.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class TokenPairs(NamedTuple):
    """Pictures and texts laid against each other: what a flow is computed from.

    c: [..., N, L] similarities. image_real [..., N], text_real [..., L]: bool, or None where all are real.
    image_mass d [..., N], text_mass e [..., L]: as `Flow.masses` says, or None.
    """

    c: Tensor
    image_real: Tensor | None
    text_real: Tensor | None
    image_mass: Tensor | None = None
    text_mass: Tensor | None = None

    def turned(self) -> "TokenPairs":
        """The same seen from the other side."""
        return TokenPairs(self.c.mT, self.text_real, self.image_real, self.text_mass, self.image_mass)


@dataclass(frozen=True)
class MaxFlow:
    """All of a token's flow goes to its best partner; equal bests share it.

    reduce: "mean" over a side's real tokens (FILIP, Yao et al. 2022, section 3.1.1; Wukong) or "sum" (ColBERT).
    padding: "discard" leaves padding out of everything. "zeros" is what the official Wukong code does: padded text
        tokens are zero vectors and can be the best, so S_i2t is max(0, true best) of a text that is padded. Pad all
        texts to one length, or a score depends on the longest text beside it.
    """

    reduce: Literal["mean", "sum"] = "mean"
    padding: Literal["discard", "zeros"] = "discard"

    masses = ""  # which masses a flow needs: "", "cross" or "own"

    def scores(self, pairs: TokenPairs) -> tuple[Tensor, Tensor]:
        """(S_i2t, S_t2i), each [...]."""
        return self._one_way(self._to_text(pairs)), self._one_way(pairs.turned())

    def flows(self, pairs: TokenPairs) -> tuple[Tensor, Tensor]:
        """(F of S_i2t, F of S_t2i), each [..., N, L]."""
        return self._flow(self._to_text(pairs)), self._flow(pairs.turned()).mT

    def _to_text(self, pairs: TokenPairs) -> TokenPairs:
        return pairs if self.padding == "discard" else pairs._replace(text_real=None)

    def _one_way(self, pairs: TokenPairs) -> Tensor:
        best = _hidden(pairs.c, pairs.text_real).amax(-1)
        total = _total(_shown(best, pairs.text_real), pairs.image_real)
        return total if self.reduce == "sum" else total / _count(pairs.c, pairs.image_real)

    def _flow(self, pairs: TokenPairs) -> Tensor:
        c = _hidden(pairs.c, pairs.text_real)
        best = (c == c.amax(-1, keepdim=True)) & (c > float("-inf"))
        shared = best / best.sum(-1, keepdim=True).clamp(min=1)
        shared = shared.to(pairs.c.dtype)
        if pairs.image_real is not None:
            shared = shared * pairs.image_real[..., None]
        return shared if self.reduce == "sum" else shared / _count(pairs.c, pairs.image_real)[..., None, None]


@dataclass(frozen=True)
class SoftFlow:
    """TokenFlow: a token ships its mass, spread over the other side's tokens by a softmax (card section 4.3).

    F_nl of S_i2t = d_n / N softmax_l(sharpness e_l c_nl), so rows sum to d_n / N; and the other way round for S_t2i.

    mass: "cross" takes d_n = v_n . (the text's whole vector) and e_l = w_l . (the picture's); "own" takes each side's
        own whole vector (the control of card section 9); "uniform" takes 1.
    signed: keep negative masses, instead of cutting them off at 0.
    normalize: divide by the sum of the masses instead of N, so that the score is a mean of similarities.
    detach: no gradient through the masses.
    """

    sharpness: float = 20.0
    mass: Literal["cross", "own", "uniform"] = "cross"
    signed: bool = False
    normalize: bool = False
    detach: bool = False

    @property
    def masses(self) -> str:
        return "" if self.mass == "uniform" else self.mass

    def scores(self, pairs: TokenPairs) -> tuple[Tensor, Tensor]:
        """(S_i2t, S_t2i), each [...]."""
        pairs = self._weighed(pairs)
        return self._one_way(pairs), self._one_way(pairs.turned())

    def flows(self, pairs: TokenPairs) -> tuple[Tensor, Tensor]:
        """(F of S_i2t, F of S_t2i), each [..., N, L]."""
        pairs = self._weighed(pairs)
        return self._flow(pairs), self._flow(pairs.turned()).mT

    def _one_way(self, pairs: TokenPairs) -> Tensor:
        reached = _shown((self._spread(pairs) * pairs.c).sum(-1), pairs.text_real)  # [..., N]
        return _total(self._shipped(pairs) * reached, None)

    def _flow(self, pairs: TokenPairs) -> Tensor:
        flow = self._shipped(pairs)[..., None] * self._spread(pairs)
        return flow if pairs.text_real is None else flow * pairs.text_real[..., None, :]

    def _spread(self, pairs: TokenPairs) -> Tensor:
        """[..., N, L] softmax over the other side's real tokens; a side that has none is left open."""
        assert pairs.text_mass is not None
        logits = pairs.c * (self.sharpness * pairs.text_mass)[..., None, :]
        if pairs.text_real is not None:
            shut = ~pairs.text_real & pairs.text_real.any(-1, keepdim=True)
            logits.masked_fill_(shut[..., None, :], float("-inf"))
        return logits.softmax(-1)

    def _shipped(self, pairs: TokenPairs) -> Tensor:
        """[..., N] what each token ships: d_n / N, or d_n / sum d."""
        mass = pairs.image_mass
        assert mass is not None
        if not self.normalize:
            return mass / _count(pairs.c, pairs.image_real)[..., None]
        return mass / mass.sum(-1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)

    def _weighed(self, pairs: TokenPairs) -> TokenPairs:
        """Masses as the options say, zero on padding."""
        unit = pairs.c.new_ones(())
        sides = []
        for mass, real, tokens in (
            (pairs.image_mass, pairs.image_real, pairs.c.shape[-2]),
            (pairs.text_mass, pairs.text_real, pairs.c.shape[-1]),
        ):
            mass = unit.expand(tokens) if mass is None else mass
            mass = mass.detach() if self.detach else mass
            mass = mass if self.signed else mass.relu()
            sides.append(mass if real is None else mass * real)
        return pairs._replace(image_mass=sides[0], text_mass=sides[1])


@dataclass(frozen=True)
class Transport:
    """Optimal transport with both marginals, by Sinkhorn's iterations in the log domain (Cuturi 2013).

    F = argmax <F, c> + regulariser entropy(F), rows summing to d / sum d, columns to e / sum e, with the masses of
    `SoftFlow` cut off at 0. One plan serves both directions. A side without mass has no plan: its score is 0.
    The last half step is over the text's tokens, so that the columns hold exactly and the rows to convergence.
    """

    regulariser: float = 0.05
    iterations: int = 50

    masses = "cross"

    def scores(self, pairs: TokenPairs) -> tuple[Tensor, Tensor]:
        plan, _ = self.flows(pairs)
        score = (plan * pairs.c).sum((-2, -1))
        return score, score

    def flows(self, pairs: TokenPairs) -> tuple[Tensor, Tensor]:
        assert pairs.image_mass is not None
        assert pairs.text_mass is not None
        rows, some = _log_shares(pairs.image_mass, pairs.image_real)
        columns, others = _log_shares(pairs.text_mass, pairs.text_real)
        kernel = pairs.c / self.regulariser
        f = torch.zeros_like(rows + kernel.sum(-1) * 0)
        for _ in range(self.iterations):
            g = columns - torch.logsumexp(kernel + f[..., None], -2)
            f = rows - torch.logsumexp(kernel + g[..., None, :], -1)
        g = columns - torch.logsumexp(kernel + f[..., None], -2)
        plan = (kernel + f[..., None] + g[..., None, :]).exp() * (some[..., None] & others[..., None, :])
        return plan, plan


Flow = MaxFlow | SoftFlow | Transport


# ---- pieces


def _log_shares(mass: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """Log of the masses' shares [..., N], very low where there is none; and where there is some [..., N]."""
    mass = mass.relu() if real is None else mass.relu() * real
    tiny = torch.finfo(mass.dtype).tiny ** 0.5  # not log(0): an infinity less an infinity would be no number
    shares = mass / mass.sum(-1, keepdim=True).clamp(min=tiny)
    return torch.log(shares.clamp(min=tiny)), shares > tiny


def _hidden(c: Tensor, real: Tensor | None) -> Tensor:
    """[..., N, L] with padding of the last axis at minus infinity."""
    return c if real is None else c.masked_fill(~real[..., None, :], float("-inf"))


def _shown(best: Tensor, real: Tensor | None) -> Tensor:
    """[..., N] bests, 0 where the other side has no token at all."""
    return best if real is None else best.masked_fill(~real.any(-1, keepdim=True), 0.0)


def _total(x: Tensor, real: Tensor | None) -> Tensor:
    """[...] sum over the last axis's real entries, in float64 so that padding and order change no bit of a float32."""
    return (x if real is None else x * real).sum(-1, dtype=torch.float64).to(x.dtype)


def _count(c: Tensor, real: Tensor | None) -> Tensor:
    """[...] real tokens of the side whose axis is the last but one; 1 where there is none."""
    if real is None:
        return c.new_tensor(c.shape[-2])
    return real.sum(-1).clamp(min=1).to(c.dtype)
