"""A run, ready for use: what `tuwen.load` and the stages of a recipe read of its folder."""

from pathlib import Path

from tuwen.data.text import Tokenizer
from tuwen.nn.published.languages import LANGUAGES
from tuwen.predictor import Predictor
from tuwen.run import TOKENIZER, WEIGHTS, provenance
from tuwen.training import checkpoint
from tuwen.training.config import RunConfig
from tuwen.training.start import build_system


def predictor_of(run: Path, config: RunConfig, device: str) -> Predictor:
    """The system of a run's folder with its newest weights, its tokenizer and its table of languages.

    Raises:
        UserError: weights or tokenizer are missing or damaged.
    """
    tokenizer = Tokenizer.load(run / TOKENIZER)
    system = build_system(config, tokenizer).for_use()
    checkpoint.load_weights(run / WEIGHTS, system)
    languages = provenance(run)["corpus"]["languages"]
    if config.text_weights:  # what the text tower read before the run, it may be asked in
        languages = [*languages, *(name for name in LANGUAGES if name not in languages)]
    return Predictor(system.to(device).eval(), tokenizer, tuple(languages), config.model)
