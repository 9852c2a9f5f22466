"""One self-contained page about a run or a comparison: no scripts, no requests, everything inside the file."""

import json
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tuwen import systems
from tuwen.benchmark import report_plots, report_samples, report_stages
from tuwen.benchmark.compare import RESULT, summary
from tuwen.benchmark.paired import FEWEST_SEEDS
from tuwen.benchmark.report_pieces import document, table, title
from tuwen.benchmark.statistics import STAGES, clearly_best, last_stage
from tuwen.benchmark.table import (
    cost_cells,
    difference_cells,
    figure,
    figure_cells,
    remarks,
    said_cell,
    stage_titled,
)
from tuwen.errors import UserError
from tuwen.run import CONFIG, METRICS, PROVENANCE, RECALLS, REPORT, SAMPLES, holds_run, provenance, read_json
from tuwen.speech import spoken
from tuwen.tasks.metrics import CUTOFFS, DIRECTIONS
from tuwen.training import checkpoint
from tuwen.training.config import RunConfig
from tuwen.training.log import read_metrics

FIDELITY = {
    "code": "followed from the official code",
    "paper": "followed from the paper",
    "reconstructed": "parts of the paper were not public and are reconstructed",
}
LANGUAGES = {"zh": "Chinese 中文", "en": "English 英文"}
Runs = dict[str, list[Path]]  # system -> run folders, one a seed


def write_report(folder: str | Path) -> Path:
    """Writes FOLDER/report.html about a comparison (comparison.json) or a run (config.yaml), and gives its path.

    It has the recall table with the chance level, differences, learning curves, cost, and each system's best
    pictures for sample queries; what the folder does not hold yet is left out.

    Raises:
        UserError: the folder holds neither.
    """
    folder = Path(folder)
    if (folder / RESULT).exists():
        comparison = read_json(folder / RESULT)
        runs = {
            name: [folder / seed["run"] for seed in system["seeds"] if (folder / seed["run"]).is_dir()]
            for name, system in comparison["systems"].items()
        }
    elif holds_run(folder):
        comparison, runs = _of_run(folder)
    else:
        raise UserError(f"{folder}: neither a comparison (no {RESULT}) nor a run (no {CONFIG}) to report on")
    path = folder / REPORT
    checkpoint.write(path, page(comparison, runs))
    return path


def page(comparison: dict[str, Any], runs: Runs) -> str:
    """The whole page. comparison: as `compare` gives it; one of a single run may lack "languages"."""
    names = list(comparison["systems"])
    title = spoken(f"Comparison of {_listed(names)}") if len(names) > 1 else spoken(f"Run of {names[0]}")
    title += spoken(f" on {comparison['corpus']}, split {comparison['split']}") if comparison["split"] else ""
    parts = [_head(title, comparison, runs), _recall(comparison), _differences(comparison)]
    parts += [report_stages.section(comparison["systems"], runs), _curves(comparison, runs), _cost(comparison)]
    parts += [report_stages.equal_seconds(runs), _samples(comparison, runs), _origin(runs)]
    return document(title, "".join(parts))


def _of_run(run: Path) -> tuple[dict[str, Any], Runs]:
    """A run as a comparison of one system and one seed; without recalls where it was not measured."""
    config = RunConfig.read(run)
    origin = provenance(run)
    done = origin.get("finished", {})
    path = run / RECALLS
    result = read_json(path) if path.exists() else {"languages": {}}
    cost = {"seconds": done.get("seconds"), "pairs_per_second": done.get("pairs_per_second")}
    seed_result = {
        "seed": config.train.seed,
        "run": run.name,
        **result,
        **cost,
        "measure_seconds": result.get("seconds"),
    }
    if result["languages"]:
        system = summary(config.system, [seed_result])
    else:
        system = {
            **seed_result,
            "fidelity": systems.find(config.system).paper.fidelity,
            "spread": None,
            "seeds": [seed_result],
        }
    comparison = {
        "systems": {config.system: system},
        "differences": [],
        "corpus": origin["corpus"]["name"],
        "split": result.get("split"),
        "size": config.size,
        "steps": done.get("step", config.train.steps),
        "batch_size": config.train.batch_size,
    }
    return comparison, {config.system: [run]}


# ---- sections


