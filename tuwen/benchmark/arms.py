"""The arms of a comparison: what a name stands for, each arm's config a seed, and one function that trains an arm.

An arm is a system, or one with settings of its own ("wukong:model.style=filip"), or a recipe of stages
("recipes/nlip.yaml:final.model.softening=0"); `train_arm` takes it from its config to the run that is measured.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tuwen import systems, tasks
from tuwen.benchmark.recipe_arms import RecipeArm, is_recipe_arm, recipe_arm
from tuwen.benchmark.statistics import STAGES
from tuwen.config import dotted, override, to_dict
from tuwen.data.corpus import Corpus
from tuwen.errors import UserError, quoted
from tuwen.progress import announce
from tuwen.run import holds_run
from tuwen.tasks.retrieval import retrieve
from tuwen.training import loop
from tuwen.training.config import RunConfig, TrainConfig
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
    """run: the folder that is measured. parts: all runs trained for it, itself the last: what the arm cost, with the
    seconds of stages that do not train."""

    run: Path
    parts: tuple[Path, ...]
    table_seconds: float = 0.0


def train_arm(
    run: Path,
    config: RunConfig,
    pairs: Corpus,
    evaluate: loop.Evaluate | None,
    learnt: Learnt | None = None,
    *,
    recipe: RecipeArm | None = None,
    quiet: bool = False,
    place: str = "",
) -> ArmRun:
    """Trains an arm in the folder `run`, goes on with it, or leaves what is finished; then, beside it, what it learns.

    evaluate: called while training. recipe: whose stages the arm is, the last of which is that run. place: which run of
    how many, for the line that is said.

    Raises:
        UserError: a folder there of other settings, corpus or tokenizer.
        Interrupted: after SIGTERM or Ctrl-C; the same call goes on.
    """
    trained = _train(run, config, pairs, evaluate, recipe, quiet, place)
    if learnt is None or config.task_name == learnt.task:
        return trained
    head = run.with_name(f"{run.name}-{learnt.task}")
    shared = {f"train.{name}": getattr(config.train, name) for name in (*_MACHINE, "seed")}
    changes = {"model": to_dict(config.model), "init": str(run), "data.workers": config.data.workers}
    changes |= shared | dict(learnt.settings)
    own = RunConfig.of(config.system, config.size, config.corpus, "finetune", changes, learnt.task)
    if holds_run(head):
        refuse_other_settings(head, own, {"init", "train.seed", *weighty(learnt.settings)})
    train_once(head, own, None, None, quiet, f"{place}, {learnt.task}")
    return ArmRun(head, (*trained.parts, head), trained.table_seconds)


def _train(run, config, pairs, evaluate, recipe: RecipeArm | None, quiet: bool, place: str) -> ArmRun:
    if recipe is None:
        train_once(run, config, pairs, evaluate, quiet, place)
        return ArmRun(run, (run,))
    if not quiet:
        announce(f"{place}: {recipe.folder.name}, {len(recipe.recipe.stages)} stages")
    recipe.do(evaluate, Path(config.tokenizer.file or "").absolute(), quiet)
    return ArmRun(run, tuple(recipe.folder / part.stage.name for part in recipe.trained), recipe.seconds_of_tables())


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
    """What an arm's folders begin with; a recipe's, with the name of its file."""
    if is_recipe_arm(name):
        file, colon, settings = name.partition(":")
        name = Path(file).name + colon + settings
    return re.sub(r"[^\w.=-]+", "-", name)


class PlannedArms(NamedTuple):
    """By the folder of every run that is measured: its config, and the recipe of those whose arm is one."""

    configs: dict[Path, RunConfig]
    recipes: dict[Path, RecipeArm]


def planned_arms(
    names: Sequence[str],
    corpus: str,
    out: Path,
    size: str,
    steps: int | Mapping[str, int] | None,
    seeds: int,
    changes: Mapping[str, Any],
    arms: Mapping[str, Mapping[str, Any]],
    published: Published = DRAWN,
    also: Mapping[str, str] | None = None,
) -> PlannedArms:
    """The config of every run, all checked before any work; arms take turns within a seed.

    steps: of every arm, or of each by its name where an equal budget buys them unlike many; those of a recipe are of
    all its stages that train. also: further corpora by the names that stages of recipes have for them.
    """
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated or not names:
        raise UserError(f"compare: {repeated[0]} is named twice" if repeated else "compare: name at least one system")
    if unknown := sorted(arms.keys() - set(systems.names())):
        raise UserError(f"config field compare.arms: no system called {quoted(unknown[0])}; `tuwen systems` lists them")
    planned = PlannedArms({}, {})
    spent: set[tuple[int, float | None]] = set()
    first_seed = override(TrainConfig(), {"seed": dotted(changes).get("train.seed", 0)}).seed
    for turn in range(seeds):
        for name in names:
            system, settings = arm_settings(name)
            count = steps.get(name) if isinstance(steps, Mapping) else steps
            if is_recipe_arm(name):
                if any(published):
                    raise UserError(f"compare: {name} says in its stages where towers come from; give none beside it")
                seed = first_seed + turn
                folder = out / f"{arm_folder(name)}-seed{seed}"
                recipe = recipe_arm(system, settings, corpus, folder, size, seed, changes, also or {})
                recipe = recipe if count is None else recipe.of_steps(count)
                if recipe.run in planned.configs:
                    raise UserError(f"compare: {name} has the folder of another arm; call the files differently")
                planned.configs[recipe.run], planned.recipes[recipe.run] = recipe.last.config, recipe
                spent |= {(stage.config.train.batch_size, recipe.steps) for stage in recipe.trained}
                continue
            own = {**arms.get(system, {}), **settings, **({} if count is None else {"train.steps": count})}
            config = RunConfig.of(system, size, corpus)
            config = override(override(config, {**published.changes(config.model), **changes}), own)
            seed = config.train.seed + turn
            planned.configs[out / f"{arm_folder(name)}-seed{seed}"] = override(config, {"train.seed": seed})
            spent.add((config.train.batch_size, config.train.steps or config.train.epochs))
    if len(spent) > 1 and not isinstance(steps, Mapping):
        raise UserError("compare: systems differ in train.batch_size, steps or epochs; give all the same budget")
    return planned


def learnt_of(configs: Iterable[RunConfig], task: str, settings: Mapping[str, Any]) -> Learnt | None:
    """What every arm learns before it is measured on a task: asked before any work. None: it is measured as it is. A
    recipe whose last stage learns the task learns nothing more.

    settings: of those runs; any say that a task that could be measured as it is is to be learnt.

    Raises:
        UserError: an arm that cannot do the task.
    """
    for config in configs:
        if config.task_name not in (None, task):
            raise UserError(f"compare: a recipe ends with {config.task_name}, and {task} is measured; give --task")
        tasks.able(config.system, task)
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
