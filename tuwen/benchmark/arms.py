"""The arms of a comparison: what a name stands for, each arm's config a seed, and one function that trains an arm.

An arm is a system, or one with settings of its own ("wukong:model.style=filip"); `train_arm` takes it from its config
to the run that is measured.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuwen import systems, tasks
from tuwen.benchmark.statistics import STAGES
from tuwen.config import override, to_dict
from tuwen.data.corpus import Corpus
from tuwen.errors import UserError, quoted
from tuwen.run import holds_run
from tuwen.tasks.retrieval import retrieve
from tuwen.training import loop
from tuwen.training.config import RunConfig
from tuwen.training.once import refuse_other_settings, train_once, weighty
from tuwen.training.towers import Published

DRAWN = Published()  # no towers of others: all weights are drawn
_MACHINE = ("device", "precision", "threads", "compile")  # of train: what a head's run takes from its system's


@dataclass(frozen=True)
class Learnt:
    """A task that every arm learns on top of what it was trained to: its name, and settings of those runs alone."""

    task: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class ArmRun:
    """run: the folder that is measured. parts: all runs trained for it, itself the last: what the arm cost."""

    run: Path
    parts: tuple[Path, ...]


def train_arm(
    run: Path,
    config: RunConfig,
    pairs: Corpus,
    evaluate: loop.Evaluate | None,
    learnt: Learnt | None = None,
    *,
    quiet: bool = False,
    place: str = "",
) -> ArmRun:
    """Trains an arm in the folder `run`, goes on with it, or leaves what is finished; then, beside it, what it learns.

    evaluate: called while training. place: which run of how many, for the line that is said.

    Raises:
        UserError: a folder there of other settings, corpus or tokenizer.
        Interrupted: after SIGTERM or Ctrl-C; the same call goes on.
    """
    train_once(run, config, pairs, evaluate, quiet, place)
    if learnt is None:
        return ArmRun(run, (run,))
    head = run.with_name(f"{run.name}-{learnt.task}")
    shared = {f"train.{name}": getattr(config.train, name) for name in (*_MACHINE, "seed")}
    changes = {"model": to_dict(config.model), "init": str(run), "data.workers": config.data.workers}
    changes |= shared | dict(learnt.settings)
    own = RunConfig.of(config.system, config.size, config.corpus, "finetune", changes, learnt.task)
    if holds_run(head):
        refuse_other_settings(head, own, {"init", "train.seed", *weighty(learnt.settings)})
    train_once(head, own, None, None, quiet, f"{place}, {learnt.task}")
    return ArmRun(head, (run, head))


# ---- what a name stands for


def arm_settings(name: str) -> tuple[str, dict[str, str]]:
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


def arm_folder(name: str) -> str:
    """What an arm's folders begin with."""
    return re.sub(r"[^\w.=-]+", "-", name)


def arm_configs(
    names: Sequence[str],
    corpus: str,
    out: Path,
    size: str,
    steps: int | Mapping[str, int] | None,
    seeds: int,
    changes: Mapping[str, Any],
    arms: Mapping[str, Mapping[str, Any]],
    published: Published = DRAWN,
) -> dict[Path, RunConfig]:
    """The config of every run by its folder, all checked before any work; arms take turns within a seed.

    steps: of every arm, or of each by its name where an equal budget buys them unlike many.
    """
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated or not names:
        raise UserError(f"compare: {repeated[0]} is named twice" if repeated else "compare: name at least one system")
    if unknown := sorted(arms.keys() - set(systems.names())):
        raise UserError(f"config field compare.arms: no system called {quoted(unknown[0])}; `tuwen systems` lists them")
    configs = {}
    for turn in range(seeds):
        for name in names:
            system, settings = arm_settings(name)
            count = steps.get(name) if isinstance(steps, Mapping) else steps
            own = {**arms.get(system, {}), **settings, **({} if count is None else {"train.steps": count})}
            config = RunConfig.of(system, size, corpus)
            config = override(override(config, {**published.changes(config.model), **changes}), own)
            seed = config.train.seed + turn
            configs[out / f"{arm_folder(name)}-seed{seed}"] = override(config, {"train.seed": seed})
    spent = {(config.train.batch_size, config.train.steps or config.train.epochs) for config in configs.values()}
    if len(spent) > 1 and not isinstance(steps, Mapping):
        raise UserError("compare: systems differ in train.batch_size, steps or epochs; give all the same budget")
    return configs


def learnt_of(names: Sequence[str], task: str, settings: Mapping[str, Any]) -> Learnt | None:
    """What every arm learns before it is measured on a task: asked before any work. None: it is measured as it is.

    settings: of those runs; any say that a task that could be measured as it is is to be learnt.

    Raises:
        UserError: an arm that cannot do the task.
    """
    for name in names:
        tasks.able(arm_settings(name)[0], task)
    return Learnt(task, settings) if settings or tasks.find_task(task).learnt else None


def validator(watched: Corpus, pictures: int) -> loop.Evaluate:
    """Called while training: first-stage recalls by language on some pictures; their mean is the "score" where a run
    ends with the weights of its best validation."""

    def evaluate(trained: loop.Trained, step: int) -> dict:
        languages = retrieve(trained.predictor, watched, limit=pictures, rerank=False).json["languages"]
        recalls = {
            language: {stage: stages[stage] for stage in (*STAGES, "chance") if stage in stages}
            for language, stages in languages.items()
        }
        if trained.config.train.choose == "best":
            last = [(stages.get("first") or stages["reranked"])["mean_recall"] for stages in recalls.values()]
            recalls["score"] = sum(last) / len(last)
        return recalls

    return evaluate
