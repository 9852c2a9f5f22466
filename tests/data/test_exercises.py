"""Rows of tasks in one form: tables beside a corpus, phrases of boxes, and what is said of faulty lines."""

import json

import pytest

from tests.data.pairs import row, with_pictures, write
from tuwen.data.exercises import exercises_of
from tuwen.data.open import open_corpus, splits_of
from tuwen.data.shards import write_shards
from tuwen.errors import UserError


def beside(folder, name, *lines):
    said = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    (folder / name).write_text("".join(line + "\n" for line in said))
    return folder / name


def asked(n=1, **more) -> dict:
    return {"id": f"q{n}", "image": f"images/{n}.png", "split": "train", **more}


def test_questions_beside_a_table_are_rows(tmp_path):
    folder = write(with_pictures(tmp_path), row(1), row(2))
    lines = [
        asked(1, question=" What is it? ", answers=["a dog", "dog"], lang="en", organ="HEAD"),
        asked(2, question="这是什么？", answers="狗"),
        asked(3, question="What?", split="test"),
    ]
    path = beside(folder, "vqa.jsonl", *lines)
    corpus = exercises_of(open_corpus(folder, "train"), "questions")
    rows = [corpus.record(k) for k in range(len(corpus))]
    assert [dict(r.texts) for r in rows] == [{"en": ["What is it?"]}, {"zh": ["这是什么？"]}]
    first = {"question": "What is it?", "answers": ["a dog", "dog"], "language": "en", "organ": "HEAD"}
    assert [dict(r.columns) for r in rows] == [first, {"question": "这是什么？", "answers": ["狗"], "language": "zh"}]
    assert [int(corpus.image(k)[0, 0, 0]) for k in range(2)] == [10, 20]
    assert exercises_of(corpus, "questions") is corpus
    assert splits_of(path) == ("test", "train")
    hidden = open_corpus(path, "test").record(0)
    assert hidden.columns["answers"] == []
    with pytest.raises(UserError, match=r"has no statements; rows need columns sentence and label, or a nlvr\.jsonl"):
        exercises_of(corpus, "statements")


def test_statements_on_one_picture_and_on_two(tmp_path):
    folder = write(with_pictures(tmp_path), row(1))
    two = {"id": "b", "images": ["images/2.png", "images/3.png"], "split": "train"}
    path = beside(folder, "nlvr.jsonl", two | {"sentence": "Both are grey.", "label": True}, asked(1, sentence="x"))
    with pytest.raises(UserError, match=r"nlvr.jsonl:2: 1 pictures, where the rows before have 2; give each as many"):
        open_corpus(path, "train")
    corpus = open_corpus(path, "train", "skip")
    assert (len(corpus), corpus.pictures, dict(corpus.skipped)) == (1, 2, {"number of pictures": 1})
    assert [int(picture[0, 0, 0]) for picture in corpus.shown(0)] == [20, 30]
    assert corpus.record(0).columns == {"sentence": "Both are grey.", "label": 1, "language": "en"}
    assert exercises_of(corpus, "pair statements") is corpus
    turned = {**two, "id": "c", "images": two["images"][::-1], "sentence": "So too.", "label": "False"}
    beside(folder, "nlvr.jsonl", two | {"sentence": "Both are grey.", "label": True}, turned)
    corpus = open_corpus(path, "train")
    assert [corpus.record(k).columns["label"] for k in range(2)] == [1, 0]
    assert corpus.record(0).image_id != corpus.record(1).image_id  # left and right are no set
    with pytest.raises(UserError, match="rows have 2 pictures, and shards hold one a row"):
        write_shards({"train": corpus}, tmp_path / "out")
    single = beside(folder, "nlvr.jsonl", asked(1, sentence="It is dark.", label=0))
    assert len(exercises_of(open_corpus(single, "train"), "statements")) == 1


def test_entailment(tmp_path):
    folder = write(with_pictures(tmp_path), row(1))
    lines = (asked(1, hypothesis="A dog sleeps.", premise="A dog.", label="neutral"), asked(2, hypothesis="No."))
    beside(folder, "entailment.jsonl", *lines)
    corpus = exercises_of(open_corpus(folder, "train"), "entailment")
    first = {"hypothesis": "A dog sleeps.", "label": "neutral", "language": "en", "premise": "A dog."}
    assert [corpus.record(k).columns for k in range(2)] == [
        first,
        {"hypothesis": "No.", "label": None, "language": "en"},
    ]


