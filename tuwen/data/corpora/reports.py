"""Radiology reports: their sections, the findings that labellers found in them, and studies of two pictures."""

import re
from collections.abc import Mapping
from typing import Any

FINDINGS = (  # of the CheXpert labeller (Irvin et al., arXiv 1901.07031)
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
SECTIONS = ("findings", "impression")  # those that say what the pictures show
_LABELS = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1, "": None}
_HEADER = re.compile(r"^[ \t]*([A-Z][A-Z ()/,&-]{1,60}):", re.MULTILINE)
_NAMES = {
    "FINDING": "findings",
    "FINDINGS": "findings",
    "FINDINGS AND IMPRESSION": "findings",
    "FINDINGS/IMPRESSION": "findings",
    "IMPRESSION": "impression",
    "IMPRESSIONS": "impression",
    "CONCLUSION": "impression",
}


def report_sections(text: str) -> dict[str, str]:
    """The findings and the impression of a report, white space squeezed; a section that says nothing is left out.

    A section goes from its name in capitals with a colon to the next such name. A report with neither section gives
    its last paragraph as findings, as MIMIC-CXR's own parser does (github.com/MIT-LCP/mimic-cxr).
    """
    text = text.replace("\r\n", "\n")
    headers = list(_HEADER.finditer(text))
    ends = [*(header.start() for header in headers), len(text)][1:]
    sections: dict[str, list[str]] = {}
    for header, end in zip(headers, ends, strict=True):
        name = _NAMES.get(" ".join(header[1].split()))
        if name and (words := " ".join(text[header.end() : end].split())):
            sections.setdefault(name, []).append(words)
    if not any(" ".join(header[1].split()) in _NAMES for header in headers):
        paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
        last = next((part for part in reversed(paragraphs) if part and part != "FINAL REPORT"), "")
        return {"findings": last} if last else {}
    return {name: " ".join(sections[name]) for name in SECTIONS if name in sections}


def labels_of(row: Mapping[str, str]) -> dict[str, int | None]:
    """By finding: 1 there, 0 not, -1 uncertain, None not mentioned. Findings that the row lacks are left out.

    Raises:
        ValueError: a cell that is none of these.
    """
    cells = {name: row[name].strip() for name in FINDINGS if name in row}
    wrong = next((name for name, cell in cells.items() if cell not in _LABELS), None)
    if wrong is not None:
        raise ValueError(f"{wrong} is {cells[wrong][:20]!r}; a label is 1.0, 0.0, -1.0 or empty")
    return {name: _LABELS[cell] for name, cell in cells.items()}


def texts_of_sections(sections: Mapping[str, str]) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """The texts of a row, findings before impression, and the column that tells which is which."""
    return {"en": list(sections.values())}, {"sections": list(sections)}
