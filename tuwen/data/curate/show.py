"""A contact sheet: pictures of a corpus with their texts, as one HTML page that needs no other file."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from tuwen.data import draws
from tuwen.data.corpora.faults import one_line
from tuwen.data.corpus import BrokenImage, Corpus
from tuwen.data.images import encode_jpeg, resize
from tuwen.data.private import hides
from tuwen.errors import UserError
from tuwen.outputs import PAGE_MARK, check_free

_SIDE = 224  # pixels of a thumbnail's longer side

_STYLE = """
body { font: 15px/1.45 system-ui, "Noto Sans CJK SC", sans-serif; margin: 2em auto; max-width: 84em; padding: 0 1em;
  background: #fafafa; color: #222 }
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
    spoken = ", ".join(corpus.languages) or "no texts"
    summary = f"{len(rows)} of {len(corpus):,} rows · {spoken} · {corpus.notice}".rstrip(" ·")
    return write_sheet(out, f"{corpus.name}, {corpus.split}", summary, figures)


def write_sheet(out: str | Path, title: str, summary: str, figures: Sequence[str]) -> Path:
    """A page of figures, each HTML of its own; returns its path.

    Raises:
        UserError: the page cannot be written.
    """
    body = "\n".join(figures)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">{PAGE_MARK}<meta name="viewport" content="width=device-width">
<title>{escape(title)}</title><style>{_STYLE}</style></head>
<body><header><h1>{escape(title)}</h1><p>{escape(summary)}</p></header>
<main>
{body}
</main></body></html>
"""
    path = check_free(out, PAGE_MARK)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; choose another file") from None
    return path


def _figure(corpus: Corpus, row: int) -> str:
    record = corpus.record(row)
    if hides(corpus.private):
        return f'<figure>{thumbnail(corpus, row)}<figcaption><p class="id">row {row}</p></figcaption></figure>'
    texts = "".join(
        f'<p lang="{escape(language)}"><b>{escape(language)}</b> {escape(text)}</p>'
        for language, several in record.texts.items()
        for text in several
    )
    label = f'<p class="id">{escape(one_line(record.id))} · row {row}</p>'
    return f"<figure>{thumbnail(corpus, row)}<figcaption>{texts}{label}</figcaption></figure>"


def thumbnail(corpus: Corpus, row: int, side: int = _SIDE) -> str:
    """The picture of a row as HTML, its longer side at most `side` pixels; a broken one as its fault."""
    try:
        image = corpus.image(row)
    except BrokenImage as error:
        return f'<p class="broken">{escape(one_line(str(error)))}</p>'
    height, width = image.shape[1:]
    scale = min(1.0, side / max(height, width))
    image = resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))
    data = base64.b64encode(encode_jpeg(image, quality=85)).decode()
    return f'<img alt="" loading="lazy" width="{image.shape[2]}" src="data:image/jpeg;base64,{data}">'