def test_phrases_of_boxes_are_rows_and_of_a_mixture_too(tmp_path):
    red, blue = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]
    things = [{"phrase": {"en": "a cap", "zh": "帽子"}, "box": red}, {"phrase": "a cap", "box": blue}]
    folder = write(with_pictures(tmp_path), row(1, objects=things), row(2, objects=[{"phrase": "a dog", "box": blue}]))
    table = open_corpus(folder, "train")
    corpus = exercises_of(table, "phrases")
    rows = [corpus.record(k) for k in range(len(corpus))]
    assert [dict(r.texts) for r in rows] == [{"en": ["a cap"]}, {"zh": ["帽子"]}, {"en": ["a dog"]}]
    assert rows[0].columns == {"phrase": "a cap", "box": red, "boxes": [red, blue], "language": "en"}
    assert [int(corpus.image(k)[0, 0, 0]) for k in range(3)] == [10, 10, 20]
    assert (corpus.languages, len({r.id for r in rows})) == (("en", "zh"), 3)
    assert len(exercises_of(open_corpus(f"mix:{folder}=1;{folder}=2", "train"), "phrases")) == 6


WRONG = {
    "vqa.jsonl": [
        ({"question": 3}, "a text is a string, not a int"),
        ({"question": ""}, "an empty text"),
        ({"answers": ["x"]}, "no key 'question'"),
        ({"quesiton": "x"}, "no key 'question' but 'quesiton'; rename it"),
        ({"question": "x" * 200_000}, "a text of 200,000 characters"),
        ({"question": "x", "answers": 5}, "answers are a list of at most 1000 texts, not 5"),
        ({"question": "x", "answers": [5]}, "an answer is a string, not a number"),
        ({"question": "x", "answers": ["y"] * 2000}, "answers are a list of at most 1000 texts"),
        ({"question": "x", "answers": ["y" * 9999]}, "an answer of 9,999 characters"),
        ({"question": "x", "lang": 5}, "lang is a number"),
        ({"question": "x", "lang": "../en"}, "'../en' is no language code"),
        ({"question": "x", "images": []}, "images are a list of 1 to 64 paths, in place of image"),
        ({"question": "x", "image": 5}, "image is a number; write a string"),
        ({"question": "x", "image": "images/9.png"}, "there is no such file"),
        ({"question": "x", "image": "../outside.png"}, "the path leaves the folder"),
        ({"question": "x", "text": "y", "label": 1, "image": "/etc/passwd"}, "not a path from the folder"),
    ],
    "nlvr.jsonl": [
        ({"sentence": "x", "label": 2}, "label is 2; write true or false"),
        ({"sentence": "x", "label": [10**4000]}, "write true or false"),
        ({"sentence": "x", "label": 10**4000}, "write true or false"),
        ({"sentence": "x", "label": "maybe"}, "label is 'maybe'"),
        ({"label": True}, "no key 'sentence'"),
    ],
    "entailment.jsonl": [
        ({"hypothesis": "x", "label": "entailed"}, "label is 'entailed'; it is one of entailment, neutral"),
        ({"hypothesis": "x", "label": {"a": 1}}, "it is one of entailment, neutral, contradiction"),
        ({"hypothesis": "x", "premise": [1]}, "a text is a string, not a list"),
    ],
}


@pytest.mark.parametrize(("name", "line", "what"), [(name, *pair) for name, pairs in WRONG.items() for pair in pairs])
def test_a_faulty_line_is_one_line(name, line, what, tmp_path):
    folder = with_pictures(tmp_path)
    good = {"vqa.jsonl": {"question": "a"}, "nlvr.jsonl": {"sentence": "a"}, "entailment.jsonl": {"hypothesis": "a"}}
    faulty = {k: v for k, v in asked(2).items() if k != "image" or "images" not in line} | line
    path = beside(folder, name, asked(1, **good[name]), faulty)
    with pytest.raises(UserError) as caught:
        open_corpus(path, "train")
    message = str(caught.value)
    assert f"{name}:2: " in message
    assert what in message
    assert "\n" not in message
    assert len(message) < 800
    corpus = open_corpus(path, "train", "skip")
    assert (len(corpus), sum(corpus.skipped.values())) == (1, 1)


def test_columns_of_any_name_are_the_users(tmp_path):
    """Keys that are called as arguments are in the code stay columns."""
    folder = with_pictures(tmp_path)
    path = beside(folder, "vqa.jsonl", asked(1, question="a", text="t", label=[1], self=1, kind="k"))
    assert {"text": "t", "label": [1], "self": 1, "kind": "k"}.items() <= open_corpus(path, "train").record(
        0
    ).columns.items()
