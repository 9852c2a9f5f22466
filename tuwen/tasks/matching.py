"""Matching: does this text belong to this picture? ROC-AUC over labelled pairs (ICM, IQM) or pairs made from a gallery.

The protocol is section 6 of the zero-benchmark card: one AUC over the whole split, never averaged over batches.
The score of a pair is the mean over matching heads of the match probability; for a system that cannot match, the
first-stage score. The final score that ranks within a query, first stage and weight, has no part in it.

Learnt, every matching head is taught by the label of the pair, one term each, as many heads as the score is the mean of
(R2D2's two); a system that cannot match learns a bias on the first stage's logit. A corpus without labels gives each
picture one right and one wrong text.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from tuwen.data import draws
from tuwen.data.batch import Batch
from tuwen.data.corpus import Caption, Corpus, Relevance, languages_and_texts, text_id
from tuwen.data.judged import JudgedPairs
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.predictor import Predictor, for_ranking
from tuwen.systems.system import Head, Losses, Needs, Progress, System
from tuwen.tasks.encoding import EncodedPictures, encode_captions, encode_pictures, measured
from tuwen.tasks.marks import Marks, pictures_shown
from tuwen.tasks.task import Task

WATCHED = 1000  # pictures that a validation during training looks at


class NoPairs(UserError):
    """A language without right and wrong pairs; others may have some."""


@dataclass(frozen=True)
class LabelledPairs:
    """Pairs to judge: corpus row of the picture [N], text [N], label [N] (1 they belong together, 0 not)."""

    rows: np.ndarray
    texts: np.ndarray
    labels: np.ndarray
    captions: list[Caption]


def evaluate_matching(
    predictor: Predictor,
    corpus: Corpus,
    *,
    batch_size: int = 64,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    marks: Marks | None = None,
) -> dict:
    """ROC-AUC (0 to 1) per language: `{"system", "corpus", "split", "task", "languages": {"zh": {"auc", ...}}}`.

    Pairs are the corpus's own where its rows have a column "label" (0 or 1); else each picture is taken with one of
    its right texts and one wrong text, drawn by (seed, picture). limit: at most so many labelled rows, or pictures of
    the gallery.

    Raises:
        UserError: unknown language, a label that is neither 0 nor 1, or pairs of one kind alone in every language;
            where some languages have both, "note" names the others.
    """
    began = time.monotonic()
    labelled, every, lacking = "label" in corpus.record(0).columns, {}, {}
    make = labelled_pairs if labelled else right_and_wrong_pairs
    for language in measured(predictor, corpus, languages):
        try:
            every[language] = make(corpus, language, limit, seed)
        except NoPairs as error:
            lacking[language] = str(error)
    if not every:
        raise NoPairs("; ".join(lacking.values()))
    rows = list(dict.fromkeys(row for pairs in every.values() for row in pairs.rows.tolist()))
    by_language = {}
    with predictor.evaluating():
        pictures = encode_pictures(predictor, corpus, rows, batch_size)
        for language, pairs in every.items():
            texts = encode_captions(predictor, pairs.captions, batch_size)
            readable = np.isin(pairs.rows, pictures.rows)
            scores = _scores(predictor, pictures, texts, pairs, readable, batch_size)
            labels = pairs.labels[readable]
            try:
                by_language[language] = {"auc": area(labels, scores), "pairs": len(labels), "right": int(labels.sum())}
                tell_area(marks, language, labels, scores, pictures_shown(corpus, pairs.rows[readable]))
            except NoPairs as error:
                lacking[language] = str(error)
    if not by_language:
        raise NoPairs("; ".join(lacking.values()))
    return {
        "system": predictor.name,
        "corpus": corpus.name,
        "split": corpus.split,
        "task": "matching",
        "languages": by_language,
        "images": len(pictures.rows),
        "score": "match probability" if predictor.system.matches() else "first-stage score",
        "labels": "the corpus's own" if labelled else "one right and one wrong text a picture",
        "note": "\n".join(f"{language} is not measured: {why}" for language, why in lacking.items()),
        "broken": dict(pictures.broken),
        "seconds": time.monotonic() - began,
    }


def area(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a right pair scores above a wrong one, ties counting half.

    Raises:
        UserError: labels of one kind alone, or scores that are not numbers.
    """
    if len(set(labels.tolist())) != 2:
        raise NoPairs(f"matching needs right and wrong pairs; these {len(labels)} are all of one kind")
    if not np.isfinite(scores).all():
        raise UserError("matching scores are not finite numbers: the weights are broken")
    return float(roc_auc_score(labels, scores))


