"""A difference between two arms when seeds and queries are both drawn: its interval, its power, the seeds it needs.

Every seed of both arms answers the same queries, so the gains fill a table of seeds by pictures, seeds and pictures
crossed, both random. With mean squares S of seeds, Q of pictures and R of what is left, the variance of the mean is
(S + Q - R) / (K C). The part that seeds have is known by K - 1 degrees, the rest by hundreds, so the quantile is that
of Student for the one and of the normal for the other, weighted by their variances (Cochran 1964, of the
Behrens-Fisher problem). Satterthwaite's degrees, tried first, hold the 95 % interval too, but far out, where Holm
looks, three seeds that happen to agree gave twice as many false differences as allowed. Nor is it ever narrower than of
seeds alone: far out a variance of pictures that is there by chance would shorten it, as it lightens the weight of
Student's quantile (5.4 % false differences after Holm at three seeds in 100,000 draws; so 4.8). An interval of seeds
alone is too narrow where pictures matter: `benchmarks/coverage.py` shows by how much.

Shape legend: K seeds, C pictures.
"""

import math
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

    def reach(self, level: float = LEVEL) -> float:
        """Half the width of the interval of 1 - level."""
        return float(self._reach(level, np.array([self.of_seeds]))[0])

    def interval(self) -> dict[str, Any]:
        """{"interval" (95 %), "p" (two-sided, of no difference)}."""
        from scipy.optimize import brentq

        reach, least = self.reach(), math.log(1e-12)
        if self.reach(1e-12) <= abs(self.mean):
            p = 1e-12 if self.mean else 1.0
        else:  # the level whose interval ends at 0
            p = math.exp(brentq(lambda level: self.reach(math.exp(level)) - abs(self.mean), least, 0.0, xtol=1e-6))
        return {"interval": [self.mean - reach, self.mean + reach], "p": p}

    def _reach(self, level: float, of_seeds: np.ndarray) -> np.ndarray:
        """`reach` for each of several mean squares of seeds; the other squares may be as many."""
        from scipy.stats import norm, t

        of_pictures = np.maximum(self.of_pictures - self.rest, 0.0)
        total = of_seeds + of_pictures
        quantiles = float(t.ppf(1 - level / 2, self.seeds - 1)), float(norm.ppf(1 - level / 2))
        weighted = of_seeds * quantiles[0] + of_pictures * quantiles[1]
        root, size = np.sqrt(np.where(total > 0, total, 1.0)), (self.seeds * self.pictures) ** 0.5
        return np.where(total > 0, np.maximum(weighted / root, quantiles[0] * np.sqrt(of_seeds)) / size, 0.0)

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
        """The chance that an effect of this size is told from none, two-sided at `LEVEL`, were the mean squares here
        those expected: over the squares of seeds that may come by chance."""
        from scipy.stats import chi2, norm

        error = self._error()
        if error == 0:
            return float(effect != 0)
        places = (np.arange(SHARES) + 0.5) / SHARES
        reach = self._reach(LEVEL, self.of_seeds * chi2.ppf(places, self.seeds - 1) / (self.seeds - 1))
        return float((norm.cdf((abs(effect) - reach) / error) + norm.cdf((-abs(effect) - reach) / error)).mean())

    def detectable(self) -> float:
        """The effect that such a table shows in 4 cases of 5."""
        from scipy.optimize import brentq

        error = self._error()
        if error == 0:
            return 0.0
        return float(brentq(lambda effect: self.power(effect) - POWER, 0.0, 1000 * error))

    def _error(self) -> float:
        """Standard error of the mean."""
        total = self.of_seeds + max(self.of_pictures - self.rest, 0.0)
        return (total / (self.seeds * self.pictures)) ** 0.5

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
