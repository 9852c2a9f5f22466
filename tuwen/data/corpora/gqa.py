"""GQA (Hudson and Manning, arXiv 1902.09506), and its test questions in eight languages, xGQA (Pfeiffer et al. 2021).

Layout of GQA (cs.stanford.edu/people/dorarad/gqa): SPLIT_balanced_questions.json, one object from question ids to
{imageId, question, answer, fullAnswer, types: {structural, semantic, detailed}, isBalanced, ...}; test and challenge
have no answers. Layout of xGQA (adapter-hub/xGQA, e-bug/iglue): zero_shot/testdev_balanced_questions_LANG.json in the
same form, few_shot/LANG/{train_N,dev,test}.json. Its answers stay English in every language.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tuwen.data.corpora.asked import Asked, question
from tuwen.data.corpora.asked_set import AskedSet, Entry, named_entries, optional, short
from tuwen.data.corpora.captions import split_name
from tuwen.data.corpora.faults import Faults
from tuwen.data.corpora.json_text import field
from tuwen.data.corpora.published import Format

SPLITS = ("train", "val", "testdev", "test", "challenge")
_HIDDEN = ("test", "challenge")
LANGUAGES = ("en", "de", "pt", "ru", "id", "bn", "ko", "zh")


def gqa_row(entry: Entry, language: str, hidden: bool = False) -> tuple[tuple[str, ...], Asked]:
    """The picture and the question of an entry; answers may be missing where they are hidden."""
    value = entry.value
    answers = [] if hidden and "answer" not in value else [field(value, "answer", str)]
    kinds = value.get("types")
    columns: dict[str, Any] = {"question_id": entry.name[:100]}
    columns |= optional(kinds, kind="structural", semantic="semantic") if isinstance(kinds, dict) else {}
    columns |= optional(value, full_answer="fullAnswer")
    image = f"images/{short(value, 'imageId')}.jpg"
    return (image,), question(field(value, "question", str), answers, language, **columns)


class GQA(AskedSet):
    def __init__(self, root: Path):
        super().__init__(root)
        self.questions = self.some({split: (f"{split}_balanced_questions.json",) for split in SPLITS})

    def read_entries(self, faults: Faults) -> Iterator[Entry]:
        for split, path in self.questions.items():
            yield from named_entries(path, split)

    def rows_of(self, entry: Entry) -> Iterable[tuple[str, tuple[str, ...], Asked]]:
        field(entry.value, "question", str)
        yield entry.name[:100], *gqa_row(entry, "en", entry.split in _HIDDEN)


class XGQA(AskedSet):
    """Splits: test, of zero_shot; and of few_shot train_N, val and test_few."""

    def __init__(self, root: Path):
        super().__init__(root)
        languages = "|".join(LANGUAGES)
        zero = self.folder.matching(rf"testdev_balanced_questions_({languages})\.json")
        few = self.folder.matching(r"(train_\d+|dev|test)\.json")
        self.annotations = [(path, "test", match[1]) for path, match in zero]
        self.annotations += [(p, _FEW.get(m[1], m[1]), p.parent.name) for p, m in few if p.parent.name in LANGUAGES]
        if not self.annotations:
            self.needed("testdev_balanced_questions_en.json")

    def read_entries(self, faults: Faults) -> Iterator[Entry]:
        for path, split, language in self.annotations:
            for entry in named_entries(path, split):
                yield entry._replace(value=(language, entry.value))

    def rows_of(self, entry: Entry) -> Iterable[tuple[str, tuple[str, ...], Asked]]:
        language, value = entry.value
        field(value, "question", str)
        images, asked = gqa_row(entry._replace(value=value), language)
        yield f"{entry.split}-{language}-{entry.name[:100]}", images, asked


_FEW = {"dev": split_name("dev"), "test": "test_few"}

_PICTURES = "cs.stanford.edu/people/dorarad/gqa"
FORMATS = (
    Format(
        name="gqa",
        title="GQA, balanced questions",
        languages=("en",),
        needs="{train,val,testdev,test,challenge}_balanced_questions.json and the pictures in images/",
        ask=_PICTURES,
        licence="questions CC-BY 4.0, pictures of Visual Genome keep their owners' rights",
        records="train 943,000 questions, val 132,062, testdev 12,578, test 95,336 without answers",
        read=GQA,
    ),
    Format(
        name="xgqa",
        title="xGQA, GQA's testdev in eight languages",
        languages=LANGUAGES,
        needs="zero_shot/testdev_balanced_questions_LANG.json, few_shot/LANG/*.json and GQA's images/",
        ask=f"github.com/adapter-hub/xGQA; the pictures at {_PICTURES}",
        licence="questions CC-BY 4.0, pictures of Visual Genome keep their owners' rights",
        records="test 12,578 questions in each of eight languages, answers in English",
        read=XGQA,
    ),
)
