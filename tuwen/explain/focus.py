"""How evenly a cross encoder looks at pictures: at what the caption names, and at what it leaves out.

Diagnostics of VLMAE's card, section 14: a model that learns from captions alone may look at what they name and nowhere
else (focal bias). Shape legend: B pictures, H heads, L tokens of the text, S image states, N patches, h x w the grid.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tuwen.data.batch import Texts
from tuwen.data.corpora.faults import Faults
from tuwen.data.corpus import Corpus, normalise
from tuwen.data.grounding import Phrase, phrases_of
from tuwen.errors import UserError
from tuwen.explain.maps import told_apart
from tuwen.nn.encoded import Encoded
from tuwen.nn.relations import recorded
from tuwen.predictor import Predictor

BATCH = 32  # pictures looked at at once


def measure_focus(predictor: Predictor, corpus: Corpus, *, limit: int | None = 100, alpha: float = 1.0) -> dict:
    """By language: {"coverage", "described", "undescribed", "bias", "entropy"}, and on how many pictures.

    A picture is read with the first caption it has in the language. coverage: percent of the patches in its boxes whose
    share of attention is above alpha / N, mean over pictures; described: of boxes whose phrase the caption names,
    undescribed: of the others, each over the pictures that have such; bias: described less undescribed. entropy: of the
    shares, over ln N, 1 where they are all alike. A model that looks at nothing has entropy 1 and bias 0: read them
    beside its recall. limit: at most so many pictures.

    Raises:
        UserError: no boxes, no captions in a language the run knows, or a system without attention from words to
            places.
    """
    system = predictor.system
    if not system.can("fuse"):
        raise system.lacks("focus", "it has no cross encoder to look into")
    wrong = Faults(corpus.on_bad, corpus.name if corpus.private else "")
    every = phrases_of(corpus, limit, wrong)
    figures, broken = {}, Counter[str]()
    with predictor.evaluating():
        for language in predictor.languages:
            rows = _rows(corpus, every, language)
            if rows:
                figures[language], faults = _figures(predictor, corpus, rows, language, alpha)
                broken = broken or faults
    if not figures:
        raise UserError(f"corpus {corpus.name}: no picture has boxes, phrases and a text in a language the run knows")
    about = {"system": predictor.name, "corpus": corpus.name, "split": corpus.split, "alpha": alpha}
    return {**about, "languages": figures, "broken": dict(broken + wrong.counts)}


def _rows(corpus: Corpus, every: Sequence[Phrase], language: str) -> dict[int, tuple[str, list[Phrase]]]:
    """By row: its first caption in a language, and its phrases in it."""
    rows: dict[int, tuple[str, list[Phrase]]] = {}
    for phrase in every:
        if phrase.language == language:
            captions = corpus.record(phrase.row).texts.get(language)
            if captions:
                rows.setdefault(phrase.row, (captions[0], []))[1].append(phrase)
    return rows


def _figures(predictor: Predictor, corpus: Corpus, rows, language: str, alpha: float) -> tuple[dict, Counter[str]]:
    """(figures of one language, broken pictures by reason)."""
    shares: dict[str, list[float]] = {"coverage": [], "described": [], "undescribed": [], "entropy": []}
    broken: Counter[str] = Counter()
    for images, readable, faults in predictor.read(corpus, list(rows), BATCH):
        broken.update(faults)
        if not readable:
            continue
        texts = predictor.tokens([rows[row][0] for row in readable], language)
        encoded = predictor.encode(images.to(predictor.device))
        for row, mass in zip(readable, looks(predictor, encoded, texts).cpu(), strict=True):
            caption, phrases = rows[row]
            for name, share in _of_picture(mass, caption, phrases, alpha):
                shares[name].append(share)
    means = {name: 100 * float(np.mean(values)) if values else None for name, values in shares.items()}
    named, others = means["described"], means["undescribed"]
    means["bias"] = None if named is None or others is None else named - others
    means["entropy"] = None if means["entropy"] is None else means["entropy"] / 100
    counts = {"pictures": len(shares["entropy"]), "with_described": len(shares["described"])}
    return {**means, **counts, "with_undescribed": len(shares["undescribed"])}, broken


def _of_picture(mass: Tensor, caption: str, phrases: Sequence[Phrase], alpha: float) -> Iterator[tuple[str, float]]:
    """Each figure of one picture that it has. mass: [N] shares of attention that sum to 1."""
    side = math.isqrt(len(mass))
    above = mass > alpha / len(mass) * (1 + 1e-6)  # rounding lifts none of equal shares above the others
    named = [phrase for phrase in phrases if mentions(caption, phrase.text)]
    others = [phrase for phrase in phrases if phrase not in named]
    for name, chosen in (("coverage", phrases), ("described", named), ("undescribed", others)):
        inside = patches_in([box for phrase in chosen for box in phrase.boxes], side)
        if inside.any():
            yield name, float(above[inside].float().mean())
    yield "entropy", float(torch.special.entr(mass.double()).sum() / math.log(len(mass)))


def patches_in(boxes: Sequence[np.ndarray], side: int) -> Tensor:
    """[side side] bool: patches of a square grid whose middle lies in one of the boxes (x0, y0, x1, y1 in 0..1)."""
    middle = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    inside = torch.zeros(side, side, dtype=torch.bool)
    for left, top, right, bottom in boxes:
        inside |= ((middle >= top) & (middle < bottom))[:, None] & ((middle >= left) & (middle < right))
    return inside.flatten()


def mentions(caption: str, phrase: str) -> bool:
    """Whether a caption names what a phrase does, its article or Chinese measure word left out; plurals count."""
    text, word = (normalise(x).casefold() for x in (caption, phrase))
    word = re.sub(r"^(?:(?:an?|the)\s+|一\w(?=\w))", "", word)
    if not word.isascii():
        return word in text
    plural = rf"|{re.escape(word[:-1])}ies" if word.endswith("y") else ""
    return re.search(rf"(?<!\w)(?:{re.escape(word)}(?:e?s)?{plural})(?!\w)", text) is not None


@torch.no_grad()
def looks(predictor: Predictor, images: Encoded, texts: Texts) -> Tensor:
    """[B, N] float32: where the texts' real tokens look in their pictures; shares that sum to 1.

    Attention of all fusion layers from words to places, every row renormalised over the patches, then its mean over
    heads, real tokens and layers.

    Raises:
        UserError: no layer attends from words to places.
    """
    system = predictor.system
    texts = told_apart(texts, images, system.vocabulary, predictor.config.text.length)
    sentence = predictor.encode(texts)
    states = {state.shape[1] for state in images.states.values() if state.dim() == 3}
    with recorded(system) as relations:
        system.fuse([images], sentence)
    looked = {(texts.ids.shape[1], count) for count in states}
    seen = [relation for relation in relations.values() if tuple(relation.attention.shape[2:]) in looked]
    if not seen:
        raise system.lacks("focus", "its cross encoder has no attention from words to places alone")
    return torch.stack([_mass(relation.attention.float(), texts.mask) for relation in seen]).mean(0)


def _mass(attention: Tensor, mask: Tensor) -> Tensor:
    """[B, N] from one layer's [B, H, L, S], whose last states are a square of patches; mask: [B, L] of real tokens."""
    patches = math.isqrt(attention.shape[3]) ** 2
    rows = attention[..., -patches:]
    rows = (rows / rows.sum(-1, keepdim=True).clamp(min=1e-12)).mean(1)
    return (rows * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
