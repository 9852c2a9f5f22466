"""Public sets of questions, statements and phrases: what becomes of a copy in its own layout, and of a spoilt one."""

import json
import math
import pickle

import pytest

from tests.data.made import picture, put
from tests.data.published_asked import MAKERS, entailment_line, gqa_entry
from tuwen.data.corpora.asked import kind_of
from tuwen.data.exercises import exercises_of
from tuwen.data.open import open_corpus, splits_of
from tuwen.data.private import SHOW
from tuwen.errors import UserError

BOX = [0.25, 0.25, 0.75, 0.75]
DOGS = [[0.5, 0.0, 0.75, 0.5], [0.75, 0.5, 1.0, 1.0]]

# split -> rows of (greys of the pictures, language, text, answers or label or boxes)
EXPECTED = {
    "vqa-v2": {
        "train": [
            ((40,), "en", "What is in train?", ["a dog"] * 7 + ["dog"] * 3),
            ((40,), "en", "What is in train?", ["yes"] * 10),
        ],
        "val": [
            ((80,), "en", "What is in val?", ["a dog"] * 7 + ["dog"] * 3),
            ((80,), "en", "What is in val?", ["yes"] * 10),
        ],
        "test": [((120,), "en", "What is in test?", [])] * 2,
    },
    "gqa": {
        split: [((40 * n + 40,), "en", f"Is there a dog in {split}?", [] if split == "test" else ["yes"])]
        for n, split in enumerate(("train", "val", "testdev", "test"))
    },
    "xgqa": {
        "test": [
            ((40 * n,), language, text, [answer])
            for language, text in (("de", "Gibt es einen Hund?"), ("en", "Is there a dog?"), ("zh", "图中有狗吗？"))
            for n, answer in ((1, "yes"), (2, "no"))
        ],
        "train_1": [((120,), "de", "Wo ist er?", ["left"])],
        "val": [((120,), "de", "Wer ist er?", ["dog"])],
    },
    "daquar": {
        "train": [
            ((40,), "en", "what is on the table", ["chair, table"]),
            ((80,), "en", "how many dogs are there", ["2"]),
        ],
        "test": [((120,), "en", "what is left of the dog", ["lamp"])],
    },
    "vqa-rad": {
        "train": [((40,), "en", "Are there dogs?", ["Yes"]), ((40,), "en", "How many are there?", ["2"])],
        "test": [((80,), "en", "Where?", ["left"])],
    },
    "slake": {
        split: [
            ((60 * n + 40,), "en", f"Is there a dog in {split}?", ["Yes"]),
            ((60 * n + 40,), "zh", "图中有什么？", ["狗"]),
        ]
        for n, split in enumerate(("train", "val", "test"))
    },
    "vqa-med-2019": {
        split: [
            ((60 * n + 40,), "en", "what organ has the dog?", [f"dog, {n}"]),
            ((60 * n + 40,), "en", "in what plane is it?", ["axial"]),
        ]
        for n, split in enumerate(("train", "val"))
    }
    | {"test": [((200,), "en", "is it a dog?", ["yes"])]},
    "nlvr": {
        split: [((40 * n + 10 * k + 20,), "en", f"There is a dog in {name}.", int(n > 0)) for k in (0, 4)]
        for n, (split, name) in enumerate((("train", "train"), ("val", "dev"), ("test", "test")))
    },
    "nlvr2": {
        split: [
            ((60 * n + 20 * k + 20, 60 * n + 20 * k + 30), "en", f"Both show a dog in {name}.", 1 - k) for k in (0, 1)
        ]
        for n, (split, name) in enumerate((("train", "train"), ("val", "dev"), ("test", "test1")))
    },
    "snli-ve": {
        split: [((40 * n + 40,), "en", f"A dog {name}.", label) for label in ("neutral", "entailment")]
        for n, (split, name) in enumerate((("train", "train"), ("val", "dev"), ("test", "test")))
    },
    "xvnli": {
        "test": [
            ((40 * n + 40,), language, text, label)
            for language, text in (("en", "A dog."), ("fr", "Un chien."), ("ru", "Собака."))
            for n, label in ((1, "entailment"), (2, "contradiction"))
        ],
        "train_1": [
            ((80,), k, text, "entailment") for k, text in (("en", "A dog."), ("fr", "Un chien."), ("ru", "Собака."))
        ],
    },
    "flickr30k-entities": {
        split: [
            ((40 * n + 40,), "en", "A man", [[0.0, 0.0, 0.5, 1.0]]),
            ((40 * n + 40,), "en", "two dogs", DOGS),
            ((40 * n + 40,), "en", "Dogs", DOGS),
        ]
        for n, split in enumerate(("train", "val", "test"))
    },
}
for _name, _last, _words in (
    ("refcoco", "testA", ("left dog", "the brown dog")),
    ("refcoco-plus", "testA", ("brown dog", "dog")),
    ("refcocog", "test", ("left dog", "the brown dog")),
):
    EXPECTED[_name] = {
        split: [((40 * n + 40,), "en", words, [BOX]) for words in _words]
        for n, split in enumerate(("train", "val", _last))
    }


