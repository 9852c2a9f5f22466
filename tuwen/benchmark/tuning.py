"""An equal small tuning budget for every arm: a grid of learning rates, one run each, the best by validation.

Every arm is trained at every rate with the first seed, for the whole budget, and ends with the weights of its best
validation; the rate whose validation is best is the arm's in all seeds. Test is read once a run, after that.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuwen.benchmark.arms import arm_folder
from tuwen.config import override
from tuwen.data.corpus import Corpus
from tuwen.errors import UserError
from tuwen.run import METRICS
from tuwen.training.config import RunConfig
from tuwen.training.log import read_metrics
from tuwen.training.once import train_once
from tuwen.training.validation import Evaluate

GRID = (1 / 3, 1.0, 3.0)  # times the rate that an arm has

Tuned = dict[str, dict[str, Any]]  # arm -> {"rates": {rate: validation}, "chosen": rate}


def tune(
    configs: Mapping[Path, RunConfig],
    arms: Mapping[Path, str],
    factors: Sequence[float],
    pairs: Corpus,
    evaluate: Evaluate,
    quiet: bool = False,
) -> tuple[dict[Path, RunConfig], Tuned]:
    """(the configs at the rates chosen, by their folders, what was tried).

    configs: of every run; arms: the arm of each. evaluate: whose "score" is what the rate is chosen by.

    Raises:
        UserError: as `train_once`.
        Interrupted: after SIGTERM or Ctrl-C; the same call goes on.
    """
    told: Tuned = {}
    for number, name in enumerate(dict.fromkeys(arms.values()), 1):
        first = next(run for run in configs if arms[run] == name)
        scores: dict[float, float] = {}
        for place, factor in enumerate(factors, 1):
            run, config = at_rate(first, configs[first], factor)
            where = f"tuning, arm {number} of {len(set(arms.values()))}, rate {place} of {len(factors)}"
            train_once(run, config, pairs, evaluate, quiet, where)
            scores[factor] = validation_of(run)
        best = max(scores, key=lambda factor: (scores[factor], -abs(factor - 1)))
        rates = {f"{configs[first].train.lr * factor:g}": score for factor, score in scores.items()}
        told[name] = {"rates": rates, "chosen": f"{configs[first].train.lr * best:g}", "factor": best}
    chosen = [at_rate(run, config, told[arms[run]]["factor"]) for run, config in configs.items()]
    return dict(chosen), told


def at_rate(run: Path, config: RunConfig, factor: float) -> tuple[Path, RunConfig]:
    """A run's folder and config at so many times its learning rates, ending with its best validation."""
    train = config.train
    rates = {f"train.{name}": getattr(train, name) * factor for name in ("lr", "min_lr", "warmup_from")}
    name, seed, number = run.name.rpartition("-seed")
    folder = run.with_name(arm_folder(f"{name}-lr{train.lr * factor:g}") + seed + number)
    return folder, override(config, {**rates, "train.choose": "best"})


def validation_of(run: Path) -> float:
    """The best validation of a finished run.

    Raises:
        UserError: it was never validated.
    """
    scores = [record["eval"]["score"] for record in read_metrics(run / METRICS) if "score" in record.get("eval", {})]
    if not scores:
        raise UserError(f"{run}: was trained without validation, by which its learning rate is chosen")
    return float(max(scores))
