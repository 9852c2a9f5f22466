"""Writes the tables of systems into the pages that show them, from the registry: `make docs`.

A page marks the place with `<!-- systems -->` and `<!-- /systems -->`. A test holds the pages equal to this.
"""

import re
from pathlib import Path

from tuwen.systems import find, names

ROOT = Path(__file__).resolve().parent.parent
PLACE = re.compile(r"(<!-- systems -->\n).*?(<!-- /systems -->)", re.DOTALL)
HEADS = {
    "en": ("Name", "Paper", "Towers", "Interaction", "Objectives", "Fidelity"),
    "zh": ("名称", "论文", "编码器", "交互方式", "训练目标", "忠实程度"),
}


def table(language: str) -> str:
    """The Markdown table of all systems."""
    rows = [HEADS[language], ("---",) * len(HEADS[language])]
    for name in names():
        paper = find(name).paper
        link = f"[{paper.title}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else paper.title
        towers = f"{paper.image_encoder}; {paper.text_encoder}"
        objectives = ", ".join(paper.objectives)
        rows.append((f"`{name}`", f"{link}, {paper.venue}", towers, paper.interaction, objectives, paper.fidelity))
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def pages() -> dict[Path, str]:
    """Every page that holds the table, with the text it should have."""
    found = {}
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]):
        text = path.read_text(encoding="utf-8")
        language = "zh" if path.name.endswith(".zh.md") else "en"
        if PLACE.search(text):
            fresh = table(language)
            found[path] = PLACE.sub(lambda place, fresh=fresh: place[1] + fresh + place[2], text)
    return found


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