def rows_of(location: str) -> dict:
    read = {}
    for split in splits_of(location):
        corpus = open_corpus(location, split, "skip")
        assert not corpus.skipped
        read[split] = []
        for row in range(len(corpus)):
            record = corpus.record(row)
            ((language, (text,)),) = record.texts.items()
            columns = record.columns
            assert columns["language"] == language
            assert (
                columns[next(key for key in ("question", "sentence", "hypothesis", "phrase") if key in columns)] == text
            )
            answer = next(columns[key] for key in ("answers", "label", "boxes") if key in columns)
            greys = tuple(int(shown.float().mean().round()) for shown in corpus.shown(row))
            read[split].append((greys, language, text, answer))
    return read


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_rows(name, tmp_path):
    MAKERS[name](tmp_path)
    read = rows_of(f"{name}:{tmp_path}")
    assert read == EXPECTED[name]
    split = next(iter(read))
    corpus = pickle.loads(pickle.dumps(open_corpus(f"{name}:{tmp_path}", split)))
    kind = kind_of(corpus.record(0).columns)
    assert exercises_of(corpus, "pair statements" if corpus.pictures == 2 else kind) is corpus
    assert len({corpus.record(row).id for row in range(len(corpus))}) == len(corpus)


def test_every_set_is_expected():
    assert set(EXPECTED) | {"coco-captions"} == set(MAKERS)


def test_coco_captions(tmp_path):
    MAKERS["coco-captions"](tmp_path)
    location = f"coco-captions:{tmp_path}"
    assert splits_of(location) == ("test", "train", "val")
    for n, split in enumerate(("train", "val", "test")):
        record = open_corpus(location, split).record(0)
        assert dict(record.texts) == ({} if split == "test" else {"en": ["A dog 0.", "A dog 1."]})
        assert record.columns["image_id"] == 100 + n


def test_columns_that_tell_rows_apart(tmp_path):
    wanted = {
        "vqa-v2": {"question_id": 1000, "kind": "what is in", "answer_type": "other"},
        "gqa": {"question_id": "0201", "kind": "verify", "semantic": "rel", "full_answer": "Yes, it is."},
        "vqa-rad": {"kind": "PRES", "answer_type": "CLOSED", "organ": "HEAD"},
        "slake": {
            "question_id": 0,
            "kind": "Abnormality",
            "answer_type": "CLOSED",
            "organ": "Lung",
            "modality": "X-Ray",
        },
        "vqa-med-2019": {"kind": "organ"},
        "nlvr": {"group": "072"},
        "nlvr2": {"group": "10", "synset": "dog"},
        "refcoco": {"ref_id": 500},
        "refcoco-plus": {"ref_id": 0},
        "flickr30k-entities": {"chain": "1", "kind": "people", "caption": "A man with two dogs in the air ."},
    }
    for name, columns in wanted.items():
        MAKERS[name](tmp_path / name)
        record = open_corpus(f"{name}:{tmp_path / name}", "train").record(0)
        assert {key: record.columns[key] for key in columns} == columns, name
    assert "A caption" not in str(columns)
    MAKERS["snli-ve"](tmp_path / "snli")
    assert "premise" not in open_corpus(f"snli-ve:{tmp_path / 'snli'}", "train").record(0).columns