def _head(title: str, comparison: dict[str, Any], runs: Runs) -> str:
    first = next(iter(comparison["systems"].values()))
    facts = {
        "Corpus 语料": comparison["corpus"],
        "Split 划分": comparison["split"],
        "Pictures 图片": first.get("images"),
        "Texts 文本": first.get("texts"),
        "Size 规模": comparison["size"],
        "Steps × batch 步数 × 批量": f"{comparison['steps'] or '?'} × {comparison['batch_size']}",
        "Seeds 随机种子": ", ".join(str(seed["seed"]) for seed in first["seeds"]),
        "Re-ranked a query 重排数": first.get("top_k") or _any(comparison, "top_k"),
    }
    rows = "".join(
        f"<div><dt>{escape(spoken(name))}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts.items()
        if value
    )
    broken = sum(first.get("broken", {}).values())
    left_out = spoken(f"{broken} pictures could not be read and were left out.")
    note = f'<p class="note">{left_out}</p>' if broken else ""
    return f'<div class="brand">tuwen 图文</div><h1>{escape(title)}</h1><dl class="facts">{rows}</dl>{note}'


def _recall(comparison: dict[str, Any]) -> str:
    by_system = comparison["systems"]
    if comparison.get("task", "retrieval") != "retrieval":
        about, rows = figure_cells(comparison)
        return (
            title("Figure", "指标")
            + f'<p class="note">{escape(spoken(about))}{spoken(".")}</p>'
            + table(("System 系统", "Figure 指标"), [[escape(said_cell(cell)) for cell in row] for row in rows], 1)
        )
    languages = list(next(iter(by_system.values()))["languages"])
    if not languages:
        unmeasured = spoken("Not measured yet 尚未评测")
        return title("Recall", "召回率") + f'<p class="note">{unmeasured}: <code>tuwen eval</code>.</p>'
    note = spoken(
        "A query counts as found at K when any right answer is among the first K. Mean is that of all recalls shown. "
        "Chance is the expected recall of a random order. ± is the standard deviation over seeds. "
        "Bold leads every other row by more than seeds differ (95 % interval of paired seeds above 0); one seed has no "
        "best."
    )
    fidelity = {system["fidelity"] for system in by_system.values()}
    kinds = [f"“{spoken(key)}”{spoken(': ')}{spoken(FIDELITY[key])}" for key in FIDELITY if key in fidelity]
    note += " " + spoken("; ").join(kinds) + spoken(".")
    tables = "".join(_recall_table(comparison, language) for language in languages)
    drawn = f"<figure class='plot'>{report_plots.recall_bars(by_system, languages)}</figure>"
    return title("Recall", "召回率") + f'<p class="note">{escape(note)}</p>{drawn}{tables}'


def _recall_table(comparison: dict[str, Any], language: str) -> str:
    by_system = comparison["systems"]
    first = next(iter(by_system.values()))["languages"][language]
    ways = [way for way in DIRECTIONS if way in first["chance"]]
    paths = [(way, f"r{k}") for way in ways for k in CUTOFFS]
    rows = [(name, stage) for name in by_system for stage in STAGES if stage in by_system[name]["languages"][language]]
    figures = {row: _figures(by_system[row[0]]["languages"][language][row[1]], paths) for row in rows}
    marks = _marks(by_system, language, rows, paths)
    body = ""
    for row in rows:
        name, stage = row
        spread = by_system[name]["spread"]
        spreads = _figures(spread["languages"][language][stage], paths) if spread else [None] * len(figures[row])
        cells = "".join(map(_cell, figures[row], spreads, marks[row], _edges(paths)))
        stages = [of for of in STAGES if (name, of) in figures]
        head = _system(name, by_system[name], len(stages)) if stage == stages[0] else ""
        body += f"<tr>{head}<td class='stage'>{stage_titled(stage, by_system[name])}</td>{cells}</tr>"
    chance = "".join(
        _cell(value, None, False, edge)
        for value, edge in zip(_figures(first["chance"], paths), _edges(paths), strict=True)
    )
    blind = spoken("chance 随机")
    body += f'<tr class="chance"><th scope="row">{blind}</th><td></td>{chance}</tr>'
    heads = {"image_to_text": "image → text 图搜文", "text_to_image": "text → image 文搜图"}
    groups = "".join(f'<th class="group" colspan="3">{spoken(heads[way])}</th>' for way in ways)
    columns = "".join(
        f'<th class="number{edge}" scope="col">R@{k[1:]}</th>'
        for (_, k), edge in zip(paths, _edges(paths), strict=False)
    )
    asked = ", ".join(f"{first['queries'][way]} {spoken(way.replace('_', ' '))}" for way in ways)
    left = sum(first["left_out"].values())
    caption = spoken(f"Percent of queries: {asked}")
    caption += spoken(f"; {left} without a right answer left out") if left else ""
    system, stage_head, mean = map(spoken, ("System 系统", "Stage 阶段", "Mean 平均"))
    return (
        f"<h3>{escape(language)} {spoken(LANGUAGES.get(language, ''))}</h3><div class='scroll'><table>"
        f"<caption>{escape(caption)}</caption><thead><tr class='groups'><td></td><td></td>{groups}<td></td></tr>"
        f"<tr><th scope='col'>{system}</th><th scope='col'>{stage_head}</th>{columns}"
        f'<th class="number edge" scope="col">{mean}</th></tr></thead><tbody>{body}</tbody></table></div>'
    )


