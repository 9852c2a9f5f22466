"""The findings of a check as one HTML page that needs no other file: contents, counts, and examples of each kind."""

import dataclasses
from html import escape
from pathlib import Path

from tuwen.data.corpora.faults import one_line
from tuwen.data.corpus import Corpus, languages_and_texts
from tuwen.data.curate.check import Findings
from tuwen.data.curate.check_split import Contents, Finding
from tuwen.data.curate.show import thumbnail
from tuwen.data.private import hides
from tuwen.errors import UserError
from tuwen.outputs import PAGE_MARK, check_free
from tuwen.speech import chosen_language, spoken

_SIDE = 128  # pixels of a thumbnail's longer side

_STYLE = """
body { font: 15px/1.45 system-ui, "Noto Sans CJK SC", sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em;
  background: #fafafa; color: #222 }
h1 { font-size: 1.4em; margin: 0 } h2 { font-size: 1.1em; margin: 1.6em 0 .5em }
header p { color: #666; margin: .3em 0 }
table { border-collapse: collapse } td, th { padding: .15em .9em .15em 0; text-align: right; vertical-align: top;
  font-weight: 400; white-space: pre-line } td:first-child, th:first-child { text-align: left; color: #666 }
th { border-bottom: 1px solid #ccc; font-weight: 600 } .fault h2 { color: #a00 }
h2 small { color: #888; font-weight: 400 }
main section > div { display: grid; grid-template-columns: repeat(auto-fill, minmax(17em, 1fr)); gap: .8em }
article { padding: .6em; background: #fff; border: 1px solid #ddd; border-radius: 6px; overflow-wrap: anywhere }
article > div { display: flex; gap: .5em; align-items: start } article p { margin: .3em 0 0 }
img { display: block; max-width: 100% } .told { color: #666; font-size: .85em } .broken { color: #a00 }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd }
  article { background: #222; border-color: #333 } .fault h2, .broken { color: #f88 } th { border-color: #444 } }
"""


def write_page(findings: Findings, out: str | Path, examples: int = 12) -> Path:
    """Writes the page and returns its path. examples: shown of each kind of fault and remark.

    Raises:
        UserError: the page cannot be written.
    """
    kinds = [("fault", reason, count, findings.faults) for reason, count in findings.reasons.items()]
    kinds += [("remark", reason, count, findings.remarks) for reason, count in findings.remarkable.items()]
    sections = [
        _section(
            kind,
            reason,
            count,
            [finding for finding in all_of if finding.reason == reason][:examples],
            findings.corpora,
        )
        for kind, reason, count, all_of in kinds
    ]
    faults, remarks = len(findings.faults), len(findings.remarks)
    summary = spoken(f"{faults:,} faults, {remarks:,} remarks. Faults are wrong; remarks are worth a look.")
    lang = chosen_language()
    page = f"""<!doctype html>
<html lang="{lang}"><head><meta charset="utf-8">{PAGE_MARK}<meta name="viewport" content="width=device-width">
<title>{escape(findings.location)}</title><style>{_STYLE}</style></head>
<body><header><h1>{escape(one_line(findings.location))}</h1><p>{summary}</p>{_contents(findings)}</header>
<main>
{"".join(sections)}
</main></body></html>
"""
    path = check_free(out, PAGE_MARK)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; choose another file") from None
    return path


def _contents(findings: Findings) -> str:
    rows = ["<tr><th></th>" + "".join(f"<th>{escape(split)}</th>" for split in findings.splits) + "</tr>"]
    for name in (item.name for item in dataclasses.fields(Contents)):
        values = [_shown(getattr(contents, name)) for contents in findings.splits.values()]
        if any(value not in ("", "0") for value in values):
            cells = "".join(f"<td>{escape(value)}</td>" for value in values)
            rows.append(f"<tr><td>{spoken(name.replace('_', ' '))}</td>{cells}</tr>")
    shared = [
        spoken(f"Shared by {pair}: {', '.join(f'{n:,} {spoken(what)}' for what, n in common.items())}")
        for pair, common in findings.shared.items()
    ]
    lines = "".join(f"<p>{escape(line)}</p>" for line in shared)
    return f"<table>{''.join(rows)}</table>{lines}"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key} {count:,}" for key, count in value.items())
    return (
        " / ".join(map(str, value))
        if isinstance(value, list)
        else f"{value:,}"
        if isinstance(value, int)
        else spoken(str(value))
    )


def _section(kind: str, reason: str, count: int, shown: list[Finding], corpora: dict[str, Corpus]) -> str:
    more = f"{count:,}" + (spoken(f", {len(shown)} shown") if count > len(shown) else "")
    articles = "".join(_article(finding, corpora) for finding in shown)
    heading = f"<h2>{escape(spoken(reason))} <small>{more}</small></h2>"
    return f'<section class="{kind}">{heading}<div>{articles}</div></section>\n'


def _article(finding: Finding, corpora: dict[str, Corpus]) -> str:
    pictures, texts = "", ""
    if finding.split in corpora and finding.row >= 0:
        pictures = thumbnail(corpora[finding.split], finding.row, _SIDE)
        if not hides(corpora[finding.split].private):
            texts = _text(finding.text) if finding.text else _first_texts(corpora[finding.split], finding.row)
    if finding.other and finding.other[0] in corpora and not finding.text:
        pictures += thumbnail(corpora[finding.other[0]], finding.other[1], _SIDE)
    message = f'<p class="told">{escape(spoken(one_line(finding.message)))}</p>'
    return f"<article><div>{pictures}</div>{texts}{message}</article>"


def _first_texts(corpus: Corpus, row: int) -> str:
    try:
        texts = [text for _, text in languages_and_texts(corpus.record(row))]
    except UserError:
        return ""
    return "".join(map(_text, texts[:2]))


def _text(text: str) -> str:
    return f"<p>{escape(one_line(text, 200))}</p>"
