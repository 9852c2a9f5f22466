"""Two systems asked the same queries: what one has over the other, how sure that is, and Holm over a table of such.

What belongs to one picture (the picture as a query, its captions as queries) is drawn and swapped together: it is hard
or easy together, and drawn one by one would give an interval that is too narrow.

Shape legend: Q queries, C pictures, W directions, R resamples.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tuwen.data import draws

RESAMPLES = 2000  # of the interval
SWAPS = 9999  # of the p, where not all can be done
EXACT = 12  # pictures that differ up to which all 2^C swaps are done
HELD = 1 << 22  # numbers of resamples held at once
LEVEL, POWER = 0.05, 0.8
FEWEST_SEEDS = 3  # of an interval over seeds

Gains = Sequence[tuple[np.ndarray, np.ndarray]]  # by direction: (points gained [Q], the picture of each query [Q])


def paired_difference(gains: Gains) -> dict[str, Any]:
    """{"difference", "interval", "p", "detectable"} of the mean over directions of each direction's mean gain.

    interval: 95 %, percentiles of a bootstrap over pictures. p: of swapping the two systems picture by picture,
    two-sided. detectable: the difference that so many queries would show in 4 cases of 5.
    """
    sums, counts = by_picture(gains)
    means = _resampled(sums, counts)
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    normal = statistics.NormalDist()
    return {
        "difference": float((sums.sum(0) / counts.sum(0)).mean()),
        "interval": [float(low), float(high)],
        "p": swapped_p((sums / counts.sum(0)).mean(1)),
        "detectable": float((normal.inv_cdf(1 - LEVEL / 2) + normal.inv_cdf(POWER)) * means.std()),
    }


def by_picture(gains: Gains) -> tuple[np.ndarray, np.ndarray]:
    """(sum of the gains, number of queries), [C, W] float64 each, of every picture in every direction."""
    pictures = np.unique(np.concatenate([picture for _, picture in gains]))
    sums, counts = np.zeros((2, len(pictures), len(gains)))
    for way, (gain, picture) in enumerate(gains):
        place = np.searchsorted(pictures, picture)
        np.add.at(sums[:, way], place, gain)
        np.add.at(counts[:, way], place, 1)
    return sums, counts


def _resampled(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[R] the difference on pictures drawn anew with replacement."""
    pictures, means = len(sums), []
    for rows in torch.arange(RESAMPLES).split(max(1, HELD // pictures)):
        uniform = draws.uniform(rows, pictures, 0, "pictures anew").numpy()
        drawn = (uniform * pictures).astype(np.int64)
        means.append((sums[drawn].sum(1) / np.maximum(counts[drawn].sum(1), 1)).mean(1))
    return np.concatenate(means)


def swapped_p(gain: np.ndarray) -> float:
    """Two-sided p of a sum of gains [C] when each keeps or changes its sign with even chance; exact for few.

    For gains of -1, 0, 1 this is the sign test (McNemar's, exact).
    """
    gain = gain[gain != 0]
    if not len(gain):
        return 1.0
    least = abs(gain.sum()) * (1 - 1e-9)  # equal sums count as reached, however they were rounded
    if len(gain) <= EXACT:
        bits = np.arange(1 << len(gain))[:, None] >> np.arange(len(gain)) & 1
        return float((np.abs((1 - 2 * bits) @ gain) >= least).mean())
    reached = 0
    for rows in torch.arange(SWAPS).split(max(1, HELD // len(gain))):
        signs = 1.0 - 2.0 * (draws.uniform(rows, len(gain), 0, "swap").numpy() < 0.5)
        reached += int((np.abs(signs @ gain) >= least).sum())
    return (1 + reached) / (1 + SWAPS)


def holm(p: Sequence[float]) -> list[float]:
    """p of each comparison of a family, so raised that any false difference among them has the chance of `LEVEL`."""
    from statsmodels.stats.multitest import multipletests

    return multipletests(p, method="holm")[1].tolist() if len(p) else []


def seeds_interval(differences: Sequence[float]) -> dict[str, Any]:
    """{"interval", "p"} of a mean difference over K >= 3 paired seeds by t with K - 1 degrees; below, None and None.

    It is of seeds on these very queries; that other queries differ too is not in it.
    """
    from scipy.stats import t

    seeds = len(differences)
    if seeds < FEWEST_SEEDS:
        return {"interval": None, "p": None}
    mean, error = statistics.fmean(differences), statistics.stdev(differences) / seeds**0.5
    reach = float(t.ppf(1 - LEVEL / 2, seeds - 1)) * error
    p = float(2 * t.sf(abs(mean) / error, seeds - 1)) if error else float(mean == 0)
    return {"interval": [mean - reach, mean + reach], "p": p}
