"""Names of what each picture shows, retrieved by a run from names that the corpus's own texts use.

NLIP (Huang et al. 2022, card section 4.6): the vocabulary is the nouns of the corpus's texts, by language, but for rare
ones; each name is put into a prompt, and a picture gets those nearest to it.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch

from tuwen.data.beside import TAGS
from tuwen.data.corpus import Record, languages_and_texts, normalise
from tuwen.data.spans import entities
from tuwen.errors import UserError, quoted
from tuwen.nn.encoded import Encoded
from tuwen.training.stages.work import StageWork, keyed, picture_vectors

PROMPTS = {"en": "a photo of a {}", "zh": "一张{}的照片"}  # {} alone for other languages
NAMES = "names.txt"  # in the stage's folder
PART = 4096


@dataclass(frozen=True)
class ConceptsConfig:
    """count: names a picture. least: times that a name must be used in the corpus's texts. most: names of a language,
    the most frequent. prompts: by language, with {} where the name stands; by default those of `PROMPTS`."""

    count: int = 10
    least: int = 5
    most: int = 10_000
    prompts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if min(self.count, self.least, self.most) < 1 or self.count > 100:
            raise ValueError(f"count {self.count}, least {self.least}, most {self.most}: at least 1, count at most 100")
        if wrong := [prompt for prompt in self.prompts.values() if prompt.count("{}") != 1]:
            raise ValueError(f"prompt {quoted(wrong[0], 60)} must have one {{}} where the name stands")


def retrieve_concepts(work: StageWork) -> pa.Table:
    """The table row id -> tags: by language, the names nearest to the row's picture, the nearest first.

    Raises:
        UserError: the corpus's texts hold fewer names than are asked for.
    """
    predictor, corpus, config = work.asked, work.corpus, work.config
    names = vocabulary(work)
    for language, own in names.items():
        if len(own) < config.count:
            raise UserError(
                f"{corpus.name}, {corpus.split}: its texts in {language} have {len(own)} names that are used "
                f"{config.least} times or more, fewer than the {config.count} a picture asked for; lower count or least"
            )
    lines = [f"{language}\t{name}" for language, own in names.items() for name in own]
    (work.folder / NAMES).write_text("\n".join(lines) + "\n", encoding="utf-8")
    vectors = picture_vectors(work)
    with predictor.evaluating():
        prompts = {language: [_prompt(config, language, name) for name in own] for language, own in names.items()}
        encoded = {language: predictor.texts(own, language, fields=("pooled",)) for language, own in prompts.items()}

    def make(rows: range) -> pa.Table:
        chosen = {language: nearest(work, vectors[list(rows)], encoded[language], config.count) for language in names}
        lists = {
            language: pa.array([[names[language][k] for k in row] for row in places], pa.list_(pa.string()))
            for language, places in chosen.items()
        }
        tags = pa.StructArray.from_arrays(list(lists.values()), list(lists))
        return keyed([corpus.record(row).id for row in rows], None, **{TAGS: tags})

    return work.in_parts("concepts", len(corpus), PART, make)


def nearest(work: StageWork, vectors: np.ndarray, names: Encoded, count: int) -> list[list[int]]:
    """The places of the `count` names that score highest for each picture [rows, D], the highest first, of equals the
    earlier; none where the picture could not be read."""
    readable = np.isfinite(vectors).all(1)
    scores = work.asked.first(Encoded(torch.from_numpy(np.nan_to_num(vectors))), names).i2t
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :count].tolist()
    return [row if there else [] for row, there in zip(order, readable.tolist(), strict=True)]


def vocabulary(work: StageWork) -> dict[str, list[str]]:
    """By language of the run, the names that the corpus uses often enough, the most frequent first, then by letters."""
    counts: dict[str, Counter[str]] = {}
    for row in range(len(work.corpus)):
        for language, name in nouns_of(work.corpus.record(row)):
            counts.setdefault(language, Counter())[name] += 1
    config, names = work.config, {}
    for language in work.asked.languages:
        often = [(-n, name) for name, n in counts.get(language, Counter()).items() if n >= config.least]
        if often:
            names[language] = [name for _, name in sorted(often)[: config.most]]
    if not names:
        raise UserError(
            f"{work.corpus.name}, {work.corpus.split}: no name is used {config.least} times in its texts; lower least"
        )
    return names


def nouns_of(record: Record) -> list[tuple[str, str]]:
    """(language, name) of the nouns of a row's texts, in small letters, each name once a text."""
    nouns: list[tuple[str, str]] = []
    for language, text in languages_and_texts(record):
        plain = normalise(text)
        nouns += [(language, name) for name in dict.fromkeys(plain[a:b].lower() for a, b in entities(plain))]
    return nouns


def _prompt(config: ConceptsConfig, language: str, name: str) -> str:
    return config.prompts.get(language, PROMPTS.get(language, "{}")).replace("{}", name)
