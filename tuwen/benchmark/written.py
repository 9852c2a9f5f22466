"""A comparison's tables for papers and spreadsheets: Markdown, CSV and LaTeX, beside the JSON and the page."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tuwen.benchmark.table import cost_cells, difference_cells, figure_cells, recall_cells
from tuwen.training import checkpoint

FORMS = ("md", "csv", "tex")
_TEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "…": r"\dots{}", "→": r"$\to$", "<": r"\textless{}", ">": r"\textgreater{}"},
}


class Tabled(NamedTuple):
    """A table of texts; all rows are as long as its heads."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables_of(comparison: dict[str, Any]) -> list[Tabled]:
    """The figures, the differences, and what they cost."""
    if comparison.get("task", "retrieval") == "retrieval":
        first = next(iter(comparison["systems"].values()))
        tables = [Tabled(*recall_cells(comparison, language)) for language in first["languages"]]
    else:
        about, rows = figure_cells(comparison)
        tables = [Tabled(about, ("system", "figure"), rows)]
    spent = comparison.get("budget") or f"{comparison['steps']} steps"
    return [
        *tables,
        Tabled("differences", *difference_cells(comparison)),
        Tabled(f"quality and cost of {spent}", *cost_cells(comparison)),
    ]


def write_tables(out: Path, name: str, tables: Sequence[Tabled]) -> list[Path]:
    """OUT/NAME.md, .csv and .tex; gives their paths."""
    text = {"md": markdown, "csv": comma_separated, "tex": latex}
    paths = [out / f"{name}.{form}" for form in FORMS]
    for path in paths:
        checkpoint.write(path, text[path.suffix[1:]](tables))
    return paths


def markdown(tables: Sequence[Tabled]) -> str:
    """Tables under headings, as GitHub reads them; what would end a cell or begin a tag is written out."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |\n"

    parts = []
    for table in tables:
        rule = ["---" if place == 0 else "---:" for place in range(len(table.heads))]
        parts.append(f"### {table.title}\n\n" + "".join(map(line, (table.heads, rule, *table.rows))))
    return "\n".join(parts)


def comma_separated(tables: Sequence[Tabled]) -> str:
    """One table under another, each row with its table's title first."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    for table in tables:
        writer.writerow(("table", *table.heads))
        writer.writerows((table.title, *map(_no_formula, row)) for row in table.rows)
    return file.getvalue()


def latex(tables: Sequence[Tabled]) -> str:
    """tabular environments for booktabs."""
    parts = []
    for table in tables:
        lines = [" & ".join(map(_tex, row)) + r" \\" for row in (table.heads, *table.rows)]
        body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
        shape = "l" + "r" * (len(table.heads) - 1)
        parts.append(f"% {_tex(table.title)}\n\\begin{{tabular}}{{{shape}}}\n{body}\n\\end{{tabular}}\n")
    return "% needs \\usepackage{booktabs}\n" + "\n".join(parts)


def _tex(cell: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in cell)


def _no_formula(cell: str) -> str:
    """A cell that a spreadsheet takes for text or a number and never for a formula."""
    return (
        f"'{cell}" if cell[:1] in ("=", "@") or (cell[:1] in "+-" and not cell[1:2].isdigit() and cell != "-") else cell
    )