def test_a_pickle_is_never_opened(tmp_path):
    """Only its name is looked at: the line that would convert it is said, and it is not run."""

    class Harm:
        def __reduce__(self):
            return open, (str(tmp_path / "harm"), "w")

    put(tmp_path, "refcoco/refs(unc).p", pickle.dumps(Harm()))
    put(tmp_path, "refcoco/instances.json", "{}")
    with pytest.raises(
        UserError, match=r"refs\(unc\)\.p: a pickle, which can run anything and is never opened"
    ) as caught:
        splits_of(f"refcoco:{tmp_path}")
    assert "json.dump(pickle.load(open('refs(unc).p', 'rb')), open('refs(unc).json', 'w'))" in str(caught.value)
    assert not (tmp_path / "harm").exists()


# ---- spoilt copies: what one entry is changed to, and what is said of it

HUGE = 10**400
LONG = "x" * 200_001


def edit(path, change, whole=True):
    """Changes the JSON of a file, or of the first line of a file of lines."""
    text = path.read_text()
    first, end, rest = (text, "", "") if whole else text.partition("\n")
    value = json.loads(first)
    change(value)
    path.write_text(json.dumps(value) + end + rest)


def entry_of(value, *keys):
    for key in keys:
        value = value[key]
    return value


SPOILT = {  # set: (file, lines of JSON, where the entry is, which keys become what)
    "vqa-v2": (
        "v2_OpenEnded_mscoco_train2014_questions.json",
        ("questions", 0),
        ("question", "question_id", "image_id"),
    ),
    "gqa": ("train_balanced_questions.json", ("0201",), ("question", "imageId", "answer")),
    "xgqa": ("zero_shot/testdev_balanced_questions_de.json", ("201",), ("question", "imageId", "answer")),
    "slake": ("train.json", (0,), ("question", "qid", "img_name", "answer", "q_lang")),
    "vqa-rad": ("VQA_RAD Dataset Public.json", (0,), ("question", "qid", "image_name", "answer")),
    "nlvr": ("train/train.json", (), ("sentence", "identifier", "directory", "label")),
    "nlvr2": ("train.json", (), ("sentence", "identifier", "label")),
    "snli-ve": ("snli_ve_train.jsonl", (), ("sentence2", "gold_label", "pairID", "Flikr30kID")),
    "xvnli": ("annotations/en/test.jsonl", (), ("sentence2", "gold_label", "pairID", "Flikr30kID")),
    "refcoco": ("finetune_refcoco_train.json", ("images", 0), ("caption", "id", "width", "height", "file_name")),
    "refcoco-plus": ("refcoco+/refs(unc).json", (0,), ("split", "ann_id", "image_id", "ref_id", "sentences")),
    "coco-captions": ("annotations/captions_train2014.json", ("images", 0), ("id", "file_name")),
}


VALUES = (None, [1], {"a": 1}, HUGE, LONG, "", "\ud800", "../../x", True, "missing")
TEXTS = ("question", "sentence", "sentence2", "caption", "answer")


def fine(key, value) -> bool:
    """Whether a row may have that value: a text like any other, a label, a name, an answer of no words."""
    if key in TEXTS and isinstance(value, str):
        return value in ("missing", "../../x") or (key, value) == ("answer", "")
    return (value in ("missing", "../../x") and key in ("qid", "pairID", "id")) or (key == "label" and value is True)


