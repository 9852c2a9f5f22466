"""Zero-shot findings: is it there? Each finding is asked for by a pair of prompts, that it is and that it is not.

The protocol of MAX-VL (card, section 6; CheXzero's): p is the sigmoid of the mean log-odds of a match with the texts
that say the finding is there, n with those that say it is not, and the score e^p / (e^p + e^n). A system without a
cross encoder has CheXzero's: the sigmoid of the difference of its mean first-stage logits.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuwen.data.corpus import Corpus
from tuwen.data.findings import POSITIVE, UNCERTAIN, findings_of, prompts_of
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.predictor import Predictor, for_ranking
from tuwen.tasks.areas import area_with_interval, group_of, interval, ranked_precision, resampled_areas
from tuwen.tasks.encoding import encode_pictures
from tuwen.tasks.marks import Marks, pictures_shown
from tuwen.tasks.matching import tell_area
from tuwen.tasks.task import Task


def evaluate_findings(
    predictor: Predictor,
    corpus: Corpus,
    *,
    batch_size: int = 64,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    classes: str | Path | None = None,
    marks: Marks | None = None,
) -> dict[str, Any]:
    """`{"languages": {"en": {"mean_auc", "low", "high", "findings": {"Edema": {"auc", "low", "high", ...}}}}}`.

    Each finding also has "precision" (average precision) and "there", of how many "rows"; the interval is the middle 95
    of 100 resamples by patient or picture. Findings that all rows have, or none, are left out. classes: a file of
    prompts, see `prompts_of`. limit: at most so many rows. marks: told what each row adds to its finding's area.

    Raises:
        UserError: no findings, or none that some rows have and some have not.
    """
    began = time.monotonic()
    rows = list(range(len(corpus) if limit is None else min(limit, len(corpus))))
    asked = list(languages or [name for name in predictor.languages if name in (corpus.languages or POSITIVE)])
    for language in asked:
        if language not in predictor.languages:
            raise UserError(f"the run knows no language {language!r}; it has {', '.join(predictor.languages)}")
    by_language = {}
    with predictor.evaluating():
        pictures = encode_pictures(predictor, corpus, rows, batch_size)
        groups = [group_of(corpus.record(row)) for row in pictures.rows.tolist()]
        for language in asked:
            findings = findings_of(corpus, language)
            labels = findings.labels[pictures.rows]
            mixed = [k for k in range(len(findings.names)) if {0, 1} <= set(labels[:, k].tolist())]
            if mixed:
                prompts = prompts_of([findings.names[k] for k in mixed], language, classes)
                scores = prompt_scores(predictor, pictures.encoded, prompts, language, batch_size).numpy()
                names = [findings.names[k] for k in mixed]
                shown = pictures_shown(corpus, pictures.rows)
                for name, own, score in zip(names, labels[:, mixed].T, scores.T, strict=True):
                    known = own != UNCERTAIN
                    rows_known = [shown[k] for k in np.flatnonzero(known)]
                    tell_area(marks, f"{language}.{name}", own[known], score[known], rows_known)
                by_language[language] = _marks(names, labels[:, mixed], scores, groups)
    if not by_language:
        raise UserError(
            f"corpus {corpus.name}, split {corpus.split}: no finding that some of its {len(pictures.rows)} rows have "
            "and some have not"
        )
    return {
        "system": predictor.name,
        "corpus": corpus.name,
        "split": corpus.split,
        "task": "findings",
        "languages": by_language,
        "images": len(pictures.rows),
        "score": "match with prompt pairs" if predictor.system.matches() else "first stage with prompt pairs",
        "broken": dict(pictures.broken),
        "seconds": time.monotonic() - began,
    }


def _marks(names: Sequence[str], labels: np.ndarray, scores: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    findings, parts = {}, []
    for k, name in enumerate(names):
        known = labels[:, k] != UNCERTAIN
        own, score = labels[known, k], scores[known, k]
        parts.append((labels[:, k], scores[:, k]))
        findings[name] = {
            **area_with_interval(own, score, [group for group, there in zip(groups, known, strict=True) if there]),
            "precision": ranked_precision(own, score),
            "there": int(own.sum()),
            "rows": len(own),
        }
    mean = float(np.mean([marks["auc"] for marks in findings.values()]))
    return {"mean_auc": mean, **interval(resampled_areas(parts, groups)), "findings": findings}


def prompt_scores(
    predictor: Predictor,
    pictures: Encoded,
    prompts: Sequence[tuple[Sequence[str], Sequence[str]]],
    language: str,
    batch_size: int = 64,
) -> Tensor:
    """[I, C] in 0..1, above a half where a finding's positive texts fit better than its negative ones."""
    texts = list(dict.fromkeys(text for pair in prompts for side in pair for text in side))
    encoded = predictor.texts(texts, language, batch_size)
    logits = _logits(predictor, pictures, encoded, batch_size).double()
    place = {text: k for k, text in enumerate(texts)}
    there, gone = (
        torch.stack([logits[:, [place[text] for text in pair[side]]].mean(1) for pair in prompts], 1) for side in (0, 1)
    )
    return pair_of_probabilities(there, gone) if predictor.system.matches() else (there - gone).sigmoid()


def pair_of_probabilities(there: Tensor, gone: Tensor) -> Tensor:
    """e^p / (e^p + e^n) with p, n the sigmoids of log-odds: in (0.268, 0.732), a half where both are alike."""
    return (there.sigmoid() - gone.sigmoid()).sigmoid()


def _logits(predictor: Predictor, pictures: Encoded, texts: Encoded, batch_size: int) -> Tensor:
    """[I, T] log-odds of a match, or first-stage scores in the units of their contrast."""
    if not predictor.system.matches():
        parts = torch.arange(len(pictures)).split(batch_size)
        ready = for_ranking(texts)
        scores = torch.cat([predictor.first(for_ranking(pictures.select(rows)), ready).i2t for rows in parts])
        return predictor.system.first_logit(scores.to(predictor.device), "image_to_text").cpu()
    image = torch.arange(len(pictures)).repeat_interleave(len(texts))
    text = torch.arange(len(texts)).repeat(len(pictures))
    parts = torch.arange(len(image)).split(batch_size)
    odds = [predictor.match(pictures.select(image[p]), texts.select(text[p])).mean(-1).cpu() for p in parts]
    return torch.cat(odds).view(len(pictures), len(texts))


class ZeroShotFindings(Task):
    what, metric = "findings of a picture by pairs of prompts", "ROC-AUC"
    figure = "languages.*.mean_auc"
    why, needs = "each pair has a score", ("match", "encode_images encode_texts")

    def measure(self, predictor, head, corpus, **options):
        return evaluate_findings(predictor, corpus, **options)

    def table(self, measured):
        rows = []
        for language, marks in measured["languages"].items():
            every = [("mean", marks), *list(marks["findings"].items())[:20]]
            for name, own in every:
                area = own.get("auc", own.get("mean_auc"))
                between = "-" if own["low"] is None else f"{own['low']:.3f} to {own['high']:.3f}"
                there = f"{own['there']} of {own['rows']}" if "there" in own else ""
                rows.append((language, name, f"{area:.3f}", between, there))
        head = ("language", "finding", "ROC-AUC", "95 of 100", "there")
        return f"{measured['images']} images, by {measured['score']}", head, rows