def tell_area(marks: Marks | None, language: str, labels: np.ndarray, scores: np.ndarray, pictures: list[int]) -> None:
    """What each pair adds to the area (DeLong's placements): for a right pair the share of wrong ones below it, for a
    wrong one that of right ones above, ties counting half, so scaled that both halves' means have the area as theirs.
    """
    if marks is None:
        return
    right, wrong = np.sort(scores[labels == 1]), np.sort(scores[labels == 0])
    whole = area(labels, scores)
    for name, other, own, sign in (("right", wrong, 1, 1), ("wrong", right, 0, -1)):
        values = scores[labels == own]
        below = (np.searchsorted(other, values, "left") + np.searchsorted(other, values, "right")) / 2 / len(other)
        placement = below if sign > 0 else 1 - below
        marks.add(f"{language}.{name}", 2 * placement - whole, np.asarray(pictures)[labels == own])


def labelled_pairs(corpus: Corpus, language: str, limit: int | None, seed: int = 0) -> LabelledPairs:
    """Every row's picture with every text of the language it has, under the row's own label."""
    rows, labels, captions = [], [], []
    first_row: dict[int, int] = {}  # pictures that stand in several rows are encoded once
    for row in range(len(corpus) if limit is None else min(limit, len(corpus))):
        record = corpus.record(row)
        label = str(record.columns.get("label"))
        if label not in ("0", "1", "False", "True"):
            raise UserError(
                f"corpus {corpus.name}, row {record.called}: label {record.quoted(label)} is neither 0 nor 1"
            )
        for place, (spoken, text) in enumerate(languages_and_texts(record)):
            if spoken == language:
                rows.append(first_row.setdefault(record.image_id, row))
                labels.append(int(label in ("1", "True")))
                captions.append(Caption(text, spoken, text_id(text), row, place))
    return _pairs(corpus, language, rows, list(range(len(captions))), labels, captions)


def right_and_wrong_pairs(corpus: Corpus, language: str, limit: int | None, seed: int = 0) -> LabelledPairs:
    """Each picture of the gallery with a right text and a wrong one by the gallery's truth.

    Pictures that have no right text, or no wrong one, are left out. The draws are keyed by the picture's identity.
    """
    gallery = corpus.gallery(language, limit)
    right = gallery.relevance.transpose()
    asked = [k for k in range(len(right)) if 0 < len(right.images_of(k)) < len(gallery.texts)]
    identity = torch.tensor([corpus.record(gallery.rows[k]).image_id for k in asked], dtype=torch.int64)
    draw = draws.uniform(identity, 2, seed, "matching", language).numpy()
    rows, texts = [], []
    for picture, (of_right, of_wrong) in zip(asked, draw, strict=True):
        rows += [gallery.rows[picture]] * 2
        texts += [_one_of(right, picture, of_right), _none_of(right, picture, of_wrong)]
    return _pairs(corpus, language, rows, texts, [1, 0] * len(asked), gallery.texts)


def _pairs(corpus: Corpus, language: str, rows, texts, labels, captions: list[Caption]) -> LabelledPairs:
    if not rows:
        raise NoPairs(f"corpus {corpus.name}, split {corpus.split}: no pairs in {language!r} to match")
    row, text, label = (np.array(values, dtype=np.int64) for values in (rows, texts, labels))
    return LabelledPairs(row, text, label, captions)


def _one_of(right: Relevance, picture: int, draw: float) -> int:
    """A right text of the picture; draw in [0, 1)."""
    texts = right.images_of(picture)
    return int(texts[int(draw * len(texts))])


