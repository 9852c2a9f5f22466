"""Which pairs of a search log stay: those that users who searched for the text really clicked.

Zero (card `zero-benchmark.md`, section 3) keeps of 5 billion pairs those with a high click-through rate. Thresholds and
statistic were not published, so these are a [choice]: a floor of impressions, below which a rate says nothing (1 of 1
is no 100 %), and the lower end of Wilson's interval (Wilson, JASA 1927) as the rate. For each query, pictures are
ranked by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tuwen.data.corpora.faults import one_line
from tuwen.data.corpus import Corpus, all_texts, text_id
from tuwen.errors import UserError

Z = 1.96  # of a two-sided interval of 95 %


@dataclass(frozen=True)
class Rule:
    """Which pairs stay.

    floor: fewest impressions. least: lowest Wilson bound, 0 for any. top: at most so many pictures a query; None: all.
    share: this share of all pairs that reach the floor, those with the highest bound; None: all.
    """

    floor: int = 5
    least: float = 0.0
    top: int | None = None
    share: float | None = None

    def __post_init__(self):
        if self.floor < 1 or not 0 <= self.least <= 1 or (self.top is not None and self.top < 1):
            settings = f"floor={self.floor}, least={self.least}, top={self.top}"
            raise UserError(f"{settings}: floor and top are 1 or more, least is 0 to 1")
        if self.share is not None and not 0 < self.share <= 1:
            raise UserError(f"a share of {self.share} is none; give one above 0 and up to 1")


def wilson(clicks: np.ndarray, impressions: np.ndarray, z: float = Z) -> np.ndarray:
    """Lower end of Wilson's interval of the rate, float64 in [0, 1]; 0 where there is no impression."""
    n = np.maximum(np.asarray(impressions, dtype=np.float64), 1.0)
    rate = np.minimum(np.asarray(clicks, dtype=np.float64) / n, 1.0)
    centre = rate + z * z / (2 * n)
    spread = z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return np.where(np.asarray(impressions) > 0, np.clip((centre - spread) / (1 + z * z / n), 0, 1), 0.0)


def choose_pairs(
    queries: np.ndarray, impressions: np.ndarray, clicks: np.ndarray, keys: np.ndarray, rule: Rule
) -> np.ndarray:
    """[N] bool, which pairs stay. The order of the pairs does not matter.

    queries, keys: [N] int64, the query and what breaks ties between equal bounds (lower first), e.g. the picture.

    Raises:
        UserError: more clicks than impressions, or a negative number.
    """
    impressions, clicks = np.asarray(impressions), np.asarray(clicks)
    wrong = np.flatnonzero((clicks > impressions) | (clicks < 0))
    if wrong.size:
        at = int(wrong[0])
        raise UserError(f"pair {at}: {clicks[at]} clicks of {impressions[at]} impressions; correct the log")
    bound = wilson(clicks, impressions)
    stays = (impressions >= rule.floor) & (bound >= rule.least)
    best = np.lexsort((keys, queries, -bound))  # the highest bound first, whatever the order of the log
    if rule.top is not None:
        by_query = best[np.argsort(queries[best], kind="stable")]
        by_query = by_query[stays[by_query]]
        starts = np.r_[True, np.diff(queries[by_query]) != 0] if by_query.size else np.zeros(0, dtype=bool)
        first = np.maximum.accumulate(np.where(starts, np.arange(len(by_query)), 0))
        stays[by_query[np.arange(len(by_query)) - first >= rule.top]] = False
    if rule.share is not None:
        limit = round(rule.share * int((impressions >= rule.floor).sum()))
        ranked = best[stays[best]]
        stays[ranked[limit:]] = False
    return stays


class ClickedPairs(NamedTuple):
    """Every text of every row of a corpus: its row [N], itself, and whether it stays [N] bool."""

    rows: list[int]
    texts: list[str]
    stays: np.ndarray


def clicked_pairs(corpus: Corpus, rule: Rule) -> ClickedPairs:
    """The texts of a corpus by its column "clicks": [impressions, clicks] a text. A query is a text, by its identity.

    Raises:
        UserError: no such column, or of another form.
    """
    rows, texts, pictures = [], [], []
    counts: list[Sequence[int]] = []
    for row in range(len(corpus)):
        record = corpus.record(row)
        several = list(all_texts(record))
        counts += _counts(record.columns.get("clicks"), len(several), f"{corpus.name} {corpus.split} row {row}")
        rows += [row] * len(several)
        texts += several
        pictures += [record.image_id] * len(several)
    totals = np.array(counts, dtype=np.int64).reshape(-1, 2)
    queries = np.array([text_id(text) for text in texts], dtype=np.int64)
    stays = choose_pairs(queries, totals[:, 0], totals[:, 1], np.array(pictures, dtype=np.int64), rule)
    return ClickedPairs(rows, texts, stays)


def _counts(value: Any, texts: int, where: str) -> Sequence[Sequence[int]]:
    if value is None:
        raise UserError(f"{where}: no column clicks; give [impressions, clicks] for each text, in the texts' order")
    array = np.asarray(value)
    if array.shape != (texts, 2) or array.dtype.kind not in "iu":
        raise UserError(f"{where}: clicks is {one_line(str(value), 60)}, not [impressions, clicks] for {texts} texts")
    return array.tolist()
