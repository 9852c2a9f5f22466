"""Writes the tables of systems, of claims and of measured tasks into the pages that show them: `make docs`.

Systems come from the registry, claims from `tuwen/benchmark/claims` with what benchmarks/results/claims/*.json say of
them, tasks from benchmarks/results/tasks.json. A page marks the place with `<!-- systems -->` and `<!-- /systems -->`,
or `claims`, `scenes`, `packs`. A test holds the pages equal to this.
"""

import json
import re
from functools import partial
from pathlib import Path

from tuwen.benchmark.claim import claim_names, decimals, read_claim
from tuwen.speech import in_chinese
from tuwen.systems import find, names

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "claims"
TASKS = ROOT / "benchmarks" / "results" / "tasks.json"
PLACE = re.compile(r"(<!-- (systems|claims|scenes|packs) -->\n).*?(<!-- /\2 -->)", re.DOTALL)
HEADS = {
    "en": ("Name", "Paper", "Towers", "Interaction", "Objectives", "Fidelity"),
    "zh": ("名称", "论文", "编码器", "交互方式", "训练目标", "忠实程度"),
}


CLAIM_HEADS = {
    "en": ("Claim", "Arms: the first over the second", "The paper's own figure, at its scale", "Ours", "Verdict"),
    "zh": ("论断", "两组：前者对后者", "论文自己的数字（论文的规模）", "我们的数字", "结论"),
}
VERDICTS = {"confirmed": "证实", "refuted": "不成立", "undetermined": "本规模下未定"}
RUN_IT = {"en": "not run", "zh": "未运行"}
COVERS = {"seeds and pictures": "种子与图片", "seeds alone": "仅种子"}


TASK_HEADS = {
    "en": ("Task", "By", "Seeds", "Figure", "Best baseline", "Above every baseline", "Minutes"),
    "zh": ("任务", "系统", "种子数", "指标", "最好的基线", "高于所有基线", "分钟"),
}
BASELINES = {
    "majority": "最常见者",
    "blind": "只看文字开头",
    "other_picture": "换成别的图片",
    "other_text": "换成别的文字",
    "centre": "居中的框",
    "whole": "整张图片",
    "shuffled": "对错图片",
    "colours": "缩略图",
    "chance": "随机",
}
ARMS = {"no picture": {"en": "`clip` without pictures", "zh": "`clip`，不看图片"}}
PLAIN = {"blind": "by the text's beginning", "shuffled": "of the next picture", "colours": "thumbnails"}


def systems_table(language: str) -> str:
    """The Markdown table of all systems."""
    rows = [HEADS[language], ("---",) * len(HEADS[language])]
    said, semicolon, comma = (in_chinese, "；", "、") if language == "zh" else (str, "; ", ", ")
    for name in names():
        paper = find(name).paper
        link = f"[{paper.title}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else paper.title
        towers = semicolon.join(map(said, (paper.image_encoder, paper.text_encoder)))
        objectives = comma.join(map(said, paper.objectives))
        cells = (towers, said(paper.interaction), objectives, said(paper.fidelity))
        rows.append((f"`{name}`", f"{link}, {paper.venue}", *cells))
    return _markdown(rows)


def claims_table(language: str) -> str:
    """The Markdown table of all claims: what each says, the paper's figure, what ours came to, with its interval."""
    rows = [CLAIM_HEADS[language], ("---",) * 5]
    for name in claim_names():
        claim, path = read_claim(name), RESULTS / f"{name}.json"
        result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        about = f"**{name}** ({claim.card}). {claim.claim[language]}"
        arms = ", ".join(f"`{arm}`" for arm in claim.arms)
        rows.append((about, arms, claim.paper[language], *_ours(result, language)))
    return _markdown(rows)


def _ours(result: dict | None, language: str) -> tuple[str, str]:
    """(figures with their interval, the verdict) of a claim that was run."""
    if result is None:
        return "–", RUN_IT[language]
    places = decimals(result["least"])
    ends = [] if result["interval"] is None else [f"{end:+.{places}f}" for end in result["interval"]]
    interval = f" ({' … '.join(ends)})" if ends else ""
    arms = " / ".join(f"{arm['mean']:.{places}f}" for arm in result["arms"].values())
    figure = f"{result['difference']:+.{places}f}{interval}; {arms}"
    seeds, covers, word = len(result["seeds"]), result["covers"], result["verdict"]
    if language == "zh":
        return f"{figure}；{seeds} 个种子，区间含{COVERS[covers]}", VERDICTS[word]
    return f"{figure}; {seeds} seeds, interval of {covers}", f"{word}: {result['why']}"


def tasks_table(part: str, language: str) -> str:
    """The Markdown table of a part of what benchmarks/tasks.py measured; where a figure is not above its baselines,
    with the score on validation as it was learnt."""
    rows = [TASK_HEADS[language], ("---",) * 7]
    results = json.loads(TASKS.read_text(encoding="utf-8")) if TASKS.exists() else {}
    for task, arms in results.get(part, {}).items():
        for arm, cell in arms.items():
            if "figure" in cell:
                by = ARMS.get(arm, {}).get(language, f"`{arm}`")
                seeds = str(len(cell["seeds"]))
                rows.append((f"`{task}`", by, seeds, *_of_task(cell, language), f"{cell['minutes']:.1f}"))
    return _markdown(rows)


def _of_task(cell: dict, language: str) -> tuple[str, str, str]:
    """(figure with its interval, the best baseline, whether the one is above the other)."""
    places = 1 if cell["rows"] else 2  # of percent, or of CIDEr-D
    reach = "" if cell["reach"] is None else f" ± {cell['reach']:.{places}f}"
    name = next(word for word in cell["best"].split() if word in BASELINES)
    named = BASELINES[name] if language == "zh" else PLAIN.get(name, name.replace("_", " "))
    best = f"{cell['baselines'][cell['best']]:.{places}f} ({named})"
    if cell["above"]:
        return f"{cell['figure']:.{places}f}{reach}", best, "是" if language == "zh" else "yes"
    word = {True: ("no", "否"), False: ("not known", "不明")}[cell["above"] is not None][language == "zh"]
    curve = " → ".join(f"{score:.{places}f}" for _, score in cell["curve"])
    learnt = {"en": f"; validation {curve}", "zh": f"；验证 {curve}"}[language] if curve else ""
    return f"{cell['figure']:.{places}f}{reach}", best, word + learnt


def _markdown(rows: list[tuple[str, ...]]) -> str:
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


TABLES = {
    "systems": systems_table,
    "claims": claims_table,
    "scenes": partial(tasks_table, "scenes"),
    "packs": partial(tasks_table, "packs"),
}


def pages() -> dict[Path, str]:
    """Every page that holds the table, with the text it should have."""
    found = {}
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]):
        text = path.read_text(encoding="utf-8")
        language = "zh" if path.name.endswith(".zh.md") else "en"
        if PLACE.search(text):
            found[path] = PLACE.sub(
                lambda place, language=language: place[1] + TABLES[place[2]](language) + place[3], text
            )
    return found


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
