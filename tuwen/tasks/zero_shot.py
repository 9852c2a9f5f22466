"""Zero-shot classification: which class's prompts fit a picture best (CLIP, section 3.1; Wukong card, section 6).

Systems of one vector a text average the prompts' vectors; those that score by tokens average the prompts' scores.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tuwen.data.classes import classes_of
from tuwen.data.corpus import Caption, Corpus, text_id
from tuwen.data.fit import Fit
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.similarity.prompts import average_scores, average_vectors
from tuwen.systems.system import System
from tuwen.tasks.encoding import device_of, encode_captions, encode_pictures, evaluating, for_ranking
from tuwen.tasks.progress import track
from tuwen.tasks.retrieval import has_first_stage


def evaluate_zero_shot(
    system: System,
    corpus: Corpus,
    tokenizer,
    side: int | Fit,
    length: int,
    *,
    batch_size: int = 64,
    languages: Sequence[str] | None = None,
    table: Sequence[str] | None = None,
    limit: int | None = None,
    classes: str | Path | None = None,
) -> dict:
    """Accuracy in percent per language: `{"languages": {"zh": {"top1", "top5", "mean_per_class", "chance", ...}}}`.

    mean_per_class is top-1 averaged over the classes that the pictures show; chance is that of a blind guess. side,
    length, table: as for `retrieve`. limit: at most so many pictures with a class. classes: file of names and prompts,
    see `classes_of`.

    Raises:
        UserError: a corpus without classes, a language without class names, a system without a first stage.
    """
    began = time.monotonic()
    known = classes_of(corpus, classes)
    table = list(table or corpus.languages)
    chosen = list(languages or (language for language in known.names if language in table))
    for language in chosen:
        if language not in known.names:
            raise UserError(f"corpus {corpus.name}: no class names in {language!r}; there are {', '.join(known.names)}")
        if language not in table:
            raise UserError(f"the run knows no language {language!r}; it was trained on {', '.join(table)}")
    if not chosen:
        raise UserError(f"class names are in {', '.join(known.names)}; the run was trained on {', '.join(table)}")
    rows = np.flatnonzero(known.labels >= 0)[:limit].tolist()
    found = {}
    with evaluating(system):
        pictures = encode_pictures(system, corpus, rows, side, batch_size)
        if not has_first_stage(system, pictures.encoded):
            raise system.lacks("classify", "it has no first-stage scores")
        labels = torch.from_numpy(known.labels[pictures.rows])
        for language in chosen:
            texts = known.texts(language)
            scores = _scores(system, pictures.encoded, texts, language, table, tokenizer, length, batch_size)
            found[language] = {**accuracies(scores, labels), "prompts": len(texts)}
    return {
        "system": type(system).__module__.rpartition(".")[2],
        "corpus": corpus.name,
        "split": corpus.split,
        "task": "zero_shot",
        "languages": found,
        "images": len(pictures.rows),
        "classes": len(next(iter(known.names.values()))),
        "broken": dict(pictures.broken),
        "seconds": time.monotonic() - began,
    }


def accuracies(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Percent right of scores [I, C] with labels [I] int64; equal scores are ranked by class number.

    Raises:
        UserError: scores that are not numbers.
    """
    if not torch.isfinite(scores).all():
        raise UserError("scores are not finite numbers: the weights are broken")
    own = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1]) < labels[:, None]
    rank = ((scores > own) | ((scores == own) & earlier)).sum(1)
    right = (rank == 0).double()
    shown = labels.unique()
    by_class = [float(right[labels == label].mean()) for label in shown]
    return {
        "top1": 100 * float(right.mean()),
        "top5": 100 * float((rank < 5).double().mean()),
        "mean_per_class": 100 * sum(by_class) / len(by_class),
        "chance": 100 / scores.shape[1],
    }


def _scores(
    system: System,
    pictures: Encoded,
    prompts: list[list[str]],
    language: str,
    table: Sequence[str],
    tokenizer,
    length: int,
    batch_size: int,
) -> Tensor:
    """[I, C] of every picture with every class; prompt by prompt, so that few texts are held at once."""
    device = device_of(system)
    pictures, parts = for_ranking(pictures), []
    by_vectors = not system.can("scores")
    for texts in track(prompts, f"prompts {language}", len(prompts)):
        captions = [Caption(text, language, text_id(text), k, 0) for k, text in enumerate(texts)]
        encoded = for_ranking(encode_captions(system, captions, table, tokenizer, length, batch_size))
        if by_vectors and encoded.pooled is not None:
            parts.append(encoded.pooled)
        else:
            parts.append(_to_text(system, pictures, encoded, batch_size, device))
    if not by_vectors:
        return average_scores(torch.stack(parts))
    classes = Encoded(average_vectors(torch.stack(parts)))
    return _to_text(system, Encoded(pictures.pooled), classes, batch_size, device)


def _to_text(system: System, pictures: Encoded, texts: Encoded, batch_size: int, device: torch.device) -> Tensor:
    """[I, C] scores for ranking texts of a picture."""
    there = texts.to(device)
    parts = [
        system.scores(pictures.select(rows).to(device), there).i2t.float().cpu()
        for rows in torch.arange(len(pictures)).split(batch_size)
    ]
    return torch.cat(parts)
