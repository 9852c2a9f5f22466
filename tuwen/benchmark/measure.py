"""A run folder measured on a split: retrieval.json, the ranks of every query, answers to sample queries; any task."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import tuwen
from tuwen import tasks
from tuwen.benchmark.predictions import check_predictions, write_predictions
from tuwen.data.corpus import Corpus, languages_and_texts
from tuwen.data.images import encode_jpeg, shrink
from tuwen.data.open import open_corpus, splits_of
from tuwen.data.private import hides, own_only
from tuwen.errors import UserError, quoted
from tuwen.model import Model
from tuwen.outputs import check_free
from tuwen.progress import bars
from tuwen.run import RANKS, RECALLS, SAMPLES, SCORE, THUMBNAILS, WEIGHTS, marks_name, measured_name, read_json
from tuwen.systems.system import Head
from tuwen.tasks.marks import Marks
from tuwen.tasks.retrieval import TOP_K, Answer, Retrieval, retrieve
from tuwen.tasks.task import Task
from tuwen.training import checkpoint, parallel
from tuwen.training.features import text_features

THUMBNAIL = 144  # pixels of the shorter side


@dataclass(frozen=True)
class MeasureConfig:
    """How runs are measured.

    task: what is measured. corpus: where, if elsewhere than trained on. metric: the path of the figure that counts;
    none: the task's own. split: of the corpus. languages: those measured; none: all. limit: at most so many pictures;
    None: all. top_k: candidates a query that are re-ranked. batch_size: pictures, texts or pairs at once. samples:
    texts a language whose best five pictures are shown.
    """

    task: str = "retrieval"
    corpus: str | None = None
    metric: str = ""
    split: str = "test"
    languages: tuple[str, ...] = ()
    limit: int | None = None
    top_k: int = TOP_K
    batch_size: int = 64
    samples: int = 4

    def __post_init__(self):
        if self.task not in tasks.task_names():
            raise ValueError(f"task {quoted(self.task, 60)} is none; there are {', '.join(tasks.task_names())}")
        for name in ("limit", "top_k", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


def measure_run(run: str | Path, corpus: Corpus, config: MeasureConfig | None = None) -> dict:
    """The retrieval JSON of a run's weights on a corpus, also written into the run folder.

    Files: retrieval.json, whose "reads" say how often the run was measured anew; retrieval.marks.safetensors
    (`read_marks`); ranks.safetensors ("zh.reranked.text_to_image", [Q] int64 each: rank of every query's best answer,
    as `tuwen.tasks.metrics`); samples.json with samples/ROW.jpg. What was measured already with these settings on this
    corpus is read back.

    Raises:
        UserError: no run there, or whatever `retrieve` raises.
    """
    run, config = Path(run), config or MeasureConfig()
    asked = {"fingerprint": corpus.fingerprint, "weights": weights_stamp(run), **dataclasses.asdict(config)}
    asked["score"] = read_json(run / SCORE).get("weight") if (run / SCORE).exists() else None
    asked["languages"] = list(config.languages)  # as JSON gives it back
    path = run / RECALLS
    if path.exists():
        measured = read_json(path)
        if measured.pop("measured", None) == asked:
            return measured
    marks = Marks()
    retrieval = _retrieve(run, corpus, config, marks)
    ranks = {
        f"{language}.{stage}.{way}": torch.from_numpy(np.ascontiguousarray(rank))
        for language, stages in retrieval.ranks.items()
        for stage, ways in stages.items()
        for way, rank in ways.items()
    }
    checkpoint.save_tensors(run / RANKS, ranks)
    save_marks(run, config.task, marks)
    _write_samples(run, corpus, retrieval.answers)
    return _keep_measured(path, retrieval.json, asked)


def _keep_measured(path: Path, measured: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Writes what was measured by what settings, with how often the run was read for it ("reads"), which it gives."""
    measured = {**measured, "reads": 1 + (read_json(path).get("reads", 1) if path.exists() else 0)}
    checkpoint.write(path, json.dumps({**measured, "measured": asked}, ensure_ascii=False, indent=1) + "\n")
    return measured


def save_marks(run: Path, task: str, marks: Marks) -> None:
    """RUN/TASK.marks.safetensors: "PART.values" and "PART.pictures" of every part of the figure."""
    tensors = {f"{name}.{key}": value for name, part in marks.parts.items() for key, value in part._asdict().items()}
    checkpoint.save_tensors(run / marks_name(task), {name: torch.from_numpy(value) for name, value in tensors.items()})


def read_marks(run: Path, task: str) -> Marks | None:
    """The marks of a measured run; None where none were written."""
    path = run / marks_name(task)
    if not path.exists():
        return None
    tensors, marks = checkpoint.load_tensors(path), Marks()
    for name in sorted(name.removesuffix(".values") for name in tensors if name.endswith(".values")):
        marks.add(name, tensors[f"{name}.values"].numpy(), tensors[f"{name}.pictures"].numpy())
    return marks


