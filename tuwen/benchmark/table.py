"""A comparison as tables for the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tuwen.benchmark.statistics import STAGES, clearly_best
from tuwen.speech import chosen_language, spoken
from tuwen.tasks.metrics import CUTOFFS, DIRECTIONS

WIDTH = 170  # columns where the output is no terminal
HEADS = {"image_to_text": "text", "text_to_image": "image"}  # what is found


def print_comparison(comparison: dict[str, Any], console: Console | None = None) -> None:
    """Recalls per language and stage with their chance level, differences with their sign, and cost.

    comparison: what `compare` gives. Figures are percent, rounded to 0.1, with the standard deviation over seeds; a
    mean recall is bold where it is the best as far as the seeds tell.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDTH, highlight=False)
    for language in next(iter(comparison["systems"].values())).get("languages", ()):
        console.print(_recalls(comparison, language), "")
    if comparison.get("task", "retrieval") != "retrieval":
        console.print(_figures(comparison), "")
    console.print(_differences(comparison), "")
    console.print(_cost(comparison))
    for line in remarks(comparison):
        console.print(spoken(line))


def called(name: str, system: dict[str, Any]) -> str:
    """A system's name with what its code follows: "r2d2 (paper)"."""
    return f"{name} ({system['fidelity']})"


def said_cell(cell: str) -> str:
    """A cell for people in their language: of "albef first" or "r2d2 (paper)" the name stays."""
    name, _, rest = cell.partition(" ")
    return f"{name} {spoken(rest)}" if rest and spoken(cell) == cell else spoken(cell)


def figure(value: float | None, spread: float | None = None, sign: bool = False) -> str:
    """ "12.3", "12.3 ±0.4", "+0.8", or "-" where nothing was measured."""
    if value is None:
        return "-"
    return f"{value:{'+' if sign else ''}.1f}" + ("" if spread is None else f" ±{spread:.1f}")


def _recalls(comparison: dict[str, Any], language: str) -> Table:
    heading, heads, rows = recall_cells(comparison, language)
    table = _table(spoken(heading))
    for head in heads:
        words = head in heads[:2]
        table.add_column(spoken(head), justify="left" if words else "right", no_wrap=not words)
    systems = comparison["systems"]
    stages = [(name, stage) for name in systems for stage in STAGES if stage in systems[name]["languages"][language]]
    means = [
        [seed["languages"][language][stage]["mean_recall"] for seed in systems[name]["seeds"]] for name, stage in stages
    ]
    for row, best in zip(rows, clearly_best(means), strict=False):  # the last row, chance, is nobody's
        table.add_row(*map(said_cell, row[:-1]), Text(row[-1], "bold" if best else ""))
    table.add_row(*map(said_cell, rows[-1]), style="dim")
    return table


def recall_cells(comparison: dict[str, Any], language: str) -> tuple[str, tuple[str, ...], list[list[str]]]:
    """(title, heads, rows) of a language: a row an arm and stage, and chance last."""
    systems = comparison["systems"]
    first = next(iter(systems.values()))
    queries = first["languages"][language]["queries"]
    asked = " and ".join(f"{queries[way]} {way.replace('_', ' ')}" for way in queries)
    title = f"{language}: recall in percent, {asked} queries of {comparison['corpus']} {comparison['split']}"
    ways = [way for way in DIRECTIONS if way in queries]
    heads = ("system", "stage", *(f"{HEADS[way]} R@{k}" for way in ways for k in CUTOFFS), "mean")
    rows = []
    for name, system in systems.items():
        for stage in STAGES:
            if stage in system["languages"][language]:
                spread = system["spread"] and system["spread"]["languages"][language][stage]
                cells = _cells(system["languages"][language][stage], spread, ways)
                rows.append([called(name, system), stage_called(stage, system), *cells])
    rows.append(["chance", "", *_cells(first["languages"][language]["chance"], None, ways)])
    return title, heads, rows


