"""What a comparison can show, in points, said before its runs begin.

Where a comparison lies in the folder already, its seeds and pictures say how much gains vary. Before the first, how a
gain deviates between seeds is assumed (`BETWEEN_SEEDS`, and the line says so), and between pictures it varies at most
by `BOUND`: figures of a picture lie in 0..100, so that each arm's vary by 50^2 at most, and the gain of one over the
other by twice that, unless one arm is good where the other is bad. Arms mostly agree, so far less is usual.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import NormalDist

import numpy as np

from tuwen import tasks
from tuwen.benchmark.crossed import Crossed, table_of_gains
from tuwen.benchmark.measure import MeasureConfig, read_marks
from tuwen.benchmark.paired import FEWEST_SEEDS, LEVEL, POWER
from tuwen.benchmark.uncertainty import RESULT
from tuwen.data.open import open_corpus
from tuwen.run import read_json

BETWEEN_SEEDS = 2.0  # points: assumed deviation of a gain between seeds
BOUND = 2 * 50.0**2  # points^2: of a picture's gain


def foretold(corpus: str, out: Path, measure: MeasureConfig, seeds: int, effect: float | None = None) -> list[str]:
    """Lines on the difference that so many seeds show, and on the seeds that a wanted one needs.

    Raises:
        UserError: no such corpus or split.
    """
    pictures = pictures_asked(measure.corpus or corpus, measure)
    tables = measured_before(out, measure.task)
    if tables:
        lines = [f"{name}: {line_of(table.planned(seeds, pictures), effect)}" for name, table in tables.items()]
        return [f"by the comparison that lies in {out}:", *lines]
    if not in_percent(measure):
        return ["what so many seeds show is not known before the first comparison: its figure is no percentage of rows"]
    line = line_of(assumed(seeds, pictures), effect)
    most = BOUND**0.5
    known = (
        f"assumed: a gain deviates by {BETWEEN_SEEDS:g} points between seeds, by {most:.0f} at most between pictures"
    )
    return [f"{line}; {known}"]


def line_of(table: Crossed, effect: float | None) -> str:
    """What a table shows, as it is expected to be, and the seeds that a wanted effect needs."""
    if table.seeds < FEWEST_SEEDS:
        shown, seeds = of_pictures(table), table.seeds
        line = (
            f"{table.pictures} pictures show {shown:.1f} points in 4 cases of 5 on these very seeds ({seeds}): too few"
        )
    else:
        seeds, shown = table.seeds, table.detectable()
        line = f"{seeds} seeds on {table.pictures} pictures show {shown:.1f} points in 4 cases of 5"
    if effect is None:
        return line
    needed = table.seeds_for(effect)
    more = f"{effect:g} points need more pictures" if needed is None else f"{effect:g} points need {needed} seeds"
    return f"{line}; {more}"


def assumed(seeds: int, pictures: int) -> Crossed:
    """The mean squares that are expected where nothing was measured."""
    return Crossed(0.0, pictures * BETWEEN_SEEDS**2, seeds * BOUND, 0.0, seeds, pictures)


def of_pictures(table: Crossed) -> float:
    """The difference that is shown in 4 cases of 5 where pictures alone are drawn."""
    normal = NormalDist()
    error = (max(table.of_pictures, table.rest) / (table.seeds * table.pictures)) ** 0.5
    return (normal.inv_cdf(1 - LEVEL / 2) + normal.inv_cdf(POWER)) * error


def measured_before(out: Path, task: str) -> dict[str, Crossed]:
    """By "A over B", how gains varied in the comparison of a folder; of two seeds and two pictures at least."""
    if not (out / RESULT).exists():
        return {}
    comparison = read_json(out / RESULT)
    if comparison.get("task", "retrieval") != task:
        return {}
    systems: Mapping[str, Mapping] = comparison["systems"]
    marks = {name: [read_marks(out / seed["run"], task) for seed in own["seeds"]] for name, own in systems.items()}
    tables = {}
    for earlier, later in combinations(marks, 2):
        if (gains := _gains(marks[later], marks[earlier])) is not None:
            tables[f"{later} over {earlier}"] = Crossed.of(gains)
    return tables


def _gains(of: Sequence, over: Sequence) -> np.ndarray | None:
    if len(of) != len(over) or len(of) < 2 or None in (*of, *over):
        return None
    gains = table_of_gains(of, over)
    return gains if gains.shape[1] > 1 else None


def pictures_asked(location: str, measure: MeasureConfig) -> int:
    """Different pictures among the rows that are measured."""
    task = tasks.find_task(measure.task)()
    place = tasks.rows_at(measure.task, location)
    rows = task.rows(open_corpus(place, measure.split, "skip"), measure.split)
    return len(np.unique(rows.image_ids()[: measure.limit]))


def in_percent(measure: MeasureConfig) -> bool:
    """Whether the figure is a percentage of rows, of which the bound is known."""
    task = tasks.find_task(measure.task)
    return task.marked and measure.metric in ("", task.figure) and "AUC" not in task.metric
