"""A contact sheet: pictures of a corpus with their texts, as one HTML page that needs no other file."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tuwen.data import draws
from tuwen.data.corpora.faults import one_line
from tuwen.data.corpus import BrokenImage, Corpus
from tuwen.data.images import encode_jpeg, resize
from tuwen.data.private import hides
from tuwen.errors import UserError, quoted
from tuwen.outputs import PAGE_MARK, check_free
from tuwen.speech import chosen_language, spoken

_SIDE = 224  # pixels of a thumbnail's longer side
_CELL = 120  # characters of a column's value

_STYLE = """
body { font: 15px/1.45 system-ui, "Noto Sans CJK SC", sans-serif; margin: 2em auto; max-width: 84em; padding: 0 1em;
  background: #fafafa; color: #222 }
nav { margin: 0 0 1.5em; text-align: center }
h1 { font-size: 1.4em; margin: 0 } header p { color: #666; margin: .3em 0 1.5em }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(15em, 1fr)); gap: 1em }
figure { margin: 0; padding: .7em; background: #fff; border: 1px solid #ddd; border-radius: 6px;
  overflow-wrap: anywhere }
img, .broken { display: block; max-width: 100%; margin: 0 auto .5em } .broken { color: #a00 }
figcaption p { margin: .15em 0 } .id { color: #888; font-size: .85em } b { color: #888; font-weight: 500 }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd }
  figure { background: #222; border-color: #333 } .broken { color: #f88 } }
"""


def contact_sheet(corpus: Corpus, out: str | Path, count: int = 48, seed: int = 0) -> Path:
    """Writes `count` rows, drawn by `seed` and in the corpus's order, as a page; returns its path.

    A broken picture is shown as its fault.

    Raises:
        UserError: the page cannot be written.
    """
    rows = draws.generator("contact sheet", seed).permutation(len(corpus))[:count]
    figures = [_figure(corpus, int(row)) for row in sorted(rows)]
    return write_sheet(out, *_heading(corpus, spoken(f"{len(rows)} of {len(corpus):,} rows")), figures)


def contact_sheets(corpus: Corpus, out: str | Path, count: int = 48) -> list[Path]:
    """Writes every row in order, `count` a page, as `out`, and -2, -3, ... before its ending; returns their paths.

    Each page leads to the first, the last and those beside it.

    Raises:
        UserError: as `contact_sheet`.
    """
    starts, first = range(0, len(corpus), count), Path(out)
    paths = [first if not k else first.with_stem(f"{first.stem}-{k + 1}") for k in range(len(starts))]
    for place, start in enumerate(starts):
        rows = range(start, min(start + count, len(corpus)))
        title, summary = _heading(corpus, spoken(f"rows {start:,} to {rows[-1]:,} of {len(corpus):,}"))
        write_sheet(paths[place], title, summary, [_figure(corpus, row) for row in rows], _links(paths, place))
    return paths


def _heading(corpus: Corpus, rows: str) -> tuple[str, str]:
    """Title and summary of a page."""
    languages = ", ".join(corpus.languages) or spoken("no texts")
    return f"{corpus.name}, {corpus.split}", f"{rows} · {languages} · {corpus.notice}".rstrip(" ·")


def _links(paths: Sequence[Path], place: int) -> str:
    """HTML that leads from one page to the others."""
    shown = sorted({0, max(place - 1, 0), place, min(place + 1, len(paths) - 1), len(paths) - 1})
    links = (
        f"<b>{k + 1}</b>" if k == place else f'<a href="{escape(quote(paths[k].name))}">{k + 1}</a>' for k in shown
    )
    return f"<nav>{' · '.join(links)}</nav>" if len(paths) > 1 else ""


def write_sheet(out: str | Path, title: str, summary: str, figures: Sequence[str], links: str = "") -> Path:
    """A page of figures, each HTML of its own, with HTML that leads to other pages; returns its path.

    Raises:
        UserError: the page cannot be written.
    """
    body = "\n".join(figures)
    lang = chosen_language()
    page = f"""<!doctype html>
<html lang="{lang}"><head><meta charset="utf-8">{PAGE_MARK}<meta name="viewport" content="width=device-width">
<title>{escape(title)}</title><style>{_STYLE}</style></head>
<body><header><h1>{escape(title)}</h1><p>{escape(summary)}</p>{links}</header>
<main>
{body}
</main>{links}</body></html>
"""
    path = check_free(out, PAGE_MARK)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; choose another file") from None
    return path


def _figure(corpus: Corpus, row: int) -> str:
    record, at = corpus.record(row), spoken(f"row {row}")
    if hides(corpus.private):
        return f'<figure>{thumbnail(corpus, row)}<figcaption><p class="id">{at}</p></figcaption></figure>'
    texts = "".join(
        f'<p lang="{escape(language)}"><b>{escape(language)}</b> {escape(text)}</p>'
        for language, several in record.texts.items()
        for text in several
    )
    columns = "".join(
        f'<p class="id"><b>{escape(one_line(name, 40))}</b> {escape(one_line(_cell(value), _CELL))}</p>'
        for name, value in record.columns.items()
        if value not in (None, "")
    )
    label = f'<p class="id">{escape(one_line(record.id))} · {at}</p>'
    return f"<figure>{thumbnail(corpus, row)}<figcaption>{texts}{columns}{label}</figcaption></figure>"


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else quoted(value, _CELL)


def thumbnail(corpus: Corpus, row: int, side: int = _SIDE) -> str:
    """The picture of a row as HTML, its longer side at most `side` pixels; a broken one as its fault."""
    try:
        image = corpus.image(row)
    except BrokenImage as error:
        return f'<p class="broken">{escape(spoken(one_line(str(error))))}</p>'
    height, width = image.shape[1:]
    scale = min(1.0, side / max(height, width))
    image = resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))
    data = base64.b64encode(encode_jpeg(image, quality=85)).decode()
    return f'<img alt="" loading="lazy" width="{image.shape[2]}" src="data:image/jpeg;base64,{data}">'
