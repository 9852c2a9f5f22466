"""A recipe from start to end: every stage once, in order; what is done is left, what was stopped goes on."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tuwen.config import override
from tuwen.data.corpus import Corpus
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError, quoted
from tuwen.progress import announce
from tuwen.run import TOKENIZER, write
from tuwen.speech import chosen_language, spoken
from tuwen.training import start
from tuwen.training.stages.doing import EvaluateOf, corpus_of, do_stage
from tuwen.training.stages.recipe import Planned, Recipe, of_stage, plan
from tuwen.training.stages.record import (
    is_done,
    is_training,
    made_of,
    others_in,
    read_record,
    refuse_changed,
    write_record,
)
from tuwen.training.stages.rehearsal import Cost, costs_text, read_costs, rehearse

PLAN, COSTS = "recipe.yaml", "costs.json"  # in the recipe's folder, beside its stages


def run_recipe(
    recipe: Recipe,
    corpus: str,
    out: str | Path,
    also: Mapping[str, str] | None = None,
    evaluate_of: EvaluateOf | None = None,
    quiet: bool = False,
    rehearsal: bool = True,
    tokenizer: Path | None = None,
) -> list[Planned]:
    """Does every stage of a recipe in a folder of its own, OUT/NAME, and gives them.

    also: further corpora by the names that stages have for them. evaluate_of: what watches a run while it is trained.
    rehearsal: whether a miniature says first what each stage will take. tokenizer: of all runs that bring none; None:
    one of the recipe's own.

    Raises:
        UserError: a mistake in the recipe, or a stage whose inputs have changed since it was done.
        Interrupted: after SIGTERM or Ctrl-C in a stage that trains; the same call goes on.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "tuwen run is one process; train single stages with torchrun -m tuwen train, or leave torchrun out"
        )
    out = Path(out).absolute()
    stages = plan(recipe, corpus, out, also or {})
    corpora = _corpora(recipe, stages)
    for place, planned in enumerate(stages):
        refuse_changed(planned, made_of(planned, corpora[planned.stage.name]), stages[place + 1 :], sure=False)
    _make_folder(recipe, stages, out)
    stages = _share_tokenizer(stages, corpora, tokenizer or out / TOKENIZER)
    left = [planned for planned in stages if not is_done(planned.folder)]
    threads = torch.get_num_threads()
    costs = _costs(recipe, stages, corpora, out) if left and rehearsal else {}
    tell = _Teller(stages, costs, quiet)
    for place, planned in enumerate(stages):
        parts = made_of(planned, corpora[planned.stage.name])
        refuse_changed(planned, parts, stages[place + 1 :], sure=True)
        if is_done(planned.folder):
            tell.done(place)
            continue
        write_record(planned.folder, parts)
        began = time.monotonic()
        torch.set_num_threads(threads)  # what an earlier stage took is no later one's, wherever one begins
        with of_stage(recipe.path, planned.stage.name):
            do_stage(planned, corpora[planned.stage.name], evaluate_of, quiet, tell.begins(place))
        write_record(planned.folder, parts, time.monotonic() - began)
    return stages


def _corpora(recipe: Recipe, stages: Sequence[Planned]) -> dict[str, Corpus]:
    """Of every stage by name; one that several have is opened once."""
    opened: dict[tuple, Corpus] = {}
    corpora = {}
    for planned in stages:
        task = planned.config.task_name if is_training(planned) else None
        key = (planned.place, planned.split, task)
        if key not in opened:
            with of_stage(recipe.path, planned.stage.name):
                opened[key] = corpus_of(planned)
        corpora[planned.stage.name] = opened[key]
    return corpora


