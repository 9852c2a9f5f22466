"""Areas under the ROC curve with what chance would make of them: resampled by picture, or by patient.

Shape legend: N scores.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from tuwen.data.corpus import Record

RESAMPLES = 1000
SEED = 0


def area_with_interval(labels: np.ndarray, scores: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """{"auc", "low", "high"}: the area and the middle 95 of 100 areas of 1,000 sets of groups drawn with replacement.

    labels: [N] 1 or 0. groups: [N], rows of one group (a picture, a patient) are drawn together. Draws that hold one
    kind of label alone are left out; with too few of the others "low" and "high" are None.
    """
    areas = resampled_areas([(labels, scores)], groups)
    return {"auc": float(roc_auc_score(labels, scores)), **interval(areas)}


def resampled_areas(parts: Sequence[tuple[np.ndarray, np.ndarray]], groups: Sequence[str]) -> np.ndarray:
    """The mean over parts (labels [N], scores [N], those of label -1 not counted) of the area, a resample each."""
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1]
    rows = [np.flatnonzero(numbers == k) for k in range(numbers.max() + 1)]
    generator = np.random.Generator(np.random.PCG64(SEED))
    areas = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([rows[k] for k in generator.integers(len(rows), size=len(rows))])
        values = [own for labels, scores in parts if (own := _area(labels[chosen], scores[chosen])) is not None]
        if len(values) == len(parts):
            areas.append(float(np.mean(values)))
    return np.array(areas)


def interval(areas: np.ndarray) -> dict[str, Any]:
    """The middle 95 of 100; none of fewer than a tenth of the resamples."""
    if len(areas) < RESAMPLES // 10:
        return {"low": None, "high": None}
    low, high = np.quantile(areas, (0.025, 0.975))
    return {"low": float(low), "high": float(high)}


def ranked_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Average precision (area under precision over recall)."""
    return float(average_precision_score(labels, scores))


def group_of(record: Record) -> str:
    """Who a row is of: the column "patient" or "group" where it says, else the picture."""
    for name in ("patient", "group"):
        if record.columns.get(name) not in (None, ""):
            return f"{name} {record.columns[name]}"
    return f"picture {record.image_id}"


def _area(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """By ranks, ties half; None where there is one kind alone."""
    labels, scores = labels[labels >= 0], scores[labels >= 0]
    right = int(labels.sum())
    if not 0 < right < len(labels):
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[labels == 1].sum() - right * (right + 1) / 2) / (right * (len(labels) - right)))
