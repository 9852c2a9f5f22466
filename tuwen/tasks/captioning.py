"""Captioning: a text for every picture of a split, in each language, against all texts the corpus has of it.

Learnt, a system with a decoder of its own is taught its captions word by word; any other gets a decoder that reads the
picture's tokens, with the text tower's word embeddings, as BLIP's has (Li et al. 2022): that one is the head's.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from tuwen.data.batch import Batch, Images, Texts
from tuwen.data.corpus import Corpus, normalise
from tuwen.data.needs import tags_of
from tuwen.errors import UserError
from tuwen.nn.decoder import CausalDecoder, Speaker
from tuwen.nn.generation import Generated, Generation, generate
from tuwen.nn.sizes import CrossEncoderConfig
from tuwen.objectives.next_word import next_word
from tuwen.predictor import Predictor
from tuwen.systems.system import Head, Losses, Needs, Progress, System
from tuwen.tasks.encoding import measured, picture_states, with_texts
from tuwen.tasks.task import Task, TaskConfig
from tuwen.tasks.text_metrics import caption_scores

SAMPLES = 5  # captions shown in the result
WATCHED = 200  # pictures that a validation during training looks at
BATCH = 64


def evaluate_captioning(
    predictor: Predictor,
    corpus: Corpus,
    *,
    batch_size: int = 64,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    how: Generation | None = None,
    head: "CaptionHead | None" = None,
) -> dict:
    """`{"system", "corpus", "split", "task", "languages": {"zh": {"cider_d", "bleu_1".."bleu_4", "rouge_l", ...}}}`.

    Each language also has "exact", the share of captions that are word for word a reference; "shuffled", the same
    scores where every caption is held against the next picture's references, which is what captions that never look
    at the picture get; and some "samples". head: what was learnt, for a system without a decoder.
    limit: at most so many pictures. how: beam search with 5 beams unless told.

    Raises:
        UserError: the system cannot generate, an unknown language, or no picture can be read.
    """
    system = predictor.system
    if not system.can("generate") and head is None:
        raise system.lacks("generate", "it has no decoder; learn one with `tuwen train --task captioning`")
    began = time.monotonic()
    asked = measured(predictor, corpus, languages)
    rows, references = _references(corpus, asked, limit)
    asked, note = with_texts(corpus, languages, {language: len(references[language]) for language in asked})
    how, broken = how or Generation(), Counter[str]()
    captions = _captions(predictor, head, corpus, rows, asked, how, broken, batch_size)
    return {
        "system": predictor.name,
        "corpus": corpus.name,
        "split": corpus.split,
        "task": "captioning",
        "languages": {language: _scored(captions[language], references[language]) for language in asked},
        "images": len(rows) - sum(broken.values()),
        "method": how.method if how.method != "beam" else f"beam search, {how.beams} beams",
        "words": "small letters, no punctuation, Chinese and Japanese by character",
        "note": note,
        "broken": dict(broken),
        "seconds": time.monotonic() - began,
    }


def _captions(
    predictor: Predictor,
    head: "CaptionHead | None",
    corpus: Corpus,
    rows: Sequence[int],
    languages: Sequence[str],
    how: Generation,
    broken: Counter[str],
    batch_size: int = BATCH,
) -> dict[str, dict[int, str]]:
    """What is said of the pictures of rows: by language and row. broken: counts those that cannot be read."""
    captions: dict[str, dict[int, str]] = {language: {} for language in languages}
    with predictor.evaluating():
        for images, readable, faults in predictor.read(corpus, rows, batch_size, "captions"):
            broken.update(faults)
            if not readable:
                continue
            images = images.to(predictor.device)
            keys = torch.tensor([corpus.record(row).image_id for row in readable])
            for language in languages:
                spoken = torch.full((len(readable),), predictor.languages.index(language), device=predictor.device)
                names = names_shown(predictor, corpus, readable, language)
                generated = say(predictor.system, head, images, spoken, how, keys, names)
                made = predictor.tokenizer.decode(generated.ids.cpu())
                captions[language].update(zip(readable, made, strict=True))
    return captions


class CaptionHead(Head):
    """-log p of a caption's words, each given the picture and those before it, mean over words.

    decoder: None for a system that has its own.
    """

    def __init__(self, system: System, config: "CaptioningConfig"):
        super().__init__()
        self.decoder: CausalDecoder | None = None
        self.smoothing = config.smoothing
        self.reads_tags = system.reads_tags
        if not system.can("generate"):
            text = system.config.text
            shape = CrossEncoderConfig(width=text.width, layers=config.layers, heads=text.heads, dropout=text.dropout)
            width = system.config.image.width
            self.decoder = CausalDecoder(shape, width, system.vocabulary.size, text.length, config.languages)

    def needs(self) -> Needs:
        return Needs(tags=self.reads_tags)

    def losses(self, system: System, batch: Batch, progress: Progress) -> Losses:
        assert batch.images is not None
        assert batch.texts is not None
        if self.decoder is None:
            prompt = cast(Texts, batch.columns["tags"]) if self.reads_tags else None
            return Losses({"captions": system.caption_loss(system.encode_images(batch.images), prompt, batch.texts)})
        words = word_vectors(system)
        states, following = self.decoder.taught(batch.texts, picture_states(system, batch.images), None, words)
        return Losses({"captions": next_word(self.decoder.logits(states, words), following, self.smoothing)})


def say(
    system: System,
    head: CaptionHead | None,
    images: Images,
    language: Tensor,
    how: Generation,
    keys: Tensor,
    tags: Texts | None = None,
) -> Generated:
    """A caption a picture by the head's decoder, where it has one, or the system's; as `System.generate`.

    tags: names of what each picture shows, for a system that `reads_tags`.
    """
    if head is None or head.decoder is None:
        return system.generate(system.encode_images(images), tags, language, how, keys)
    speaker = Speaker(head.decoder, word_vectors(system), language, picture_states(system, images), None)
    return generate(speaker, system.vocabulary, how, keys)


def names_shown(predictor: Predictor, corpus: Corpus, rows: Sequence[int], language: str) -> Texts | None:
    """The rows' names of what they show (column "tags"), for a system whose decoder reads them beside the picture."""
    if not predictor.system.reads_tags:
        return None
    return predictor.tokens([tags_of(corpus.record(row), language) for row in rows], language)


