"""The page about two runs: differences with their intervals, and queries that one has right and the other wrong."""

import json
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from tuwen.benchmark import report_samples
from tuwen.benchmark.judge import RESULT, Judged
from tuwen.benchmark.measure import shows, write_thumbnails
from tuwen.benchmark.report_pieces import document, table, title
from tuwen.benchmark.statistics import last_stage
from tuwen.benchmark.table import stage_titled
from tuwen.run import REPORT, THUMBNAILS
from tuwen.speech import spoken
from tuwen.training import checkpoint

EACH = 4  # queries shown of each language, direction and winner
HEADS = ("language", "of", "over", "what", "queries", "difference", "95 %", "p", "p Holm", "detectable", "only of/over")
WHAT = {"mean_recall": "mean recall", "image_to_text": "text R@1", "text_to_image": "image R@1"}


def difference_rows(judged: dict[str, Any]) -> list[list[str]]:
    """The cells of every difference under `HEADS`, in points."""
    return [
        [
            *(row["language"], row["of"], row["over"], WHAT[row["what"]], str(row["queries"])),
            f"{row['difference']:+.1f}",
            "{:+.1f} … {:+.1f}".format(*row["interval"]),
            *(f"{row[key]:.4f}" for key in ("p", "p_holm")),
            f"{row['detectable']:.1f}",
            f"{row['only_of']}/{row['only_over']}",
        ]
        for row in judged["differences"]
    ]


def write_judged(out: str | Path, judged: Judged) -> Path:
    """Writes OUT/judged.json, OUT/report.html with all its pictures inside, and OUT/samples; gives the page's path."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    chosen = shown_queries(judged.json["queries"])
    rows = {row for query in chosen for row in _rows(query, judged)}
    write_thumbnails(out / THUMBNAILS, judged.corpus, rows)
    checkpoint.write(out / RESULT, json.dumps(judged.json, ensure_ascii=False, indent=1) + "\n")
    checkpoint.write(out / REPORT, page(judged, chosen, out / THUMBNAILS))
    return out / REPORT


def shown_queries(queries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first few of every language, direction and winner."""
    seen: Counter = Counter()
    chosen = []
    for query in queries:
        kind = query["language"], query["direction"], query["right"]
        seen[kind] += 1
        chosen += [query] if seen[kind] <= EACH else []
    return chosen


def page(judged: Judged, chosen: list[dict[str, Any]], pictures: Path) -> str:
    """The whole page. chosen: the queries shown; pictures: the folder of their ROW.jpg."""
    lower, upper = judged.results
    heading = spoken(f"{upper} against {lower}")
    facts = {
        "Corpus 语料": judged.corpus.name,
        "Split 划分": judged.corpus.split,
        **{f"{name}": result.json["system"] for name, result in judged.results.items()},
    }
    listed = "".join(
        f"<div><dt>{escape(spoken(name))}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items()
    )
    notes = "".join(f'<p class="note">{escape(spoken(note))}{spoken(".")}</p>' for note in judged.json["notes"])
    cells = [[escape(spoken(cell)) for cell in row] for row in difference_rows(judged.json)]
    about = spoken(
        "In points. Interval: a bootstrap over pictures with their texts. p: of swapping the two, picture by picture; "
        "Holm: over this table. Detectable: what so many queries show in 4 cases of 5."
    )
    body = (
        f'<div class="brand">tuwen 图文</div><h1>{escape(heading)}</h1><dl class="facts">{listed}</dl>'
        + title("Differences", "差异")
        + f'<p class="note">{about}</p>{table(HEADS, cells, texts=4)}{notes}'
        + title("Right in one alone", "只有一方答对")
        + _queries(judged, chosen, pictures)
    )
    notice = judged.corpus.notice
    return document(heading, body + (f'<p class="note">{escape(notice)}</p>' if notice else ""))


def _queries(judged: Judged, chosen: list[dict[str, Any]], pictures: Path) -> str:
    if not chosen:
        return f'<p class="note">{spoken("Both have the same queries right 双方答对的查询相同.")}</p>'
    total = len(judged.json["queries"])
    of_texts = [
        {**query, "answers": {name: _pictures(query, name, judged, pictures) for name in judged.results}}
        for query in chosen
        if query["direction"] == "text_to_image"
    ]
    stages = {
        name: stage_titled(last_stage(next(iter(result.ranks.values()))), {"seeds": [result.json]})
        for name, result in judged.results.items()
    }
    of_pictures = [_of_picture(query, judged, pictures) for query in chosen if query["direction"] == "image_to_text"]
    note = spoken(f"{len(chosen)} of {total}; {RESULT} has all.")
    marked = spoken('Right answers are framed or marked in green. <span lang="zh">绿色为正确答案。</span>')
    return f'<p class="note">{note} {marked}</p>' + report_samples.section(of_texts, stages) + "".join(of_pictures)


def _best(query: dict[str, Any], name: str, judged: Judged) -> list[tuple[int, float, bool]]:
    """(item, score, whether right) of the best answers of a run."""
    asked, way = judged.results[name].asked[query["language"]], query["direction"]
    items, scores = (part[query["query"]].tolist() for part in asked.best[way])
    truth = asked.truth if way == "text_to_image" else asked.truth.transpose()
    right = np.isin(items, truth.images_of(query["query"])).tolist()
    return list(zip(items, scores, right, strict=True))


def _rows(query: dict[str, Any], judged: Judged) -> list[int]:
    """The corpus rows whose pictures a query shows."""
    if query["direction"] == "image_to_text":
        return [query["row"]]
    of_runs = [(judged.results[name].asked[query["language"]].rows, name) for name in judged.results]
    return [int(rows[item]) for rows, name in of_runs for item, _, _ in _best(query, name, judged)]


def _pictures(query: dict[str, Any], name: str, judged: Judged, pictures: Path) -> list[dict[str, Any]]:
    """A run's best pictures for a text, as `report_samples` shows them."""
    language = query["language"]
    rows = judged.results[name].asked[language].rows
    return [
        {
            "file": pictures / f"{rows[item]}.jpg",
            "score": score,
            "right": right,
            "shows": shows(judged.corpus, int(rows[item]), language),
        }
        for item, score, right in _best(query, name, judged)
    ]


def _of_picture(query: dict[str, Any], judged: Judged, pictures: Path) -> str:
    """A picture with each run's best texts."""
    language = escape(query["language"], quote=True)
    lists = ""
    for name in judged.results:
        texts = judged.results[name].asked[query["language"]].texts
        answers = "".join(
            f'<li lang="{language}">{"<strong>✓ " if right else ""}{escape(texts[item].text)}'
            f"{'</strong>' if right else ''}</li>"
            for item, _, right in _best(query, name, judged)
        )
        lists += f"<div><strong>{escape(name)}</strong><ol>{answers}</ol></div>"
    source = report_samples.picture_data(pictures / f"{query['row']}.jpg")
    alt = escape(shows(judged.corpus, query["row"], query["language"]), quote=True)
    return (
        f'<section class="query"><span class="tag">{language}</span>'
        f'<div class="texts"><img alt="{alt}" lang="{language}" src="{source}">{lists}</div></section>'
    )
