"""Pieces of the report's page."""

from collections.abc import Iterable
from html import escape
from pathlib import Path

from tuwen.speech import chosen_language, spoken

STYLE = Path(__file__).with_name("report.css")


def document(heading: str, body: str) -> str:
    """A whole page that needs nothing else; body: HTML."""
    return (
        f'<!doctype html>\n<html lang="{chosen_language()}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(heading)} · tuwen 图文</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def title(english: str, chinese: str) -> str:
    """A heading; in Chinese it stands alone."""
    if chosen_language() == "zh":
        return f"<h2>{chinese}</h2>"
    return f'<h2>{english}<span class="heading" lang="zh">{chinese}</span></h2>'


def table(heads: Iterable[str], rows: list[list[str]], texts: int) -> str:
    """A table whose cells are HTML already; columns after the first `texts` hold numbers."""
    number = ' class="number"'
    top = "".join(
        f'<th scope="col"{number if k >= texts else ""}>{head}</th>' for k, head in enumerate(map(spoken, heads))
    )
    body = "".join(
        "<tr>" + "".join(f"<td{number if k >= texts else ''}>{cell}</td>" for k, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
