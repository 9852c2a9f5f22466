"""A recipe of stages: what each is, read from YAML and checked before any work.

Beside `stages:` a recipe may say `size`, `seed`, and settings of runs (`train`, `data`, `tokenizer`, ...), which hold
for every stage that trains; a stage's own `set:` goes over them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from tuwen.config import convert, override, read_yaml
from tuwen.data import draws
from tuwen.errors import UserError, quoted
from tuwen.run import STATE, holds_run
from tuwen.training.config import RunConfig, with_changes
from tuwen.training.stages.kinds import KINDS

TRAIN = "train"
_FIRST = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_LETTERS = _FIRST | frozenset("_-")
# settings that a stage says in words of its own, by which its inputs are known: `set:` may not go over them
_STAGES_OWN = ("system", "size", "corpus", "preset", "init", "data.beside", "data.teachers", "train.seed")
_TAKEN = {"stages", "size", "seed", *(name for name in RunConfig.__dataclass_fields__)}


@dataclass(frozen=True)
class Stage:
    """One stage. What it names may be an earlier stage, or a run or table that lies somewhere.

    name: of its folder. do: "train", or one of `KINDS`.
    system, size, preset, task, init, teachers: of a stage that trains, as of `tuwen train`.
    run: that a stage of another kind asks.
    beside: tables laid over its corpus.
    corpus: another than the recipe's, a name that `--also` gives or a location. split: of it.
    seed: drawn from the recipe's seed and the stage's name unless told.
    set: its settings by dotted or nested name.
    """

    name: str
    do: str = TRAIN
    system: str | None = None
    size: str | None = None
    preset: str | None = None
    task: str | None = None
    run: str | None = None
    init: str | Mapping[str, str] | None = None
    teachers: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    corpus: str | None = None
    split: str | None = None
    seed: int | None = None
    set: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        letters = [c in _LETTERS for c in self.name]
        if not self.name or not all(letters) or self.name[0] not in _FIRST or len(self.name) > 40:
            raise ValueError(f"name {quoted(self.name, 60)} must be small letters, digits, - and _, at most 40")
        if self.name in _TAKEN:
            raise ValueError(f"name {self.name!r} is that of a setting; choose another")
        kinds = (TRAIN, *KINDS)
        if self.do not in kinds:
            raise ValueError(f"do must be one of {', '.join(kinds)}, got {quoted(self.do, 60)}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie between 0 and 2^63, got {quoted(self.seed, 40)}")
        trains = ("system", "size", "preset", "task", "init", "teachers")
        if self.do == TRAIN and (self.run is not None or self.system is None):
            raise ValueError("a stage that trains names its system, and starts from a run by init (not run)")
        if self.do != TRAIN and (wrong := [name for name in trains if getattr(self, name)]):
            raise ValueError(f"{wrong[0]} is of stages that train, not of do: {self.do}")
        if self.do != TRAIN and KINDS[self.do].asks != (self.run is not None):
            asks = "names the run that it asks (run: an earlier stage)" if KINDS[self.do].asks else "asks no run"
            raise ValueError(f"do: {self.do} {asks}")


@dataclass(frozen=True)
class Recipe:
    """path: of the file. common: settings for all stages that train."""

    path: Path
    stages: tuple[Stage, ...]
    size: str | None
    seed: int
    common: Mapping[str, Any]


@dataclass(frozen=True)
class Planned:
    """A stage with all that it needs to be done.

    place: of its corpus. config: a run's, or that of its kind. needs: what it names -> its folder or file, those of
    earlier stages among them.
    """

    stage: Stage
    folder: Path
    place: str
    split: str
    seed: int
    config: Any
    needs: Mapping[str, Path]


def is_recipe(content: Mapping[str, Any]) -> bool:
    """Whether what a YAML file holds is a recipe of stages."""
    return "stages" in content


def read_recipe(
    path: str | Path, changes: Mapping[str, Any] | None = None, size: str | None = None, seed: int | None = None
) -> Recipe:
    """The recipe of a file. changes: settings for all stages that train, or, after a stage's name and a dot, its own.

    Raises:
        UserError: no recipe of stages, or a mistake in one, with the stage's name.
    """
    path = Path(path)
    content = read_yaml(path)
    listed = content.pop("stages", None)
    if not isinstance(listed, list) or not listed or not all(isinstance(entry, dict) for entry in listed):
        raise UserError(f"{path}: no recipe of stages; it lists them under `stages:`, each with name and do")
    stages: dict[str, Stage] = {}
    for place, entry in enumerate(listed, 1):
        stage = _stage(path, place, entry)
        if stage.name in stages:
            raise UserError(f"{path}: two stages are called {stage.name}")
        stages[stage.name] = stage
    common = {**content}
    for name, value in (changes or {}).items():
        first, _, rest = name.partition(".")
        if first in stages and rest:
            stages[first] = replace(stages[first], set={**stages[first].set, rest: value})
        else:
            common[name] = value
    size, seed = size or common.pop("size", None), common.pop("seed", 0) if seed is None else seed
    common = {name: value for name, value in common.items() if name not in ("size", "seed", "compare")}
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise UserError(f"{path}: seed must lie between 0 and 2^63, got {quoted(seed, 40)}")
    return Recipe(path, tuple(stages.values()), size, seed, common)


def _stage(path: Path, place: int, entry: Mapping[str, Any]) -> Stage:
    name = entry.get("name")
    if not isinstance(name, str):
        raise UserError(f"{path}: stage {place} has no name; give it one, by which its folder is called")
    with of_stage(path, name):
        return convert(entry, Stage, f"stages[{place - 1}]")


@contextmanager
def of_stage(path: Path, name: str) -> Iterator[None]:
    """Mistakes within are told with the recipe and the stage."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}, stage {quoted(name, 60)[1:-1]}: {error}") from None