@pytest.mark.parametrize("name", sorted(SPOILT))
def test_an_entry_of_wrong_values_is_counted_and_said_in_a_line(name, tmp_path, monkeypatch):
    file, place, keys = SPOILT[name]
    lines = file.endswith(".jsonl") or name in ("nlvr", "nlvr2")
    MAKERS[name](tmp_path)
    whole, location = (tmp_path / file).read_text(), f"{name}:{tmp_path}"
    rows = {split: len(open_corpus(location, split, "skip")) for split in splits_of(location)}
    for key in keys:
        for value in (value for value in VALUES if not fine(key, value)):
            (tmp_path / file).write_text(whole)
            edit(tmp_path / file, lambda v, key=key, value=value: entry_of(v, *place).update({key: value}), not lines)
            counts, faults = 0, []
            for split in rows:
                try:
                    corpus = open_corpus(location, split, "skip")
                    counts, faults = counts + len(corpus), faults + list(corpus.faults)
                except UserError as error:
                    faults.append(error)
            assert counts < sum(rows.values()), (key, value)
            assert faults
            for line in map(str, faults):
                assert "\n" not in line
                assert line.isprintable()
                assert len(line) < 1200
            (tmp_path / file).write_text(whole)
    monkeypatch.setenv(SHOW, "1")  # of a private set the key is told where it is asked for
    edit(tmp_path / file, lambda v: entry_of(v, *place).pop(keys[0]), not lines)
    with pytest.raises(UserError, match=keys[0]):
        [open_corpus(location, split, "stop") for split in rows]


def test_spoilt_boxes_of_refcoco(tmp_path):
    for bad in (
        [3, 2, 6],
        "box",
        [3, 2, 6, math.nan],
        [3, 2, 6, HUGE],
        [30, 2, 6, 4],
        [3, 2, -1, 4],
        [3, 2, 0, 4],
        None,
    ):
        MAKERS["refcoco"](tmp_path)
        path = tmp_path / "finetune_refcoco_train.json"
        if bad == [3, 2, 6, math.nan]:
            path.write_text(path.read_text().replace("[3.0, 2.0, 6.0, 4.0]", "[3, 2, 6, NaN]", 1))
            with pytest.raises(UserError, match="NaN is no JSON number"):
                open_corpus(f"refcoco:{tmp_path}", "train", "skip")
            continue
        edit(path, lambda v, bad=bad: v["annotations"][0].update(bbox=bad))
        corpus = open_corpus(f"refcoco:{tmp_path}", "train", "skip")
        assert (len(corpus), sum(corpus.skipped.values())) == (1, 1), bad
    MAKERS["refcoco"](tmp_path)
    edit(path, lambda v: v["annotations"].pop(0))
    corpus = open_corpus(f"refcoco:{tmp_path}", "train", "skip")
    assert dict(corpus.skipped) == {"no box": 1}


def test_a_box_is_cut_at_the_edges_of_its_picture(tmp_path):
    MAKERS["refcoco"](tmp_path)
    path = tmp_path / "finetune_refcoco_train.json"
    edit(path, lambda v: v["annotations"][0].update(bbox=[-3, 2, 30, 4.5]))
    assert open_corpus(f"refcoco:{tmp_path}", "train").record(0).columns["box"] == [0.0, 0.25, 1.0, 0.8125]


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]><annotation>&c;</annotation>'
ENTITY = (
    '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation><object><name>&b;</name></object></annotation>'
)


@pytest.mark.parametrize(
    "xml",
    [
        BOMB,
        ENTITY,
        "",
        "<annotation>",
        "<annotation/>",
        "x" * 2**21,
        "<a>" * 50_000,
        "\0",
        "<annotation>\udcff</annotation>",
    ],
    ids=["bomb", "entity", "empty", "cut", "bare", "large", "deep", "nul", "bytes"],
)
def test_spoilt_xml_of_entities(xml, tmp_path):
    MAKERS["flickr30k-entities"](tmp_path)
    (tmp_path / "Annotations/100.xml").write_bytes(xml.encode("utf-8", "surrogateescape"))
    location = f"flickr30k-entities:{tmp_path}"
    assert splits_of(location) == ("test", "val")  # the picture was the only one of train
    with pytest.raises(UserError, match=r"100\.xml: ") as caught:
        open_corpus(location, "val")
    assert len(str(caught.value)) < 1200
    assert dict(open_corpus(location, "val", "skip").skipped) == {"broken XML": 1}


