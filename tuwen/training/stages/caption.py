"""A text written for every picture, by a run that captions, in each language of the corpus.

NLIP (Huang et al. 2022, card section 4.7): what is written stands in for texts that are likely wrong (`data.beside`).
"""

from dataclasses import dataclass, field

import pyarrow as pa
import torch

from tuwen.data.beside import WRITTEN
from tuwen.errors import UserError
from tuwen.nn.generation import Generation
from tuwen.tasks.captioning import CaptionHead, names_shown, say
from tuwen.training.stages.work import StageWork, keyed

PART = 1024


@dataclass(frozen=True)
class CaptionConfig:
    """how: words are chosen. languages: that are written; none: all that the corpus and the run share. batch: pictures
    at a time."""

    how: Generation = field(default_factory=lambda: Generation("nucleus"))
    languages: tuple[str, ...] = ()
    batch: int = 64

    def __post_init__(self):
        if not 1 <= self.batch <= 2**16:
            raise ValueError(f"batch must lie between 1 and {2**16}, got {self.batch}")


def write_captions(work: StageWork) -> pa.Table:
    """The table row id -> written: a text by language; none of a picture that cannot be read.

    Raises:
        UserError: a run that cannot caption, or a language that it does not know.
    """
    predictor, corpus, config = work.asked, work.corpus, work.config
    if not predictor.system.can("generate") and not isinstance(predictor.system.head, CaptionHead):
        raise predictor.system.lacks("caption", "it has no decoder; learn one with `task: captioning`")
    spoken = config.languages or tuple(name for name in corpus.languages if name in predictor.languages)
    if unknown := [name for name in spoken if name not in predictor.languages] or ([] if spoken else ["of the corpus"]):
        raise UserError(f"the run knows no language {unknown[0]}; it has {', '.join(predictor.languages)}")

    def make(rows: range) -> pa.Table:
        columns = {language: pa.array(_captions(work, rows, language), pa.string()) for language in spoken}
        written = pa.StructArray.from_arrays(list(columns.values()), list(columns))
        return keyed([corpus.record(row).id for row in rows], None, **{WRITTEN: written})

    with predictor.evaluating():
        return work.in_parts("captions", len(corpus), PART, make)


def _captions(work: StageWork, rows: range, language: str) -> list[str | None]:
    predictor, corpus, config = work.asked, work.corpus, work.config
    head = predictor.system.head if isinstance(predictor.system.head, CaptionHead) else None
    captions: dict[int, str] = {}
    for images, readable, _ in predictor.read(corpus, rows, config.batch, "captions"):
        if not readable:
            continue
        tag = torch.full((len(readable),), predictor.languages.index(language), device=predictor.device)
        keys = torch.tensor([corpus.record(row).image_id for row in readable])
        prompt = names_shown(predictor, corpus, readable, language)
        ids = say(predictor.system, head, images.to(predictor.device), tag, config.how, keys, prompt).ids
        captions.update(zip(readable, predictor.tokenizer.decode(ids.cpu()), strict=True))
    return [captions.get(row) for row in rows]