def _retrieve(run: Path, corpus: Corpus, config: MeasureConfig, marks: Marks) -> Retrieval:
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
        marks=marks,
    )


def _write_samples(run: Path, corpus: Corpus, answers: list[Answer]) -> None:
    """samples.json: the corpus's notice, and per query its best pictures with score, right or wrong, and own text.

    Of a private corpus no query is shown: what is not asked for tells nothing of it.
    """
    answers = [] if hides(corpus.private) else answers
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


# ---- any task


class Ready(NamedTuple):
    """A run's task ready to be measured: options: what is handed to its `measure` beside what is asked for."""

    model: Model
    task: Task
    head: Head | None
    rows: Corpus
    options: dict[str, Any]


def ready_for(run: str | Path, location: str, split: str | None, task: str) -> Ready:
    """A run, the task as the run has it, and its rows of a corpus. split: None: test, or the one there is.

    Raises:
        UserError: a task that the run cannot do or has not learnt, or no such corpus or split.
    """
    location = tasks.rows_at(task, location)
    model = tuwen.load(run, device=str(parallel.device("auto")))
    own = model.config.task_name == task
    chosen = tasks.able(model.config.system, task)(model.config.task if own else None)
    if chosen.learnt and not own:
        raise UserError(
            f"{run}: has not learnt {task}; learn it with `tuwen train {model.config.system} --task {task} "
            f"--init {run} --corpus CORPUS --out RUN`"
        )
    try:
        corpus = open_corpus(location, split or "test", "skip")
    except UserError:
        splits = splits_of(location) if split is None else ()
        if len(splits) != 1 or splits == ("test",):
            raise
        corpus = open_corpus(location, splits[0], "skip")
    further = splits_of(location) if chosen.beside else ()
    options = {name: open_corpus(location, name, "skip") for name in chosen.beside if name in further}
    return Ready(model, chosen, model.system.head if own else None, chosen.rows(corpus, corpus.split), options)


def measure_task(
    run: str | Path,
    location: str,
    split: str | None,
    task: str,
    options: dict[str, Any],
    predictions: Path | None = None,
) -> dict[str, Any]:
    """The JSON of a task on a corpus, which may be any that the run can do and, where it must be learnt, has learnt.

    split: as `ready_for`. options: of the task's measure. predictions: the file to write what is predicted to.

    Raises:
        UserError: as `ready_for`, a file of predictions that is there already, or whatever measuring raises.
    """
    if predictions is not None:
        check_free(predictions)
    model, chosen, head, rows, further = ready_for(run, location, split, task)
    with bars():
        if predictions is not None:
            entries = list(chosen.predictions(model.predictor, head, rows, **further))
            write_predictions(predictions, entries)
            if rows.private:
                own_only(predictions)
            check_predictions(entries, rows)
        try:
            measured = chosen.measure(model.predictor, head, rows, **options, **further)
        except UserError as error:  # a server's split has no truth to measure by
            if predictions is None:
                raise
            about = {"system": model.predictor.name, "corpus": rows.name, "split": rows.split, "task": task}
            return about | {"unmeasured": str(error)}
    unknown = [language for language in rows.languages if language not in model.languages]
    if unknown and not options.get("languages") and task != "zero_shot":  # that is in the languages of its class names
        counts = Counter(name for row in range(len(rows)) for name, _ in languages_and_texts(rows.record(row)))
        what = f"not measured: {', '.join(f'{counts[name]:,} texts in {name}' for name in unknown)}, unknown to the run"
        measured["note"] = "\n".join(filter(None, (measured.get("note"), what)))
    return measured


def measure_arm(run: Path, location: str, config: MeasureConfig) -> dict[str, Any]:
    """What `measure_task` gives of a run by a comparison's settings, kept in the run's folder and read back.

    Raises:
        UserError: as `measure_task`.
    """
    options: dict[str, Any] = {"limit": config.limit} if config.limit else {}
    options |= {"languages": list(config.languages)} if config.languages else {}
    asked = {"corpus": location, "split": config.split, "weights": weights_stamp(run), **options}
    path = run / measured_name(config.task)
    if path.exists():
        measured = read_json(path)
        if measured.pop("measured", None) == asked:
            return measured
    marks = Marks()
    told = {"marks": marks} if tasks.find_task(config.task).marked else {}
    measured = measure_task(run, location, config.split, config.task, {**options, **told})
    if told:
        save_marks(run, config.task, marks)
    return _keep_measured(path, measured, asked)


def weights_stamp(run: Path) -> int:
    """When a run's weights were written.

    Raises:
        UserError: there are none.
    """
    if not (run / WEIGHTS).exists():
        raise UserError(f"{run}: holds no {WEIGHTS}; train first, or go on with `tuwen train --resume {run}`")
    return (run / WEIGHTS).stat().st_mtime_ns
