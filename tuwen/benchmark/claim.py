"""A paper's claim as a controlled experiment: two arms that differ in one thing, and a verdict with its interval.

A claim is YAML, one of ours (`tuwen/benchmark/claims`, section 9 of the cards) or a file of one's own:

    card: r2d2 C3
    claim: {en: "...", zh: "..."}              # what the paper says, as it can be tested
    paper: {en: "...", zh: "..."}              # the paper's own figure, at its scale
    arms: [r2d2, "r2d2:model.target_guided=false"]   # the first is to lead the second
    corpus: scenes:count=1000,noise=0.3
    set: {train.batch_size: 32}
    steps: 200
    least: 1.0                                 # the effect that is claimed, in units of the metric
    direction: more                            # or less, or equal (within `least`)
    seeds: 3
    minutes: 8

and what is measured, as in a comparison (`measure`, `learn`, `towers`). The figure decides, not the hope: where the
interval holds both the least effect and none, the verdict is undetermined, with what would decide it.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tuwen import tasks
from tuwen.benchmark.arms import learnt_of, planned_arms
from tuwen.benchmark.compare import CompareConfig, compare, metric_of
from tuwen.benchmark.crossed import Crossed, table_of_gains
from tuwen.benchmark.figures import figure_of
from tuwen.benchmark.listed import listed, listed_file
from tuwen.benchmark.measure import MeasureConfig, read_marks
from tuwen.benchmark.paired import FEWEST_SEEDS, seeds_interval
from tuwen.config import override, read_yaml, to_dict
from tuwen.errors import UserError
from tuwen.run import provenance, write
from tuwen.training.towers import Published

FOLDER = Path(__file__).parent / "claims"
RESULT = "claim.json"
CONFIRMED, REFUTED, UNDETERMINED = "confirmed", "refuted", "undetermined"
CHANCE = {"retrieval": "languages.*.chance.mean_recall"}


@dataclass(frozen=True)
class Claim:
    """See above. chance: the path of the figure that a blind guess has; an arm that learnt nothing decides nothing.

    image_weights, text_weights: published towers that both arms start from.
    """

    card: str = ""
    claim: Mapping[str, str] = field(default_factory=dict)
    paper: Mapping[str, str] = field(default_factory=dict)
    arms: tuple[str, ...] = ()
    corpus: str = ""
    size: str = "tiny"
    set: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 200
    least: float = 0.0
    direction: Literal["more", "less", "equal"] = "more"
    seeds: int = 3
    minutes: float = 10.0
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    learn: Mapping[str, Any] = field(default_factory=dict)
    towers: int = 0
    chance: str = ""
    image_weights: str | None = None
    text_weights: str | None = None

    def __post_init__(self):
        if self.least < 0 or self.seeds < 1 or self.steps < 1 or self.towers < 0:
            raise ValueError("least and towers must be 0 or more, seeds and steps at least 1")
        if self.direction == "equal" and not self.least:
            raise ValueError("direction equal is within `least`: give that above 0")


@dataclass(frozen=True)
class Verdict:
    """word: confirmed, refuted or undetermined. why: in a line. difference: of the first arm over the second, mean over
    seeds. interval: 95 %; covers: what it is of. seeds_needed: that would show the least effect; None: no number does.
    """

    word: str
    why: str
    difference: float
    interval: list[float] | None
    p: float | None
    covers: str
    detectable: float | None = None
    seeds_needed: int | None = None


def claim_names() -> list[str]:
    return listed(FOLDER)


def read_claim(name: str) -> Claim:
    """A claim of ours by name, or of a YAML file.

    Raises:
        UserError: there is none, or it is not of the form above.
    """
    path = listed_file("claim", name, FOLDER)
    content = read_yaml(path)
    try:
        claim = override(Claim(), content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if len(claim.arms) != 2 or claim.arms[0] == claim.arms[1]:
        raise UserError(f"{path}: arms are two that differ, as [r2d2, 'r2d2:model.target_guided=false']")
    if lacking := [key for key in ("card", "corpus") if not getattr(claim, key)] + [
        key for key in ("claim", "paper") if set(getattr(claim, key)) != {"en", "zh"}
    ]:
        raise UserError(f"{path}: {', '.join(lacking)} is missing; claim and paper are said in en and zh")
    return claim


def check_claim(name: str, claim: Claim) -> None:
    """Asks of a claim's arms, settings and task what would stop it, before any claim is run.

    Raises:
        UserError: which, and why.
    """
    settings, towers = settings_of_claim(claim), towers_of_claim(claim)
    try:
        planned = planned_arms(claim.arms, claim.corpus, Path(), claim.size, claim.steps, 1, settings, {}, towers)
        learnt_of(planned.configs.values(), claim.measure.task, claim.learn)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def settings_of_claim(claim: Claim) -> dict[str, Any]:
    return {"train.seed": 0, **claim.set}


def towers_of_claim(claim: Claim) -> Published:
    return Published(claim.image_weights, claim.text_weights)


def run_claim(name: str, out: str | Path, *, quiet: bool = False) -> dict[str, Any]:
    """Puts a claim to the test in a folder, in which finished runs are kept, and writes OUT/claim.json.

    Raises:
        UserError: no such claim, or whatever `compare` raises.
        Interrupted: after SIGTERM or Ctrl-C; the same call goes on.
    """
    claim, out, began = read_claim(name), Path(out), time.monotonic()
    how = CompareConfig(towers=claim.towers, learn=claim.learn, measure=claim.measure)
    comparison = compare(
        claim.arms,
        claim.corpus,
        out,
        size=claim.size,
        steps=claim.steps,
        seeds=claim.seeds,
        published=towers_of_claim(claim),
        changes=settings_of_claim(claim),
        how=how,
        validation=0,
        quiet=quiet,
    )
    of, over = (comparison["systems"][arm]["seeds"] for arm in claim.arms)
    verdict = judge_claim(claim, of, over, gains_of(claim, out, of, over))
    result = {
        "name": Path(name).stem,
        "card": claim.card,
        "claim": dict(claim.claim),
        "paper": dict(claim.paper),
        "verdict": verdict.word,
        **{key: value for key, value in asdict(verdict).items() if key != "word"},
        "metric": metric_of(claim.measure),
        "task": claim.measure.task,
        "direction": claim.direction,
        "least": claim.least,
        "arms": {arm: _arm(comparison["systems"][arm]) for arm in claim.arms},
        "chance": _chance(claim, of[0]),
        **{key: comparison[key] for key in ("corpus", "location", "split", "size", "steps", "batch_size")},
        "seeds": [seed["seed"] for seed in of],
        "fingerprints": comparison["fingerprints"],
        "minutes": round(sum(seed["seconds"] + seed["measure_seconds"] for seed in (*of, *over)) / 60, 2),
        "seconds_this_time": round(time.monotonic() - began, 1),
        "settings": to_dict(claim),
        "digest": hashlib.blake2b(json.dumps(to_dict(claim), sort_keys=True).encode(), digest_size=8).hexdigest(),
        "origin": _origin(out / of[0]["run"]),
    }
    write(out / RESULT, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


def gains_of(claim: Claim, out: Path, of: Sequence[Mapping], over: Sequence[Mapping]) -> Crossed | None:
    """The table of gains by seed and picture; None where rows' marks are not those of the metric, or of
    one seed or one picture."""
    if len(of) < 2 or metric_of(claim.measure) != tasks.find_task(claim.measure.task).figure:
        return None
    marks = [[read_marks(out / seed["run"], claim.measure.task) for seed in seeds] for seeds in (of, over)]
    if not all(all(parts) for parts in marks):
        return None
    table = table_of_gains(*marks)  # type: ignore[arg-type]
    return Crossed.of(table) if table.shape[1] > 1 else None


def judge_claim(
    claim: Claim, of: Sequence[Mapping], over: Sequence[Mapping], crossed: Crossed | None = None
) -> Verdict:
    """The verdict on the results of both arms, seed by seed; crossed: their gains by seed and picture, where known."""
    points = [a["figure"] - b["figure"] for a, b in zip(of, over, strict=True)]
    difference = sum(points) / len(points)
    if crossed is not None:
        judged, covers = crossed.interval(), "seeds and pictures"
        detectable, needed = crossed.detectable(), crossed.seeds_for(claim.least) if claim.least else None
    else:
        judged, covers, detectable, needed = seeds_interval(points), "seeds alone", None, None
    word, why = decide(claim.direction, claim.least, difference, judged["interval"])
    chance = _chance(claim, of[0])
    best = max(sum(seed["figure"] for seed in seeds) / len(seeds) for seeds in (of, over))
    if chance is not None and not learnt_enough(best, chance, claim.least):
        word, places = UNDETERMINED, decimals(claim.least)
        why = f"neither arm learnt enough at this scale: the better has {best:.{places}f}, chance {chance:.{places}f}"
    elif word == UNDETERMINED and needed:
        why += f"; {needed} seeds would show {claim.least:g} in 4 cases of 5"
    elif word == UNDETERMINED and crossed is not None and claim.least:
        why += f"; no number of seeds would show {claim.least:g} in 4 cases of 5 here: it takes more pictures"
    return Verdict(word, why, difference, judged["interval"], judged["p"], covers, detectable, needed)


def learnt_enough(best: float, chance: float, least: float) -> bool:
    """Whether an arm is so far above chance that a difference means something: by the least effect, and by half of
    chance again or, where chance is high, a fifth of the way to all right (100 %, of an area 1)."""
    whole = 1.0 if max(best, chance) <= 1 else 100.0
    return best - chance >= max(least, min(chance / 2, (whole - chance) / 5))


def decimals(least: float) -> int:
    """Places behind the point that figures are shown with: areas lie in 0..1, all else is percent."""
    return 1 if least >= 0.1 else 3


def decide(direction: str, least: float, difference: float, interval: Sequence[float] | None) -> tuple[str, str]:
    """(word, why) of a difference with its 95 % interval.

    more: confirmed where the interval lies above 0 and the difference reaches the least effect; refuted where the
    interval lies below the least effect. less: likewise, with the sign turned. equal: confirmed where the interval lies
    within the least effect either way, refuted where it lies outside.
    """
    if interval is None:
        return UNDETERMINED, f"fewer than {FEWEST_SEEDS} seeds have no interval"
    low, high = interval
    if direction == "less":
        difference, low, high = -difference, -high, -low
    if direction == "equal":
        if -least <= low and high <= least:
            return CONFIRMED, f"the interval lies within {least:g} either way"
        if low > least or high < -least:
            return REFUTED, f"the interval lies beyond {least:g}"
        return UNDETERMINED, f"the interval reaches beyond {least:g}"
    if low > 0 and difference >= least:
        return CONFIRMED, f"the interval lies above 0 and the difference reaches {least:g}"
    if high < least or high <= 0:
        return REFUTED, f"the interval lies below {least:g}" if high > 0 else "the interval lies at or below 0"
    if low <= 0:
        return UNDETERMINED, f"the interval holds {least:g} and 0"
    return UNDETERMINED, f"the interval holds {least:g}, of which less was seen"


def _chance(claim: Claim, measured: Mapping[str, Any]) -> float | None:
    path = claim.chance or (CHANCE.get(claim.measure.task) if not claim.measure.metric else None)
    return figure_of(measured, path) if path else None


def _arm(system: Mapping[str, Any]) -> dict[str, Any]:
    figures = [seed["figure"] for seed in system["seeds"]]
    costs = {key: round(system[key], 3) for key in ("seconds", "pairs_per_second")}
    return {"mean": sum(figures) / len(figures), "figures": figures, **costs}


def _origin(run: Path) -> dict[str, Any]:
    """Code, packages and machine of a run."""
    origin = provenance(run)
    return {key: value for key, value in origin.items() if key not in ("corpus", "finished", "sources", "resumed")}
