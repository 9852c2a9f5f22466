"""Train a run, go on with it, or leave it as it is: what comparisons and recipes do with every run of theirs."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tuwen.config import dotted, read_yaml, to_dict
from tuwen.data.beside import laid_over
from tuwen.data.corpus import Corpus
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError, quoted
from tuwen.progress import announce
from tuwen.run import CONFIG, TOKENIZER, finished, holds_run, provenance
from tuwen.speech import spoken
from tuwen.training import loop
from tuwen.training.config import RunConfig
from tuwen.training.validation import Evaluate

# settings that change no weight: a finished run may differ in them
_FREE = {"corpus", "tokenizer.file", "data.workers"} | {
    f"train.{name}" for name in ("log_every", "eval_every", "checkpoint_every", "checkpoint_minutes", "keep")
}


def train_once(
    run: Path, config: RunConfig, pairs: Corpus | None, evaluate: Evaluate | None, quiet: bool, place: str
) -> None:
    """Trains a run, goes on with it, or leaves it as it is when it is finished; a line says which, and its place.

    pairs: those that it is trained on, in place of those its config names; None: these, and whether a run that is there
    is what is asked for, has been looked at.

    Raises:
        UserError: the folder holds a run with other settings, of another corpus, or with another tokenizer.
    """
    begun = holds_run(run)
    if begun and pairs is not None:
        check_same(run, config, pairs)
    done = begun and finished(run)
    if not quiet:
        announce(
            f"{place}: {run.name}" + (spoken(", finished before") if done else spoken(", goes on") if begun else "")
        )
    if not begun:
        loop.train(config, run, evaluate=evaluate, corpus=pairs, quiet=quiet)
    elif not done:
        loop.resume(run, evaluate=evaluate, corpus=pairs, quiet=quiet)


def check_same(run: Path, config: RunConfig, pairs: Corpus) -> None:
    """Refuses a run folder whose settings, corpus or tokenizer are others than asked for."""
    refuse_other_settings(run, config)
    fingerprint = provenance(run)["corpus"]["fingerprint"]
    if fingerprint != laid_over(pairs, config.data.beside, config.data.noise).fingerprint:
        raise UserError(f"{run}: was trained on another corpus than {pairs.name} is now; choose another --out")
    shared, own = Path(config.tokenizer.file or ""), run / TOKENIZER
    if config.tokenizer.file and not same_tokenizer(shared, own):
        raise UserError(f"{run}: has another tokenizer than {shared}; choose another --out, or remove that folder")


def refuse_other_settings(run: Path, config: RunConfig, names: Collection[str] | None = None) -> None:
    """Refuses a run folder with other settings than asked for. names: those compared; None: all that change weights."""
    trained, asked = weighty(read_yaml(run / CONFIG)), weighty(to_dict(loop.settled(config)))
    for name in sorted(trained.keys() | asked.keys() if names is None else names):
        if trained.get(name) != asked.get(name):
            raise UserError(
                f"{run}: was trained with {name}={quoted(trained.get(name), 60)}, now {quoted(asked.get(name), 60)} is "
                "asked for; choose another --out, or remove that folder"
            )


def same_tokenizer(shared: Path, own: Path) -> bool:
    """Whether a run's tokenizer is the shared one, of whose scores writing it again may have rounded the last digit."""
    return own.read_bytes() == shared.read_bytes() or own.read_text("utf-8") == Tokenizer.load(shared).to_json()


def weighty(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config by dotted name, but for those that change no weight."""
    return {name: value for name, value in dotted(tree).items() if name not in _FREE}
