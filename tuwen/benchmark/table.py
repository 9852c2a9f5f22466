"""A comparison as tables for the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tuwen.benchmark.statistics import STAGES, clearly_best
from tuwen.tasks.metrics import CUTOFFS, DIRECTIONS

WIDTH = 130  # columns where the output is no terminal
HEADS = {"image_to_text": "text", "text_to_image": "image"}  # what is found


def print_comparison(comparison: dict[str, Any], console: Console | None = None) -> None:
    """Recalls per language and stage with their chance level, differences with their sign, and cost.

    comparison: what `compare` gives. Figures are percent, rounded to 0.1, with the standard deviation over seeds; a
    mean recall is bold where it is the best as far as the seeds tell.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDTH, highlight=False)
    for language in next(iter(comparison["systems"].values()))["languages"]:
        console.print(_recalls(comparison, language), "")
    console.print(_differences(comparison), "")
    console.print(_cost(comparison))


def called(name: str, system: dict[str, Any]) -> str:
    """A system's name with what its code follows: "r2d2 (paper)"."""
    return f"{name} ({system['fidelity']})"


def figure(value: float | None, spread: float | None = None, sign: bool = False) -> str:
    """ "12.3", "12.3 ±0.4", "+0.8", or "-" where nothing was measured."""
    if value is None:
        return "-"
    return f"{value:{'+' if sign else ''}.1f}" + ("" if spread is None else f" ±{spread:.1f}")


def _recalls(comparison: dict[str, Any], language: str) -> Table:
    systems = comparison["systems"]
    first = next(iter(systems.values()))
    queries = first["languages"][language]["queries"]
    asked = " and ".join(f"{queries[way]} {way.replace('_', ' ')}" for way in queries)
    table = _table(f"{language}: recall in percent, {asked} queries of {comparison['corpus']} {comparison['split']}")
    for head in ("system", "stage"):
        table.add_column(head)
    ways = [way for way in DIRECTIONS if way in queries]
    for way in ways:
        for k in CUTOFFS:
            table.add_column(f"{HEADS[way]} R@{k}", justify="right", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True)
    rows = [(name, stage) for name in systems for stage in STAGES if stage in systems[name]["languages"][language]]
    means = [
        [seed["languages"][language][stage]["mean_recall"] for seed in systems[name]["seeds"]] for name, stage in rows
    ]
    for (name, stage), best in zip(rows, clearly_best(means), strict=True):
        system = systems[name]
        spread = system["spread"] and system["spread"]["languages"][language][stage]
        *cells, mean = _cells(system["languages"][language][stage], spread, ways)
        called_stage = "first" if stage == "first" else reranked_by(system)
        table.add_row(called(name, system), called_stage, *cells, Text(mean, "bold" if best else ""))
    table.add_row("chance", "", *_cells(first["languages"][language]["chance"], None, ways), style="dim")
    return table


def reranked_by(system: dict[str, Any]) -> str:
    """ "re-ranked", with the weights of the match that were fitted, seed by seed; 0 leaves the first stage."""
    rules = [seed.get("second_stage", {}) for seed in system["seeds"]]
    weights = [f"{rule['weight']:g}" if rule["weight"] != "match" else "match" for rule in rules if "weight" in rule]
    return f"re-ranked, w {' '.join(weights)}" if weights else "re-ranked"


def _cells(recalls: dict[str, Any], spread: dict[str, Any] | None, ways: list[str]) -> list[str]:
    cells = [
        figure(recalls[way][f"r{k}"], None if spread is None else spread[way][f"r{k}"]) for way in ways for k in CUTOFFS
    ]
    return [*cells, figure(recalls["mean_recall"], None if spread is None else spread["mean_recall"])]


def _differences(comparison: dict[str, Any]) -> Table:
    seeds = len(next(iter(comparison["systems"].values()))["seeds"])
    table = _table(f"differences in points, over {seeds} paired seed{'s' * (seeds > 1)}")
    for head in ("language", "of", "over"):
        table.add_column(head)
    for head in ("mean recall", "95 %", "p Holm", "text R@1", "image R@1"):
        table.add_column(head, justify="right", no_wrap=True)
    for difference in comparison["differences"]:
        table.add_row(
            difference["language"],
            difference["of"].replace("reranked", "re-ranked"),
            difference["over"].replace("reranked", "re-ranked"),
            figure(difference["mean_recall"], difference["spread"], sign=True),
            *over_seeds(difference),
            *(figure(difference.get(way), sign=True) for way in DIRECTIONS),
        )
    return table


def over_seeds(difference: dict[str, Any]) -> list[str]:
    """The interval and p (after Holm) of a difference over seeds; "-" for fewer than three, or as written before."""
    if not difference.get("interval"):
        return ["-", "-"]
    return ["{:+.1f} … {:+.1f}".format(*difference["interval"]), f"{difference['p_holm']:.3f}"]


def _cost(comparison: dict[str, Any]) -> Table:
    table = _table(
        f"cost of {comparison['steps']} steps of {comparison['batch_size']} pairs, size {comparison['size']}"
    )
    table.add_column("system")
    for head in ("training seconds", "pairs per second", "measuring seconds"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, system in comparison["systems"].items():
        spread = system["spread"] or {}
        figures = (figure(system[key], spread.get(key)) for key in ("seconds", "pairs_per_second", "measure_seconds"))
        table.add_row(called(name, system), *figures)
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
