"""The pairs that look most wrong, by a table of noise: a page of their pictures and texts."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tuwen.data.beside import Beside, noise_of
from tuwen.data.corpora.faults import one_line
from tuwen.data.corpus import languages_and_texts, text_id
from tuwen.data.curate.show import thumbnail, write_sheet
from tuwen.speech import spoken


@dataclass(frozen=True, order=True)
class Suspect:
    """A text with how likely it is wrong, and the loss that says so where the table has it; it decides among equals."""

    noise: float
    loss: float
    row: int
    language: str
    text: str


def suspects_of(corpus: Beside) -> Iterator[Suspect]:
    """Every text of a corpus that has a table of noise beside it.

    Raises:
        UserError: a text without noise.
    """
    for row in range(len(corpus)):
        record = corpus.record(row)
        losses = record.columns.get("loss")
        for language, text in languages_and_texts(record):
            if text.strip():
                loss = losses.get(text_id(text), 0.0) if isinstance(losses, dict) else 0.0
                yield Suspect(noise_of(record, text), loss, row, language, text)


def write_suspects(corpus: Beside, out: str | Path, count: int = 60) -> Path:
    """Writes the `count` most suspect pairs as a page, the most suspect first; returns its path.

    Raises:
        UserError: a text without noise, or a page that cannot be written.
    """
    total, noisy, mean = 0, 0, 0.0

    def counted() -> Iterator[Suspect]:
        nonlocal total, noisy, mean
        for suspect in suspects_of(corpus):
            total, noisy, mean = total + 1, noisy + (suspect.noise > 0.5), mean + suspect.noise
            yield suspect

    chosen = heapq.nlargest(count, counted())
    share = 100 * mean / max(total, 1)
    counts = spoken(f"{noisy:,} of {total:,} texts are likelier wrong than right; {share:.1f}% expected")
    summary = f"{counts} · {corpus.notice}"
    figures = [_figure(corpus, suspect) for suspect in chosen]
    return write_sheet(out, spoken(f"{corpus.name}, {corpus.split}: most suspect"), summary.rstrip(" ·"), figures)


def _figure(corpus: Beside, suspect: Suspect) -> str:
    text = f'<p lang="{escape(suspect.language)}"><b>{escape(suspect.language)}</b> {escape(suspect.text)}</p>'
    name, at = escape(one_line(corpus.record(suspect.row).id)), spoken(f"row {suspect.row}")
    label = f'<p class="id">{suspect.noise:.3f} · {spoken("loss")} {suspect.loss:.2f} · {name} · {at}</p>'
    return f"<figure>{thumbnail(corpus, suspect.row)}<figcaption>{text}{label}</figcaption></figure>"