def plan(recipe: Recipe, corpus: str, out: Path, also: Mapping[str, str]) -> list[Planned]:
    """Every stage with its folder, corpus, settings and inputs; nothing is written.

    Raises:
        UserError: a stage with settings or inputs that cannot be.
    """
    planned: dict[str, Planned] = {}
    for stage in recipe.stages:
        with of_stage(recipe.path, stage.name):
            planned[stage.name] = _planned(recipe, stage, corpus, out, also, planned)
    named = {stage.corpus for stage in recipe.stages}
    if unused := [name for name in also if name not in named]:
        raise UserError(f"{recipe.path}: no stage has the corpus {unused[0]}, which --also gives")
    return list(planned.values())


def _planned(recipe: Recipe, stage: Stage, corpus: str, out: Path, also: Mapping[str, str], before) -> Planned:
    place = corpus if stage.corpus is None else also.get(stage.corpus, stage.corpus)
    if stage.corpus and stage.corpus.isupper() and stage.corpus not in also:
        raise UserError(f"its corpus {stage.corpus} is not given; say --also {stage.corpus}=CORPUS")
    seed = draws.key(recipe.seed, stage.name) & (2**31 - 1) if stage.seed is None else stage.seed
    needs: dict[str, Path] = {}
    for number, name in enumerate(stage.beside):
        needs[f"beside.{number}"] = _input(name, before, runs=False)
    for role, name in stage.teachers.items():
        needs[f"teachers.{role}"] = _input(name, before, runs=True)
    if stage.run is not None:
        needs["run"] = _input(stage.run, before, runs=True)
    for tower, name in _inits(stage):
        needs[f"init.{tower}" if tower else "init"] = _input(name.removesuffix(f":{STATE}"), before, runs=True)
    folder = out / stage.name
    if stage.do != TRAIN:
        config = override(KINDS[stage.do].config(), stage.set)
        return Planned(stage, folder, place, stage.split or "train", seed, config, needs)
    config = _run_config(recipe, stage, place, seed, needs, before)
    if (lexicon := before.get(config.tokenizer.lexicon)) is not None:
        if lexicon.stage.do != "knowledge":
            raise UserError(f"tokenizer.lexicon: the stage {lexicon.stage.name} makes no lexicon (do: knowledge does)")
        needs["lexicon"] = lexicon.folder
        config = with_changes(config, {"tokenizer.lexicon": str(lexicon.folder)})
    return Planned(stage, folder, place, config.data.split, seed, config, needs)


def _inits(stage: Stage) -> list[tuple[str, str]]:
    if stage.init is None:
        return []
    return [("", stage.init)] if isinstance(stage.init, str) else list(stage.init.items())


def _run_config(recipe: Recipe, stage: Stage, place: str, seed: int, needs: Mapping[str, Path], before) -> RunConfig:
    """The config of a stage that trains."""
    known = {str(other.folder): other.config for other in before.values()}
    first = None
    if isinstance(stage.init, str):
        first = known.get(str(needs["init"])) or RunConfig.read(needs["init"])
    size = stage.size or (None if first is not None and first.system == stage.system else recipe.size)
    assert stage.system is not None
    plain = RunConfig.starting(stage.system, place, {}, size, stage.preset, stage.task, first)
    config = with_changes(plain, {**recipe.common, **stage.set})
    for setting in _STAGES_OWN:
        if attrgetter(setting)(config) != attrgetter(setting)(plain):
            raise UserError(f"{setting} is no setting here: the stage says it itself (`{setting.rpartition('.')[2]}:`)")
    named: dict[str, Any] = {f"data.teachers.{role}": str(needs[f"teachers.{role}"]) for role in stage.teachers}
    if stage.beside:
        named["data.beside"] = tuple(str(needs[f"beside.{k}"]) for k in range(len(stage.beside)))
    if isinstance(stage.init, str):
        named["init"] = str(needs["init"]) + (f":{STATE}" if stage.init.endswith(f":{STATE}") else "")
    elif stage.init:
        named["init"] = {tower: str(needs[f"init.{tower}"]) for tower in stage.init}
    if stage.split is not None:
        named["data.split"] = stage.split
    return with_changes(config, {**named, "train.seed": seed})


def _input(name: str, before: Mapping[str, Planned], runs: bool) -> Path:
    """The folder of an earlier stage, or what lies at a path.

    Raises:
        UserError: neither, or of the other kind.
    """
    kind = "run" if runs else "table"
    if name in before:
        if (before[name].stage.do == TRAIN) != runs:
            raise UserError(f"{name} is no {kind}: its stage says do: {before[name].stage.do}")
        return before[name].folder
    path = Path(name).absolute()
    if holds_run(path) if runs else path.exists():
        return path
    earlier = [stage for stage, other in before.items() if (other.stage.do == TRAIN) == runs]
    there = ", ".join(earlier) or "none"
    raise UserError(f"{quoted(name, 80)} is neither an earlier stage that makes a {kind} ({there}) nor a {kind}")