def _none_of(right: Relevance, picture: int, draw: float) -> int:
    """A text that is not right for the picture, each with the same chance; draw in [0, 1)."""
    texts = right.images_of(picture)
    place = int(draw * (right.image_count - len(texts)))  # among the wrong ones
    # texts[j] - j wrong ones lie before the right text j
    return place + int(np.searchsorted(texts - np.arange(len(texts)), place, side="right"))


def _scores(
    predictor: Predictor,
    pictures: EncodedPictures,
    texts: Encoded,
    pairs: LabelledPairs,
    readable: np.ndarray,
    batch_size: int,
) -> np.ndarray:
    """[N] float32 scores of the readable pairs."""
    place = {row: position for position, row in enumerate(pictures.rows.tolist())}
    image = torch.tensor([place[row] for row in pairs.rows[readable].tolist()], dtype=torch.int64)
    text = torch.from_numpy(pairs.texts[readable])
    parts = [
        pair_scores(predictor, pictures.encoded, texts, image[part], text[part])
        for part in torch.arange(len(image)).split(batch_size)
    ]
    return torch.cat(parts).numpy()


def pair_scores(predictor: Predictor, images: Encoded, texts: Encoded, image: Tensor, text: Tensor) -> Tensor:
    """[N] score of pairs (picture image[n], text text[n]): probability of a match, or the first stage's."""
    if predictor.system.matches():
        return predictor.match(images.select(image), texts.select(text)).sigmoid().mean(-1).cpu()
    scores = predictor.first(for_ranking(images).select(image), for_ranking(texts).select(text))
    return (scores.i2t.diagonal() + scores.t2i.diagonal()) / 2


class MatchingHead(Head):
    """Binary cross entropy of each pair's log-odds with its label, mean over matching heads and pairs."""

    def __init__(self, system: System):
        super().__init__()
        self.bias = None if system.matches() else nn.Parameter(torch.zeros(()))

    def needs(self) -> Needs:
        return Needs(columns=("label",))

    def log_odds(self, system: System, images: Encoded, texts: Encoded) -> Tensor:
        """[B, H] of pairs (picture n, text n); without a cross encoder H is 1."""
        if self.bias is None:
            return system.match(images, texts).float()
        scores = system.scores(for_ranking(images), for_ranking(texts))
        own = (scores.i2t.diagonal() + scores.t2i.diagonal()) / 2
        return (system.first_logit(own, "text_to_image") + self.bias)[:, None]

    def losses(self, system: System, batch: Batch, progress: Progress) -> Losses:
        assert batch.images is not None
        assert batch.texts is not None
        labels = batch.columns["label"]
        assert isinstance(labels, Tensor)
        odds = self.log_odds(system, system.encode_images(batch.images), system.encode_texts(batch.texts))
        loss = F.binary_cross_entropy_with_logits(odds, labels.to(odds)[:, None].expand_as(odds))
        right = (odds.detach().sigmoid().mean(1) >= 0.5) == (labels > 0)
        return Losses({"matching": loss}, {}, {"accuracy": right.float().mean()})


class Matching(Task):
    what, metric = "does this text belong to this picture", "ROC-AUC"
    figure = "languages.*.auc"
    why, needs = "each pair has a score", ("match", "encode_images encode_texts")

    def rows(self, corpus, split):
        """Labelled pairs, made where the split that is learnt has none."""
        labelled = len(corpus) and "label" in corpus.record(0).columns
        return corpus if labelled or split != "train" else JudgedPairs(corpus)

    def head(self, system, tokenizer):
        return MatchingHead(system)

    def validate(self, predictor, head, corpus):
        by_language = self.measure(predictor, head, corpus, limit=WATCHED)["languages"].values()
        return {"score": float(np.mean([marks["auc"] for marks in by_language]))}

    def measure(self, predictor, head, corpus, **options):
        return evaluate_matching(predictor, corpus, **options)

    def table(self, measured):
        rows = [
            (language, f"{marks['auc']:.3f}", str(marks["pairs"])) for language, marks in measured["languages"].items()
        ]
        return f"by {measured['score']}; {measured['labels']}", ("language", "ROC-AUC", "pairs"), rows
