"""The page of a ladder: each arm's line with its band over the rungs, and where two cross."""

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from tuwen.benchmark import report_plots
from tuwen.benchmark.ladder import ladder_tables
from tuwen.benchmark.report_pieces import document, table, title
from tuwen.benchmark.table import said_cell
from tuwen.run import REPORT
from tuwen.speech import spoken
from tuwen.training import checkpoint


def write_ladder(out: Path, result: Mapping[str, Any]) -> Path:
    """Writes OUT/report.html of what `ladder` gave."""
    figures, crossings = ladder_tables(result)
    heading = spoken(f"Ladder of {', '.join(result['figures'])}")
    note = spoken(
        "Lines over log2 of the rung, by least squares over all seeds, with their 95 % band. Beyond the ladder a "
        "crossing is a guess."
    )
    body = (
        f'<div class="brand">tuwen 图文</div><h1>{escape(heading)}</h1>'
        f'<p class="note">{escape(spoken(figures.title))}</p>'
        f"<figure class='plot'>{ladder_plot(result)}</figure>"
        + table(figures.heads, [[escape(spoken(cell)) for cell in row] for row in figures.rows], texts=1)
        + title("Crossings", "交叉")
        + table(crossings.heads, [[escape(said_cell(cell)) for cell in row] for row in crossings.rows], texts=3)
        + f'<p class="note">{note}</p>'
    )
    checkpoint.write(out / REPORT, document(heading, body))
    return out / REPORT


def ladder_plot(result: Mapping[str, Any]) -> str:
    """Points of every seed, the lines and their bands."""
    drawing, (panel,) = report_plots.panels(1, columns=1, height=3.4, width=7)
    places = [math.log2(rung) for rung in result["rungs"]]
    for number, (name, line) in enumerate(result["lines"].items()):
        shade = report_plots.colour(number)
        heights = [height for height, _ in line["at"]]
        panel.plot(places, heights, color=shade, linewidth=1.8, label=name)
        if all(band is not None for _, band in line["at"]):
            low, high = ([height + sign * band for height, band in line["at"]] for sign in (-1, 1))
            panel.fill_between(places, low, high, color=shade, alpha=0.16, linewidth=0)
        for place, seeds in zip(places, result["figures"][name], strict=True):
            panel.plot([place] * len(seeds), seeds, "o", color=shade, markersize=3.5)
    panel.set_xticks(places, [f"x{rung:g}" for rung in result["rungs"]])
    panel.set_ylabel(result["metric"].rpartition(".")[2], fontsize=9)
    panel.legend(frameon=False, fontsize=9)
    return report_plots.svg(drawing, "ladder", spoken("The figure of each arm by rung, with fitted lines"))
