"""Error correction: the right report from a picture and one that may be wrong (MAX-VL's card, section 6).

The faulty report is read with the picture; a decoder of four layers looks at those joint states and says the right one,
word by word. Errors are those of `tuwen.data.faulty`, in a share of the rows; the others must be left as they are.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tuwen.data.batch import Batch, Images, Spans, Texts
from tuwen.data.corpus import Corpus, Record, normalise
from tuwen.data.faulty import with_faults
from tuwen.errors import UserError
from tuwen.nn.decoder import CausalDecoder, Speaker
from tuwen.nn.encoded import Encoded
from tuwen.nn.generation import Generation, generate
from tuwen.nn.sizes import CrossEncoderConfig
from tuwen.objectives.next_word import next_word
from tuwen.predictor import Predictor
from tuwen.systems.system import Fused, Head, Losses, Needs, Progress, System
from tuwen.tasks.captioning import word_vectors
from tuwen.tasks.encoding import measured
from tuwen.tasks.task import Task, TaskConfig
from tuwen.tasks.text_metrics import caption_scores

BEAMS = 4
WATCHED = 100  # pictures that a validation during training looks at


@dataclass(frozen=True)
class CorrectionConfig(TaskConfig):
    """faults: share of reports that have an error. layers: of the decoder. languages: most that it can tell apart."""

    faults: float = 0.75
    layers: int = 4
    languages: int = 32

    def __post_init__(self):
        if not (0 < self.faults <= 1 and 0 < self.layers <= 64 and 0 < self.languages <= 1000):
            raise ValueError(f"faults {self.faults}, layers {self.layers}, languages {self.languages}: out of range")


class CorrectionHead(Head):
    """-log p of the right report's words, each given the picture, the faulty report and the words before it."""

    def __init__(self, system: System, config: CorrectionConfig):
        super().__init__()
        text: Any = system.config.text
        shape = CrossEncoderConfig(width=text.width, layers=config.layers, heads=text.heads, dropout=text.dropout)
        width = _width_of_states(system)
        self.decoder = CausalDecoder(shape, width, system.vocabulary.size, text.length, config.languages)

    def needs(self) -> Needs:
        return Needs(beside=("faulty",))

    def losses(self, system: System, batch: Batch, progress: Progress) -> Losses:
        faulty = batch.columns["faulty"]
        assert batch.images is not None
        assert batch.texts is not None
        assert isinstance(faulty, Texts)
        words, fused = word_vectors(system), read_faulty(system, batch.images, faulty)
        states, following = self.decoder.taught(batch.texts, fused.states, fused.mask, words)
        return Losses({"reports": next_word(self.decoder.logits(states, words), following)})


def read_faulty(system: System, images: Images, faulty: Texts) -> Fused:
    """The joint states of pictures and the reports to mend."""
    return system.fuse([system.encode_images(images)], system.encode_texts(faulty))


@torch.no_grad()
def _width_of_states(system: System) -> int:
    """Of joint states, told by one blank row."""
    training, side = system.training, system.config.image.side
    system.eval()
    ids, none = torch.full((1, 2), max(system.vocabulary.cls, 0)), torch.zeros(0, dtype=torch.int64)
    spans = Spans(none, none, none, none, none)
    blank = Texts(ids, ids >= 0, torch.zeros(1, dtype=torch.int64), spans=spans)
    states = read_faulty(system, Images(torch.zeros(1, 3, side, side, dtype=torch.uint8)), blank).states
    system.train(training)
    return states.shape[-1]


def evaluate_correction(
    predictor: Predictor,
    head: CorrectionHead,
    corpus: Corpus,
    *,
    batch_size: int = 64,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    how: Generation | None = None,
) -> dict[str, Any]:
    """`{"languages": {"en": {"mended", "left", "bleu_4", "as_it_was", "kinds": {"location": ..}, ...}}}`, in percent.

    mended: faulty reports that came out word for word right; left: right ones that were left so; bleu_4: of all made
    reports, and "as_it_was" of the reports that were read, which is what changing nothing gets. limit: of rows.

    Raises:
        UserError: no report in these languages.
    """
    began, by_language = time.monotonic(), {}
    rows, broken = list(range(len(corpus) if limit is None else min(limit, len(corpus)))), Counter[str]()
    asked = measured(predictor, corpus, languages)
    cases: dict[str, list[tuple[str, str, str, str]]] = {language: [] for language in asked}
    with predictor.evaluating():
        for images, readable, faults in predictor.read(corpus, rows, batch_size, "reports"):
            broken.update(faults)
            if not readable:
                continue
            pictures, records = predictor.encode(images), [corpus.record(row) for row in readable]
            for language in asked:
                cases[language] += _mended(predictor, head, pictures, records, language, how)
    for language, made in cases.items():
        if made:
            by_language[language] = _marks(made)
    if not by_language:
        raise UserError(f"corpus {corpus.name}, split {corpus.split}: no report in {', '.join(asked)}")
    return {
        "system": predictor.name,
        "corpus": corpus.name,
        "split": corpus.split,
        "task": "correction",
        "languages": by_language,
        "images": len(rows) - sum(broken.values()),
        "broken": dict(broken),
        "seconds": time.monotonic() - began,
    }


