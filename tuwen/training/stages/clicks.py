"""Which texts stay by the clicks of a search log, as a table: for `data.noise: drop`."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from tuwen.data import draws
from tuwen.data.beside import NOISE
from tuwen.data.clicked import Rule, clicked_pairs
from tuwen.data.corpus import text_id
from tuwen.errors import UserError
from tuwen.training.stages.work import StageWork, keyed


@dataclass(frozen=True)
class ClicksConfig(Rule):
    """by: "clicks", or as many texts as these would leave, drawn by "chance": the control."""

    by: Literal["clicks", "chance"] = "clicks"


def choose_by_clicks(work: StageWork) -> pa.Table:
    """The table (row id, text id) -> noise, 0 of a text that stays and 1 of any other, by the corpus's column "clicks".

    Raises:
        UserError: no such column, or nothing stays.
    """
    corpus, config = work.corpus, work.config
    pairs = clicked_pairs(corpus, config)
    stays: dict[tuple[int, int], bool] = {}
    for row, text, chosen in zip(*pairs, strict=True):
        key = (row, text_id(text))
        stays[key] = stays.get(key, False) or bool(chosen)
    left = sum(stays.values())
    if not left:
        raise UserError(f"{corpus.name}, {corpus.split}: no text stays by these clicks; lower floor or least")
    if config.by == "chance":
        drawn = set(draws.generator(work.seed, "clicks").permutation(len(stays))[:left].tolist())
        stays = {key: place in drawn for place, key in enumerate(stays)}
    work.say(f"clicks: {left:,} of {len(stays):,} texts stay, by {config.by}")
    noise = 1 - np.fromiter(stays.values(), np.float32)
    ids = [corpus.record(row).id for row, _ in stays]
    return keyed(ids, [text for _, text in stays], **{NOISE: pa.array(noise, pa.float32())})
