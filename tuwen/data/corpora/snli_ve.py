"""SNLI-VE (Xie et al., arXiv 1811.10582) and XVNLI (Bugliarello et al. 2022): does a sentence follow from a picture?

Layout, JSON lines: {pairID, gold_label, sentence1, sentence2, Flikr30kID (or Flickr30K_ID), ...}; SNLI-VE
(github.com/necla-ml/SNLI-VE) in snli_ve_{train,dev,test}.jsonl, XVNLI (github.com/e-bug/iglue) in
LANG/{train,dev,test,train_N}.jsonl. The picture is the premise; sentence1, a caption of it, is not read. XVNLI's
machine translations (annotations_machine-translate) are another test and are left out.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tuwen.data.corpora.asked import LABELS, Asked, entailment
from tuwen.data.corpora.asked_set import AskedSet, Entry, line_entries, short
from tuwen.data.corpora.captions import split_name
from tuwen.data.corpora.faults import Faults, RowError
from tuwen.data.corpora.json_text import field
from tuwen.data.corpora.published import Format

LANGUAGES = ("ar", "en", "es", "fr", "ru")
MACHINE = "annotations_machine-translate"


def _entailed(value: Any, language: str) -> tuple[str, str, Asked]:
    """pairID, the picture, the hypothesis."""
    label = short(value, "gold_label")
    if label not in LABELS:
        raise RowError("no label", f"gold_label {label!r}; where people did not agree the row cannot be used")
    key = "Flikr30kID" if "Flikr30kID" in value else "Flickr30K_ID"
    picture = str(short(value, key, (str, int))).removesuffix(".jpg")
    return short(value, "pairID"), f"{picture}.jpg", entailment(field(value, "sentence2", str), label, language)


class SNLIVE(AskedSet):
    def __init__(self, root: Path):
        super().__init__(root)
        self.annotations = self.some({split: (f"snli_ve_{split}.jsonl",) for split in ("train", "dev", "test")})

    def read_entries(self, faults: Faults) -> Iterator[Entry]:
        for split, path in self.annotations.items():
            yield from line_entries(path, split_name(split), faults)

    def rows_of(self, entry: Entry) -> Iterable[tuple[str, tuple[str, ...], Asked]]:
        name, picture, asked = _entailed(entry.value, "en")
        yield f"{entry.split}-{name}", (picture,), asked


class XVNLI(AskedSet):
    def __init__(self, root: Path):
        super().__init__(root)
        files = self.folder.matching(r"(train(?:_\d+)?|dev|test)\.jsonl")
        human = [(path, match) for path, match in files if path.parent.parent.name != MACHINE]
        self.annotations = [(p, split_name(m[1]), p.parent.name) for p, m in human if p.parent.name in LANGUAGES]
        if not self.annotations:
            self.needed("LANG/test.jsonl")

    def read_entries(self, faults: Faults) -> Iterator[Entry]:
        for path, split, language in self.annotations:
            for entry in line_entries(path, split, faults):
                yield entry._replace(name=language)

    def rows_of(self, entry: Entry) -> Iterable[tuple[str, tuple[str, ...], Asked]]:
        name, picture, asked = _entailed(entry.value, entry.name)
        yield f"{entry.split}-{entry.name}-{name}", (picture,), asked


_PICTURES = "shannon.cs.illinois.edu/DenotationGraph, by a form"
FORMATS = (
    Format(
        name="snli-ve",
        title="SNLI-VE, visual entailment",
        languages=("en",),
        needs="snli_ve_{train,dev,test}.jsonl and the pictures in flickr30k-images/",
        ask=f"github.com/necla-ml/SNLI-VE; the pictures at {_PICTURES}",
        licence="BSD 3-clause, pictures keep their owners' rights",
        records="train 529,527 hypotheses, dev 17,858, test 17,901",
        read=SNLIVE,
    ),
    Format(
        name="xvnli",
        title="XVNLI, visual entailment in five languages",
        languages=LANGUAGES,
        needs="LANG/{train,dev,test,train_N}.jsonl and the pictures in flickr30k-images/",
        ask=f"github.com/e-bug/iglue, datasets/XVNLI; the pictures at {_PICTURES}",
        licence="as IGLUE states; pictures keep their owners' rights",
        records="test 1,164 hypotheses in each of five languages",
        read=XVNLI,
    ),
)
