"""Do the intervals of a comparison hold what they say? A simulation whose truth is known. Writes results/coverage.json.

    python benchmarks/coverage.py              # about a minute on one core
    python benchmarks/coverage.py --draws 200  # only to see that it runs
    python benchmarks/coverage.py --only 3:seeds 3:rest  # coverage and power of some cells anew, others as they are

Tables of gains of 3, 5 and 10 seeds over pictures are drawn with known variances: of seeds, of pictures, and of what is
left. Counted: how often the nominal 95 % interval of `tuwen.benchmark.crossed` holds the truth, beside the interval of
seeds alone (t with K - 1 degrees); how often any of six true nulls is called a difference after Holm; and how often an
effect is shown, beside the power that was predicted for it.
"""

import argparse
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from tuwen.benchmark.crossed import Crossed
from tuwen.benchmark.paired import LEVEL, seeds_interval

RESULT = Path(__file__).parent / "results" / "coverage.json"
SEEDS, PICTURES, REST, FAMILY, FAMILIES = (3, 5, 10), 200, 8.0, 6, 100_000
CASES = {"seeds": (1.0, 0.0), "pictures": (0.0, 6.0), "both": (0.5, 6.0), "both, more": (1.0, 10.0), "rest": (0.0, 0.0)}


def drawn(generator: np.random.Generator, seeds: int, of_seed: float, of_picture: float, mean: float) -> np.ndarray:
    """[K, C] gains whose truth is `mean`."""
    rows, columns = generator.normal(0, of_seed, (seeds, 1)), generator.normal(0, of_picture, (1, PICTURES))
    return mean + rows + columns + generator.normal(0, REST, (seeds, PICTURES))


def truth(seeds: int, of_seed: float, of_picture: float) -> Crossed:
    """The mean squares that such tables have on average."""
    squares = REST**2 + PICTURES * of_seed**2, REST**2 + seeds * of_picture**2, REST**2
    return Crossed(0.0, *squares, seeds, PICTURES)


def coverage(generator, seeds: int, case: tuple[float, float], draws: int) -> dict[str, float]:
    """Percent of intervals that hold the truth."""
    held = {"seeds and pictures": 0, "seeds alone": 0}
    for _ in range(draws):
        gains = drawn(generator, seeds, *case, mean=1.0)
        table, alone = Crossed.of(gains), seeds_interval(gains.mean(1).tolist())["interval"]
        intervals = (table.mean - table.reach(), table.mean + table.reach()), alone
        for name, (low, high) in zip(held, intervals, strict=True):
            held[name] += low <= 1.0 <= high
    return {name: round(100 * count / draws, 2) for name, count in held.items()}


def false_differences(generator, seeds: int, case: tuple[float, float], draws: int) -> float:
    """Percent of families of nulls in which any is called a difference after Holm: the least p times the family.

    Drawn are not tables but what they come to, by the laws of balanced normal tables: the mean, and the mean squares,
    chi-squares of K - 1, C - 1 and (K - 1)(C - 1) degrees, all independent.
    """
    own, family = truth(seeds, *case), (draws, FAMILY)
    degrees = seeds - 1, PICTURES - 1, (seeds - 1) * (PICTURES - 1)
    expected = own.of_seeds, own.of_pictures, own.rest
    squares = [s * generator.chisquare(n, family) / n for s, n in zip(expected, degrees, strict=True)]
    error = ((own.of_seeds + own.of_pictures - own.rest) / (seeds * PICTURES)) ** 0.5
    tables = Crossed(generator.normal(0, error, family), *squares, seeds, PICTURES)
    called = abs(tables.mean) > tables._reach(LEVEL / FAMILY, tables.of_seeds)
    return round(100 * float(called.any(1).mean()), 2)


def powers(generator, seeds: int, case: tuple[float, float], draws: int) -> dict[str, float]:
    """Percent of tables that show the effect which 80 % were predicted to show."""
    effect = truth(seeds, *case).detectable()
    tables = [Crossed.of(drawn(generator, seeds, *case, mean=effect)) for _ in range(draws)]
    shown = [abs(table.mean) > table.reach(LEVEL) for table in tables]
    return {"effect": round(effect, 3), "predicted": 80.0, "shown": round(100 * float(np.mean(shown)), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--only", metavar="SEEDS:CASE", nargs="*", help="cells; the others stay as they are")
    parser.add_argument("--out", type=Path, default=RESULT, help="file to write")
    args = parser.parse_args()
    began, generator, cells = time.perf_counter(), np.random.default_rng(20), []
    before = json.loads(args.out.read_text())["cells"] if args.only is not None else []
    others = {(cell["seeds"], cell["case"]): cell for cell in before}
    for seeds in SEEDS:
        for name, case in CASES.items():
            false = false_differences(generator, seeds, case, FAMILIES)
            if args.only is not None and f"{seeds}:{name}" not in args.only:
                cells.append({**others[seeds, name], "false_after_holm": false})
                continue
            cell = {"seeds": seeds, "case": name, "deviation_of_seeds": case[0], "deviation_of_pictures": case[1]}
            cell["draws"] = args.draws
            cell["coverage"] = coverage(generator, seeds, case, args.draws)
            cell["false_after_holm"] = false
            cell["power"] = powers(generator, seeds, case, max(1, args.draws // 2))
            cells.append(cell)
            print(json.dumps(cell), file=sys.stderr, flush=True)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "pictures": PICTURES,
        "deviation_of_the_rest": REST,
        "family": FAMILY,
        "families": FAMILIES,
        "cells": cells,
        "seconds": round(time.perf_counter() - began),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "scipy": version("scipy"), "tuwen": version("tuwen")},
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
