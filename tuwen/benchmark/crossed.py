"""A difference between two arms when seeds and queries are both drawn: its interval, its power, the seeds it needs.

Every seed of both arms answers the same queries, so the gains fill a table of seeds by pictures, seeds and pictures
crossed, both random. With mean squares S of seeds, Q of pictures and R of what is left, the variance of the mean is
(S + Q - R) / (K C), with degrees of freedom by Satterthwaite (1946), as in Burdick and Graybill, Confidence Intervals
on Variance Components (1992), section 6. An interval of seeds alone is too narrow where queries matter, and one of
queries alone where seeds do: `benchmarks/coverage.py` shows by how much.

Shape legend: K seeds, C pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuwen.benchmark.paired import LEVEL, POWER, by_picture
from tuwen.tasks.marks import Marks

MOST_SEEDS = 1000  # sought for a wanted effect
SHARES = 500  # of a distribution that is summed over


@dataclass(frozen=True)
class Crossed:
    """What a table of gains says: the mean, the mean squares of seeds, of pictures and of the rest, and its size."""

    mean: float
    of_seeds: float
    of_pictures: float
    rest: float
    seeds: int
    pictures: int

    @classmethod
    def of(cls, gains: np.ndarray) -> "Crossed":
        """gains: [K, C], at least two of each; the figure is their mean."""
        seeds, pictures = gains.shape
        mean, rows, columns = gains.mean(), gains.mean(1), gains.mean(0)
        rest = gains - rows[:, None] - columns[None] + mean
        return cls(
            float(mean),
            float(pictures * ((rows - mean) ** 2).sum() / (seeds - 1)),
            float(seeds * ((columns - mean) ** 2).sum() / (pictures - 1)),
            float((rest**2).sum() / ((seeds - 1) * (pictures - 1))),
            seeds,
            pictures,
        )

    def error(self) -> tuple[float, float]:
        """(standard error of the mean, its degrees of freedom)."""
        total = max(self.of_seeds + self.of_pictures - self.rest, self.rest)
        if total <= 0:
            return 0.0, float(self.seeds - 1)
        places = (self.seeds - 1, self.pictures - 1, (self.seeds - 1) * (self.pictures - 1))
        spread = sum(
            square**2 / place
            for square, place in zip((self.of_seeds, self.of_pictures, self.rest), places, strict=True)
        )
        return (total / (self.seeds * self.pictures)) ** 0.5, total**2 / spread

    def interval(self) -> dict[str, Any]:
        """{"interval" (95 %), "p" (two-sided, of no difference)}."""
        from scipy.stats import t

        error, degrees = self.error()
        reach = float(t.ppf(1 - LEVEL / 2, degrees)) * error
        p = float(2 * t.sf(abs(self.mean) / error, degrees)) if error else float(self.mean == 0)
        return {"interval": [self.mean - reach, self.mean + reach], "p": p}

    def planned(self, seeds: int, pictures: int | None = None) -> "Crossed":
        """What another number of seeds or pictures would see, were the variances those seen here."""
        pictures = pictures or self.pictures
        of_seed = max(self.of_seeds - self.rest, 0) / self.pictures
        of_picture = max(self.of_pictures - self.rest, 0) / self.seeds
        return Crossed(
            self.mean,
            self.rest + pictures * of_seed,
            self.rest + seeds * of_picture,
            self.rest,
            seeds,
            pictures,
        )

    def power(self, effect: float) -> float:
        """The chance that an effect of this size is told from none, two-sided at `LEVEL`."""
        from scipy.stats import chi2, norm, t

        error, degrees = self.error()
        if error == 0:
            return float(effect != 0)
        # the noncentral t, as a mean over equal shares of the chi-square beneath it: scipy's is not a number for some
        spread = np.sqrt(chi2.ppf((np.arange(SHARES) + 0.5) / SHARES, degrees) / degrees)
        bound, shift = t.ppf(1 - LEVEL / 2, degrees) * spread, abs(effect) / error
        return float((norm.cdf(shift - bound) + norm.cdf(-shift - bound)).mean())

    def detectable(self) -> float:
        """The effect that such a table shows in 4 cases of 5."""
        from scipy.optimize import brentq

        error, _ = self.error()
        if error == 0:
            return 0.0
        return float(brentq(lambda effect: self.power(effect) - POWER, 0.0, 100 * error))

    def seeds_for(self, effect: float) -> int | None:
        """Seeds that show the effect in 4 cases of 5 on as many pictures; None: no number of seeds does, only more
        pictures would."""
        low, high = 2, MOST_SEEDS
        if self.planned(high).power(effect) < POWER:
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.planned(middle).power(effect) >= POWER else (middle + 1, high)
        return low


def table_of_gains(of: Sequence[Marks], over: Sequence[Marks]) -> np.ndarray:
    """[K, C] what each picture adds to the gain of one arm over the other, seed by seed; a row's mean is its seed's.

    of, over: the marks of each seed, the seeds in one order.

    Raises:
        ValueError: marks of other rows.
    """
    rows = []
    for upper, lower in zip(of, over, strict=True):
        gains = paired_marks(upper, lower)
        sums, counts = by_picture(gains)
        rows.append(len(sums) * (sums / counts.sum(0)).mean(1))
    return np.stack(rows)


def paired_marks(upper: Marks, lower: Marks) -> list[tuple[np.ndarray, np.ndarray]]:
    """By part, (gain [R], the picture of each row [R]).

    Raises:
        ValueError: marks of other rows.
    """
    if upper.parts.keys() != lower.parts.keys():
        raise ValueError(f"parts {', '.join(upper.parts)} and {', '.join(lower.parts)}")
    gains = []
    for name, part in upper.parts.items():
        other = lower.parts[name]
        if not np.array_equal(part.pictures, other.pictures):
            raise ValueError(f"{name}: other rows")
        gains.append((part.values - other.values, part.pictures))
    return gains
