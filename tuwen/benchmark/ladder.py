"""The same comparison at a ladder of budgets or of data: lines over its logarithm, and where two arms cross or would.

A figure that grows by a little less with every doubling is near a line over log2 of the budget; the line is fitted by
least squares over all seeds and rungs, its band is Student's. Two arms are compared on their paired differences, seed
by seed: they cross where that line is 0, within Fieller's interval (1954), which may be open. Beyond the rungs a
crossing is a guess and is said to be one.

Shape legend: R rungs, K seeds, n = R K points.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tuwen.benchmark.budget import Budget
from tuwen.benchmark.compare import compare
from tuwen.benchmark.paired import LEVEL
from tuwen.benchmark.written import Tabled, write_tables
from tuwen.errors import UserError
from tuwen.outputs import check_folder
from tuwen.training import checkpoint

RESULT = "ladder.json"


@dataclass(frozen=True)
class TrendLine:
    """y = base + slope x, x the log2 of a rung. middle, width: mean of x and sum of its squares about that; error: the
    deviation of points from the line; points: n."""

    base: float
    slope: float
    middle: float
    width: float
    error: float
    points: int

    @classmethod
    def fit(cls, x: Sequence[float], y: Sequence[float]) -> "TrendLine":
        """Through n points over at least two different x."""
        places, values = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        middle = places.mean()
        width = float(((places - middle) ** 2).sum())
        slope = float(((places - middle) * (values - values.mean())).sum() / width)
        base = float(values.mean() - slope * middle)
        left = values - base - slope * places
        error = float((left**2).sum() / (len(places) - 2)) ** 0.5 if len(places) > 2 else math.inf
        return cls(base, slope, float(middle), width, error, len(places))

    def at(self, x: float) -> tuple[float, float]:
        """(height, half the width of its 95 % band)."""
        spread = (1 / self.points + (x - self.middle) ** 2 / self.width) ** 0.5
        return self.base + self.slope * x, self._quantile() * self.error * spread

    def zero(self) -> dict[str, Any]:
        """Where the line is 0: {"at" (a rung; None: it is level), "interval" (rungs; None at an open end)}."""
        if self.slope == 0:
            return {"at": None, "interval": [None, None]}
        # (base + slope x)^2 = q (1 / n + (x - middle)^2 / width), a quadratic in x - middle
        q, height = (self._quantile() * self.error) ** 2, self.base + self.slope * self.middle
        a, b, c = self.slope**2 - q / self.width, 2 * height * self.slope, height**2 - q / self.points
        at = -self.base / self.slope
        if a <= 0 or not math.isfinite(q):
            return {"at": _rung(at), "interval": [None, None]}
        root = max(b * b - 4 * a * c, 0.0) ** 0.5
        ends = [self.middle + (-b + sign * root) / (2 * a) for sign in (-1, 1)]
        return {"at": _rung(at), "interval": [_rung(end) for end in ends]}

    def _quantile(self) -> float:
        from scipy.stats import t

        return float(t.ppf(1 - LEVEL / 2, self.points - 2)) if self.points > 2 else math.inf


def _rung(x: float) -> float | None:
    """2^x; None for what no number holds."""
    return 2.0**x if abs(x) < 300 else None


def ladder(
    names: Sequence[str],
    corpus: str,
    out: str | Path,
    rungs: Sequence[float],
    *,
    of: Literal["budget", "data"] = "budget",
    budget: Budget,
    **options: Any,
) -> dict[str, Any]:
    """Compares at every rung in OUT/xRUNG, and writes OUT/ladder.json with .md, .csv and .tex.

    rungs: factors of the budget, or of data: the greatest is the whole training split, the others as large a share of
    its rows. options: as `compare` takes them. Gives `{"rungs", "of", "figures": {arm: [[of each seed] of each rung]},
    "lines": {arm: {"base", "slope", "at": [[height, band] ...]}}, "crossings": [{"of", "over", "at", "interval",
    "within"}]}`.

    Raises:
        UserError: fewer than two rungs, or whatever `compare` raises.
    """
    rungs, out = sorted(set(rungs)), Path(out)
    if len(rungs) < 2:
        raise UserError("compare: a ladder has two rungs at least: --ladder 1 2 4 8")
    check_folder(out, RESULT, [f"x{rung:g}" for rung in rungs])
    comparisons = []
    for rung in rungs:
        share = rung / rungs[-1] if of == "data" else 1.0
        spent = budget if of == "data" else budget.times(rung)
        comparisons.append(compare(names, corpus, out / f"x{rung:g}", budget=spent, share=share, **options))
    figures = {
        name: [[seed["figure"] for seed in comparison["systems"][name]["seeds"]] for comparison in comparisons]
        for name in names
    }
    first = comparisons[0]
    about = {key: first[key] for key in ("task", "metric", "corpus", "split", "size")}
    result = {"of": of, "budget": str(budget), "rungs": rungs, **about, **fitted_ladder(rungs, figures)}
    checkpoint.write(out / RESULT, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    write_tables(out, Path(RESULT).stem, ladder_tables(result))
    return result


def fitted_ladder(rungs: Sequence[float], figures: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """The lines of all arms, and where two cross. figures: of each arm, by rung [R] and seed [K]."""
    x = [math.log2(rung) for rung in rungs]

    def line(values: np.ndarray) -> TrendLine:
        return TrendLine.fit(np.repeat(x, values.shape[1]).tolist(), values.ravel().tolist())

    tables = {name: np.asarray(values, dtype=float) for name, values in figures.items()}
    lines = {}
    for name, values in tables.items():
        own = line(values)
        lines[name] = {"base": own.base, "slope": own.slope, "at": [_finite(own.at(place)) for place in x]}
    crossings = []
    for earlier, later in combinations(tables, 2):
        zero = line(tables[later] - tables[earlier]).zero()
        within = zero["at"] is not None and rungs[0] <= zero["at"] <= rungs[-1]
        crossings.append({"of": later, "over": earlier, **zero, "within": within})
    return {
        "figures": {name: values.tolist() for name, values in tables.items()},
        "lines": lines,
        "crossings": crossings,
    }


def _finite(pair: tuple[float, float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in pair]


def ladder_tables(result: Mapping[str, Any]) -> list[Tabled]:
    """The figures by rung with the fitted line and its band, and the crossings."""
    heads = ("system", *(f"x{rung:g}" for rung in result["rungs"]), "a doubling")
    rows = []
    for name, line in result["lines"].items():
        means = [f"{sum(seeds) / len(seeds):.1f}" for seeds in result["figures"][name]]
        bands = ["" if band is None else f" (line {height:.1f} ±{band:.1f})" for height, band in line["at"]]
        cells = [mean + band for mean, band in zip(means, bands, strict=True)]
        rows.append([name, *cells, f"{line['slope']:+.1f}"])
    about = f"{result['task']}, {result['metric']}, by {result['of']} in units of {result['budget']}"
    crossings = [[crossing["of"], crossing["over"], crossing_line(crossing)] for crossing in result["crossings"]]
    return [Tabled(about, heads, rows), Tabled("where they cross", ("of", "over", "crossing"), crossings)]


def crossing_line(crossing: Mapping[str, Any]) -> str:
    """Where two arms cross, or would, for people."""
    if crossing["at"] is None:
        return "their lines run level"
    ends = ["open" if end is None else f"{end:.2g}" for end in crossing["interval"]]
    where = "cross at" if crossing["within"] else "would cross, beyond the ladder, at"
    return f"{where} x{crossing['at']:.2g} (95 %: {ends[0]} … {ends[1]})"
