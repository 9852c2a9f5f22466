"""A run folder measured on a split: retrieval.json, the ranks of every query, and answers to sample queries."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import tuwen
from tuwen.data.corpus import Corpus
from tuwen.data.images import encode_jpeg, shrink
from tuwen.errors import UserError
from tuwen.run import RANKS, RECALLS, SAMPLES, SCORE, THUMBNAILS, WEIGHTS, read_json
from tuwen.tasks.retrieval import TOP_K, Answer, Retrieval, retrieve
from tuwen.training import checkpoint, parallel
from tuwen.training.features import text_features

THUMBNAIL = 144  # pixels of the shorter side


@dataclass(frozen=True)
class MeasureConfig:
    """How runs are measured.

    split: of the corpus. languages: those measured; none: all. limit: at most so many pictures; None: all. top_k:
    candidates a query that are re-ranked. batch_size: pictures, texts or pairs at once. samples: texts a language whose
    best five pictures are shown.
    """

    split: str = "test"
    languages: tuple[str, ...] = ()
    limit: int | None = None
    top_k: int = TOP_K
    batch_size: int = 64
    samples: int = 4

    def __post_init__(self):
        for name in ("limit", "top_k", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


def measure_run(run: str | Path, corpus: Corpus, config: MeasureConfig | None = None) -> dict:
    """The retrieval JSON of a run's weights on a corpus, also written into the run folder.

    Files: retrieval.json; ranks.safetensors ("zh.reranked.text_to_image", [Q] int64 each: rank of every query's best
    answer, as `tuwen.tasks.metrics`); samples.json with samples/ROW.jpg. What was measured already with these
    settings on this corpus is read back.

    Raises:
        UserError: no run there, or whatever `retrieve` raises.
    """
    run, config = Path(run), config or MeasureConfig()
    if not (run / WEIGHTS).exists():
        raise UserError(f"{run}: holds no {WEIGHTS}; train first, or go on with `tuwen train --resume {run}`")
    stamp = (run / WEIGHTS).stat().st_mtime_ns
    asked = {"fingerprint": corpus.fingerprint, "weights": stamp, **dataclasses.asdict(config)}
    asked["score"] = read_json(run / SCORE).get("weight") if (run / SCORE).exists() else None
    asked["languages"] = list(config.languages)  # as JSON gives it back
    path = run / RECALLS
    if path.exists():
        measured = read_json(path)
        if measured.pop("measured", None) == asked:
            return measured
    retrieval = _retrieve(run, corpus, config)
    ranks = {
        f"{language}.{stage}.{way}": torch.from_numpy(np.ascontiguousarray(rank))
        for language, stages in retrieval.ranks.items()
        for stage, ways in stages.items()
        for way, rank in ways.items()
    }
    checkpoint.save_tensors(run / RANKS, ranks)
    _write_samples(run, corpus, retrieval.answers)
    checkpoint.write(path, json.dumps({**retrieval.json, "measured": asked}, ensure_ascii=False, indent=1) + "\n")
    return retrieval.json


def _retrieve(run: Path, corpus: Corpus, config: MeasureConfig) -> Retrieval:
    model = tuwen.load(run, device=str(parallel.device("auto")))
    text_features(model.system, model.tokenizer)
    return retrieve(
        model.predictor,
        corpus,
        top_k=config.top_k,
        batch_size=config.batch_size,
        languages=config.languages or None,
        limit=config.limit,
        samples=config.samples,
    )


def _write_samples(run: Path, corpus: Corpus, answers: list[Answer]) -> None:
    """samples.json: the corpus's notice, and per query its best pictures with score, right or wrong, and own text."""
    write_thumbnails(run / THUMBNAILS, corpus, {row for answer in answers for row in answer.rows})
    queries = [
        {
            "text": answer.text,
            "language": answer.language,
            "results": [
                {
                    "picture": f"{THUMBNAILS}/{row}.jpg",
                    "score": score,
                    "right": right,
                    "shows": shows(corpus, row, answer.language),
                }
                for row, score, right in zip(answer.rows, answer.scores, answer.right, strict=True)
            ],
        }
        for answer in answers
    ]
    samples = {"notice": corpus.notice, "queries": queries}
    checkpoint.write(run / SAMPLES, json.dumps(samples, ensure_ascii=False, indent=1) + "\n")


def write_thumbnails(folder: Path, corpus: Corpus, rows: Iterable[int]) -> None:
    """FOLDER/ROW.jpg of each row's picture."""
    folder.mkdir(exist_ok=True)
    for row in sorted(rows):
        (folder / f"{row}.jpg").write_bytes(encode_jpeg(shrink(corpus.image(row), THUMBNAIL), 85))


def shows(corpus: Corpus, row: int, language: str) -> str:
    """What a picture shows, by its own first text, in the given language where it has one."""
    texts = corpus.record(row).texts
    spoken = texts.get(language) or next((own for own in texts.values() if own), ())
    return next(iter(spoken), "")
