"""Translation of a split's parallel texts, with the picture, without it, and with another's."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations

import torch

from tuwen.data.corpus import Corpus, Record, text_id
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.nn.generation import Generation
from tuwen.predictor import Predictor
from tuwen.tasks.encoding import measured
from tuwen.tasks.task import Task
from tuwen.tasks.text_metrics import translation_scores

CONDITIONS = ("with_picture", "without_picture", "wrong_picture")
SAMPLES = 5  # translations shown in the result
Made = dict[tuple[str, str], dict[str, list[str]]]  # by pair of languages, then by what is read or made


def evaluate_translation(
    predictor: Predictor,
    corpus: Corpus,
    *,
    batch_size: int = 64,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    how: Generation | None = None,
) -> dict:
    """`{"system", "corpus", "split", "task", "pairs": {"en-zh": {"with_picture": {"bleu", "chrf"}, ...}}}`.

    A row's texts in two languages are translations of each other where it has as many of both. Where rows have a column
    "ambiguous", the sources are taken from it (see `Scenes`). Every source is translated with its picture, without
    one, and with the picture of the row before ("wrong_picture"). languages: two or more, every ordered pair of them
    is measured. limit: at most so many rows.

    Raises:
        UserError: the system cannot generate, fewer than two languages, or no parallel texts.
    """
    if not predictor.system.can("generate"):
        raise predictor.system.lacks("generate", "it has no decoder")
    began = time.monotonic()
    pairs = list(permutations(measured(predictor, corpus, languages), 2))
    if not pairs:
        raise UserError(f"corpus {corpus.name}: translation needs two languages; name them by --languages en zh")
    made: Made = {pair: {name: [] for name in ("source", "reference", *CONDITIONS)} for pair in pairs}
    translator = _Translator(predictor, how or Generation())
    rows = list(range(len(corpus) if limit is None else min(limit, len(corpus))))
    broken: Counter[str] = Counter()
    before: Encoded | None = None
    with predictor.evaluating():
        for images, readable, faults in predictor.read(corpus, rows, batch_size, "translations"):
            broken.update(faults)
            if readable:
                encoded = predictor.encode(images)
                last = encoded.select(torch.tensor([len(readable) - 1]))
                translator.add(made, encoded, before or last, [corpus.record(row) for row in readable])
                before = last
    lacking = [pair for pair in pairs if not made[pair]["source"]]
    if lacking and (languages or len(lacking) == len(pairs)):
        source, target = lacking[0]
        what = f"no row has as many texts in {source} as in {target}, so none are translations of each other"
        raise UserError(f"corpus {corpus.name}, split {corpus.split}: {what}")
    return {
        "system": predictor.name,
        "corpus": corpus.name,
        "split": corpus.split,
        "task": "translation",
        "pairs": {"-".join(pair): _scored(pair, made[pair]) for pair in pairs if pair not in lacking},
        "note": f"not measured, no parallel texts: {', '.join(map('-'.join, lacking))}" if lacking else "",
        "images": len(rows) - sum(broken.values()),
        "method": translator.how.method if translator.how.method != "beam" else f"beam, {translator.how.beams} beams",
        "broken": dict(broken),
        "seconds": time.monotonic() - began,
    }


class _Translator:
    """Translates the texts of rows under every condition."""

    def __init__(self, predictor: Predictor, how: Generation):
        self.predictor, self.how = predictor, how

    def add(self, made: Made, images: Encoded, before: Encoded, records: Sequence[Record]) -> None:
        """Appends sources, references and translations of the rows; before: the picture that stood before the first."""
        shifted = Encoded.cat([before, images])
        for (source, target), texts in made.items():
            parallel_texts = [
                (k, *both) for k, record in enumerate(records) for both in parallel(record, source, target)
            ]
            if not parallel_texts:
                continue
            place = torch.tensor([k for k, _, _ in parallel_texts])
            prompts = [text for _, text, _ in parallel_texts]
            texts["source"] += prompts
            texts["reference"] += [text for _, _, text in parallel_texts]
            chosen = {
                "with_picture": images.select(place),
                "without_picture": None,
                "wrong_picture": shifted.select(place),
            }
            for name, pictures in chosen.items():
                texts[name] += self.translate(pictures, prompts, source, target)

    def translate(self, pictures: Encoded | None, prompts: Sequence[str], source: str, target: str) -> list[str]:
        predictor = self.predictor
        texts = predictor.tokens(prompts, source)
        spoken = torch.full((len(prompts),), predictor.languages.index(target), device=predictor.device)
        keys = torch.tensor([text_id(prompt) for prompt in prompts])
        made = predictor.system.generate(pictures, texts, spoken, self.how, keys)
        return predictor.tokenizer.decode(made.ids.cpu())


def parallel(record: Record, source: str, target: str) -> Iterator[tuple[str, str]]:
    """(source, reference) of a row's parallel texts, sources in their ambiguous form where there is one."""
    here, there = (list(record.texts.get(language, ())) for language in (source, target))
    if len(here) != len(there):
        return
    given = list(record.columns.get("ambiguous", {}).get(source, ()))
    here = given if len(given) == len(here) else here
    yield from ((a, b) for a, b in zip(here, there, strict=True) if a.strip() and b.strip())


def _scored(pair: tuple[str, str], made: Mapping[str, list[str]]) -> dict:
    scores: dict = {name: translation_scores(made[name], made["reference"], pair[1]) for name in CONDITIONS}
    names = ("source", "reference", *CONDITIONS)
    shown = zip(*(made[name][:SAMPLES] for name in names), strict=True)
    return {**scores, "sentences": len(made["source"]), "samples": [dict(zip(names, x, strict=True)) for x in shown]}


class Translation(Task):
    what, metric = "a translation, given the picture", "BLEU, chrF"
    figure = "pairs.*.with_picture.bleu"
    marked = False
    why, needs = "words of one language are produced from another's", ("generate translates",)

    def measure(self, predictor, head, corpus, **options):
        return evaluate_translation(predictor, corpus, **options)

    def table(self, measured):
        rows = [
            (pair, name.replace("_", " "), f"{marks[name]['bleu']:.1f}", f"{marks[name]['chrf']:.1f}")
            for pair, marks in measured["pairs"].items()
            for name in ("with_picture", "without_picture", "wrong_picture")
        ]
        return measured["method"], ("languages", "read", "BLEU", "chrF"), rows
