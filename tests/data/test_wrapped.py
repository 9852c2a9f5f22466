"""What a corpus may have, every wrapper hands on: nothing is forgotten, and nothing asked for by getattr."""

import ast
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import tuwen
from tests.data.pairs import row, with_pictures, write
from tuwen.data.beside import Beside
from tuwen.data.corpora.faults import Fault
from tuwen.data.corpus import Corpus, Record
from tuwen.data.exercises import PhraseRows
from tuwen.data.grounding import phrases_of
from tuwen.data.items import WithColumns
from tuwen.data.open import open_corpus
from tuwen.data.subset import MixedCorpus, Subset, Wrapped


class Nothing(Corpus):
    def __len__(self):
        return 0


NEEDED = {"name", "split", "languages", "fingerprint", "record", "image"}
OPTIONAL = {name for name in vars(Corpus) if not name.startswith("_")} - NEEDED
ATTRIBUTES = {
    "class_names": {"en": ["cat", "dog"]},
    "notice": "by us",
    "frames": 2,
    "pictures": 3,
    "truth": "scenes",
    "on_bad": "skip",
    "skipped": {"missing": 2},
    "faults": (Fault(Path("a.jsonl"), 3, "missing", "put it there"),),
    "split_rule": "the rows",
    "zero_shot": Path("zeroshot.json"),
    "parts": (Nothing(),),
    "weights": (1.0,),
    "private": True,
    "queries": ((7, "en", "a cat"),),
}
METHODS = {
    "clip": lambda k: torch.full((2, 3, 1, 1), k),
    "shown": lambda k: [f"shown {k}"],
    "encoded": lambda k: b"picture %d" % k,
    "where": lambda k: (Path("a.jsonl"), k + 1),
    "path": lambda k: f"/pictures/{k}",
}
WHOLE = {"image_ids", "changed", "relevance", "gallery", "exercises"}  # said of all rows together
OWN = {  # what a wrapper answers itself, and why
    (Subset, "parts"): ((), "its rows are its own, wherever they come from"),
    (Subset, "weights"): (None, "without parts there is nothing to weigh"),
    (PhraseRows, "parts"): ((), "its rows are its own, wherever they come from"),
    (PhraseRows, "weights"): (None, "without parts there is nothing to weigh"),
    (WithColumns, "parts"): ((), "its rows are its own, wherever they come from"),
    (WithColumns, "weights"): (None, "without parts there is nothing to weigh"),
    (Beside, "parts"): ((), "its rows are its own, wherever they come from"),
    (Beside, "weights"): (None, "without parts there is nothing to weigh"),
    (MixedCorpus, "queries"): ((), "a server asks the split of one corpus"),
    (PhraseRows, "truth"): ("identity", "its texts are phrases, not what the rows they come from say"),
    (MixedCorpus, "weights"): ((1, 1), "of its parts"),
    (MixedCorpus, "truth"): ("identity", "a text of one part may be right for a picture of another by identity alone"),
}


class Full(Corpus):
    """Has everything. seed: what tells one from another."""

    name, split, languages = "full", "train", ("en",)

    def __init__(self, seed: int = 0):
        self.seed, self.fingerprint = seed, str(seed)
        for name, value in ATTRIBUTES.items():
            setattr(self, name, value)
        for name, method in METHODS.items():
            setattr(self, name, lambda k, method=method: method(k + 10 * seed))

    def __len__(self):
        return 4

    def record(self, row):
        objects = [{"phrase": {"en": name}, "box": [0, 0, 1, 1]} for name in ("a cat", "a dog")[: 1 + row % 2]]
        return Record(str(row), {"en": [f"text {row}"]}, row + 100 * self.seed, {"objects": objects})

    def image(self, row):
        return torch.full((3, 1, 1), row + 10 * self.seed)

    def image_ids(self):
        return np.arange(4) + 100 * self.seed

    def changed(self):
        yield f"shard {self.seed}"


def wrappers() -> list[tuple[Wrapped, list[tuple[Full, int]]]]:
    """Each kind of wrapper, and where each of its rows comes from."""
    first, second = Full(), Full(1)
    both = [(first, 0), (first, 1), (first, 2), (first, 3), (second, 0), (second, 1), (second, 2), (second, 3)]
    named = [(first, row) for row in (0, 1, 1, 2, 3, 3)]
    subset = Subset(first, [3, 1]), [(first, 3), (first, 1)]
    columned = WithColumns(first, lambda record, row: {}, ""), [(first, row) for row in range(4)]
    beside = Beside(first, []), [(first, row) for row in range(4)]
    return [subset, (MixedCorpus([first, second], [1, 1]), both), (PhraseRows(Full()), named), columned, beside]