def stage_called(stage: str, system: dict[str, Any]) -> str:
    """ "first", or "re-ranked" with the weights of the match that were fitted, seed by seed.

    A weight of 0 leaves the first stage as it is: where all are 0 nothing was re-ranked, and it is called so.
    """
    if stage == "first":
        return "first"
    rules = [seed.get("second_stage", {}) for seed in system["seeds"]]
    weights = [f"{rule['weight']:g}" if rule["weight"] != "match" else "match" for rule in rules if "weight" in rule]
    if weights and set(weights) == {"0"}:
        return "first again, not re-ranked (w 0)"
    return f"re-ranked, w {' '.join(weights)}" if weights else "re-ranked"


def stage_titled(stage: str, system: dict[str, Any]) -> str:
    """`stage_called`, in both languages of the page."""
    words = stage_called(stage, system)
    if chosen_language() == "zh":
        return spoken(words)
    if stage == "first":
        return "first 初排"
    chinese = "未重排" if "not re-ranked" in words else "重排"
    return words.replace("re-ranked", f"re-ranked {chinese}", 1)


def side_called(side: str, comparison: dict[str, Any]) -> str:
    """One side of a difference, "albef reranked", as people read it."""
    name, _, stage = side.rpartition(" ")
    if name not in comparison["systems"]:
        return side
    called_stage = stage_called(stage, comparison["systems"][name])
    return f"{name} {'first' if 'not' in called_stage else called_stage.partition(',')[0]}"


def _cells(recalls: dict[str, Any], spread: dict[str, Any] | None, ways: list[str]) -> list[str]:
    cells = [
        figure(recalls[way][f"r{k}"], None if spread is None else spread[way][f"r{k}"]) for way in ways for k in CUTOFFS
    ]
    return [*cells, figure(recalls["mean_recall"], None if spread is None else spread["mean_recall"])]


DIFFERENCES = ("of", "over", "difference", "95 %", "interval of", "p Holm", "detectable")


def difference_cells(comparison: dict[str, Any]) -> tuple[tuple[str, ...], list[list[str]]]:
    """(heads, rows) of the differences: of mean recall and of R@1 either way, or of the one figure that counts."""
    rows, recalls = [], comparison.get("task", "retrieval") == "retrieval"
    for row in comparison["differences"]:
        sides = [side_called(row[side], comparison) for side in ("of", "over")] if recalls else [row["of"], row["over"]]
        figures = [figure(row["mean_recall" if recalls else "figure"], row["spread"], sign=True), *over_seeds(row)]
        more = [figure(row.get(way), sign=True) for way in DIRECTIONS] if recalls else []
        rows.append([*([row["language"]] if recalls else []), *sides, *figures, figure(row.get("detectable")), *more])
    heads = ("language", *DIFFERENCES, "text R@1", "image R@1") if recalls else DIFFERENCES
    return heads, rows


def _differences(comparison: dict[str, Any]) -> Table:
    seeds = len(next(iter(comparison["systems"].values()))["seeds"])
    paired = "1 paired seed" if seeds == 1 else f"{seeds} paired seeds"
    table = _table(spoken(f"differences in points, over {paired}"))
    heads, rows = difference_cells(comparison)
    for head in heads:
        words = head in ("language", "of", "over", "interval of")
        table.add_column(spoken(head), justify="left" if words else "right", no_wrap=not words)
    for row in rows:
        table.add_row(*map(said_cell, row))
    return table


def _figures(comparison: dict[str, Any]) -> Table:
    """The one figure that counts, of every arm."""
    about, rows = figure_cells(comparison)
    table = _table(spoken(about))
    table.add_column(spoken("system"))
    table.add_column(spoken("figure"), justify="right", no_wrap=True)
    best = clearly_best([[seed["figure"] for seed in system["seeds"]] for system in comparison["systems"].values()])
    for (name, cell), bold in zip(rows, best, strict=True):
        table.add_row(said_cell(name), Text(cell, "bold" if bold else ""))
    return table


