"""A mixture of two normal distributions over losses: how likely each is of the higher one, the wrong pairs'.

What the field uses to tell wrong captions by their loss (DivideMix, Li et al. 2020; NCR, Huang et al. 2021):
expectation maximisation on losses brought to 0..1. Everything is float64.
"""

from dataclasses import dataclass

import numpy as np

LEAST_VARIANCE = 5e-4  # added to every variance, of losses in 0..1 (both codes' reg_covar)
ROUNDS = 500
STILL = 1e-9  # a smaller gain of the mean log-likelihood ends the rounds


@dataclass(frozen=True)
class TwoNormals:
    """weight, mean, variance: of the lower and the higher one, in the units of the values that were fitted."""

    weight: tuple[float, float]
    mean: tuple[float, float]
    variance: tuple[float, float]

    @property
    def separation(self) -> float:
        """Distance of the means in pooled standard deviations."""
        pooled = sum(w * v for w, v in zip(self.weight, self.variance, strict=True))
        return (self.mean[1] - self.mean[0]) / max(pooled, 1e-300) ** 0.5

    def higher(self, values: np.ndarray) -> np.ndarray:
        """[N] how likely each value is of the higher one; never falls as values rise.

        The posterior of two normals of unlike width turns back far outside, where the wider one has more of both tails;
        beyond the turn it stays as it is there.
        """
        (low, high), (low_variance, high_variance) = self.mean, self.variance
        x = np.asarray(values, dtype=np.float64)
        curve = 1 / low_variance - 1 / high_variance
        if curve:
            turn = (low / low_variance - high / high_variance) / curve
            x = np.maximum(x, turn) if curve > 0 else np.minimum(x, turn)
        log = [
            np.log(w) - 0.5 * np.log(v) - (x - m) ** 2 / (2 * v)
            for w, m, v in zip(self.weight, self.mean, self.variance, strict=True)
        ]
        return 1 / (1 + np.exp(np.clip(log[0] - log[1], -700, 700)))


def two_normals(values: np.ndarray) -> TwoNormals | None:
    """The mixture that fits the values [N]; None where they are all one, or fewer than four."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 4 or x.max() - x.min() <= 1e-12 * max(1.0, abs(x).max()):
        return None
    least, span = x.min(), x.max() - x.min()
    weight, mean, variance = _fitted((x - least) / span)
    order = np.argsort(mean, kind="stable")
    ordered = weight[order], mean[order] * span + least, variance[order] * span**2
    return TwoNormals(*(tuple(map(float, part)) for part in ordered))  # type: ignore[arg-type]


def _fitted(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means, variances [2] of values in 0..1, from the split with the least squares within."""
    share = (x > _split(x)).astype(np.float64)
    share = np.stack([1 - share, share])
    before = -np.inf
    for _ in range(ROUNDS):
        count = share.sum(1) + 10 * np.finfo(np.float64).eps
        weight, mean = count / len(x), share @ x / count
        variance = (share * (x - mean[:, None]) ** 2).sum(1) / count + LEAST_VARIANCE
        log = np.log(weight) - 0.5 * np.log(2 * np.pi * variance) - (x[:, None] - mean) ** 2 / (2 * variance)
        both = np.logaddexp(log[:, 0], log[:, 1])
        share = np.exp(log - both[:, None]).T
        if both.mean() - before < STILL:
            break
        before = both.mean()
    return weight, mean, variance


def _split(x: np.ndarray) -> float:
    """The value that parts the values in two with the least sum of squares around their means (two-means, exactly)."""
    ordered = np.sort(x)
    count = np.arange(1, len(x))
    total, squares = ordered.cumsum()[:-1], ordered.sum()
    between = total**2 / count + (squares - total) ** 2 / (len(x) - count)
    return float(ordered[int(np.argmax(between))])