def same(one, other) -> bool:
    return bool((one == other).all()) if isinstance(one, torch.Tensor) else one == other


def test_every_optional_attribute_and_wrapper_is_in_this_file():
    assert set(ATTRIBUTES) | set(METHODS) | WHOLE == OPTIONAL
    changing = {"Blind", "Boxes", "JudgedPairs"}  # show other pictures or rows, and are tested with their tasks
    kinds = {kind for kind in Wrapped.__subclasses__() if kind.__name__ not in changing}
    assert {type(wrapper) for wrapper, _ in wrappers()} == kinds
    bare = Corpus()
    for name, value in ATTRIBUTES.items():
        assert getattr(bare, name) != value, f"{name} here is the default, so that a wrapper may forget it unseen"


@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
def test_what_is_said_of_a_corpus_is_handed_on(name):
    for wrapper, rows in wrappers():
        corpora = dict.fromkeys(corpus for corpus, _ in rows)
        if (type(wrapper), name) in OWN:
            expected = OWN[type(wrapper), name][0]
        elif type(wrapper) is MixedCorpus and name == "parts":
            expected = tuple(corpora)
        elif name == "skipped":
            expected = Counter(missing=2 * len(corpora))
        elif name == "faults":
            expected = ATTRIBUTES["faults"] * len(corpora)
        else:
            expected = ATTRIBUTES[name]
        assert getattr(wrapper, name) == expected, type(wrapper).__name__


@pytest.mark.parametrize("name", ["image", *sorted(METHODS)])
def test_what_is_said_of_a_row_is_handed_on(name):
    for wrapper, rows in wrappers():
        assert len(wrapper) == len(rows)
        for place, (corpus, inner) in enumerate(rows):
            assert same(getattr(wrapper, name)(place), getattr(corpus, name)(inner)), type(wrapper).__name__
        for outside in (-1, len(rows)):
            with pytest.raises(IndexError):
                getattr(wrapper, name)(outside)


def test_what_is_said_of_all_rows_is_handed_on():
    """`relevance` and `gallery` are held by the tests of subsets and mixtures."""
    for wrapper, rows in wrappers():
        assert wrapper.image_ids().tolist() == [corpus.record(inner).image_id for corpus, inner in rows]
        assert wrapper.image_ids().tolist() == Corpus.image_ids(wrapper).tolist(), "the slow way"
        corpora = dict.fromkeys(corpus for corpus, _ in rows)
        assert list(wrapper.changed()) == [line for corpus in corpora for line in corpus.changed()]


def test_parts_that_disagree_share_no_classes():
    first, second = Full(), Full(1)
    second.class_names, second.zero_shot, second.notice = {"en": ["dog", "cat"]}, Path("other.json"), "by others"
    mixed = MixedCorpus([first, second], [1, 1])
    assert (mixed.class_names, mixed.zero_shot) == ({}, None)
    assert mixed.notice == "by us; by others"


def test_nothing_optional_is_asked_for_by_getattr():
    names = OPTIONAL - {"path"}  # which routes of the service have, too
    for path in Path(tuwen.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("getattr", "hasattr")
            ):
                of, asked = node.args[:2]
                named = isinstance(asked, ast.Constant) and asked.value in names
                assert not named, f"{path}:{node.lineno}"
                assert "corpus" not in ast.unparse(of), f"{path}:{node.lineno}"


def test_boxes_beside_a_table_are_found_through_wrappers(tmp_path):
    folder = write(with_pictures(tmp_path), row(1), row(2))
    line = '{"id": "2", "objects": [{"phrase": "a red cap", "box": [0, 0, 0.5, 1]}]}\n'
    (folder / "grounding.jsonl").write_text(line)
    table = open_corpus(folder, "train")
    other = open_corpus(write(with_pictures(tmp_path / "other"), row(1)), "train")
    for corpus, place in ((table, 1), (Subset(table, [1, 0]), 0), (MixedCorpus([other, table], [1, 1]), 2)):
        assert [(phrase.row, phrase.text) for phrase in phrases_of(corpus)] == [(place, "a red cap")]


def test_faults_of_parts_are_told(tmp_path):
    folder = write(with_pictures(tmp_path), row(1), row(4))
    table = open_corpus(folder, "train", on_bad="skip")
    assert dict(table.skipped) == {"missing": 1}
    mixed = open_corpus(f"mix:{folder}=1;{folder}=2", "train", on_bad="skip")
    assert dict(mixed.skipped) == {"missing": 2}
    assert set(mixed.faults) == set(table.faults)
    assert mixed.where(1) == table.where(0) == (folder / "pairs.jsonl", 1)
    assert mixed.encoded(1) == (folder / "images/1.png").read_bytes()