def _mended(
    predictor: Predictor, head: CorrectionHead, pictures: Encoded, records: Sequence[Record], language: str, how
) -> list[tuple[str, str, str, str]]:
    """(right, faulty, made, kind of error) of the first text of every row that has one in the language."""
    places = [k for k, record in enumerate(records) if record.texts.get(language)]
    if not places:
        return []
    right, faulty, kinds = (
        [column[0] for column in columns]
        for columns in (
            [records[k].texts[language] for k in places],
            [records[k].columns["faulty"][language] for k in places],
            [records[k].columns["errors"][language] for k in places],
        )
    )
    texts = predictor.tokens(faulty, language)
    fused = predictor.system.fuse([pictures.select(torch.tensor(places))], predictor.encode(texts))
    speaker = Speaker(head.decoder, word_vectors(predictor.system), texts.language, fused.states, fused.mask)
    keys = torch.tensor([records[k].image_id for k in places])
    how = how or Generation(beams=BEAMS)
    ids = generate(speaker, predictor.system.vocabulary, how, keys).ids
    return list(zip(right, faulty, predictor.tokenizer.decode(ids.cpu()), kinds, strict=True))


def _marks(cases: Sequence[tuple[str, str, str, str]]) -> dict[str, Any]:
    def exact(chosen: list[tuple[str, str, str, str]]) -> float | None:
        return 100 * sum(_same(made, right) for right, _, made, _ in chosen) / len(chosen) if chosen else None

    references = [[right] for right, *_ in cases]
    kinds = sorted({kind for *_, kind in cases if kind})
    return {
        "mended": exact([case for case in cases if case[3]]),
        "left": exact([case for case in cases if not case[3]]),
        "bleu_4": caption_scores([made for _, _, made, _ in cases], references)["bleu_4"],
        "as_it_was": caption_scores([faulty for _, faulty, *_ in cases], references)["bleu_4"],
        "kinds": {kind: exact([case for case in cases if case[3] == kind]) for kind in kinds},
        "faulty": sum(bool(kind) for *_, kind in cases),
        "reports": len(cases),
    }


def _same(made: str, right: str) -> bool:
    return normalise(made).lower() == normalise(right).lower()


class Correction(Task):
    what, metric = "the right report from a picture and a faulty one", "word for word, BLEU"
    figure = "languages.*.mended"
    marked = False
    why, needs = "a faulty report is read with the picture", ("fuse",)
    learnt = True
    Config = CorrectionConfig

    def rows(self, corpus, split):
        return with_faults(corpus, self.config.faults)

    def head(self, system, tokenizer):
        return CorrectionHead(system, self.config)

    def measure(self, predictor, head, corpus, **options):
        return evaluate_correction(predictor, head, corpus, **options)

    def validate(self, predictor, head, corpus):
        how = Generation("greedy")
        marks = self.measure(predictor, head, corpus, limit=WATCHED, how=how)["languages"].values()
        return {"score": sum(own["bleu_4"] for own in marks) / len(marks)}

    def table(self, measured):
        rows = []
        for language, marks in measured["languages"].items():
            shares = ("-" if marks[name] is None else f"{marks[name]:.1f}%" for name in ("mended", "left"))
            reports = f"{marks['faulty']} of {marks['reports']}"
            rows.append((language, *shares, f"{marks['bleu_4']:.3f}", f"{marks['as_it_was']:.3f}", reports))
        head = ("language", "faulty, mended", "right, left so", "BLEU-4", "BLEU-4 as it was", "faulty")
        return f"{measured['images']} images", head, rows
