"""Two finished runs on any task of the registry: the figure that counts, row by row, with its interval. No training."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from tuwen.benchmark.crossed import paired_marks
from tuwen.benchmark.figures import figure_of
from tuwen.benchmark.judge import ONE_RUN, RESULT, names_of
from tuwen.benchmark.measure import ready_for
from tuwen.benchmark.paired import holm, paired_difference
from tuwen.benchmark.report_pieces import document, table, title
from tuwen.benchmark.written import Tabled, write_tables
from tuwen.errors import UserError
from tuwen.run import REPORT, write
from tuwen.speech import spoken
from tuwen.tasks.marks import Marks
from tuwen.training import checkpoint

HEADS = ("what", "rows", "of", "over", "difference", "95 %", "p", "p Holm", "detectable", "better of/over")


def judge_task(
    runs: Sequence[str | Path], corpus: str, task: str, split: str = "test", *, limit: int | None = None
) -> dict[str, Any]:
    """What the second run has over the first on a task: `{"task", "metric", "runs", "differences", "notes"}`.

    differences: of the whole figure, then of each of its parts (a language, a direction), as `judge_runs` gives them:
    the interval is a bootstrap over pictures with all their rows, p of swapping the runs picture by picture.

    Raises:
        UserError: a run that cannot do the task or has not learnt it, a task whose rows leave no marks, or runs that
            were not asked the same rows.
    """
    names, told, measured = names_of(runs), [], {}
    for name, run in zip(names, runs, strict=True):
        ready, marks = ready_for(run, corpus, split, task), Marks()
        options: dict[str, Any] = ready.options | ({} if limit is None else {"limit": limit})
        if not ready.task.marked:
            raise UserError(f"task {task} is a figure of all rows together: single rows leave no marks to pair")
        measured[name] = ready.task.measure(ready.model.predictor, ready.head, ready.rows, marks=marks, **options)
        told.append(marks)
    lower, upper = told
    try:
        gains = paired_marks(upper, lower)
    except ValueError as error:
        raise UserError(f"{names[0]} and {names[1]} were not asked the same rows ({error}): nothing to pair") from None
    wholes = [("all", gains)]
    if len(gains) > 1:
        wholes += [(name, [gain]) for name, gain in zip(upper.parts, gains, strict=True)]
    rows: list[dict[str, Any]] = []
    for what, parts in wholes:
        better = [sum(int((sign * gain > 0).sum()) for gain, _ in parts) for sign in (1, -1)]
        about = {"what": what, "of": names[1], "over": names[0], "rows": sum(len(gain) for gain, _ in parts)}
        rows.append(about | paired_difference(parts) | {"only_of": better[0], "only_over": better[1]})
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    first = next(iter(measured.values()))
    figures = {name: figure_of(result, type(ready.task).figure) for name, result in measured.items()}
    return {
        **{"task": task, "metric": type(ready.task).figure, "corpus": first["corpus"], "split": first["split"]},
        "runs": {name: {"figure": figures[name], "measured": result} for name, result in measured.items()},
        "differences": rows,
        "notes": [ONE_RUN],
    }


def judged_rows(judged: dict[str, Any]) -> list[list[str]]:
    """The cells of every difference under `HEADS`."""
    return [
        [
            *(row["what"], str(row["rows"]), row["of"], row["over"], f"{row['difference']:+.2f}"),
            "{:+.2f} … {:+.2f}".format(*row["interval"]),
            *(f"{row[key]:.4f}" for key in ("p", "p_holm")),
            f"{row['detectable']:.2f}",
            f"{row['only_of']}/{row['only_over']}",
        ]
        for row in judged["differences"]
    ]


def write_judged_task(out: Path, judged: dict[str, Any]) -> Path:
    """Writes OUT/judged.json, .md, .csv, .tex and OUT/report.html; gives the page's path."""
    import json

    out.mkdir(parents=True, exist_ok=True)
    write(out / RESULT, json.dumps(judged, ensure_ascii=False, indent=1) + "\n")
    rows = judged_rows(judged)
    about = f"{judged['task']} on {judged['corpus']}, {judged['split']}: {judged['metric']}"
    write_tables(out, Path(RESULT).stem, [Tabled(about, HEADS, rows)])
    lower, upper = judged["runs"]
    heading = spoken(f"{upper} against {lower}")
    notes = "".join(f'<p class="note">{escape(spoken(note))}{spoken(".")}</p>' for note in judged["notes"])
    figures = [[escape(name), f"{own['figure']:.2f}"] for name, own in judged["runs"].items()]
    body = (
        f'<div class="brand">tuwen 图文</div><h1>{escape(heading)}</h1><p class="note">{escape(spoken(about))}</p>'
        + table(("Run 训练", "Figure 指标"), figures, texts=1)
        + title("Differences", "差异")
        + table(HEADS, [[escape(spoken(cell)) for cell in row] for row in rows], texts=1)
        + notes
    )
    checkpoint.write(out / REPORT, document(heading, body))
    return out / REPORT
