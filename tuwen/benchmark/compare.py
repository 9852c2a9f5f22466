"""The fair comparison: systems times seeds at equal steps, on the same corpus, order, tokenizer and first weights.

Order and first weights are functions of the seed, so two systems of one seed see the same pairs from the same start
(`grit_vlp`, whose method is an order, from the second epoch on in its own).
Every run lies in OUT/SYSTEM-seedK; what is finished is not repeated, what was stopped goes on.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tuwen import systems
from tuwen.benchmark.measure import MeasureConfig, measure_run
from tuwen.benchmark.score import settle_score
from tuwen.benchmark.statistics import STAGES, differences, mean_and_spread
from tuwen.config import override
from tuwen.data.corpus import Corpus
from tuwen.data.open import open_corpus, splits_of
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError, quoted
from tuwen.progress import bars
from tuwen.run import SCORE, TOKENIZER, holds_run, provenance
from tuwen.tasks.retrieval import retrieve
from tuwen.training import checkpoint, loop, start
from tuwen.training.config import RunConfig
from tuwen.training.once import train_once
from tuwen.training.towers import Published

RESULT = "comparison.json"
DRAWN = Published()  # no towers of others: all weights are drawn
COSTS = ("seconds", "pairs_per_second", "measure_seconds")


@dataclass(frozen=True)
class CompareConfig:
    """What only a comparison reads; under `compare:` in a recipe.

    arms: a system's name -> settings by dotted or nested name for it alone ({"albef": {"model.queue": 1}}). towers:
    steps of a clip run trained first for each seed, in OUT/towers-seedK, from whose towers every system of that seed
    starts, as published fusion systems start from trained encoders; 0: from the same drawn weights. measure: how runs
    are measured.
    """

    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    towers: int = 0
    measure: MeasureConfig = field(default_factory=MeasureConfig)

    def __post_init__(self):
        if self.towers < 0:
            raise ValueError(f"towers must be 0 or more steps, got {self.towers}")


def compare(
    names: Sequence[str],
    corpus: str | Path,
    out: str | Path,
    *,
    size: str = "small",
    steps: int | None = None,
    seeds: int = 1,
    published: Published = DRAWN,
    changes: Mapping[str, Any] | None = None,
    how: CompareConfig | None = None,
    validation: int = 200,
    quiet: bool = False,
) -> dict:
    """Trains and measures every system with every seed, and writes OUT/comparison.json.

    names: systems, in the order of all tables, or arms of one ("wukong:model.style=filip"). steps: optimizer steps of
    every run (default: the config's). seeds: runs a system, from `train.seed` on. published: towers that every run
    starts from. changes: config by dotted or nested name for all systems. how: what single systems differ in, and how
    runs are measured. validation: pictures of "val" (else of the split) followed.

    Gives `{"systems": {name: the retrieval JSON, averaged over seeds, with "seconds", "pairs_per_second", "fidelity",
    "seeds" (each run's own), "spread" (deviation over seeds)}}` with "differences", "corpus", "split" and the like.

    Raises:
        UserError: unknown or repeated systems or settings, or a run in `out` with other settings.
        Interrupted: after SIGTERM or Ctrl-C; the same call goes on.
    """
    out, how = Path(out), how or CompareConfig()
    measure = how.measure
    configs = _configs(names, str(corpus), out, size, steps, seeds, changes or {}, how.arms, published)
    arms = {run: names[k % len(names)] for k, run in enumerate(configs)}
    first = next(iter(configs.values()))
    pairs = open_corpus(corpus, "train", first.data.on_bad)
    gallery = open_corpus(corpus, measure.split, first.data.on_bad)
    watched = open_corpus(corpus, "val", first.data.on_bad) if "val" in splits_of(str(corpus)) else gallery
    evaluate = _validator(watched, validation) if validation else None
    _share_tokenizer(out, configs, pairs)
    if how.towers:
        _train_towers(out, configs, how.towers, pairs, quiet)
    results_of: dict[str, list[dict]] = {name: [] for name in names}
    for number, (run, config) in enumerate(configs.items(), 1):
        train_once(run, config, pairs, evaluate, quiet, f"run {number} of {len(configs)}")
        result = _measure(run, gallery, measure, quiet)
        results_of[arms[run]].append({"seed": config.train.seed, **result, **_cost(run, result)})
    comparison = {
        "systems": {name: summary(name, results) for name, results in results_of.items()},
        "differences": differences(results_of),
        "corpus": gallery.name,
        "location": str(corpus),
        "split": gallery.split,
        "watched": watched.split,
        "size": size,
        "steps": next(iter(results_of.values()))[0]["steps"],
        "batch_size": first.train.batch_size,
        "fingerprints": {"train": pairs.fingerprint, gallery.split: gallery.fingerprint},
    }
    checkpoint.write(out / RESULT, json.dumps(comparison, ensure_ascii=False, indent=1) + "\n")
    return comparison


# ---- what is trained


def _configs(
    names: Sequence[str],
    corpus: str,
    out: Path,
    size: str,
    steps: int | None,
    seeds: int,
    changes: Mapping[str, Any],
    arms: Mapping[str, Mapping[str, Any]],
    published: Published = DRAWN,
) -> dict[Path, RunConfig]:
    """The config of every run by its folder, all checked before any work; systems take turns within a seed."""
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated or not names:
        raise UserError(f"compare: {repeated[0]} is named twice" if repeated else "compare: name at least one system")
    if unknown := sorted(arms.keys() - set(systems.names())):
        raise UserError(f"config field compare.arms: no system called {quoted(unknown[0])}; `tuwen systems` lists them")
    budget = {} if steps is None else {"train.steps": steps}
    configs = {}
    for turn in range(seeds):
        for name in names:
            system, settings = arm(name)
            own = {**arms.get(system, {}), **settings, **budget}
            config = RunConfig.of(system, size, corpus)
            config = override(override(config, {**published.changes(config.model), **changes}), own)
            seed = config.train.seed + turn
            folder = re.sub(r"[^\w.=-]+", "-", name)
            configs[out / f"{folder}-seed{seed}"] = override(config, {"train.seed": seed})
    spent = {(config.train.batch_size, config.train.steps or config.train.epochs) for config in configs.values()}
    if len(spent) > 1:
        raise UserError("compare: systems differ in train.batch_size, steps or epochs; give all the same budget")
    return configs


def arm(name: str) -> tuple[str, dict[str, str]]:
    """("wukong", {"model.style": "filip"}) of "wukong:model.style=filip,...": a system and what is set for this arm.

    Raises:
        UserError: if a setting is not NAME=VALUE.
    """
    system, _, listed = name.partition(":")
    settings = {}
    for setting in filter(None, listed.split(",")):
        key, equals, value = setting.partition("=")
        if not (key and equals):
            raise UserError(f"compare: {name}: {setting!r} is not NAME=VALUE, as in {system}:model.embed=64")
        settings[key] = value
    return system, settings


def _share_tokenizer(out: Path, configs: dict[Path, RunConfig], pairs: Corpus) -> None:
    """OUT/tokenizer.json, made once and given to every run's config."""
    path = out / TOKENIZER
    begun = any(holds_run(run) for run in configs)
    own = {TOKENIZER, *(run.relative_to(out).parts[0] for run in configs)}
    if not begun and out.is_dir() and (others := {path.name for path in out.iterdir()} - own):
        raise UserError(f"{out} holds something else than a comparison ({quoted(min(others))}); choose another folder")
    if not (begun and path.exists()):
        out.mkdir(parents=True, exist_ok=True)
        start.make_tokenizer(next(iter(configs.values())), [pairs]).save(path)
    Tokenizer.load(path)  # a damaged file is told before any work
    for run, config in configs.items():
        configs[run] = override(config, {"tokenizer.file": str(path)})


def _train_towers(out: Path, configs: dict[Path, RunConfig], steps: int, pairs: Corpus, quiet: bool) -> None:
    """A clip run a seed, of the first system's towers, which becomes the start of every system of that seed."""
    runs: dict[int, Path] = {}
    for path, config in configs.items():
        seed = config.train.seed
        if seed not in runs:
            runs[seed] = out / f"towers-seed{seed}"
            shared = {name: getattr(config.model, name) for name in ("image", "text", "embed")}
            model = replace(RunConfig.of("clip", config.size, config.corpus).model, **shared)
            own = override(replace(config, system="clip", model=model), {"train.steps": steps})
            train_once(runs[seed], own, pairs, None, quiet, "towers")
        configs[path] = override(config, {"init": str(runs[seed])})


def _measure(run: Path, gallery: Corpus, measure: MeasureConfig, quiet: bool) -> dict:
    if not (run / SCORE).exists():
        settle_score(run, top_k=measure.top_k, quiet=quiet)
    with bars(not quiet):
        return measure_run(run, gallery, measure)


def _validator(watched: Corpus, pictures: int) -> loop.Evaluate:
    """Called while training: first-stage recalls by language on some pictures."""

    def evaluate(trained: loop.Trained, step: int) -> dict:
        languages = retrieve(trained.predictor, watched, limit=pictures, rerank=False).json["languages"]
        return {
            language: {stage: recalls[stage] for stage in (*STAGES, "chance") if stage in recalls}
            for language, recalls in languages.items()
        }

    return evaluate


# ---- what was found


def _cost(run: Path, result: dict) -> dict:
    """What a finished run cost, from its provenance; the seconds of its measurement under a name of their own."""
    done = provenance(run)["finished"]
    return {
        "run": run.name,
        "steps": done["step"],
        "seconds": done["seconds"],
        "pairs_per_second": done["pairs_per_second"],
        "measure_seconds": result["seconds"],
    }


def summary(name: str, results: list[dict]) -> dict:
    """A system's runs as one: recalls and cost averaged over seeds, with their spread."""
    mean, spread = mean_and_spread([_varying(result) for result in results])
    first = results[0]
    about = {key: value for key, value in first.items() if key not in ("seed", "run", "steps")}
    languages = {name: {**stages, **mean["languages"][name]} for name, stages in first["languages"].items()}
    paper = systems.find(arm(name)[0]).paper
    return {**about, **mean, "languages": languages, "fidelity": paper.fidelity, "spread": spread, "seeds": results}


def _varying(result: dict) -> dict:
    """What differs from seed to seed: recalls by language and stage, and cost."""
    languages = {
        language: {stage: stages[stage] for stage in STAGES if stage in stages}
        for language, stages in result["languages"].items()
    }
    return {"languages": languages, **{key: result[key] for key in COSTS}}
