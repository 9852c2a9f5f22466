"""Two finished runs, or imported checkpoints, asked the same queries: who is ahead, how surely, and on which."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tuwen.benchmark.paired import holm, paired_difference
from tuwen.benchmark.statistics import last_stage
from tuwen.data.corpus import Corpus
from tuwen.data.open import open_corpus
from tuwen.errors import UserError, quoted
from tuwen.model import load
from tuwen.tasks.marks import picture_of
from tuwen.tasks.metrics import CUTOFFS, DIRECTIONS, NO_ANSWER
from tuwen.tasks.retrieval import TOP_K, Asked, Retrieval, retrieve
from tuwen.training.parallel import device

RESULT = "judged.json"
SHOWN = 5  # best items a query
MEAN = "mean_recall"
ONE_RUN = "one run a side: the intervals are of queries alone; trained again with another seed, a run would differ too"


@dataclass(frozen=True)
class Judged:
    """json: what `judge_runs` says. results: the evaluation of each run by name. corpus: what both were asked on."""

    json: dict[str, Any]
    results: dict[str, Retrieval]
    corpus: Corpus


def judge_runs(
    runs: Sequence[str | Path], corpus: str, split: str = "test", *, limit: int | None = None, top_k: int = TOP_K
) -> Judged:
    """What the second run has over the first on a split of a corpus. Nothing is trained or written.

    limit: at most so many pictures. top_k: candidates a query that are re-ranked.

    Its JSON: `{"task", "corpus", "split", "fingerprint", "runs": {name: retrieval JSON}, "differences", "queries",
    "notes"}`. differences: by language, of mean recall and of R@1 either way, in points, with "interval" (95 %), "p",
    "p_holm" (over all rows), "detectable", "queries", and how many only one run has right. queries: those.

    Raises:
        UserError: not two runs, no language that both know, or pictures that only one of them could read.
    """
    names = names_of(runs)
    gallery = open_corpus(corpus, split, "skip")
    results = {}
    for name, run in zip(names, runs, strict=True):
        predictor = load(run, device=str(device("auto"))).predictor
        results[name] = retrieve(predictor, gallery, limit=limit, top_k=top_k, shown=SHOWN)
    return Judged(judged(results, gallery), results, gallery)


def names_of(runs: Sequence[str | Path]) -> list[str]:
    """What the two are called: their folders' names, or the whole paths where these are one."""
    if len(runs) != 2:
        raise UserError(f"--runs takes two run folders, not {len(runs)}: --runs runs/clip runs/r2d2")
    names = [Path(run).resolve().name for run in runs]
    if names[0] == names[1]:
        names = [str(run) for run in runs]
    if names[0] == names[1]:
        raise UserError(f"--runs names one run twice: {names[0]}")
    return names


def judged(results: dict[str, Retrieval], corpus: Corpus) -> dict[str, Any]:
    """The JSON of `judge_runs` from two evaluations on the corpus."""
    (lower, below), (upper, above) = results.items()
    shared = [language for language in below.ranks if language in above.ranks]
    if not shared:
        spoken = "; ".join(f"{name}: {', '.join(result.ranks)}" for name, result in results.items())
        raise UserError(f"no language of {corpus.name} that both runs know ({spoken})")
    differences: list[dict[str, Any]] = []
    queries: list[dict[str, Any]] = []
    for language in shared:
        _check_alike(language, results)
        ranks = [result.ranks[language][last_stage(result.ranks[language])] for result in (above, below)]
        pictures = {way: picture_of(below.asked[language].truth, way) for way in DIRECTIONS}
        for what, gains, answered in _gains(ranks, pictures):
            row = {"language": language, "what": what, "of": upper, "over": lower, **paired_difference(gains)}
            only = [sum(int((sign * gain > 0).sum()) for gain, _ in gains) for sign in (1, -1)]
            differences.append(row | {"queries": answered, "only_of": only[0], "only_over": only[1]})
        for way in DIRECTIONS:
            asked = below.asked[language]
            queries += list(_disagreements(language, way, asked, (upper, lower), [rank[way] for rank in ranks]))
    for row, p in zip(differences, holm([row["p"] for row in differences]), strict=True):
        row["p_holm"] = p
    return {
        **{"task": "retrieval", "corpus": corpus.name, "split": corpus.split, "fingerprint": corpus.fingerprint},
        "runs": {name: result.json for name, result in results.items()},
        "differences": differences,
        "queries": queries,
        "notes": list(_notes(results, corpus)),
    }


def _gains(ranks: list[dict[str, np.ndarray]], pictures: dict[str, np.ndarray]) -> Iterator[tuple[str, list, int]]:
    """(what is compared, its gains by direction as `paired_difference` takes them, queries): mean recall, then R@1."""
    of, over = ranks
    asked = {way: over[way] != NO_ANSWER for way in DIRECTIONS}

    def gains(way: str, cutoffs: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        hits = [np.mean([rank[way][asked[way]] < k for k in cutoffs], axis=0) for rank in (of, over)]
        return 100 * (hits[0] - hits[1]), pictures[way][asked[way]]

    answerable = {way: int(asked[way].sum()) for way in DIRECTIONS}
    yield MEAN, [gains(way, CUTOFFS) for way in DIRECTIONS], sum(answerable.values())
    for way in DIRECTIONS:
        yield way, [gains(way, CUTOFFS[:1])], answerable[way]


def _disagreements(
    language: str, way: str, asked: Asked, names: tuple[str, str], ranks: list[np.ndarray]
) -> Iterator[dict[str, Any]]:
    """The queries whose best answer is right for one of the two alone; "ranks" count from 1, None: not re-ranked."""
    hits = [(rank == 0) for rank in ranks]
    for query in np.flatnonzero(hits[0] != hits[1]).tolist():
        places = [int(rank[query]) + 1 for rank in ranks]
        text = {} if way == "image_to_text" else {"text": asked.texts[query].text}
        row = asked.rows[query if way == "image_to_text" else int(asked.truth.images_of(query)[0])]
        yield {
            **{"language": language, "direction": way, "query": query, **text, "row": int(row)},
            "right": names[0] if hits[0][query] else names[1],
            "ranks": {
                name: place if place <= len(asked.texts) + len(asked.rows) else None
                for name, place in zip(names, places, strict=True)
            },
        }


def _check_alike(language: str, results: dict[str, Retrieval]) -> None:
    (lower, below), (upper, above) = ((name, result.asked[language]) for name, result in results.items())
    if not np.array_equal(below.rows, above.rows):
        raise UserError(
            f"{quoted(lower)} could read {len(below.rows)} pictures and {quoted(upper)} {len(above.rows)}, not the "
            f"same, in {language}: recalls on two galleries are not compared; `tuwen data check` names broken pictures"
        )


def _notes(results: dict[str, Retrieval], corpus: Corpus) -> Iterator[str]:
    """What the comparison leaves out, and what its intervals are of."""
    yield ONE_RUN
    for name, result in results.items():
        if missing := [language for language in corpus.languages if language not in result.ranks]:
            yield f"{name} does not know {', '.join(missing)}: not compared"
    if broken := sum(next(iter(results.values())).json["broken"].values()):
        yield f"{broken} pictures could not be read and are left out of both"
    if corpus.split == "train":
        yield "this is the train split: a run may have been trained on these very pictures"