def figure_cells(comparison: dict[str, Any]) -> tuple[str, list[list[str]]]:
    """(what is measured, a row an arm: its name, the figure with its deviation over seeds)."""
    about = f"{comparison['task']} on {comparison['corpus']} {comparison['split']}: {comparison['metric']}"
    rows = []
    for name, system in comparison["systems"].items():
        spread = system["spread"] and system["spread"]["figure"]
        rows.append([called(name, system), figure(system["figure"], spread)])
    return about, rows


def remarks(comparison: dict[str, Any]) -> list[str]:
    """What else stands with a comparison: rates that were tuned, how often test was read, seeds that are needed."""
    lines = []
    for name, tuned in comparison.get("tuned", {}).items():
        tried = ", ".join(f"{rate} ({score:.1f})" for rate, score in tuned["rates"].items())
        lines.append(f"{name}: learning rate {tuned['chosen']} by validation, of {tried}")
    if "tuned" in comparison and not lines:
        lines.append("learning rates are the arms' own: nothing was tuned")
    if "test_reads" in comparison:
        runs = sum(len(system["seeds"]) for system in comparison["systems"].values())
        lines.append(f"{comparison['split']} was read {comparison['test_reads']} times for {runs} runs")
    for row in comparison["differences"]:
        if "seeds_needed" in row:
            seeds = "no number of seeds shows" if row["seeds_needed"] is None else f"{row['seeds_needed']} seeds show"
            lines.append(f"{row['of']} over {row['over']}: {seeds} the wanted difference in 4 cases of 5")
    return lines


def over_seeds(difference: dict[str, Any]) -> list[str]:
    """The interval of a difference, what it is of, and p (after Holm); "-" where there is none."""
    if not difference.get("interval"):
        return ["-", "-", "-"]
    p = "-" if difference.get("p_holm") is None else f"{difference['p_holm']:.3f}"
    return ["{:+.1f} … {:+.1f}".format(*difference["interval"]), difference.get("covers") or "seeds alone", p]


COSTS = {  # key of a result: (head, in what unit it is shown)
    "seconds": ("training seconds", 1.0),
    "pairs_per_second": ("pairs per second", 1.0),
    "flops_a_pair": ("MFLOPs a pair", 1e6),
    "parameters": ("million parameters", 1e6),
    "peak_mib": ("training MiB", 1.0),
    "ms_a_query": ("ms a query", 1.0),
    "measure_seconds": ("measuring seconds", 1.0),
}


def cost_cells(comparison: dict[str, Any]) -> tuple[tuple[str, ...], list[list[str]]]:
    """(heads, rows): the figure of every arm beside what it cost, mean and deviation over seeds."""
    systems = comparison["systems"]
    known = [key for key in COSTS if any(system.get(key) is not None for system in systems.values())]
    rows = []
    for name, system in systems.items():
        spread = system["spread"] or {}
        cells = [figure(system.get("figure"), spread.get("figure"))]
        for key in known:
            unit, value, own = COSTS[key][1], system.get(key), spread.get(key)
            cells.append("-" if value is None else figure(value / unit, own / unit if own else None))
        rows.append([called(name, system), *cells])
    return ("system", "figure", *(COSTS[key][0] for key in known)), rows


def _cost(comparison: dict[str, Any]) -> Table:
    spent = comparison.get("budget") or f"{comparison['steps']} steps"
    pairs, size = comparison["batch_size"], comparison["size"]
    table = _table(spoken(f"quality and cost of {spent}, {pairs} pairs a step, size {size}"))
    heads, rows = cost_cells(comparison)
    for head in heads:
        table.add_column(spoken(head), justify="left" if head == "system" else "right", no_wrap=head == "figure")
    for row in rows:
        table.add_row(*map(said_cell, row))
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