def _make_folder(recipe: Recipe, stages: Sequence[Planned], out: Path) -> None:
    """The recipe's folder, with the recipe.

    Raises:
        UserError: it holds something else.
    """
    if not (out / PLAN).exists() and (others := others_in(out)):
        raise UserError(f"{out}: holds something else than stages ({quoted(others[0])}); choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write(out / PLAN, recipe.path.read_text(encoding="utf-8"))


def _share_tokenizer(stages: Sequence[Planned], corpora: Mapping[str, Corpus], path: Path) -> list[Planned]:
    """The tokenizer there, of the first run that reads texts and brings none, for all runs that bring none."""
    own = [planned for planned in stages if is_training(planned) and _brings_none(planned)]
    reading = [planned for planned in own if start.reads_texts(planned.config)]
    if not reading:
        return list(stages)
    if not path.exists():
        words = override(reading[0].config, {"tokenizer.lexicon": None})  # a stage's own, perhaps not made yet
        start.make_tokenizer(words, [corpora[reading[0].stage.name]]).save(path)
    Tokenizer.load(path)  # a damaged file is told before any work
    shared = {planned.stage.name for planned in own}
    return [
        replace(planned, config=override(planned.config, {"tokenizer.file": str(path)}))
        if planned.stage.name in shared
        else planned
        for planned in stages
    ]


def _brings_none(planned: Planned) -> bool:
    config = planned.config
    return not (config.tokenizer.file or config.text_weights or start.words_of(config))


def _costs(recipe: Recipe, stages: Sequence[Planned], corpora: Mapping[str, Corpus], out: Path) -> dict[str, Cost]:
    costs = read_costs(out / COSTS)
    if costs.keys() != {planned.stage.name for planned in stages}:
        costs = rehearse(recipe.path, stages, corpora)
        write(out / COSTS, costs_text(costs))
    return costs


class _Teller:
    """Lines on standard error: what all will take, then where the whole stands."""

    def __init__(self, stages: Sequence[Planned], costs: Mapping[str, Cost], quiet: bool):
        self.stages, self.costs, self.quiet = stages, costs, quiet
        if not costs:
            return
        for place, planned in enumerate(stages):
            cost = costs[planned.stage.name]
            state = spoken(", done before") if is_done(planned.folder) else ""
            self.say(f"{self._name(place)}: about {in_time(cost.seconds)}, {in_bytes(cost.bytes)}{state}")
        whole = in_time(sum(cost.seconds for cost in costs.values()))
        self.say(f"in all about {whole}, evaluations left out, {in_bytes(sum(cost.bytes for cost in costs.values()))}")

    def done(self, place: int) -> None:
        seconds = read_record(self.stages[place].folder)["finished"]["seconds"]
        self.say(f"{self._name(place)}: done before, in {in_time(seconds)}")

    def begins(self, place: int) -> str:
        """The stage's place, told where it makes a table (a run tells its own line); with what is left of the whole."""
        where = spoken(f"stage {place + 1} of {len(self.stages)}")
        if self.costs:
            seconds = [self.costs[planned.stage.name].seconds for planned in self.stages]
            share = 100 * sum(seconds[:place]) / max(sum(seconds), 1e-9)
            left = in_time(sum(seconds[place:]))
            where += spoken(f", {share:.0f}% of the whole, about {left} left")
        if not is_training(self.stages[place]):
            self.say(f"{where}: {self._what(place)}")
        return where

    def _name(self, place: int) -> str:
        return spoken(f"stage {place + 1} of {len(self.stages)}") + f": {self._what(place)}"

    def _what(self, place: int) -> str:
        stage = self.stages[place].stage
        what = " ".join(filter(None, [stage.do, stage.system]))
        return f"{stage.name} ({what}{spoken(f', task {stage.task}') if stage.task else ''})"

    def say(self, line: str) -> None:
        if not self.quiet:
            announce(line)


def in_time(seconds: float) -> str:
    """ "12 s", "7 min", "3.2 h"; "12 秒", "7 分钟", "3.2 小时"."""
    second, minute, hour = ("秒", "分钟", "小时") if chosen_language() == "zh" else ("s", "min", "h")
    if seconds < 100:
        return f"{max(seconds, 1):.0f} {second}"
    return f"{seconds / 60:.0f} {minute}" if seconds < 6000 else f"{seconds / 3600:.1f} {hour}"


def in_bytes(count: int) -> str:
    """ "0.4 MB", "12 MB", "3.1 GB"."""
    megabytes = count / 1e6
    if megabytes >= 1000:
        return f"{megabytes / 1000:.1f} GB"
    return f"{megabytes:.0f} MB" if megabytes >= 10 else f"{max(megabytes, 0.1):.1f} MB"
