"""Captioning: a text for every picture of a split, in each language, against all texts the corpus has of it."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from tuwen.data.corpus import Corpus, normalise
from tuwen.errors import UserError
from tuwen.nn.generation import Generation
from tuwen.predictor import Predictor
from tuwen.tasks.encoding import measured
from tuwen.tasks.task import Task
from tuwen.tasks.text_metrics import caption_scores

SAMPLES = 5  # captions shown in the result


def evaluate_captioning(
    predictor: Predictor,
    corpus: Corpus,
    *,
    batch_size: int = 64,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    how: Generation | None = None,
) -> dict:
    """`{"system", "corpus", "split", "task", "languages": {"zh": {"cider_d", "bleu_1".."bleu_4", "rouge_l", ...}}}`.

    Each language also has "exact", the share of captions that are word for word a reference; "shuffled", the same
    scores where every caption is held against the next picture's references, which is what captions that never look
    at the picture get; and some "samples". limit: at most so many pictures. how: beam search with 5 beams unless
    told.

    Raises:
        UserError: the system cannot generate, an unknown language, or no picture can be read.
    """
    system = predictor.system
    if not system.can("generate"):
        raise system.lacks("generate", "it has no decoder")
    began = time.monotonic()
    asked = measured(predictor, corpus, languages)
    rows, references = _references(corpus, asked, limit)
    how = how or Generation()
    captions: dict[str, dict[int, str]] = {language: {} for language in asked}
    broken: Counter[str] = Counter()
    with predictor.evaluating():
        for images, readable, faults in predictor.read(corpus, rows, batch_size, "captions"):
            broken.update(faults)
            if not readable:
                continue
            encoded = predictor.encode(images)
            keys = torch.tensor([corpus.record(row).image_id for row in readable])
            for language in asked:
                spoken = torch.full((len(readable),), predictor.languages.index(language), device=predictor.device)
                made = predictor.tokenizer.decode(system.generate(encoded, None, spoken, how, keys).ids.cpu())
                captions[language].update(zip(readable, made, strict=True))
    return {
        "system": predictor.name,
        "corpus": corpus.name,
        "split": corpus.split,
        "task": "captioning",
        "languages": {language: _scored(captions[language], references[language]) for language in asked},
        "images": len(rows) - sum(broken.values()),
        "method": how.method if how.method != "beam" else f"beam search, {how.beams} beams",
        "words": "small letters, no punctuation, Chinese and Japanese by character",
        "broken": dict(broken),
        "seconds": time.monotonic() - began,
    }


def _references(
    corpus: Corpus, languages: Sequence[str], limit: int | None
) -> tuple[list[int], dict[str, dict[int, list[str]]]]:
    """The first row of every picture, and by language the texts of all rows of that picture."""
    first: dict[int, int] = {}
    texts: dict[str, dict[int, list[str]]] = {language: {} for language in languages}
    for row in range(len(corpus)):
        record = corpus.record(row)
        if record.image_id not in first and limit is not None and len(first) >= limit:
            continue
        place = first.setdefault(record.image_id, row)
        for language in languages:
            own = [text for text in record.texts.get(language, ()) if text.strip()]
            if own:
                texts[language].setdefault(place, []).extend(own)
    return list(first.values()), texts


def _scored(captions: Mapping[int, str], references: Mapping[int, Sequence[str]]) -> dict:
    """Scores over the pictures that have a caption and references."""
    rows = [row for row in captions if row in references]
    if not rows:
        raise UserError("captioning: no picture that can be read has a text in this language to compare with")
    made, right = [captions[row] for row in rows], [references[row] for row in rows]
    exact = sum(_same(text, several) for text, several in zip(made, right, strict=True)) / len(rows)
    shuffled = caption_scores(made, [*right[1:], *right[:1]])
    samples = [{"made": text, "reference": several[0]} for text, several in zip(made, right, strict=True)][:SAMPLES]
    scores = {**caption_scores(made, right), "exact": exact, "shuffled": shuffled, "pictures": len(rows)}
    return {**scores, "samples": samples}


def _same(text: str, references: Sequence[str]) -> bool:
    return normalise(text).lower() in {normalise(reference).lower() for reference in references}


class Captioning(Task):
    what, metric = "a text for a picture", "CIDEr-D, BLEU"
    why, needs = "words are produced one by one", ("generate",)

    def measure(self, predictor, head, corpus, **options):
        return evaluate_captioning(predictor, corpus, **options)

    def table(self, measured):
        scores = ("cider_d", "bleu_4", "rouge_l")
        rows = []
        for language, marks in measured["languages"].items():
            rows.append((language, "made", *(f"{marks[name]:.3f}" for name in scores), f"{100 * marks['exact']:.1f}%"))
            rows.append((language, "shuffled", *(f"{marks['shuffled'][name]:.3f}" for name in scores), ""))
        head = ("language", "captions", "CIDEr-D", "BLEU-4", "ROUGE-L", "word for word")
        return f"{measured['images']} pictures, {measured['method']}", head, rows
