"""Means, spreads and differences over seeds."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit

from tuwen.benchmark.paired import holm, seeds_interval
from tuwen.data import draws
from tuwen.tasks.metrics import CUTOFFS, DIRECTIONS, NO_ANSWER

RESAMPLES = 1000
STAGES = ("first", "reranked")


def mean_and_spread(results: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Mean and sample standard deviation over results of one nested shape, number by number.

    The spread of a single result is None: one seed says nothing of the next.
    """
    mean = _each(results, statistics.fmean)
    return mean, _each(results, statistics.stdev) if len(results) > 1 else None


def _each(results: Sequence[Mapping[str, Any]], function) -> dict[str, Any]:
    out = {}
    for name, value in results[0].items():
        values = [result[name] for result in results]
        out[name] = _each(values, function) if isinstance(value, Mapping) else function(values)
    return out


def gain_interval(ranks: Mapping[str, torch.Tensor], language: str) -> tuple[float, float]:
    """95 % of what re-ranking adds to a run's mean recall, in points: a bootstrap over the queries of each direction.

    ranks: of a measured run, "en.first.text_to_image" and the like [Q] (`tuwen.benchmark.measure`).
    """
    means = []
    for way in DIRECTIONS:
        if f"{language}.first.{way}" not in ranks:
            continue
        first, reranked = (ranks[f"{language}.{stage}.{way}"].numpy() for stage in STAGES)
        hits = [np.mean([rank[first != NO_ANSWER] < k for k in CUTOFFS], axis=0) for rank in (first, reranked)]
        gain = 100 * (hits[1] - hits[0])
        uniform = draws.uniform(torch.arange(RESAMPLES), len(gain), 0, f"queries anew, {way}").numpy()
        means.append(gain[(uniform * len(gain)).astype(np.int64)].mean(1))
    low, high = np.quantile(np.mean(means, axis=0), [0.025, 0.975])
    return float(low), float(high)


def clearly_best(rows: Sequence[Sequence[float]]) -> list[bool]:
    """Which rows are the best by more than chance of the seed: their lead over every other has a 95 % interval above 0.

    rows: a figure of each row by seed [R][S], the seeds in one order; the interval is Student's, of the paired seeds.
    Rows that are equal in every seed (a first stage and its re-ranking of weight 0) are best together. One seed has no
    interval, and one row nothing to be better than: neither has a best.
    """
    seeds = len(rows[0])
    top = max(rows, key=statistics.fmean)
    others = [row for row in rows if list(row) != list(top)]
    if seeds < 2 or not others:
        return [False] * len(rows)
    quantile = float(stdtrit(seeds - 1, 0.975))
    leads = [[a - b for a, b in zip(top, row, strict=True)] for row in others]
    ahead = all(statistics.fmean(lead) > quantile * statistics.stdev(lead) / seeds**0.5 for lead in leads)
    return [ahead and list(row) == list(top) for row in rows]


def last_stage(language: Mapping[str, Any]) -> str:
    """ "reranked" where a system can, else "first"."""
    return "reranked" if "reranked" in language else "first"


def differences(results_of: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """What each later system has over each earlier one, and re-ranking over the first stage, seed by seed.

    Where no seed was re-ranked (validation chose weight 0 for all) there is nothing to tell, and nothing that would
    raise the p of the others.

    results_of: system -> retrieval JSON of each seed, the seeds in one order. Both sides are taken at their last stage.
    Gives `{"language", "of", "over", "mean_recall", "image_to_text", "text_to_image", "spread"}`: differences in
    points of mean recall and of R@1 either way, averaged over paired seeds, with the standard deviation of the mean
    recall's (None for one seed), and its "interval", "p" and, over all rows, "p_holm" (None below three seeds).
    """
    names = list(results_of)
    out = []
    for language in results_of[names[0]][0]["languages"]:
        at = {name: [result["languages"][language] for result in results_of[name]] for name in names}
        for name in names:
            if all(stage in at[name][0] for stage in STAGES) and _reranked(at[name]):
                out.append(_difference(language, (name, at[name], "reranked"), (name, at[name], "first")))
        for earlier, later in combinations(names, 2):
            sides = [(name, at[name], last_stage(at[name][0])) for name in (later, earlier)]
            out.append(_difference(language, *sides))
    return with_holm(out)


def figure_differences(results_of: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """What each later system has over each earlier one in the one "figure" that counts, seed by seed.

    results_of: system -> results of each seed, the seeds in one order. Gives `{"of", "over", "figure", "spread",
    "interval", "p", "p_holm"}`: as `differences`.
    """
    out = []
    for (earlier, lower), (later, upper) in combinations(results_of.items(), 2):
        points = [a["figure"] - b["figure"] for a, b in zip(upper, lower, strict=True)]
        spread = statistics.stdev(points) if len(points) > 1 else None
        about = {"of": later, "over": earlier, "figure": statistics.fmean(points), "spread": spread}
        out.append(about | seeds_interval(points) | {"p_holm": None})
    return with_holm(out)


def with_holm(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a table with "p_holm" over those that have a p."""
    judged = [row for row in rows if row["p"] is not None]
    for row, p in zip(judged, holm([row["p"] for row in judged]), strict=True):
        row["p_holm"] = p
    return rows


def _reranked(languages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether re-ranking changed a figure of any seed: weight 0 leaves the first stage bit for bit."""
    figures = ("mean_recall", "image_to_text", "text_to_image")
    return any(own["reranked"].get(key) != own["first"].get(key) for own in languages for key in figures)


def _difference(language: str, of: tuple[str, list, str], over: tuple[str, list, str]) -> dict[str, Any]:
    (name, upper, stage), (other, lower, other_stage) = of, over
    pairs = [(a[stage], b[other_stage]) for a, b in zip(upper, lower, strict=True)]
    mean_recall = [a["mean_recall"] - b["mean_recall"] for a, b in pairs]
    ways = [way for way in ("image_to_text", "text_to_image") if way in pairs[0][0] and way in pairs[0][1]]
    return {
        "language": language,
        "of": f"{name} {stage}",
        "over": f"{other} {other_stage}",
        "mean_recall": statistics.fmean(mean_recall),
        **{way: statistics.fmean(a[way]["r1"] - b[way]["r1"] for a, b in pairs) for way in ways},
        "spread": statistics.stdev(mean_recall) if len(mean_recall) > 1 else None,
        **seeds_interval(mean_recall),
        "p_holm": None,
    }
