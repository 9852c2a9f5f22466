"""A recipe of stages as an arm of a comparison: planned, given its budget, done, and counted.

The comparison's steps are those of all the recipe's stages that train together: each gets the share that it has in the
recipe. Its last stage that trains is the run that is measured. It has the comparison's seed, and so the order of other
arms; the seeds of the others are drawn from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tuwen.benchmark.trial import Trial, trial_of
from tuwen.config import dotted, override
from tuwen.errors import UserError, quoted
from tuwen.run import provenance
from tuwen.training.config import RunConfig, fitting_batch
from tuwen.training.stages.doing import corpus_of
from tuwen.training.stages.go import run_recipe
from tuwen.training.stages.recipe import Planned, Recipe, plan, read_recipe
from tuwen.training.stages.record import is_training, read_record
from tuwen.training.validation import Evaluate

OURS = Path(__file__).parent / "claims" / "recipes"  # those of claims, found by name from anywhere
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class RecipeArm:
    """A recipe with its settings, and where its stages lie; also: further corpora by the names stages have for them."""

    recipe: Recipe
    corpus: str
    folder: Path
    also: Mapping[str, str]

    @cached_property
    def trained(self) -> list[Planned]:
        """The stages that train, the last of which is the run that is measured."""
        stages = plan(self.recipe, self.corpus, self.folder.absolute(), self.also)
        return [planned for planned in stages if is_training(planned)]

    @property
    def run(self) -> Path:
        return self.folder / self.last.stage.name

    @property
    def last(self) -> Planned:
        return self.trained[-1]

    @property
    def words(self) -> RunConfig:
        """What a tokenizer is made by: the first stage that trains, without what earlier stages make."""
        return override(self.trained[0].config, {"init": None, "tokenizer.lexicon": None})

    @property
    def steps(self) -> int:
        return sum(steps_of(planned) for planned in self.trained)

    def of_steps(self, total: int) -> "RecipeArm":
        """With so many steps in all, shared out as they are now.

        Raises:
            UserError: fewer than one step a stage.
        """
        own = [steps_of(planned) for planned in self.trained]
        shares = shared_out(total, own)
        if min(shares) < 1:
            raise UserError(f"compare: {total} steps are too few for the {len(own)} stages of {self.recipe.path}")
        counts = {planned.stage.name: count for planned, count in zip(self.trained, shares, strict=True)}
        stages = tuple(
            replace(stage, set={**stage.set, "train.steps": counts[stage.name]}) if stage.name in counts else stage
            for stage in self.recipe.stages
        )
        return replace(self, recipe=replace(self.recipe, stages=stages))

    def do(self, evaluate: Evaluate | None, tokenizer: Path, quiet: bool) -> None:
        """Does every stage, goes on, or leaves what is done. evaluate: watches the run that is measured.

        Raises:
            UserError: as `run_recipe`.
            Interrupted: after SIGTERM or Ctrl-C in a stage that trains; the same call goes on.
        """
        measured = self.last.config

        def watch(config: RunConfig) -> Evaluate | None:
            own = replace(config, tokenizer=measured.tokenizer)
            return evaluate if config.task is None and own == measured else None

        run_recipe(self.recipe, self.corpus, self.folder, self.also, watch, quiet, rehearsal=False, tokenizer=tokenizer)

    def seconds_of_tables(self) -> float:
        """What the stages took that do not train."""
        trained = {planned.folder for planned in self.trained}
        stages = plan(self.recipe, self.corpus, self.folder.absolute(), self.also)
        others = [planned.folder for planned in stages if planned.folder not in trained]
        return sum(read_record(folder)["finished"]["seconds"] for folder in others)

    def cost(self, file: Callable[[str], Path]) -> Trial:
        """Work a pair over all stages that train, by a few steps of each once they are done; the parameters of the run
        that is measured. file: where what a stage cost is kept, by its name."""
        trials = [trial_of(RunConfig.read(p.folder), None, file(p.stage.name)) for p in self.trained]
        done = [provenance(planned.folder)["finished"] for planned in self.trained]
        pairs = [part["seconds"] * part["pairs_per_second"] for part in done]
        flops = sum(trial.flops * count for trial, count in zip(trials, pairs, strict=True)) / max(sum(pairs), 1e-9)
        peaks = [trial.peak for trial in trials if trial.peak is not None]
        return replace(trials[-1], flops=flops, peak=max(peaks) if peaks else None)


def is_recipe_arm(name: str) -> bool:
    """Whether an arm is a recipe: what stands before its settings ends in .yaml or .yml."""
    return name.partition(":")[0].endswith(_SUFFIXES)


def recipe_arm(
    name: str,
    settings: Mapping[str, Any],
    corpus: str,
    folder: Path,
    size: str,
    seed: int,
    changes: Mapping[str, Any],
    also: Mapping[str, str],
) -> RecipeArm:
    """An arm of its file, or of one of ours by its name. settings: of this arm; changes: of all arms, which go under
    what a stage sets itself.

    Raises:
        UserError: no such recipe, or a mistake in it.
    """
    path = next((place for place in (Path(name), OURS / name) if place.is_file()), None)
    if path is None:
        raise UserError(f"compare: no recipe {quoted(name, 120)}; an arm that ends in .yaml is a recipe's file")
    common = {key: value for key, value in dotted(changes).items() if key != "train.seed"}
    recipe = read_recipe(path, {**common, **settings}, size, seed)
    training = [stage.name for stage in recipe.stages if stage.do == "train"]
    if not training:
        raise UserError(f"compare: {path} has no stage that trains: nothing of it can be measured")
    stages = tuple(
        replace(stage, seed=seed) if stage.name == training[-1] and stage.seed is None else stage
        for stage in recipe.stages
    )
    named = {stage.corpus for stage in stages}
    own = {place: where for place, where in also.items() if place in named}
    return RecipeArm(replace(recipe, stages=stages), corpus, folder, own)


def steps_of(planned: Planned) -> int:
    """The steps of a stage that trains; epochs are counted on its corpus."""
    train = planned.config.train
    if train.steps:
        return int(train.steps)
    rows = len(corpus_of(planned))
    return max(1, round(train.epochs * (rows // fitting_batch(train, rows).batch_size)))


def shared_out(total: int, own: list[int]) -> list[int]:
    """Whole shares of `total` in the proportions of `own`; what rounding leaves over is the last's."""
    shares = [total * count // sum(own) for count in own]
    shares[-1] += total - sum(shares)
    return shares
