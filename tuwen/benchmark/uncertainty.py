"""What a comparison's differences are worth: their intervals over seeds and pictures, where rows left marks.

From three seeds on, both are drawn (`tuwen.benchmark.crossed`); below, the interval is of pictures alone and says so:
another seed might differ by more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tuwen.benchmark.crossed import Crossed, paired_marks, table_of_gains
from tuwen.benchmark.paired import FEWEST_SEEDS, paired_difference
from tuwen.benchmark.statistics import with_holm
from tuwen.tasks.marks import Marks

RESULT = "comparison.json"
BOTH, PICTURES, SEEDS = "seeds and pictures", "pictures alone", "seeds alone"


def with_pictures(
    rows: list[dict[str, Any]], marks_of: Mapping[str, Sequence[Marks | None]], effect: float | None = None
) -> list[dict[str, Any]]:
    """The rows of `differences` or `figure_differences` with "interval", "p" and "p_holm" of seeds and pictures both.

    marks_of: each arm's, seed by seed. A row gets "covers" (what its interval is of), "detectable" (what such a table
    shows in 4 cases of 5) and, where an effect is wanted, "seeds_needed". What has no marks (one stage over another of
    one arm) keeps its interval of seeds.
    """
    for row in rows:
        sides = [row[side].rpartition(" ")[0] if "language" in row else row[side] for side in ("of", "over")]
        row["covers"] = SEEDS if row["interval"] else None
        of, over = ([_of_language(part, row.get("language")) for part in marks_of.get(side, ())] for side in sides)
        upper, lower = ([part for part in marks if part is not None] for marks in (of, over))
        if sides[0] != sides[1] and upper and len(upper) == len(lower):
            row |= judged_gains(upper, lower, effect)
    return with_holm(rows)


def judged_gains(of: Sequence[Marks], over: Sequence[Marks], effect: float | None = None) -> dict[str, Any]:
    """{"interval", "p", "covers", "detectable", "seeds_needed"} of one arm's gain over the other, seed by seed."""
    if len(of) < FEWEST_SEEDS:
        pairs = [paired_marks(upper, lower) for upper, lower in zip(of, over, strict=True)]
        mean = [(np.mean([gains[k][0] for gains in pairs], axis=0), pairs[0][k][1]) for k in range(len(pairs[0]))]
        judged = paired_difference(mean)
        return {key: judged[key] for key in ("interval", "p", "detectable")} | {"covers": PICTURES}
    gains = table_of_gains(of, over)
    if gains.shape[1] < 2:
        return {}  # a single picture tells nothing of others: what the row has of seeds stays
    table = Crossed.of(gains)
    needed = {} if effect is None else {"seeds_needed": table.seeds_for(effect)}
    return {**table.interval(), "covers": BOTH, "detectable": table.detectable(), **needed}


def _of_language(marks: Marks | None, language: str | None) -> Marks | None:
    """The parts of one language; all where rows are not apart by language."""
    if marks is None or language is None:
        return marks
    parts = {name: part for name, part in marks.parts.items() if name.partition(".")[0] == language}
    return Marks(parts) if parts else None