def _marks(
    by_system: dict[str, Any], language: str, rows: list[tuple[str, str]], paths: list[tuple[str, str]]
) -> dict[tuple[str, str], list[bool]]:
    """Of every row (system, stage) and column, whether it is the best as far as the seeds tell."""
    seeds = {
        (name, stage): [_figures(seed["languages"][language][stage], paths) for seed in by_system[name]["seeds"]]
        for name, stage in rows
    }
    columns = [clearly_best([[seed[k] for seed in seeds[row]] for row in rows]) for k in range(len(paths) + 1)]
    return {row: [column[place] for column in columns] for place, row in enumerate(rows)}


def _differences(comparison: dict[str, Any]) -> str:
    if not comparison["differences"]:
        return ""
    heads, rows = difference_cells(comparison)
    cells = [
        [escape(cell).replace("-", "−") if cell[:1] == "-" else escape(said_cell(cell)) for cell in row] for row in rows
    ]
    seeds = len(next(iter(comparison["systems"].values()))["seeds"])
    note = spoken(f"In points; each seed against the same seed of the other, {seeds} in all.")
    if seeds < FEWEST_SEEDS:
        note += spoken(
            " Fewer than three seeds have no interval over seeds: where one stands it is of these runs on other "
            "pictures, and another seed might differ by more."
        )
    else:
        note += spoken(" 95 %: of other seeds on other pictures, where rows left marks; p after Holm over this table.")
    note += spoken(" Detectable: what such a table shows in 4 cases of 5.")
    texts = heads.index("difference")
    return title("Differences", "差异") + f'<p class="note">{note}</p>' + table(heads, cells, texts=texts)


def _curves(comparison: dict[str, Any], runs: Runs) -> str:
    records = {name: [read_metrics(run / METRICS) for run in folders] for name, folders in runs.items()}
    losses = {name: _series([_losses(seed) for seed in seeds]) for name, seeds in records.items()}
    recalls: dict[str, dict[str, report_plots.Curve]] = {}
    chance: dict[str, report_plots.Curve] = {}
    for name, seeds in records.items():
        for language, curve in _series([_validation(seed, "first", "reranked") for seed in seeds]).items():
            recalls.setdefault(language, {})[name] = curve
        chance |= _series([_validation(seed, "chance") for seed in seeds])
    losses = {name: curves for name, curves in losses.items() if curves}
    if not losses and not recalls:
        return ""
    out = title("Learning curves", "学习曲线")
    if recalls:
        levels = {language: float(values[0, 0]) for language, (_, values) in chance.items()}
        split = comparison.get("watched", "validation")
        out += f"<figure class='plot'>{report_plots.recall_curves(recalls, levels, split)}</figure>"
    if losses:
        queued = {name: step for name, seeds in records.items() if (step := _queue_start(seeds[0])) is not None}
        out += f"<figure class='plot'>{report_plots.loss_curves(losses, queued)}</figure>"
    return out


def _queue_start(records: list[dict]) -> int | None:
    """The first logged step at which the contrast had queued keys, after one at which it had none."""
    keys = [(record["step"], record.get("metrics", {}).get("queued_keys", 0) or 0) for record in records]
    return next((step for (_, before), (step, now) in pairwise(keys) if now and not before), None)


def _losses(records: list[dict]) -> dict[str, dict[int, float]]:
    out: dict[str, dict[int, float]] = {}
    for record in records:
        for name, value in record.get("losses", {}).items():
            out.setdefault(name, {})[record["step"]] = value
    return out


