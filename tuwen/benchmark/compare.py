"""The fair comparison: systems times seeds at equal steps, on the same corpus, order, tokenizer and first weights.

Order and first weights are functions of the seed, so two systems of one seed see the same pairs from the same start
(`grit_vlp`, whose method is an order, from the second epoch on in its own).
Every run lies in OUT/SYSTEM-seedK; what is finished is not repeated, what was stopped goes on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tuwen import systems, tasks
from tuwen.benchmark.arms import (
    DRAWN,
    ArmRun,
    PlannedArms,
    arm_folder,
    learnt_of,
    planned_arms,
    train_arm,
    validator,
)
from tuwen.benchmark.budget import Budget, steps_for
from tuwen.benchmark.figures import figure_of
from tuwen.benchmark.measure import MeasureConfig, measure_arm, measure_run, read_marks
from tuwen.benchmark.recipe_arms import RecipeArm, is_recipe_arm
from tuwen.benchmark.score import settle_score
from tuwen.benchmark.statistics import STAGES, differences, figure_differences, mean_and_spread
from tuwen.benchmark.trial import Trial, trial_of
from tuwen.benchmark.tuning import Tuned, tune
from tuwen.benchmark.uncertainty import RESULT, with_pictures
from tuwen.config import override
from tuwen.data.corpus import Corpus
from tuwen.data.open import open_corpus, splits_of
from tuwen.data.subset import Subset
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError, quoted
from tuwen.progress import bars
from tuwen.run import SCORE, TOKENIZER, holds_run, provenance
from tuwen.speech import spoken
from tuwen.training import checkpoint, start
from tuwen.training.config import RunConfig
from tuwen.training.once import train_once
from tuwen.training.towers import Published

TRIALS = "trials"
COSTS = ("seconds", "pairs_per_second", "measure_seconds", "ms_a_query", "parameters", "flops_a_pair", "peak_mib")


@dataclass(frozen=True)
class CompareConfig:
    """What only a comparison reads; under `compare:` in a recipe.

    arms: a system's name -> settings by dotted or nested name for it alone ({"albef": {"model.queue": 1}}). towers:
    steps of a clip run trained first for each seed, in OUT/towers-seedK, from whose towers every system of that seed
    starts, as published fusion systems start from trained encoders; 0: from the same drawn weights. learn: settings
    ({"train.steps": 100}) of what every arm learns before it is measured on a task that must be learnt, or is to be.
    tune: learning rates that are tried for every arm, as factors of its own (`tuwen.benchmark.tuning`); none: it has
    its own. also: further corpora by the names that stages of recipes have for them. measure: how runs are measured.
    """

    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    towers: int = 0
    learn: Mapping[str, Any] = field(default_factory=dict)
    tune: tuple[float, ...] = ()
    also: Mapping[str, str] = field(default_factory=dict)
    measure: MeasureConfig = field(default_factory=MeasureConfig)

    def __post_init__(self):
        if self.towers < 0:
            raise ValueError(f"towers must be 0 or more steps, got {self.towers}")
        if not all(factor > 0 for factor in self.tune):
            raise ValueError(f"tune must be factors above 0, got {self.tune}")


def compare(
    names: Sequence[str],
    corpus: str | Path,
    out: str | Path,
    *,
    size: str = "small",
    steps: int | None = None,
    budget: Budget | None = None,
    seeds: int = 1,
    published: Published = DRAWN,
    changes: Mapping[str, Any] | None = None,
    how: CompareConfig | None = None,
    validation: int = 200,
    effect: float | None = None,
    share: float = 1.0,
    quiet: bool = False,
) -> dict:
    """Trains and measures every system with every seed, and writes OUT/comparison.json.

    names: systems, in the order of all tables, arms of one ("wukong:model.style=filip"), or recipes. steps: optimizer
    steps of every run (default: the config's); budget: or what every run may spend. seeds: runs a system, from
    `train.seed` on. published: towers that every run starts from. changes: config by dotted or nested name for all
    systems. how: what single systems differ in, and how runs are measured. validation: pictures of "val" (else of the
    split) followed. effect: a wanted difference: the seeds it needs are reckoned. share: of the training rows. Gives
    `{"systems": {name: the retrieval JSON over seeds, with "seconds", "fidelity", "seeds" (each run's own), "spread"}}`
    with "differences", "corpus", "split" and the like.

    Raises:
        UserError: unknown or repeated systems or settings, or a run in `out` with other settings.
        Interrupted: after SIGTERM or Ctrl-C; the same call goes on.
    """
    out, how = Path(out), how or CompareConfig()
    measure, location = how.measure, how.measure.corpus or str(corpus)
    refuse_of_recipes(names, how, budget, share)
    options: Any = (seeds, changes or {}, how.arms, published, how.also)
    configs, recipes = planned_arms(names, str(corpus), out, size, equal_steps(steps, budget), *options)
    learnt = learnt_of(configs.values(), measure.task, how.learn)
    arms = {run: names[k % len(names)] for k, run in enumerate(configs)}
    first = next(iter(configs.values()))
    pairs, gallery, watched = opened_corpora(str(corpus), location, measure, first.data.on_bad, share)
    evaluate = validator(watched, validation) if validation else None
    _share_tokenizer(out, configs, recipes, pairs)
    _train_towers(out, configs, how.towers, pairs, quiet)
    single = {name: run for run, name in reversed(arms.items()) if run not in recipes}
    trials = {name: trial_of(configs[run], pairs, trial_file(out, name)) for name, run in single.items()}
    configs, recipes = budgeted(configs, recipes, arms, budget, trials)
    configs, arms, tuned = tuned_configs(configs, arms, how.tune, pairs, watched, validation, quiet)
    results_of: dict[str, list[dict]] = {name: [] for name in names}
    for number, (run, config) in enumerate(configs.items(), 1):
        name, recipe, place = arms[run], recipes.get(run), spoken(f"run {number} of {len(configs)}")
        trained = train_arm(run, config, pairs, evaluate, learnt, recipe=recipe, quiet=quiet, place=place)
        trial = recipe.cost(partial(trial_file, out, name)) if recipe else trials[name]
        result = measured_arm(trained, out, gallery, location, measure, trial, quiet)
        results_of[name].append({"seed": config.train.seed, **result})
    own = recipes[run].steps if (run := next(iter(configs))) in recipes else first.train.steps
    about: dict[str, Any] = {"location": str(corpus), "watched": watched.split, "size": size, "tuned": tuned}
    about |= {"batch_size": first.train.batch_size, "budget": str(budget or f"steps={own}")}
    about["fingerprints"] = {part.split: part.fingerprint for part in (pairs, gallery) if part is not None}
    return write_comparison(out, {**compared(results_of, out, measure, effect), **about})


def equal_steps(steps: int | None, budget: Budget | None) -> int | dict | None:
    """The steps of every arm; empty where what the budget buys is known later."""
    if budget is None:
        return steps
    return steps_for(budget, 1) if budget.unit == "steps" else {}


def budgeted(
    configs: dict[Path, RunConfig],
    recipes: dict[Path, RecipeArm],
    arms: Mapping[Path, str],
    budget: Budget | None,
    trials: Mapping[str, Trial],
) -> PlannedArms:
    """The configs and recipes with the steps that the budget buys each arm."""
    if budget is None:
        return PlannedArms(configs, recipes)
    bought = {run: steps_for(budget, configs[run].train.batch_size, trials.get(name)) for run, name in arms.items()}
    recipes = {run: recipe.of_steps(bought[run]) for run, recipe in recipes.items()}
    single = {run: override(configs[run], {"train.steps": bought[run]}) for run in configs.keys() - recipes.keys()}
    return PlannedArms({run: single.get(run, config) for run, config in configs.items()}, recipes)


def refuse_of_recipes(names: Sequence[str], how: "CompareConfig", budget: Budget | None, share: float) -> None:
    """Raises:
    UserError: what is for single systems alone, asked of a recipe.
    """
    name = next(filter(is_recipe_arm, names), None)
    wrong = {
        "compare.towers: its stages say what they start from": how.towers,
        "--tune: its stages have their own rates": how.tune,
        "a budget in seconds or flops: give steps or pairs": budget and budget.unit in ("seconds", "flops"),
        "a ladder of data: give one of budgets": share < 1,
    }
    if name and (what := next((what for what, asked in wrong.items() if asked), None)):
        raise UserError(f"compare: {name} is a recipe, which cannot have {what}")


def write_comparison(out: Path, comparison: dict[str, Any]) -> dict[str, Any]:
    checkpoint.write(out / RESULT, json.dumps(comparison, ensure_ascii=False, indent=1) + "\n")
    return comparison


def tuned_configs(
    configs: dict[Path, RunConfig],
    arms: dict[Path, str],
    factors: Sequence[float],
    pairs: Corpus,
    watched: Corpus,
    pictures: int,
    quiet: bool,
) -> tuple[dict[Path, RunConfig], dict[Path, str], Tuned]:
    """The configs at the rates that validation chose, the arm of each, and what was tried.

    Raises:
        UserError: there is nothing to validate on but what is measured in the end.
    """
    if not factors:
        return configs, arms, {}
    if watched.split == "test" or not pictures:
        raise UserError("compare: a rate is chosen by validation: give the corpus a val split, or leave out tuning")
    chosen, tuned = tune(configs, arms, factors, pairs, validator(watched, pictures), quiet)
    return chosen, dict(zip(chosen, arms.values(), strict=True)), tuned


def trial_file(out: Path, name: str, stage: str = "") -> Path:
    return out / TRIALS / f"{arm_folder(name)}{stage and '-' + stage}.json"


def compared(
    results_of: Mapping[str, list[dict]], out: Path, measure: MeasureConfig, effect: float | None = None
) -> dict[str, Any]:
    """What the results of every arm, seed by seed, come to. out: where their runs are."""
    first = next(iter(results_of.values()))[0]
    rows = (differences if measure.task == "retrieval" else figure_differences)(results_of)
    if metric_of(measure) == tasks.find_task(measure.task).figure:
        marks = {
            name: [read_marks(out / result["run"], measure.task) for result in results]
            for name, results in results_of.items()
        }
        rows = with_pictures(rows, marks, effect)
    return {
        "task": measure.task,
        "metric": metric_of(measure),
        "systems": {name: summary(name, results) for name, results in results_of.items()},
        "differences": rows,
        "test_reads": sum(result.get("reads", 1) for results in results_of.values() for result in results),
        **{key: first[key] for key in ("corpus", "split", "steps")},
    }


def share_of(pairs: Corpus, share: float) -> Corpus:
    """The first rows of a corpus, as large a share of it as is given."""
    return pairs if share >= 1 else Subset(pairs, range(max(1, round(share * len(pairs)))))


def opened_corpora(
    corpus: str, location: str, measure: MeasureConfig, on_bad: str, share: float
) -> tuple[Corpus, Corpus | None, Corpus]:
    """(the pairs that are trained on, the pictures of retrieval, what runs are watched on)."""
    pairs = share_of(open_corpus(corpus, "train", on_bad), share)
    gallery = open_corpus(location, measure.split, on_bad) if measure.task == "retrieval" else None
    return pairs, gallery, watched_of(corpus, location, measure, on_bad)


def watched_of(corpus: str, location: str, measure: MeasureConfig, on_bad: str) -> Corpus:
    """What runs are watched on while they train: "val" where there is one, else what they are measured on."""
    if "val" in splits_of(corpus):
        return open_corpus(corpus, "val", on_bad)
    return open_corpus(location, measure.split, on_bad)


def metric_of(measure: MeasureConfig) -> str:
    """The path of the figure that counts."""
    return measure.metric or tasks.find_task(measure.task).figure


# ---- what is trained


def _share_tokenizer(
    out: Path, configs: dict[Path, RunConfig], recipes: Mapping[Path, RecipeArm], pairs: Corpus
) -> None:
    """OUT/tokenizer.json, made once and given to every run's config."""
    path = out / TOKENIZER
    begun = any(holds_run(run) for run in configs)
    own = {TOKENIZER, TRIALS, *(run.relative_to(out).parts[0] for run in configs)}
    if not begun and out.is_dir() and (others := {path.name for path in out.iterdir()} - own):
        raise UserError(f"{out} holds something else than a comparison ({quoted(min(others))}); choose another folder")
    if not (begun and path.exists()):
        out.mkdir(parents=True, exist_ok=True)
        run, config = next(iter(configs.items()))
        config = recipes[run].words if run in recipes else config
        start.make_tokenizer(config, [pairs]).save(path)
    Tokenizer.load(path)  # a damaged file is told before any work
    for run, config in configs.items():
        configs[run] = override(config, {"tokenizer.file": str(path)})


def _train_towers(out: Path, configs: dict[Path, RunConfig], steps: int, pairs: Corpus, quiet: bool) -> None:
    """A clip run of so many steps a seed, of the first system's towers, which becomes the start of every system of that
    seed; of none, they start as they are."""
    runs: dict[int, Path] = {}
    for path, config in configs.items() if steps else ():
        seed = config.train.seed
        if seed not in runs:
            runs[seed] = out / f"towers-seed{seed}"
            shared = {name: getattr(config.model, name) for name in ("image", "text", "embed")}
            model = replace(RunConfig.of("clip", config.size, config.corpus).model, **shared)
            own = override(replace(config, system="clip", model=model), {"train.steps": steps})
            train_once(runs[seed], own, pairs, None, quiet, "towers")
        configs[path] = override(config, {"init": str(runs[seed])})


def measured_arm(
    trained: ArmRun, out: Path, gallery: Corpus | None, location: str, measure: MeasureConfig, trial: Trial, quiet: bool
) -> dict:
    """What a finished arm has on the task and what it cost, with the "figure" that counts, and its "run", a place in
    the folder `out`. gallery: of retrieval."""
    if gallery is None:
        result = measure_arm(trained.run, location, measure)
    else:
        if not (trained.run / SCORE).exists():
            settle_score(trained.run, top_k=measure.top_k, quiet=quiet)
        with bars(not quiet):
            result = measure_run(trained.run, gallery, measure)
    result = {**result, **_cost(trained, result, trial), "run": trained.run.relative_to(out).as_posix()}
    return {**result, "figure": figure_of(result, metric_of(measure))}


# ---- what was found


def _cost(trained: ArmRun, result: dict, trial: Trial) -> dict:
    """What a finished arm cost, from the provenance of its runs and its trial; what measuring took apart."""
    done = [provenance(run)["finished"] for run in trained.parts]
    seconds = sum(part["seconds"] for part in done)
    pairs = sum(part["seconds"] * part["pairs_per_second"] for part in done)
    asked = [own["queries"] for own in result["languages"].values()] if result["task"] == "retrieval" else []
    queries = sum(sum(own.values()) for own in asked)
    return {
        "steps": sum(part["step"] for part in done),
        "seconds": seconds + trained.table_seconds,
        "pairs_per_second": pairs / seconds if len(done) > 1 and seconds else done[0]["pairs_per_second"],
        "measure_seconds": result["seconds"],
        "ms_a_query": 1000 * result["seconds"] / queries if queries else None,
        "parameters": trial.parameters,
        "flops_a_pair": trial.flops,
        "peak_mib": trial.peak,
    }


def summary(name: str, results: list[dict]) -> dict:
    """A system's runs as one: recalls (where retrieval was measured), figure and cost averaged over seeds, with their
    spread."""
    mean, spread = mean_and_spread([_varying(result) for result in results])
    first = results[0]
    about = {key: value for key, value in first.items() if key not in ("seed", "run", "steps")}
    if "languages" in mean:
        mean["languages"] = {name: {**stages, **mean["languages"][name]} for name, stages in first["languages"].items()}
    else:
        about = {key: about[key] for key in ("system", "task")}
    paper = systems.find(first["system"]).paper
    return {**about, **mean, "fidelity": paper.fidelity, "spread": spread, "seeds": results}


def _varying(result: dict) -> dict:
    """What differs from seed to seed: recalls by language and stage, the figure that counts, and cost."""
    numbers = {key: result[key] for key in ("figure", *COSTS) if result.get(key) is not None}
    if result.get("task", "retrieval") != "retrieval":
        return numbers
    languages = {
        language: {stage: stages[stage] for stage in STAGES if stage in stages}
        for language, stages in result["languages"].items()
    }
    return {"languages": languages, **numbers}
