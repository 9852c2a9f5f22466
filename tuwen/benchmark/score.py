"""The final score of a run fitted: the weight of its match, settled on a validation split and kept with the run."""

import json
from pathlib import Path

import tuwen
from tuwen.benchmark.weighing import PICTURES, Weighed, weigh
from tuwen.data.open import open_corpus, splits_of
from tuwen.errors import UserError
from tuwen.progress import bars
from tuwen.run import CONFIG, METRICS, SCORE, write
from tuwen.similarity.final import weight_named
from tuwen.tasks.retrieval import TOP_K
from tuwen.training import parallel
from tuwen.training.config import RunConfig
from tuwen.training.features import text_features
from tuwen.training.log import NOTHING_LEARNT, learnt_nothing, read_metrics


def settle_score(run: str | Path, *, top_k: int = TOP_K, quiet: bool = False) -> dict | None:
    """Fits a finished run's score on the "val" split of its own corpus; None where it keeps the paper's rule.

    A run without a second stage has nothing to fit, and gives None too.

    Raises:
        UserError: as `fit_score`.
    """
    config = RunConfig.read(run)
    if getattr(config.model, "score", "published") == "published":
        return None
    return fit_score(run, config.corpus, "val", top_k=top_k, quiet=quiet)


def fit_score(
    run: str | Path, location: str, split: str, *, top_k: int = TOP_K, limit: int | None = None, quiet: bool = False
) -> dict:
    """Settles the weight of a run's match on a split of a corpus, and writes it into the run's folder.

    The run's weights stay as they are. Gives what is written: {"weight", "why", "queries", "mean_recall" under each
    weight tried, "ms_a_query", "corpus", "split", "fingerprint", "top_k"}.

    Raises:
        UserError: no run there, one without a second stage, or whatever `retrieve` raises.
    """
    run = Path(run)
    settled, about = None, {"corpus": str(location), "split": split, "top_k": top_k}
    if learnt_nothing(read_metrics(run / METRICS)):
        settled = Weighed(0.0, NOTHING_LEARNT)
    elif split not in splits_of(location):
        settled = Weighed(0.0, f"the corpus has no {split} split")
    if settled is None:
        model = tuwen.load(run, device=str(parallel.device("auto")))
        if not model.system.matches():
            raise model.system.lacks("fit a final score", "it has no second stage")
        text_features(model.system, model.tokenizer)
        corpus = open_corpus(location, split, "skip")
        with bars(not quiet):
            settled = weigh(model.predictor, corpus, top_k=top_k, limit=limit or PICTURES)
        about |= {"corpus": corpus.name, "fingerprint": corpus.fingerprint}
    score = settled.to_json() | about
    if not (run / CONFIG).exists():
        raise UserError(f"{run}: holds no run")
    write(run / SCORE, json.dumps(score, indent=1, ensure_ascii=False) + "\n")
    return score


def score_line(score: dict) -> str:
    """What was settled, for people."""
    weight = weight_named(score["weight"])
    if not weight:
        return f"final score: the first stage alone ({score['why']})"
    rule = "the match alone" if score["weight"] == "match" else f"first stage + {weight:g} x match"
    cost = f", {score['ms_a_query']:.1f} ms a query" if score.get("ms_a_query") else ""
    return f"final score: {rule} ({score['why']}{cost})"
