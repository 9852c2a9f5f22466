"""What a stage can do besides training, by the word of its `do:`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tuwen.training.stages.caption import CaptionConfig, write_captions
from tuwen.training.stages.clicks import ClicksConfig, choose_by_clicks
from tuwen.training.stages.concepts import ConceptsConfig, retrieve_concepts
from tuwen.training.stages.knowledge import LexiconConfig, write_knowledge
from tuwen.training.stages.noise import NoiseConfig, estimate_noise
from tuwen.training.stages.work import StageWork


@dataclass(frozen=True)
class Kind:
    """config: the dataclass of its settings (`set:`). make: does the work. asks: whether it asks a run.

    optional: whether rows that its table does not name simply lack its columns (else they are a mistake). few:
    settings with which the few rows of a rehearsal do.
    """

    config: type
    make: Callable[[StageWork], pa.Table]
    asks: bool = True
    optional: bool = False
    few: Mapping[str, Any] = field(default_factory=dict)


KINDS: Mapping[str, Kind] = {
    "noise": Kind(NoiseConfig, estimate_noise),
    "concepts": Kind(ConceptsConfig, retrieve_concepts, optional=True, few={"least": 1, "count": 1}),
    "caption": Kind(CaptionConfig, write_captions, optional=True),
    "clicks": Kind(ClicksConfig, choose_by_clicks, asks=False, few={"floor": 1, "least": 0.0}),
    "knowledge": Kind(LexiconConfig, write_knowledge, asks=False, optional=True, few={"epochs": 1, "least": 0}),
}
