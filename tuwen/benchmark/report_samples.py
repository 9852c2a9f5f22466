"""The report's sample queries: each system's five best pictures, right ones framed."""

import base64
from html import escape
from pathlib import Path
from typing import Any

from tuwen.speech import spoken

PICTURE_BYTES = 3_000_000  # of pictures in one page, before base64 adds a third

Query = dict[str, Any]  # "text", "language", and "answers": system -> results of samples.json


def queries(samples: dict[str, tuple[Path, dict[str, Any]]]) -> list[Query]:
    """Queries that every system answered, languages taking turns.

    samples: system -> (run folder, its samples.json).
    """
    answers_of: dict[tuple[str, str], dict[str, list]] = {}
    for name, (run, sample) in samples.items():
        for query in sample["queries"]:
            results = [{**result, "file": run / result["picture"]} for result in query["results"]]
            answers_of.setdefault((query["language"], query["text"]), {})[name] = results
    common: list[Query] = [
        {"language": language, "text": text, "answers": answers}
        for (language, text), answers in answers_of.items()
        if len(answers) == len(samples)
    ]
    place: dict[str, int] = {}
    turns = []
    for k, query in enumerate(common):
        place[query["language"]] = place.get(query["language"], 0) + 1
        turns.append((place[query["language"]], k))
    return [common[k] for _, k in sorted(turns)]


def section(asked: list[Query], stages: dict[str, str], budget: int = PICTURE_BYTES) -> str:
    """As many queries as the pictures' budget allows, at least one. stages: system -> what its last stage is called."""
    parts: list[str] = []
    spent = 0
    for query in asked:
        files = [result["file"] for results in query["answers"].values() for result in results]
        spent += sum(file.stat().st_size for file in files if file.is_file())
        if parts and spent > budget:
            break
        parts.append(_query(query, stages))
    return "".join(parts)


def _query(query: Query, stages: dict[str, str]) -> str:
    language = escape(query["language"], quote=True)
    rows = "".join(
        f'<div class="system">{escape(name)}<small>{escape(stages[name])}</small></div>'
        + "".join(_answer(k, result, language) for k, result in enumerate(results, 1))
        for name, results in query["answers"].items()
    )
    title = f'<h3><span class="tag">{language}</span><span lang="{language}">{escape(query["text"])}</span></h3>'
    return f'<section class="query">{title}<div class="answers">{rows}</div></section>'


def _answer(place: int, result: dict[str, Any], language: str) -> str:
    right = "right" if result["right"] else "wrong"
    alt = escape(f"{place}, {spoken(right)}: {result['shows']}", quote=True)
    mark = f"<strong>✓ {spoken('right')}</strong>" if result["right"] else f"<span>{place}</span>"
    score = f"{result['score']:.3f}".replace("-", "−")
    return (
        f'<figure class="answer {right}"><img alt="{alt}" lang="{language}" src="{picture_data(result["file"])}">'
        f"<div>{mark}<span>{score}</span></div></figure>"
    )


def picture_data(file: Path) -> str:
    """A picture as a data address; an empty one where the file is gone."""
    content = base64.b64encode(file.read_bytes()).decode() if file.is_file() else ""
    return f"data:image/jpeg;base64,{content}"