def _validation(records: list[dict], *stages: str) -> dict[str, dict[int, float]]:
    """Mean recall by language and step, of the first of the stages that was evaluated."""
    out: dict[str, dict[int, float]] = {}
    for record in records:
        for language, stage_recalls in record.get("eval", {}).items():
            recalls = [stage_recalls.get(stage) for stage in stages] if isinstance(stage_recalls, dict) else []
            means = [stage["mean_recall"] for stage in recalls if isinstance(stage, dict) and "mean_recall" in stage]
            if means and type(means[0]) in (int, float) and abs(means[0]) <= 100:  # NaN is not
                out.setdefault(language, {})[record["step"]] = means[0]
    return out


def _series(seeds: list[dict[str, dict[int, float]]]) -> dict[str, report_plots.Curve]:
    """Curves by name at the steps that all seeds have, two at least; null, which stands for what JSON cannot hold, is
    NaN.
    """
    out = {}
    for name in seeds[0] if seeds else ():
        steps = sorted(set.intersection(*(set(seed.get(name, {})) for seed in seeds)))
        if len(steps) > 1:  # one point is no curve
            out[name] = (np.array(steps), np.array([[seed[name][step] for step in steps] for seed in seeds], float))
    return out


def _cost(comparison: dict[str, Any]) -> str:
    heads, rows = cost_cells(comparison)
    notes = "".join(f'<p class="note">{escape(spoken(line))}{spoken(".")}</p>' for line in remarks(comparison))
    cells = [[escape(said_cell(cell)) for cell in row] for row in rows]
    return title("Quality and cost", "质量与开销") + table(heads, cells, 1) + notes


def _samples(comparison: dict[str, Any], runs: Runs) -> str:
    samples = {}
    for name, folders in runs.items():
        path = folders[0] / SAMPLES if folders else None
        if path and path.exists():
            samples[name] = (folders[0], json.loads(path.read_text(encoding="utf-8")))
    asked = report_samples.queries(samples)
    if not asked:
        return ""
    by_system = {name: comparison["systems"][name] for name in samples}
    stages = {
        name: stage_titled(last_stage(next(iter(system.get("languages", {}).values()), {"first": 0})), system)
        for name, system in by_system.items()
    }
    seed = next(iter(comparison["systems"].values()))["seeds"][0]["seed"]
    note = spoken(f"The five best pictures of each system (seed {seed}) with their scores.")
    framed = spoken('Right ones are framed in green. <span lang="zh">绿框为正确图片。</span>')
    notice = next(iter(samples.values()))[1]["notice"]
    credit = f'<p class="note">{escape(notice)}</p>' if notice else ""
    return (
        title("Sample queries", "查询示例")
        + f'<p class="note">{note} {framed}</p>'
        + report_samples.section(asked, stages)
        + credit
    )


def _origin(runs: Runs) -> str:
    """Where the figures come from: code, packages, machine, and each system's settings."""
    parts: list[str] = []
    for name, folders in runs.items():
        for file in (PROVENANCE, CONFIG):
            path = folders[0] / file if folders else None
            if path and path.exists() and (file == CONFIG or not parts):
                text = escape(path.read_text(encoding="utf-8"))
                parts.append(f"<details><summary>{escape(name)}: {file}</summary><pre>{text}</pre></details>")
    return title("Origin", "来源") + "".join(parts) if parts else ""


# ---- pieces


def _figures(recalls: dict[str, Any], paths: list[tuple[str, str]]) -> list[float]:
    return [*(recalls[way][k] for way, k in paths), recalls["mean_recall"]]


def _edges(paths: list[tuple[str, str]]) -> list[str]:
    """A wider space before each direction and before the mean."""
    return [" edge" if k == "r1" else "" for _, k in paths] + [" edge"]


def _cell(value: float, spread: float | None, best: bool, edge: str) -> str:
    return f'<td class="number{edge}{" best" if best else ""}">{_spread(value, spread)}</td>'


def _spread(value: float | None, spread: float | None, sign: bool = False) -> str:
    beside = "" if spread is None else f' <span class="spread">±{spread:.1f}</span>'
    return figure(value, sign=sign).replace("-", "−" if value is not None else "–") + beside


def _system(name: str, system: dict[str, Any], stages: int = 1) -> str:
    fidelity = escape(spoken(system["fidelity"]))
    return f'<th scope="rowgroup" rowspan="{stages}">{escape(name)}<span class="fidelity">{fidelity}</span></th>'


def _listed(names: list[str]) -> str:
    return ", ".join(names[:-1]) + spoken(" and ") + names[-1]


def _any(comparison: dict[str, Any], key: str) -> Any:
    return next((system[key] for system in comparison["systems"].values() if key in system), None)
