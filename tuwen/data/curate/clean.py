"""A corpus without what a check found: rows and texts left out, by kind, and a list of all that was."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tuwen.data.chinese import half_width, simplify
from tuwen.data.corpus import Corpus, all_texts
from tuwen.data.curate.check import KINDS, Findings
from tuwen.data.curate.check_split import Finding
from tuwen.data.private import hides
from tuwen.data.shards import write_shards, write_whole
from tuwen.data.subset import Subset
from tuwen.errors import UserError

REMOVED = "removed.jsonl"


def clean(
    findings: Findings,
    out: str | Path,
    kinds: Sequence[str],
    simplified: bool = False,
    half: bool = False,
    side: int | None = 288,
    progress: bool = True,
) -> dict[str, Counter]:
    """Writes the corpus of the findings as shards without what is of these kinds; returns what was left out, by split.

    kinds: reasons of faults and remarks, whether any were found (`KINDS`) or not. One about a text takes that text
        out, and its row if no text is left; any other takes out the row (of two copies the later; of a leak the row
        of the later split).
    simplified: traditional characters become simplified ones. half: full-width letters, digits and signs ASCII.
    Lines that are no rows, for what is wrong with them, go in any case, counted as of the split "".
    The folder holds `removed.jsonl`: split, row, id, reason, text ("" for the whole row) and message of each removal;
    of a line that is no row, the reason and message.

    Raises:
        UserError: a kind there is not, no row left in a split, or as `shards.write_shards`.
    """
    known = dict.fromkeys((*findings.reasons, *findings.remarkable, *KINDS))
    wrong = [kind for kind in kinds if kind not in known]
    if wrong:
        raise UserError(f"nothing is found of a kind {wrong[0]!r}; there are: {', '.join(known)}")
    chosen = [
        finding for finding in (*findings.faults, *findings.remarks) if finding.reason in kinds and finding.row >= 0
    ]
    rewriting = "+".join(name for name, asked in (("simplified", simplified), ("half width", half)) if asked)

    def rewrite(text: str) -> str:
        text = simplify(text) if simplified else text
        return half_width(text) if half else text

    corpora: dict[str, Corpus] = {}
    unusable = [finding for finding in findings.faults if finding.row < 0]
    removed: dict[str, list[Finding]] = {"": unusable} if unusable else {}
    for split in findings.splits:
        base = findings.corpora[split]
        removed[split] = [finding for finding in chosen if finding.split == split]
        rows, dropped = _kept(base, removed[split])
        if not rows:
            raise UserError(f"split {split}: nothing is left without {', '.join(kinds)}; leave some of them in")
        corpora[split] = Subset(base, rows, dropped, rewrite if rewriting else None, rewriting)
    write_shards(corpora, out, side=side, progress=progress)
    write_whole(Path(out) / REMOVED, "".join(_lines(findings, removed)).encode())
    return {split: Counter(finding.reason for finding in some) for split, some in removed.items()}


def _kept(base: Corpus, removed: list[Finding]) -> tuple[list[int], dict[int, set[str]]]:
    """The rows that stay, and the texts that go from them."""
    gone = {finding.row for finding in removed if not finding.text}
    dropped: dict[int, set[str]] = {}
    for finding in removed:
        if finding.text and finding.row not in gone:
            dropped.setdefault(finding.row, set()).add(finding.text)
    gone |= {row for row, texts in dropped.items() if texts >= set(all_texts(base.record(row)))}
    return [row for row in range(len(base)) if row not in gone], {k: v for k, v in dropped.items() if k not in gone}


def _lines(findings: Findings, removed: dict[str, list[Finding]]):
    for split, some in removed.items():
        for finding in some:
            hidden = split != "" and hides(findings.corpora[split].private)
            name = findings.corpora[split].record(finding.row).id if split and not hidden else ""
            text = "" if hidden else finding.text
            line = {"split": split, "row": finding.row, "id": name, "reason": finding.reason, "text": text}
            yield json.dumps(line | {"message": finding.message}, ensure_ascii=False) + "\n"
