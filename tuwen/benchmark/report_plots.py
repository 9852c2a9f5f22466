"""The report's plots as inline SVG that takes the page's text colour, so it reads on light and dark ground."""

import html
import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from tuwen.benchmark.table import stage_called
from tuwen.speech import spoken

INK = "#010203"  # replaced by the page's own text colour
COLOURS = ("#3f7fe0", "#e0862b", "#1f9d6b", "#b05fc9", "#d1495b", "#8a8f2a", "#2a9fb5", "#94694f")
COLUMNS = 3  # panels beside each other

Curve = tuple[np.ndarray, np.ndarray]  # steps [n], values [seeds, n]


def colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def recall_bars(systems: dict[str, dict[str, Any]], languages: Sequence[str]) -> str:
    """Mean recall of each system by language: a light bar for the first stage, a full one re-ranked, chance dashed.

    systems: the "systems" of a comparison.
    """
    rows = [(k, name, stage) for k, name in enumerate(systems) for stage in ("first", "reranked")]
    rows = [(k, name, stage) for k, name, stage in rows if stage in systems[name]["languages"][languages[0]]]
    rows = [row for row in rows if row[2] == "first" or "not" not in stage_called(row[2], systems[row[1]])]
    called = [wrapped(f"{name}, {spoken(stage_called(stage, systems[name]))}") for _, name, stage in rows]
    lines = max(2, *(label.count("\n") + 1 for label in called))
    figure, axes = panels(len(languages), columns=2, height=0.75 + 0.17 * lines * len(rows), width=10)
    for panel, language in zip(axes, languages, strict=False):
        for y, (k, name, stage) in enumerate(rows):
            recall = systems[name]["languages"][language][stage]["mean_recall"]
            spread = systems[name]["spread"]
            error = spread["languages"][language][stage]["mean_recall"] if spread else 0.0
            shade = 1.0 if stage == "reranked" else 0.5
            panel.barh(y, recall, 0.68, color=colour(k), alpha=shade, linewidth=0)
            if error:
                panel.errorbar(recall, y, xerr=error, color=INK, elinewidth=1, capsize=2.5)
            panel.annotate(f"{recall:.1f}", (recall + error, y), (5, 0), textcoords="offset points", va="center")
        chance = next(iter(systems.values()))["languages"][language]["chance"]["mean_recall"]
        panel.axvline(chance, color=INK, linewidth=1, linestyle=(0, (3, 3)))
        panel.annotate(spoken("chance"), (chance, -0.62), (3, 0), textcoords="offset points", fontsize=8.5, va="center")
        panel.set_yticks(range(len(rows)), called)
        panel.set_ylim(len(rows) - 0.4, -0.95)
        panel.margins(x=0.14)
        panel.tick_params(axis="y", length=0)
        panel.set_title(spoken(f"{language}: mean recall, %"), fontsize=10.5, loc="left")
    return svg(figure, "bars", spoken("Mean recall of each system by language, with the chance level"))


def recall_curves(curves: dict[str, dict[str, Curve]], chance: dict[str, float], split: str) -> str:
    """Recall on a split while training. curves: language -> system -> curve; chance: mean recall by language."""
    figure, axes = panels(len(curves), columns=2, height=2.9, width=10)
    for panel, (language, by_system) in zip(axes, curves.items(), strict=False):
        for k, (name, curve) in enumerate(by_system.items()):
            _draw(panel, curve, colour(k), wrapped(name), marker="o")
        if language in chance:
            panel.axhline(chance[language], color=INK, linewidth=1, linestyle=(0, (3, 3)), label=spoken("chance"))
        panel.set_title(spoken(f"{language}: mean recall on {split}, first stage, %"), fontsize=10.5, loc="left")
        panel.set_xlabel(spoken("step"), fontsize=9)
        panel.set_ylim(bottom=0)
        panel.legend(frameon=False, fontsize=9)
    return svg(figure, "recall", spoken(f"Mean recall on {split} by training step"))


def loss_curves(curves: dict[str, dict[str, Curve]], queued: dict[str, int]) -> str:
    """Losses while training, one panel a system. curves: system -> loss -> curve. queued: system -> step at which its
    contrast began to read a queue, where the loss jumps.
    """
    figure, axes = panels(len(curves), columns=COLUMNS, height=2.7, width=10)
    for panel, (name, by_loss) in zip(axes, curves.items(), strict=False):
        for k, (loss, curve) in enumerate(by_loss.items()):
            _draw(panel, curve, colour(k), loss.replace("_", " "))
        if name in queued:
            panel.axvline(queued[name], color=INK, linewidth=1, linestyle=(0, (1, 2)), label=spoken("queue begins"))
        panel.set_title(wrapped(spoken(f"{name}: losses")), fontsize=10.5, loc="left")
        panel.set_xlabel(spoken("step"), fontsize=9)
        panel.legend(frameon=False, fontsize=8.5)
    return svg(figure, "losses", spoken("Training losses of each system by step"))


def wrapped(name: str) -> str:
    """An arm's name on lines that leave room for its plot, broken behind its colon and its settings."""
    return textwrap.fill(re.sub("([:,])(?=[^ ])", r"\1 ", name), 30)


def _draw(panel: Axes, curve: Curve, shade: str, label: str, marker: str = "") -> None:
    """The mean over seeds, and the range of the seeds as a band."""
    steps, values = curve
    panel.plot(steps, values.mean(0), color=shade, linewidth=1.8, label=label, marker=marker, markersize=3.5)
    if len(values) > 1:
        panel.fill_between(steps, values.min(0), values.max(0), color=shade, alpha=0.16, linewidth=0)


def panels(count: int, columns: int, height: float, width: float) -> tuple[Figure, list[Axes]]:
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    FigureCanvasSVG(figure)
    panels = [figure.add_subplot(rows, columns, k + 1) for k in range(count)]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set(color=INK, alpha=0.35)
        panel.tick_params(labelsize=9, length=3)
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    return figure, panels


def svg(figure: Figure, name: str, description: str) -> str:
    """A figure as an inline SVG element without names of other documents; ids begin with `name`."""
    out = io.StringIO()
    for text in figure.findobj(Text):
        text.set(color=INK)
    for axis in (axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)):
        axis.set_tick_params(color=INK, labelcolor=INK)
    with (
        rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.sans-serif": ["DejaVu Sans"]}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's own font has Chinese
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    drawn = out.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", drawn).replace("xlink:href", "href").replace(INK, "currentColor")
    drawn = re.sub(r'\bid="', f'id="{name}-', drawn)
    drawn = re.sub(r'(href="#|url\(#)', rf"\1{name}-", drawn)
    drawn = re.sub(r"font: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font: \1system-ui, sans-serif", drawn)
    label = html.escape(description, quote=True)
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