def word_vectors(system: System) -> Tensor:
    """[V, W] the text tower's word embeddings."""
    return cast(Any, system).encoders.text.words.weight


@dataclass(frozen=True)
class CaptioningConfig(TaskConfig):
    """Of the decoder that a system without one gets. layers: of it. languages: most that it can tell apart.
    smoothing: share of the target spread over the vocabulary (BLIP's 0.1)."""

    layers: int = 4
    languages: int = 32
    smoothing: float = 0.1

    def __post_init__(self):
        if not (0 < self.layers <= 64 and 0 < self.languages <= 1000 and 0 <= self.smoothing < 1):
            raise ValueError(
                f"layers {self.layers}, languages {self.languages}, smoothing {self.smoothing}: out of range"
            )


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
    figure = "languages.*.cider_d"
    marked = False
    why, needs = "words are produced one by one", ("generate", "encode_images encode_texts")
    Config = CaptioningConfig
    verb = "caption"

    def head(self, system, tokenizer):
        return CaptionHead(system, self.config)

    def measure(self, predictor, head, corpus, **options):
        return evaluate_captioning(predictor, corpus, head=head, **options)

    def validate(self, predictor, head, corpus):
        how = Generation("greedy")
        marks = self.measure(predictor, head, corpus, limit=WATCHED, how=how)["languages"].values()
        return {"score": float(np.mean([own["cider_d"] for own in marks]))}

    def predictions(self, predictor, head, corpus, **beside) -> Iterator[dict[str, Any]]:
        """As COCO's server takes them, in the corpus's first language that the run knows: one of each picture."""
        language = next((name for name in corpus.languages if name in predictor.languages), predictor.languages[0])
        rows, _ = _references(corpus, (), None)
        made = _captions(predictor, head, corpus, rows, [language], Generation(), Counter())[language]
        for row, caption in made.items():
            record = corpus.record(row)
            name = int(record.id) if record.id.isdecimal() else record.id
            yield {"image_id": record.columns.get("image_id", name), "caption": caption}

    def use(self, predictor, head, pictures, texts, **how):
        """A text a picture. language: of the run, its first unless told. how: as of `evaluate_captioning`."""
        language, method = how.get("language"), how.get("how") or Generation()
        if language is not None and language not in predictor.languages:
            raise UserError(f"no language {language!r} in this run; it has {', '.join(predictor.languages)}")
        spoken, made = predictor.languages.index(language) if language else 0, []
        with predictor.evaluating():
            for start in range(0, len(pictures), BATCH):
                pixels = torch.stack([predictor.pixels(picture) for picture in pictures[start : start + BATCH]])
                images, keys = Images(pixels).to(predictor.device), torch.arange(start, start + len(pixels))
                tag = torch.full((len(pixels),), spoken, device=predictor.device)
                ids = say(predictor.system, head, images, tag, method, keys).ids
                made += predictor.tokenizer.decode(ids.cpu())
        return made

    def table(self, measured):
        scores = ("cider_d", "bleu_4", "rouge_l")
        rows = []
        for language, marks in measured["languages"].items():
            rows.append((language, "made", *(f"{marks[name]:.3f}" for name in scores), f"{100 * marks['exact']:.1f}%"))
            rows.append((language, "shuffled", *(f"{marks['shuffled'][name]:.3f}" for name in scores), ""))
        head = ("language", "captions", "CIDEr-D", "BLEU-4", "ROUGE-L", "word for word")
        return f"{measured['images']} pictures, {measured['method']}", head, rows