def test_spoilt_lines_of_entities(tmp_path):
    MAKERS["flickr30k-entities"](tmp_path)
    path = tmp_path / "Annotations/100.xml"
    for bad in ("<xmax>13</xmax>", "<xmax>0</xmax>", "<xmax>x</xmax>", f"<xmax>{HUGE}</xmax>", "<xmax>-6</xmax>", ""):
        MAKERS["flickr30k-entities"](tmp_path)
        path.write_text(path.read_text().replace("<xmax>6</xmax>", bad, 1))
        assert sum(open_corpus(f"flickr30k-entities:{tmp_path}", "val", "skip").skipped.values()) == 1
    MAKERS["flickr30k-entities"](tmp_path)
    sentences = tmp_path / "Sentences/100.txt"
    sentences.write_text("[/EN#1/people A man\n[/EN#2/animals Dogs] run\n[/EN#9/animals Cats] sit\nno phrase\n")
    corpus = open_corpus(f"flickr30k-entities:{tmp_path}", "train", "skip")
    assert ([corpus.record(k).columns["phrase"] for k in range(len(corpus))], dict(corpus.skipped)) == (
        ["Dogs"],
        {"broken row": 1},
    )
    (tmp_path / "train.txt").write_text("100\n../100\n999\n" + "1" * 400 + "\n")
    assert dict(open_corpus(f"flickr30k-entities:{tmp_path}", "train", "skip").skipped) == {
        "broken row": 3,
        "missing": 1,
    }


def test_daquar_finds_its_way_back(tmp_path):
    MAKERS["daquar"](tmp_path)
    lines = "lamp\nwhat is in the image1 ?\nwhat is in the image2 ?\nbed\n\nbed\n"
    (tmp_path / "qa.894.raw.train.txt").write_text(lines + "what is in the image3 ?\n")
    corpus = open_corpus(f"daquar:{tmp_path}", "train", "skip")
    assert [
        (corpus.record(k).columns["question"], corpus.record(k).columns["answers"]) for k in range(len(corpus))
    ] == [("what is", ["bed"])]
    assert dict(corpus.skipped) == {"broken row": 4}
    assert [fault.line for fault in corpus.faults] == [1, 2, 6, 7]


def test_missing_pictures_are_counted(tmp_path):
    for name, lost in (("nlvr2", "train-10-0-img1.png"), ("vqa-v2", "COCO_train2014_000000000001.jpg"), ("nlvr", "")):
        MAKERS[name](tmp_path / name)
        for path in [p for p in (tmp_path / name).rglob("*") if p.name == lost or (not lost and "train-" in p.name)]:
            path.unlink()
    corpus = open_corpus(f"nlvr2:{tmp_path / 'nlvr2'}", "train", "skip")
    assert (len(corpus), dict(corpus.skipped)) == (1, {"missing": 1})
    for name in ("vqa-v2", "nlvr"):
        with pytest.raises(UserError, match=r"no usable row in split 'train': \d missing"):
            open_corpus(f"{name}:{tmp_path / name}", "train", "skip")


def test_an_id_that_stands_twice(tmp_path):
    MAKERS["snli-ve"](tmp_path)
    path = tmp_path / "snli_ve_train.jsonl"
    path.write_text(path.read_text() + json.dumps(entailment_line("470", 0, "Again.", "neutral")) + "\n")
    assert dict(open_corpus(f"snli-ve:{tmp_path}", "train", "skip").skipped) == {"duplicate id": 1}


def test_answers_that_a_release_lacks(tmp_path):
    MAKERS["vqa-v2"](tmp_path)
    path = tmp_path / "v2_mscoco_train2014_annotations.json"
    edit(path, lambda v: v["annotations"].pop(0))
    assert dict(open_corpus(f"vqa-v2:{tmp_path}", "train", "skip").skipped) == {"no answers": 1}
    path.unlink()
    with pytest.raises(UserError, match=r"no file v2_mscoco_train2014_annotations\.json"):
        splits_of(f"vqa-v2:{tmp_path}")
    put(tmp_path / "gqa", "train_balanced_questions.json", json.dumps({"1": gqa_entry("n1", "What?", "it"), "2": [3]}))
    put(tmp_path / "gqa", "images/n1.jpg", picture(9))
    assert dict(open_corpus(f"gqa:{tmp_path / 'gqa'}", "train", "skip").skipped) == {"wrong type": 1}
